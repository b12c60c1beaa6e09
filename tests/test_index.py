"""An index that is read is the one that was written, under the name of what it says; anything else names the file."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from featcache.errors import CacheError
from featcache.index import FORMAT, Entry, Index

INDEX = Index(
    stream="made-00000000",
    backend="zarr",
    tier="frames",
    entries=tuple(Entry(f"u{n}", f"{n:032x}", 3 * n, 3, f"{n:08x}", n % 2) for n in range(5)),
    failures={"v": "too short", "w": "no \u00e4udio"},
    failed_generations={"w": 2},
    arrays={"frames": {"dtype": "float16", "shape": [2, 15, 4]}},
    int8_errors={"u0": [0.01, 0.02]},
)


@pytest.mark.parametrize(
    "index",
    [INDEX, replace(INDEX, failed_generations={}, int8_errors={}), replace(INDEX, entries=(), arrays={})],
    ids=["everything", "as earlier releases", "failures alone"],
)
def test_what_is_read_is_what_was_written(tmp_path: Path, index: Index) -> None:
    index.write(tmp_path, tmp_path)
    [path] = tmp_path.iterdir()
    read = Index.read(path)
    assert read == index
    assert all(isinstance(entry, Entry) for entry in read.entries)
    assert read.name == path.stem == replace(read).name  # as read, and from what was read


def test_the_wording_of_a_failure_is_no_part_of_the_name() -> None:
    assert replace(INDEX, failures={"w": "other", "v": "words"}).name == INDEX.name
    assert replace(INDEX, failures={"v": "too short"}).name != INDEX.name


def entry(values: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = values["entries"][2]
    return found


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda values: entry(values).update(checksum="ffffffff"), "does not match its name"),
        (lambda values: entry(values).update(generation=7), "does not match its name"),
        (lambda values: values["entries"].pop(), "does not match its name"),
        (lambda values: values.update(compressed=True), "does not match its name"),
        (lambda values: values.update(failures={}), "does not match its name"),
        (lambda values: entry(values).pop("input"), "is damaged"),
        (lambda values: entry(values).update(further=1), "is damaged"),
        (lambda values: values.update(further=1), "is damaged"),
        (lambda values: values.pop("stream"), "is damaged"),
        (lambda values: values.pop("failures"), "is damaged"),
        (lambda values: values.update(failures=None), "is damaged"),
        (lambda values: values.update(entries=[1]), "is damaged"),
        (lambda values: values.update(entries=None), "is damaged"),
        (lambda values: values.pop("format"), "is damaged"),
        (lambda values: values.update(format=FORMAT + 1), f"has format {FORMAT + 1}"),
    ],
)
def test_an_index_that_says_something_else_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], told: str
) -> None:
    INDEX.write(tmp_path, tmp_path)
    [path] = tmp_path.iterdir()
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(CacheError, match=told) as error:
        Index.read(path)
    assert repr(str(path)) in str(error.value)
