"""Dictionaries in the CMU dictionary's form: a word and its phones a line, further pronunciations as ``word(2)``."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from featcache.errors import ConfigError

VARIANT = re.compile(r"\(\d+\)$")
"""What a further pronunciation adds to its word."""


def read(path: str) -> dict[str, list[str]]:
    """Return words in lower case and their pronunciations, phones separated by spaces and without stress.

    Raises:
        ConfigError: the file cannot be read, or a line is not a word and its phones.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The dictionary {path!r} cannot be read: {error}. Give a UTF-8 file.") from None
    found: dict[str, list[str]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith((";;;", "#")):
            continue
        word, *phones = line.split(" #")[0].split()  # newer copies of the CMU dictionary end a line with a remark
        plain = [re.sub(r"\d$", "", phone).upper() for phone in phones]
        if not phones or not all(re.fullmatch(r"[A-Z]+|\+[A-Z]+\+", phone) for phone in plain):
            raise ConfigError(
                f"Line {number} of the dictionary {path!r} is {line[:60]!r} where a word and its phones were expected, "
                "such as 'dashwood  D AE SH W UH D'."
            )
        found.setdefault(VARIANT.sub("", word.lower()), []).append(" ".join(plain))
    return found


def merged(path: Path, own: Mapping[str, Sequence[str]], target: Path) -> Path:
    """Write a dictionary in which the user's words replace the wheel's, pronunciations and all; return where."""
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line and VARIANT.sub("", line.split(maxsplit=1)[0]) not in own]
    for word, said in own.items():
        kept += [f"{word}({number}) {phones}" if number > 1 else f"{word} {phones}"
                 for number, phones in enumerate(dict.fromkeys(said), 1)]  # fmt: skip
    target.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return target
