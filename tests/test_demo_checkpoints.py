"""Demo checkpoints are the same wherever they are built, say that they are random, and fit the streams they are for."""

import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers import tone
from transformers import AutoModel

from featcache import checkpoints, demo_checkpoints, registry
from featcache.errors import CheckpointError, UnknownNameError
from featcache.settings import build
from featcache.stream import Features, Stream

SPEECH = ("demo:hubert", "demo:wav2vec2", "demo:wav2vec2-base")
TEXT = ("demo:bert", "demo:roberta")
TEXTS = ["Don't you dare tell me this was my fault!", "Z\u00fcrich [SEP] <s> 7 \u20ac"]
FITTING = [
    *((kind, name) for kind in ("conv_features", "hidden_states") for name in SPEECH),
    *((kind, name) for kind in ("token_states", "tokens") for name in TEXT),
]


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Build in a folder of the tests' own, not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache-home")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


def stream_of(kind: str, name: str, **settings: Any) -> Stream:
    values = {"checkpoint": name, **settings}
    return build(registry.load("featcache.streams", kind, Stream), values, f"stream {kind}")


def compute(kind: str, name: str, inputs: list[Any], **settings: Any) -> list[Features]:
    computed = stream_of(kind, name, **settings).load("cpu", "float32").extract(inputs)
    return [features for features in computed if isinstance(features, Features)]


def content(folder: Path) -> Mapping[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_demo_checkpoint_is_tested() -> None:
    assert demo_checkpoints.names() == sorted((*SPEECH, *TEXT))


@pytest.mark.parametrize("name", [*SPEECH, *TEXT])
def test_a_checkpoint_built_elsewhere_has_the_same_bytes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = checkpoints.resolve(name)
    torch.manual_seed(1234)
    state = torch.random.get_rng_state()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    again = checkpoints.resolve(name)
    assert again.folder.is_relative_to(tmp_path / "featcache" / "demo-checkpoints")
    assert content(again.folder) == content(before.folder)
    assert again.identity() == before.identity()
    assert [path.name for path in again.folder.parent.iterdir()] == [again.folder.name]
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", [*SPEECH, *TEXT])
def test_it_says_that_it_is_random_and_so_do_copies_of_it(name: str, tmp_path: Path) -> None:
    checkpoint = checkpoints.resolve(name)
    assert checkpoint.identity()["random"] == "true"
    assert checkpoint.identity()["name"] == name
    model = AutoModel.from_pretrained(checkpoint.folder)
    model.save_pretrained(tmp_path / "tuned")
    assert checkpoints.resolve(str(tmp_path / "tuned")).identity()["random"] == "true"
    config = json.loads((tmp_path / "tuned" / "config.json").read_text())
    del config[demo_checkpoints.RANDOM]
    (tmp_path / "tuned" / "config.json").write_text(json.dumps(config))
    assert "random" not in checkpoints.resolve(str(tmp_path / "tuned")).identity()


def test_weights_of_two_of_one_shape_differ() -> None:
    one, other = (checkpoints.resolve(name) for name in ("demo:hubert", "demo:wav2vec2"))
    assert one.weights_sha256 != other.weights_sha256


@pytest.mark.parametrize(("kind", "name"), FITTING)
def test_it_fits_its_streams_and_tells_utterances_apart(kind: str, name: str) -> None:
    inputs: list[Any] = list(TEXTS) if name in TEXT else [tone(0.5, seed=1), tone(0.5, seed=2)]
    spec = stream_of(kind, name).spec()
    assert (spec.checkpoint or {})["random"] == "true"
    one, other = (features.frames for value in inputs for features in compute(kind, name, [value]))
    assert one.shape[::2] == other.shape[::2] == (len(spec.layers), spec.dim)
    if kind == "tokens":
        assert one[0, :, 0].tolist() != other[0, :, 0].tolist()
        return
    assert np.isfinite(one).all()
    # Neither all alike nor exploding: a layer is about as large as the one below.
    assert (one.std(axis=1).mean(axis=1) > 0.05).all()
    assert one.std() < 10
    assert np.abs(one.mean(axis=1) - other.mean(axis=1)).max() > 0.1


def test_front_ends_are_of_both_kinds() -> None:
    norms = {name: checkpoints.resolve(name).config["feat_extract_norm"] for name in SPEECH}
    assert norms == {"demo:hubert": "layer", "demo:wav2vec2": "layer", "demo:wav2vec2-base": "group"}


@pytest.mark.parametrize(
    ("name", "first", "last", "words"),
    [
        ("demo:bert", "[CLS]", "[SEP]", ["don", "'", "t", "you", "dare"]),
        ("demo:roberta", "<s>", "</s>", ["Don", "'t", "\u0120you"]),
    ],
)
def test_tokenizers_know_the_demo_corpus(name: str, first: str, last: str, words: list[str]) -> None:
    tokenizer = checkpoints.load_tokenizer(checkpoints.resolve(name))
    [features] = compute("tokens", name, [TEXTS[0]])
    tokens = tokenizer.convert_ids_to_tokens(features.frames[0, :, 0].tolist())
    assert (tokens[0], tokens[-1]) == (first, last)
    assert tokens[1 : 1 + len(words)] == words


@pytest.mark.parametrize("name", TEXT)
def test_the_longest_text_fits(name: str) -> None:
    [features] = compute("token_states", name, ["so " * 1000], truncate=True, special_tokens=True)
    assert features.frames.shape[1] == 512
    assert features.utterance_arrays["tokens_cut"] > 0


def test_any_text_can_be_spelt_by_bytes() -> None:
    tokenizer = checkpoints.load_tokenizer(checkpoints.resolve("demo:roberta"))
    ids = tokenizer(TEXTS[1], split_special_tokens=True, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == TEXTS[1]


def test_several_that_build_at_once_all_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    together = threading.Barrier(3, timeout=30)

    def build_together(*arguments: Any) -> None:
        together.wait()
        made.append(arguments)
        (arguments[1]).mkdir()
        (arguments[1] / "config.json").write_text("{}")
        together.wait()

    made: list[Any] = []
    monkeypatch.setattr(demo_checkpoints, "_build", build_together)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(demo_checkpoints.folder("demo:bert"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == len(found) == 3
    assert len(set(found)) == 1
    assert [path.name for path in found[0].parent.iterdir()] == [found[0].name]


def test_a_build_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, made: Path) -> None:
        made.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(demo_checkpoints, "_build", fail)
    with pytest.raises(CheckpointError, match="'demo:bert' cannot be built in .*: No space left.* Set XDG_CACHE_HOME"):
        checkpoints.resolve("demo:bert")
    assert not list((tmp_path / "featcache" / "demo-checkpoints").iterdir())


def test_a_name_that_is_none_is_answered_with_those_there_are() -> None:
    with pytest.raises(UnknownNameError, match="no demo checkpoint 'demo:wavlm'. Known: demo:bert, demo:hubert"):
        checkpoints.resolve("demo:wavlm")


def test_a_relative_cache_folder_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The XDG base directory specification says so.
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(demo_checkpoints, "_build", lambda name, made: made.mkdir())
    assert demo_checkpoints.folder("demo:bert").is_relative_to(tmp_path / ".cache")


def test_naming_them_imports_no_heavy_package() -> None:
    code = (
        "import sys\nfrom featcache import demo_checkpoints\ndemo_checkpoints.names()\n"
        "print(*{'torch', 'transformers', 'tokenizers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
