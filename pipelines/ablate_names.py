"""What the runs of an ablation are called: what differs, as a folder can be called."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from featcache.files import canonical_json

_LONGEST = 120


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return what each dotted key is called in names: its last part, where no other key ends in the same."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}


def value_text(value: Any) -> str:
    """Return a value as a name shows it."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return "+".join(value_text(item) for item in value)
    return _digest(value) if isinstance(value, Mapping) else str(value)


def folder_name(parts: Sequence[str]) -> str:
    """Return parts as the name of a folder, with commas between; a digest of all stands for what had to be cut."""
    plain = ",".join(parts)
    name = re.sub(r"[^\w.,+=~-]+", "-", plain).lstrip(".-")
    if len(name.encode()) > _LONGEST:
        name = name.encode()[:_LONGEST].decode(errors="ignore")
    return name if name == plain else f"{name}~{_digest(plain)}"


def suggestion(name: str, known: Sequence[str]) -> str:
    """Return a question after what is meant, with a space before it; nothing where nothing is like it."""
    ending = [one for one in known if one.rpartition(".")[2] == name]
    like = ending or get_close_matches(name, known, 1, 0.6)
    return f" Did you mean {like[0]!r}?" if like else ""


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()[:8]
