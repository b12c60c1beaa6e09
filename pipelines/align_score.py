"""Compare two cached alignments: a table for people, ``score.json`` and ``utterances.csv`` for programs."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from featcache import alignment
from featcache.agreement import Agreement, Boundaries, Comparison, Frames, compare, summarise
from featcache.cache import Cache, CachedStream
from featcache.cache import open as open_cache
from featcache.errors import ConfigError, StreamError
from featcache.files import write_atomically, write_json
from featcache.streams.phones import find_alignment
from pipelines.show import table

_SHOWN = 10
_ORDER = ("vowel", "approximant", "nasal", "fricative", "affricate", "stop", "other", "event", "unknown", "silence")
_COLUMNS = (
    "id", "speech_alike", "frames_alike", "phones_a", "phones_b", "phones_matched", "median_ms", "p90_ms", "mean_ms",
    "words_matched", "word_median_ms",
)  # fmt: skip


def run(a: str, b: str, cache: Path | None, out: Path | None = None, frame_shift_ms: int = 20) -> str:
    """Compare two alignments.

    Args:
        a: the reference: a stream's folder, or in `cache` its full name or its aligner's.
        b: what is compared with it, likewise.
        cache: where names are looked up.
        out: folder for ``score.json`` and ``utterances.csv``; None writes nothing.
        frame_shift_ms: length of a frame, in milliseconds.

    Returns:
        A table.

    Raises:
        CacheError: no such alignment, or several of that name.
        ConfigError: the two have no utterance in common, or a setting is out of range.
        StreamError: a phone's symbol stands for nothing known.
    """
    if frame_shift_ms < 1:
        raise ConfigError(f"frame_shift_ms must be at least 1, got {frame_shift_ms}.")
    first, second = (_stream(name, cache) for name in (a, b))
    compared = {name: _compared(first, second, name, frame_shift_ms / 1000) for name in first.ids if name in second}
    if not compared:
        raise ConfigError(
            f"{first.name} and {second.name} have no utterance in common: {len(first)} and {len(second)} utterances "
            f"such as {_some(first)} and {_some(second)}. Were they made from the same manifest?"
        )
    agreement = summarise(
        compared.values(),
        only_a=(name for name in first.ids if name not in second),
        only_b=(name for name in second.ids if name not in first),
    )
    if out is not None:
        _write(out, {"a": first.name, "b": second.name, "frame_shift_ms": frame_shift_ms}, agreement, compared)
    return text(agreement, _title(first), _title(second), frame_shift_ms)


def text(agreement: Agreement, a: str, b: str, frame_shift_ms: int) -> str:
    """Return an agreement as text: what was compared, and a row for each class of phone."""
    rows: list[Sequence[str]] = [
        ("", "in A", "in B", "matched", "median", "90 %", "mean", "<= 20 ms", "<= 50 ms", "frames", "alike"),
        _row("words", agreement.words, None),
        _row("phones", agreement.phones, agreement.speech),
    ]
    for kind in sorted(agreement.classes, key=_ORDER.index):
        part = agreement.classes[kind]
        rows.append(_row(f"  {kind}", None if kind == "silence" else part.phones, part.frames))
    rows.append(_row("all frames", None, agreement.frames))
    lines = [f"A: {a}", f"B: {b}", f"{agreement.num_utterances} utterances in both", "", table(rows), ""]
    lines.append(
        f"Errors are of onsets, in ms, B minus A; median and 90 % of their size. Frames are of {frame_shift_ms} ms: "
        "for phones those in which A or B speaks, for a class those of A."
    )
    for side, ids in (("A", agreement.only_a), ("B", agreement.only_b)):
        if ids:
            more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
            lines.append(f"Only in {side} ({len(ids)}): {', '.join(ids[:_SHOWN])}{more}")
    return "\n".join(lines)


def _stream(name: str, cache: Path | None) -> CachedStream:
    folder = Path(name)
    if (folder / "stream.json").is_file():
        return find_alignment(Cache(folder.parent), folder.absolute().name)
    if cache is None:
        raise ConfigError(f"{name!r} is no folder of a stream. Give one, or the cache that has it.")
    return find_alignment(open_cache(cache), name)


def _title(stream: CachedStream) -> str:
    return f"{stream.name} ({stream.spec.settings['aligner']})"


def _some(stream: CachedStream) -> str:
    return ", ".join(repr(name) for name in stream.ids[:2]) or "none"


def _compared(first: CachedStream, second: CachedStream, name: str, frame_shift_s: float) -> Comparison:
    symbols = first.spec.settings["symbols"], second.spec.settings["symbols"]
    end_s = float(first.array(alignment.DURATION, [name])[0])
    try:
        return compare(alignment.read(first, name), alignment.read(second, name), symbols, frame_shift_s, end_s)
    except StreamError as error:
        raise StreamError(f"{name!r} cannot be compared in {first.name} and {second.name}: {error}") from None


def _row(label: str, boundaries: Boundaries | None, frames: Frames | None) -> tuple[str, ...]:
    cells = [label]
    if boundaries is None:
        cells += [""] * 8
    else:
        cells += [str(boundaries.num_a), str(boundaries.num_b), _percent(boundaries.share_matched)]
        cells += [_ms(boundaries.median_ms), _ms(boundaries.p90_ms), _ms(boundaries.mean_ms, "+.1f")]
        cells += [_percent(boundaries.within_20_ms), _percent(boundaries.within_50_ms)]
    cells += ["", ""] if frames is None else [str(frames.num), _percent(frames.share_alike)]
    return tuple(cells)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _ms(value: float | None, form: str = ".1f") -> str:
    return "-" if value is None else format(value, form)


def _write(out: Path, about: Mapping[str, object], agreement: Agreement, compared: Mapping[str, Comparison]) -> None:
    """Write the corpus' score and a row for each utterance, those that agree least first."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{str(out)!r} is a file. Give --out the name of a folder.")
    write_json(out / "score.json", {**about, **agreement.as_json()})
    rows = []
    for name, one in compared.items():
        alone = summarise([one])
        rows.append(
            (
                name,
                alone.speech.share_alike,
                alone.frames.share_alike,
                alone.phones.num_a,
                alone.phones.num_b,
                alone.phones.share_matched,
                alone.phones.median_ms,
                alone.phones.p90_ms,
                alone.phones.mean_ms,
                alone.words.share_matched,
                alone.words.median_ms,
            )
        )
    rows.sort(key=lambda row: (row[1] is not None, row[1], row[0]))
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    write_atomically(out / "utterances.csv", written.getvalue().encode())
