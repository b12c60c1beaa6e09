"""Token ids are those of the tokenizer, special ones included, and are kept exactly."""

from pathlib import Path

import numpy as np
import pytest
import torch
from makers import speech_checkpoint, write_corpus
from text_makers import FAMILIES, text_checkpoint
from transformers import AutoTokenizer

import featcache
from featcache import ge2e
from featcache.errors import CheckpointError, ConfigError, StreamError
from featcache.extract import Options, extract
from featcache.settings import build
from featcache.streams.token_states import TokenStates
from featcache.streams.tokens import TokenIds
from featcache.verify import verify
from featcache.view import View

TEXTS = ["The weather is lovely today.", "it's", "so happy, so sad!"]


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_checkpoint(tmp_path_factory.mktemp("text") / request.param, request.param)


def ids(stream: TokenIds, text: str) -> list[int]:
    [features] = stream.load("cpu", "float32").extract([text])
    assert features.frames.dtype == np.int32
    assert (features.frames.shape[0], features.frames.shape[2]) == (1, 1)
    return [int(number) for number in features.frames[0, :, 0]]


def test_ids_equal_the_tokenizers(checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for text in TEXTS:
        assert ids(TokenIds(str(checkpoint)), text) == tokenizer(text)["input_ids"]


def test_ids_are_those_of_token_states_with_special_tokens(checkpoint: Path) -> None:
    states = TokenStates(str(checkpoint), special_tokens=True).load("cpu", "float32")
    for text, features in zip(TEXTS, states.extract(TEXTS), strict=True):
        assert ids(TokenIds(str(checkpoint)), text) == features.frame_arrays["token_ids"].tolist()


def test_the_longest_text_fits_every_family(checkpoint: Path) -> None:
    unlimited = checkpoint.name == "xlnet"
    assert len(ids(TokenIds(str(checkpoint), truncate=True), "so " * 100)) == (102 if unlimited else 64)


@pytest.mark.parametrize("backend", ["zarr", "hdf5"])
@pytest.mark.parametrize("compress", [False, True])
def test_the_cache_keeps_them_exactly_whatever_is_asked_for(tmp_path: Path, backend: str, compress: bool) -> None:
    stream = TokenIds(str(text_checkpoint(tmp_path / "model")))
    manifest = write_corpus(tmp_path / "corpus", [0.1] * 5)
    options = Options(device="cpu", backend=backend, dtype="int8", tier="stats", compress=compress)
    summary = extract(manifest, tmp_path / "cache", stream, options)
    assert (summary.computed, summary.failures) == (manifest.ids, {})
    assert summary.stream == stream.spec("float32").name
    held = featcache.open(tmp_path / "cache")["tokens"]
    expected = {utterance.id: ids(stream, utterance.text or "") for utterance in manifest}
    for name, numbers in expected.items():
        assert held[name].dtype == np.int32
        assert held[name][0, :, 0].tolist() == numbers
    assert verify(tmp_path / "cache") == (5, [])
    frames, lengths = View(held, manifest.ids).padded(torch.arange(5))
    for row, length, name in zip(frames, lengths.tolist(), manifest.ids, strict=True):
        assert row[0, :length, 0].to(torch.int64).tolist() == expected[name]
    assert extract(manifest, tmp_path / "cache", stream, options).computed == []


def test_a_part_damaged_in_one_id_is_found(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path / "corpus", [0.1] * 2)
    stream = TokenIds(str(text_checkpoint(tmp_path / "model")))
    extract(manifest, tmp_path / "cache", stream, Options(device="cpu"))
    [shard] = (tmp_path / "cache").glob("tokens-*/part-*/frames/c/0/0/0")
    damaged = bytearray(shard.read_bytes())
    damaged[0] += 1
    shard.write_bytes(damaged)
    _, problems = verify(tmp_path / "cache")
    assert any("the bytes of 'u000' changed" in problem.what for problem in problems)


def test_a_text_that_is_too_long_is_refused_or_visibly_cut(tmp_path: Path) -> None:
    folder = str(text_checkpoint(tmp_path / "t"))
    with pytest.raises(StreamError, match="4 tokens, more than the 3"):
        ids(TokenIds(folder, max_tokens=3), "so happy so sad")
    stream = TokenIds(folder, max_tokens=3, truncate=True)
    [cut] = stream.load("cpu", "float32").extract(["so happy so sad"])
    assert cut.utterance_arrays["tokens_cut"] == 1
    assert cut.frames[0, :, 0].tolist() == ids(TokenIds(folder), "so happy so")
    with pytest.raises(ConfigError, match="takes at most 62 besides special tokens"):
        ids(TokenIds(folder, max_tokens=63), "so")


def test_a_text_without_a_token_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StreamError, match="gives no token"):
        ids(TokenIds(str(text_checkpoint(tmp_path / "t"))), " ")


def test_everything_that_decides_ids_changes_the_digest_and_types_do_not(tmp_path: Path) -> None:
    folder = str(text_checkpoint(tmp_path / "t"))
    base = TokenIds(folder)
    specs = [
        base.spec(),
        TokenIds(folder, max_tokens=5).spec(),
        TokenIds(folder, truncate=True).spec(),
        TokenIds(str(text_checkpoint(tmp_path / "cased" / "t", lower=False))).spec(),
        TokenIds(str(text_checkpoint(tmp_path / "other" / "t", seed=1))).spec(),
    ]
    assert len({spec.digest for spec in specs}) == len(specs)
    assert base.spec("float32", "bfloat16").digest == base.spec().digest
    assert specs[0].checkpoint == TokenStates(folder).spec().checkpoint


def test_settings_come_from_text() -> None:
    assert build(TokenIds, {"checkpoint": "x", "max_tokens": "12"}, "stream tokens") == TokenIds("x", max_tokens=12)
    with pytest.raises(ConfigError, match="max_tokens must be at least 1"):
        build(TokenIds, {"max_tokens": 0}, "stream tokens")


def test_an_encoder_with_a_decoder_is_refused(tmp_path: Path) -> None:
    from transformers import T5Config, T5Model

    T5Model(T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(
        tmp_path / "t5"
    )
    with pytest.raises(CheckpointError, match="with a decoder; tokens takes encoders"):
        TokenIds(str(tmp_path / "t5")).spec()


def test_an_encoder_of_speech_is_refused_before_anything_loads(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="of type 'wav2vec2', an encoder of speech; tokens takes text encoders"):
        TokenIds(str(speech_checkpoint(tmp_path / "w"))).spec()
    ge2e.save_encoder(tmp_path / "fold1", ge2e.load_weights())
    with pytest.raises(CheckpointError, match="of type 'ge2e'.* use the stream ge2e_states"):
        TokenIds(str(tmp_path / "fold1")).spec()
