"""What predict is given on the command line, as a manifest; and what it found, as JSON lines, CSV or a table."""

import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.errors import ConfigError
from featcache.files import is_text, read_plain, write_atomically
from featcache.manifest import Manifest, Utterance
from pipelines.show import table

if TYPE_CHECKING:
    from pipelines.predict import Predicted

FORMS = ("jsonl", "csv", "table")


def check_form(form: str | None) -> None:
    """Refuse a form that does not exist.

    Raises:
        ConfigError: it does not.
    """
    if form is not None and form not in FORMS:
        raise ConfigError(f"--form takes {', '.join(FORMS)}, got {form!r}.")


def utterances(
    audio: Sequence[Path], manifest: Path | None, texts: Sequence[str], text_file: Path | None, speaker: str | None
) -> Manifest:
    """Return what is to be predicted.

    Args:
        audio: recordings; their ids are their paths as given.
        manifest: a manifest instead.
        texts: what is said in each, in order; without recordings, an utterance each.
        text_file: the same, a text a line.
        speaker: who speaks in all of them; None is what the manifest says, or unknown.

    Raises:
        ConfigError: nothing is given, or what is given does not fit together.
        ManifestError: the manifest cannot be used, or a recording is named twice.
    """
    if manifest is not None:
        if audio or texts or text_file:
            raise ConfigError("--manifest says recordings and texts itself. Give it alone, or leave it out.")
        found = Manifest.read(manifest)
        return found if speaker is None else Manifest([replace(one, speaker=speaker) for one in found], found.folder)
    strange = [path for path in audio if not is_text(str(path))]
    if strange:
        raise ConfigError(f"The name of the file {os.fsencode(strange[0])!r} is not UTF-8. Rename it.")
    if texts and text_file is not None:
        raise ConfigError("Give --text or --text-file, not both.")
    said = list(texts) if text_file is None else _lines(text_file)
    if not audio and not said:
        raise ConfigError("Give recordings, --manifest or --text: there is nothing to predict.")
    if audio and said and len(said) != len(audio):
        raise ConfigError(f"Each recording needs its text: {len(audio)} recordings and {len(said)} texts were given.")
    if not audio:
        return Manifest([Utterance(f"text {number}", text=one, speaker=speaker) for number, one in enumerate(said, 1)])
    given: Sequence[str | None] = said or [None] * len(audio)
    return Manifest(
        [Utterance(str(path), str(path), text=one, speaker=speaker) for path, one in zip(audio, given, strict=True)]
    )


def check_out(out: Path | None, audio: Sequence[Path]) -> None:
    """Refuse a file that cannot be written, or is a recording, before anything is computed.

    Raises:
        ConfigError: it is a folder, or one of the recordings.
    """
    if out is not None and out.is_dir():
        raise ConfigError(f"{str(out)!r} is a folder. Give --out a file.")
    if out is not None and out.exists() and any(path.exists() and out.samefile(path) for path in audio):
        raise ConfigError(f"{str(out)!r} is a recording to predict. Give --out another file.")


def _lines(path: Path) -> list[str]:
    try:
        lines = read_plain(path).decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The texts {str(path)!r} cannot be read: {error}.") from None
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def write(done: "Predicted", form: str | None, out: Path | None, on_text: Callable[[str], None]) -> None:
    """Write what was predicted.

    Args:
        done: what was predicted.
        form: one of :data:`FORMS`; None follows the ending of `out`, and is a table without one.
        out: the file to write; None gives the text to `on_text`.
        on_text: called with what a terminal shows.
    """
    chosen = form or ("table" if out is None else "csv" if out.suffix.lower() == ".csv" else "jsonl")
    text = {"jsonl": _jsonl, "csv": _csv, "table": _table}[chosen](done)
    if out is None:
        on_text(text.rstrip("\n"))
        return
    write_atomically(out, text.encode())
    on_text(f"Wrote {out}.")


def _jsonl(done: "Predicted") -> str:
    lines = [
        {"id": name, "predicted": label, "probabilities": dict(zip(done.classes, row, strict=True))}
        for name, label, row in zip(done.ids, done.labels, done.probabilities.tolist(), strict=True)
    ]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _csv(done: "Predicted") -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")  # RFC 4180, as scores.csv
    writer.writerow(["id", "predicted", *(f"p_{name}" for name in done.classes)])
    for name, label, row in zip(done.ids, done.labels, done.probabilities.tolist(), strict=True):
        writer.writerow([name, label, *map(repr, row)])
    return text.getvalue()


def _table(done: "Predicted") -> str:
    rows = [
        [name, label, *(f"{value:.3f}" for value in row)]
        for name, label, row in zip(done.ids, done.labels, done.probabilities.tolist(), strict=True)
    ]
    return table([["utterance", "predicted", *done.classes], *rows]) + "\n"
