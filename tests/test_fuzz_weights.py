"""Weights and configurations that would run code, or claim to be huge: nothing runs, and a sentence says why."""

import json
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fuzzing import check_sentence
from test_aligners_imported import CONTENT, read, textgrid
from test_report import make_scores, write_small_run
from test_textgrids import PHONES, WORDS, text_of
from text_makers import text_checkpoint

from featcache import Manifest, Utterance, checkpoints
from featcache.aligners.textgrid import Textgrid
from featcache.alignment import Alignment
from featcache.errors import CheckpointError, FeatcacheError, ScoresError, StreamError
from featcache.textgrids import parse_textgrid
from heads.runs import read_run, write_run
from heads.unfinished import Unfinished
from pipelines.codes import read_weights


class Marked:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "code_ran"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return text_checkpoint(tmp_path / "small-bert")


def poison(path: Path, marker: Path, form: str) -> None:
    if form == "plain":
        path.write_bytes(pickle.dumps(Marked(marker)))
    elif form == "old protocol":
        path.write_bytes(pickle.dumps({"a": Marked(marker)}, protocol=0))
    else:
        torch.save(
            {"embeddings.word_embeddings.weight": Marked(marker)}, path, _use_new_zipfile_serialization=form == "zip"
        )


def test_the_marker_marks(tmp_path: Path, marker: Path) -> None:
    poison(tmp_path / "x", marker, "plain")
    pickle.loads((tmp_path / "x").read_bytes())  # noqa: S301
    assert marker.exists()


FORMS = ["plain", "old protocol", "zip", "legacy"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_for_weights_runs_nothing(folder: Path, marker: Path, form: str, file: str) -> None:
    (folder / "model.safetensors").unlink()
    poison(folder / file, marker, form)
    with pytest.raises(CheckpointError, match="cannot be loaded by transformers") as caught:
        checkpoints.load_model(checkpoints.resolve(str(folder)), "cpu")
    check_sentence(caught.value, "small-bert")
    assert not marker.exists()


@pytest.mark.parametrize("form", FORMS)
def test_a_pickle_among_shards_runs_nothing(folder: Path, marker: Path, form: str) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"embeddings.word_embeddings.weight": "pytorch_model-1.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    poison(folder / "pytorch_model-1.bin", marker, form)
    with pytest.raises(CheckpointError):
        checkpoints.load_model(checkpoints.resolve(str(folder)), "cpu")
    assert not marker.exists()


@pytest.mark.parametrize("form", FORMS)
def test_a_pickle_in_a_run_runs_nothing(tmp_path: Path, marker: Path, form: str) -> None:
    run = write_small_run(tmp_path / "run")
    poison(run / "weights.safetensors", marker, form)
    read_run(run)
    with pytest.raises(ScoresError, match=r"weights\.safetensors' is damaged"):
        read_weights(run)
    (tmp_path / "unfinished").mkdir()
    poison(tmp_path / "unfinished" / "job.safetensors", marker, form)
    assert Unfinished(tmp_path / "unfinished").load("job") is None
    assert not marker.exists()


CODE = "import os\nos.mkdir({marker!r})\nfrom transformers import {base}\nclass Evil({base}): pass\n"


def with_code(folder: Path, marker: Path) -> None:
    for name in ("modeling_evil", "configuration_evil", "tokenization_evil", "__init__"):
        (folder / f"{name}.py").write_text(CODE.format(marker=str(marker), base="PreTrainedModel"))


REMOTE: dict[str, dict[str, Any]] = {
    "auto_map": {"auto_map": {"AutoModel": "modeling_evil.Evil", "AutoConfig": "configuration_evil.Evil"}},
    "auto_map of another": {"auto_map": {"AutoModel": "evil/repo--modeling_evil.Evil"}},
    "auto_map inside": {"text_config": {"auto_map": {"AutoModel": "modeling_evil.Evil"}}},
    "kernel": {"attn_implementation": "evil/kernel"},
    "kernel inside": {"encoder": {"_attn_implementation": "evil/kernel@main:run"}},
    "kernels by name": {"_attn_implementation_internal": {"": "evil/kernel"}},
    "flash attention": {"attn_implementation": "flash_attention_3"},
    "experts": {"_experts_implementation": "evil/kernel"},
}


@pytest.mark.parametrize("changes", REMOTE.values(), ids=REMOTE)
def test_a_checkpoint_that_asks_for_code_is_refused_and_told_that_there_is_no_way(
    folder: Path, marker: Path, changes: dict[str, Any]
) -> None:
    with_code(folder, marker)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(CheckpointError, match="does not run code that comes with weights, and has no option") as caught:
        checkpoints.resolve(str(folder))
    check_sentence(caught.value, "small-bert")
    assert not marker.exists()


def test_code_in_the_folder_that_nothing_asks_for_does_not_run(folder: Path, marker: Path) -> None:
    with_code(folder, marker)
    checkpoint = checkpoints.resolve(str(folder))
    checkpoints.load_model(checkpoint, "cpu")
    checkpoints.load_tokenizer(checkpoint)
    assert not marker.exists()


@pytest.mark.parametrize("model_type", ["bert", "evilmodel"])
def test_a_tokenizer_that_asks_for_code_does_not_run_it(folder: Path, marker: Path, model_type: str) -> None:
    with_code(folder, marker)
    asked = {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_evil.Evil"] * 2}}
    (folder / "tokenizer_config.json").write_text(json.dumps(asked))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
    with pytest.raises(CheckpointError, match="The tokenizer of 'small-bert' cannot be loaded") as caught:
        checkpoints.load_tokenizer(checkpoints.resolve(str(folder)))
    check_sentence(caught.value)
    assert "trust_remote_code" not in str(caught.value)  # which nobody can set here
    assert not marker.exists()


def raw_safetensors(header: object, size: int | None = None, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return (len(text) if size is None else size).to_bytes(8, "little") + text + data


HUGE: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "layers": lambda config: {**config, "num_hidden_layers": 10**9},
    "layers inside": lambda config: {**config, "text_config": [{"num_layers": 10**9}]},
    "labels": lambda config: {**config, "num_labels": 10**9},
    "groups": lambda config: {**config, "num_hidden_groups": 10**9},
    "vocabulary": lambda config: {**config, "vocab_size": 10**12},
    "width": lambda config: {**config, "hidden_size": 10**9, "num_attention_heads": 1},
    "positions": lambda config: {**config, "max_position_embeddings": 10**12},
}


@pytest.mark.parametrize("change", HUGE.values(), ids=HUGE)
def test_a_configuration_that_claims_to_be_huge_is_refused_at_once(
    folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    checkpoints.load_model(checkpoints.resolve(str(folder)), "cpu")  # what is imported on first use
    path = folder / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    started = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load_model(checkpoints.resolve(str(folder)), "cpu")
    check_sentence(caught.value, "small-bert")
    assert time.process_time() - started < 5


WEIGHTS = {
    "a tensor of terabytes": raw_safetensors(
        {"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}
    ),
    "a header of exabytes": raw_safetensors({}, 2**62),
    "a deep header": (2 * 10**5).to_bytes(8, "little") + b"[" * 10**5 + b"]" * 10**5,
    "nothing": b"",
    "half a length": b"\x08\0\0",
    "overlapping": raw_safetensors(
        {
            "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        },
        None,
        b"\0" * 4,
    ),
    "a negative shape": raw_safetensors(
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, None, b"\0" * 4
    ),
}


@pytest.mark.parametrize("content", WEIGHTS.values(), ids=WEIGHTS)
def test_weights_that_lie_about_their_size_are_refused_at_once(folder: Path, tmp_path: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be loaded") as caught:
        checkpoints.load_model(checkpoints.resolve(str(folder)), "cpu")
    check_sentence(caught.value, "small-bert")
    run = write_small_run(tmp_path / "run")
    (run / "weights.safetensors").write_bytes(content)
    with pytest.raises(ScoresError, match=r"weights\.safetensors' is damaged"):
        read_weights(run)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"x": 1e999}', "is not JSON"),
        (b'{"x": "\\ud800"}', "is not JSON"),
        (b'{"\\ud800": 1}', "is not JSON"),
        (b"\xff\xfe{\0}\0", "is not JSON"),
    ],
)
def test_a_configuration_that_no_digest_is_of_is_named(folder: Path, content: bytes, problem: str) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=problem) as caught:
        checkpoints.resolve(str(folder)).identity()
    check_sentence(caught.value, str(folder / "config.json"))


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/etc/passwd", "a\0b", "x" * 5000, "\ud800", 5, None, ["a"]])
def test_an_index_of_weights_names_plain_files(folder: Path, name: object) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="must name files beside it|is not an index of weights") as caught:
        checkpoints.resolve(str(folder))
    check_sentence(caught.value, "model.safetensors.index.json")


@pytest.mark.parametrize("name", ["/" + "x" * 5000, "x" * 5000, "a\0b", "~nobody/x", "./" + "y/" * 3000])
def test_a_name_that_is_no_path_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError):
        checkpoints.resolve(name)


# A run's configuration.


CONFIGS = {
    "code": "a: !!python/object/apply:os.mkdir [{marker!r}]",
    "code by name": "a: !!python/name:os.system",
    "a date that is none": "a: 2020-13-45",
    "a time that is none": "a: 2001-01-01T00:00:00+99:99",
    "a tag that does not fit": "a: !!timestamp foo",
    "an empty number": 'a: !!int ""',
    "no number": "a: !!float x",
    "no truth": "a: !!bool x",
    "many digits": "a: " + "1" * 5000,
    "many minutes": "a: 1" + ":59" * 300 + ".5",
    "depth": "[" * 5000,
    "some depth": "a: " + "[" * 60 + "]" * 60,
    "itself": "a: &x [*x]",
    "itself by a long way": "a: &x {b: [1, {c: *x}]}",
    "laughter": "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)),
    "no text": "\0",
}


@pytest.mark.parametrize("content", CONFIGS.values(), ids=CONFIGS)
def test_a_configuration_that_is_none_is_named_and_runs_nothing(tmp_path: Path, marker: Path, content: str) -> None:
    run = write_small_run(tmp_path / "run")
    (run / "config.yaml").write_text(content.replace("{marker!r}", repr(str(marker))))
    started = time.process_time()
    with pytest.raises(ScoresError) as caught:
        read_run(run)
    check_sentence(caught.value, str(run / "config.yaml"))
    assert time.process_time() - started < 5
    assert not marker.exists()


def test_a_configuration_may_say_one_thing_twice(tmp_path: Path) -> None:
    layers = [1, 2]
    write_run(tmp_path, make_scores(), None, {"a": layers, "b": layers})
    assert "&id" in (tmp_path / "config.yaml").read_text()  # or this test shows nothing
    config = read_run(tmp_path).config
    assert yaml.safe_dump(config) == yaml.safe_dump({"a": layers, "b": layers})


# What an alignment's files may hold.


@pytest.mark.parametrize(
    "column",
    [
        "../../../evil",
        "/srv/evil",
        "a/b",
        "frames",
        "label",
        "duration_s",
        "offsets",
        "ids",
        "mean",
        "",
        ".",
        "x\0",
        "zarr.json",
        "é",
    ],
)
def test_a_column_of_mfas_analysis_is_no_name_of_an_array_unless_it_looks_like_one(tmp_path: Path, column: str) -> None:
    (tmp_path / "u1.TextGrid").write_bytes(textgrid())
    (tmp_path / "alignment_analysis.csv").write_text(f"file,snr,{column}\nu1,1.5,2.5\n", encoding="utf-8")
    one = Utterance("u1", audio="u1.wav")
    aligner = Textgrid(folder=str(tmp_path)).bind(Manifest([one], folder=tmp_path))
    assert aligner.quality_names == ("snr",)
    assert aligner.attachment(one).value.further == {"snr": 1.5}


GRID = textgrid().decode()
SLOW = {
    "textgrid, a million empty lines": ("textgrid", GRID + "\n" * 10**6),
    "textgrid, a million spaces": ("textgrid", GRID + " " * 10**6),
    "textgrid, empty lines in a label": ("textgrid", GRID.replace("AH0", "\n" * 300_000)),
    "textgrid, many tiers": ("textgrid", GRID + '"IntervalTier"\n"' * 100_000),
    "gentle, a bracket that nothing closes": (
        "gentle",
        json.dumps({**json.loads(CONTENT["gentle"]), "transcript": "[" + " " * 20_000}),
    ),
    "gentle, brackets that nothing closes": (
        "gentle",
        json.dumps({**json.loads(CONTENT["gentle"]), "transcript": "[ a" * 100_000}),
    ),
    "gentle, words among tokens": (
        "gentle",
        json.dumps(
            {
                "transcript": "[a] " * 20_000,
                "words": [
                    {"word": "a", "start": n / 1e6, "end": (n + 1) / 1e6, "startOffset": 5 * n} for n in range(20_000)
                ],
            }
        ),
    ),
    "xlabel, a line of spaces": ("xlabel", "#\n0.1 " + " " * 10**6 + "\n"),
    "intervals, a field of megabytes": ("intervals", "tier,start_s,end_s,label\nphones,0,1," + "x" * 10**7),
}


@pytest.mark.parametrize(("name", "content"), SLOW.values(), ids=SLOW)
def test_the_time_to_read_an_alignment_grows_with_its_size_alone(tmp_path: Path, name: str, content: str) -> None:
    started = time.process_time()
    outcome = read(tmp_path, name, content.encode())
    assert time.process_time() - started < 4
    assert isinstance(outcome, Alignment | FeatcacheError)


def test_a_bracket_in_the_manifests_text_costs_little(tmp_path: Path) -> None:
    started = time.process_time()
    outcome = read(tmp_path, "gentle", CONTENT["gentle"], text="[" + " " * 20_000)
    assert isinstance(outcome, Alignment)
    assert time.process_time() - started < 2


def test_a_textgrid_is_no_json_and_no_time_is_negative(tmp_path: Path) -> None:
    document = {"ooTextFile": "TextGrid", "xmin": 0, "xmax": 1, "tiers": [{"class": 3, "name": 5, "entries": []}]}
    for content in (json.dumps(document), json.dumps([document]), '"ooTextFile TextGrid"'):
        with pytest.raises(StreamError, match=r"x\.TextGrid") as caught:
            parse_textgrid(content.encode(), Path("x.TextGrid"))
        check_sentence(caught.value)
    grid = text_of({"words": WORDS, "phones": PHONES})
    with pytest.raises(StreamError, match=r"x\.TextGrid holds the negative time -0\.1\."):
        parse_textgrid(grid.replace("xmin = 0.1 ", "xmin = -0.1 ").encode(), Path("x.TextGrid"))
    zero = parse_textgrid(grid.replace("xmin = 0.0 ", "xmin = -0 ").encode(), Path("x.TextGrid"))
    assert zero.phones == parse_textgrid(grid.encode(), Path("x.TextGrid")).phones
    for count in ("1000000000000", "1" * 5000):
        with pytest.raises(StreamError, match="it is damaged or was cut off") as caught:
            parse_textgrid(grid.replace("size = 6", f"size = {count}").encode(), Path("x.TextGrid"))
        check_sentence(caught.value)
