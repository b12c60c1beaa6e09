"""What tests of bad input share: ways to spoil a valid file, and the one law that every reader keeps.

The law: a reader gives a result, or a :class:`FeatcacheError` that is a sentence and names the file. Nothing else.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from featcache.errors import FeatcacheError

_BOUNDED = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
}
LONGEST_MESSAGE = 4000


def quick(examples: int = 40) -> settings:
    """Return settings for ``make test``: few examples, the same ones each time."""
    return settings(max_examples=examples, **_BOUNDED)


def thorough(examples: int = 700) -> settings:
    """Return settings for ``make test-heavy``."""
    return settings(max_examples=examples, **_BOUNDED)


def check_sentence(error: FeatcacheError, *names: str) -> None:
    """Assert that an error can be shown and stored: it names what it is about, ends as a sentence, and is no novel."""
    check_named(error, *names)
    message = str(error)
    # Layouts of corpora and addresses end without a full stop.
    assert re.search(r"[.?!]$|Expected:\n|https?://\S+$", message), f"does not end as a sentence: {message[-200:]!r}"
    assert not message.endswith("...."), message[-200:]
    assert len(message) <= LONGEST_MESSAGE, f"{len(message)} characters: {message[:200]!r}"
    message.encode()  # failures are kept in a cache's index


def check_named(error: FeatcacheError, *names: str) -> None:
    """Assert that an error names what it is about."""
    for name in names:
        assert name in str(error), f"{name!r} is not named by {str(error)[:500]!r}"


@dataclass(frozen=True)
class Subject:
    """A reader and a file that it takes.

    Attributes:
        valid: content of a good file.
        read: reads the file at a path, in a folder of its own.
        check: asserts what must hold of a result.
        file: name of the file.
        named: whether the message must hold the file's whole path; otherwise its name.
    """

    valid: bytes
    read: Callable[[Path], Any]
    check: Callable[[Any, Path], None]
    file: str
    named: str = ""


def law(subject: Subject, folder: Path, content: bytes) -> bool:
    """Assert the law for one content; return whether there was a result."""
    path = folder / subject.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    try:
        result = subject.read(path)
    except FeatcacheError as error:
        check_sentence(error, subject.named or str(path))
        return False
    subject.check(result, folder)
    return True


PIECES = [
    b"",
    b"\0",
    b"\n",
    b"\r",
    b"\r\n",
    b'"',
    b",",
    b";",
    b"\t",
    b"[",
    b"]",
    b"{",
    b"}",
    b":",
    b"=",
    b"-",
    b"1e999",
    b"NaN",
    b"-1",
    b"Infinity",
    b"1" + b"0" * 400,
    b"9" * 5000,
    b"null",
    b"true",
    b'"\\ud800"',
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    "\u2028\u202e\U0001f600".encode(),
    b"[" * 3000,
    b" " * 3000,
    b"\n" * 3000,
    b"x" * 140_000,
    b"\x1a",
    b"#",
    b"&a ",
    b"*a",
    b"!!int ",
]
"""What is put into files: separators, ends of lines, marks of other encodings, numbers that are none, much of one."""

_EDIT = st.tuples(
    st.sampled_from(["put", "replace", "flip", "cut", "double", "drop line", "double line", "swap lines"]),
    st.integers(0, 2**20),
    st.integers(0, 80),
    st.sampled_from(PIECES),
)


def spoilt(valid: bytes) -> st.SearchStrategy[bytes]:
    """Return a strategy of files that differ from a good one in up to four places, or in their encoding, or wholly."""
    edited = st.lists(_EDIT, min_size=1, max_size=4).map(lambda edits: _edited(valid, edits))
    encoded = st.sampled_from(["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "cp500"]).map(
        lambda name: valid.decode("utf-8", errors="replace").encode(name, errors="replace")
    )
    ends = st.sampled_from([b"\r\n", b"\r", b"\n\n", b"\0\n"]).map(lambda end: valid.replace(b"\n", end))
    return st.one_of(edited, edited, edited, edited, encoded, ends, st.binary(max_size=300))


def _edited(content: bytes, edits: list[tuple[str, int, int, bytes]]) -> bytes:
    for kind, place, length, piece in edits:
        place %= len(content) + 1
        end = min(place + length, len(content))
        lines = content.split(b"\n")
        line = place % len(lines)
        if kind == "put":
            content = content[:place] + piece + content[place:]
        elif kind == "replace":
            content = content[:place] + piece + content[end:]
        elif kind == "flip":
            content = (
                content[:place]
                + bytes(byte ^ (1 << length % 8) for byte in content[place : place + 1])
                + content[place + 1 :]
            )
        elif kind == "cut":
            content = content[:place]
        elif kind == "double":
            content = content[:end] + content[place:end] + content[end:]
        elif kind == "drop line":
            content = b"\n".join(lines[:line] + lines[line + 1 :])
        elif kind == "double line":
            content = b"\n".join([*lines[: line + 1], *lines[line:]])
        else:
            content = b"\n".join([*lines[line:], *lines[:line]])
    return content


_RAW = {
    "RAW:0": "1" + "0" * 400,
    "RAW:1": "1e999",
    "RAW:2": "-1e999",
    "RAW:3": "9" * 5000,
    "RAW:4": "[" * 100_000 + "]" * 100_000,
    "RAW:5": '{"a":' * 400 + "1" + "}" * 400,
    "RAW:6": "NaN",
    "RAW:7": "-0.0",
    "RAW:8": '{"id": 1, "id": 2}',
}
TEXTS = [
    "",
    " ",
    "a",
    "..",
    "../../x",
    "/etc/passwd",
    "a/b\\c",
    "\0",
    "\ud800",
    "\u202eabc",
    "\n",
    "é" * 3,
    "x" * 10_000,
    "💥",
]
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    10**18,
    -(10**30),
    0.5,
    -0.5,
    1e-300,
    1e300,
    [],
    {},
    [[]],
    {"a": None},
    [1, "a", None],
    *TEXTS,
    *_RAW,
]
"""JSON values of every kind, of which most are of the wrong one wherever they are put."""


def replaced(document: Any) -> st.SearchStrategy[bytes]:
    """Return a strategy of JSON texts in which some values of a document are others, missing, or have other names."""
    change = st.tuples(
        st.integers(0, 2**16),
        st.sampled_from(["value", "value", "value", "drop", "double", "key"]),
        st.sampled_from(VALUES),
    )
    return st.lists(change, min_size=1, max_size=3).map(lambda changes: _as_json(_changed(document, changes)))


def _changed(document: Any, changes: list[tuple[int, str, Any]]) -> Any:
    for place, kind, value in changes:
        document = json.loads(json.dumps(document))
        nodes = list(_nodes(document))
        if not nodes:
            return value
        parent, key = nodes[place % len(nodes)]
        if kind == "value":
            parent[key] = value
        elif kind == "drop":
            del parent[key]
        elif isinstance(parent, list):
            parent.insert(key, parent[key])
        else:
            parent[value if isinstance(value, str) else str(key) + "2"] = (
                parent.pop(key) if kind == "key" else parent[key]
            )
    return document


def _nodes(document: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(document) if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else []
    for key in keys:
        yield document, key
        yield from _nodes(document[key])


def _as_json(document: Any) -> bytes:
    text = json.dumps(document)
    for mark, raw in _RAW.items():
        text = text.replace(json.dumps(mark), raw)
    return text.encode()
