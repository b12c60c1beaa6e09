"""What commands print: plans, summaries, caches, metrics.

What a command needs beside NumPy is imported where it is needed: `featcache info` must not wait for torch.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from featcache.cache import CachedStream
from featcache.cache import open as open_cache
from featcache.errors import FeatcacheError
from featcache.sizes import stream_bytes
from featcache.stream import StreamSpec

if TYPE_CHECKING:
    from featcache.extract import Summary
    from heads.head import OnProgress
    from heads.metrics import Pooled
    from heads.runs import Run
    from pipelines.extract import Planned

_SHOWN = 10
_METRICS = ("wa", "ua", "macro_f1", "weighted_f1")
_TITLES = ("WA", "UA", "macro-F1", "weighted F1")
_PROVISOS = {
    "synthetic": "Synthetic speech: these numbers say nothing of human speech.",
    "random_weights": "Random weights stand where trained ones belong: these numbers are no result.",
}
"""Flag in a run's record to what must stand beside its numbers."""


def size(num_bytes: float) -> str:
    """Return a size in the unit that reads best."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.2f} TB"


def duration(seconds: float) -> str:
    """Return a duration, rough: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as text in columns; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def plan(planned: "Sequence[Planned]", waiting: Sequence[str], free: int) -> str:
    """Return what a dry run says; `waiting` has a line for each stream whose source is not there yet."""
    rows = [("stream", "to compute", "present", "changed", "failing", "parts", "size", "rough time")]
    for item in planned:
        rows.append(
            (
                item.spec.name,
                str(len(item.plan.items)),
                str(len(item.plan.present)),
                str(len(item.plan.changed)),
                str(len(item.plan.failures)),
                str(len(item.plan.parts)),
                size(item.plan.num_bytes),
                "unknown" if item.seconds is None else duration(item.seconds),
            )
        )
    total = sum(item.plan.num_bytes for item in planned)
    room = "enough" if total < free else "NOT ENOUGH"
    lines = [table(rows), *waiting, f"{size(total)} to write, {size(free)} free: {room}."]
    for item in planned:
        for name, differences in item.others.items():
            lines.append(f"{item.spec.name} is not {name}: {_differing(differences)}")
        lines += _listed(f"{item.spec.name}: changed", item.plan.changed)
        lines += _listed(f"{item.spec.name}: cannot be computed", item.plan.failures)
    return "\n".join(lines)


def summary(done: "Summary", further: str = "") -> str:
    """Return what an extraction did, and further lines."""
    parts = [f"{len(done.computed)} computed", f"{len(done.present)} present", f"{len(done.failures)} failed"]
    lines = [f"{done.stream}: {', '.join(parts)}; {size(done.num_bytes)} of arrays written"]
    for name, differences in done.others.items():
        lines.append(f"  it is not {name}: {_differing(differences)}")
    lines += _listed("  computed again", done.changed)
    lines += _listed("  failed", done.failures)
    return "\n".join([*lines, *([further] if further else [])])


def _differing(lines: Sequence[str]) -> str:
    lines = [line for line in lines if "settings.aligner:" in line] or lines  # the rest follows from it
    return "; ".join(line if len(line) <= 200 else f"{line[:197]}..." for line in lines[:_SHOWN]) + (
        f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    )


def _listed(title: str, reasons: dict[str, str]) -> list[str]:
    lines = [f"{title}: {name!r}: {reason}" for name, reason in list(reasons.items())[:_SHOWN]]
    return lines + ([f"{title}: and {len(reasons) - _SHOWN} more"] if len(reasons) > _SHOWN else [])


def info(path: Path) -> str:
    """Return what a cache holds."""
    cache = open_cache(path)
    rows = [("stream", "utterances", "failed", "frames", "layers x dim", "stored", "backend", "parts", "size")]
    streams = [cache[name] for name in cache]
    for stream in streams:
        spec = stream.spec
        backends = sorted({index.backend for index in stream.indices.values() if index.entries})
        rows.append(
            (
                stream.name,
                str(len(stream)),
                str(len(stream.failures)),
                str(sum(stream.num_frames(name) for name in stream.ids)),
                f"{len(spec.layers)} x {spec.dim}",
                spec.dtype if any(index.tier == "frames" for index in stream.indices.values()) else "stats only",
                "+".join(backends) or "none",
                str(len(stream.indices)),
                size(stream_bytes(stream)),
            )
        )
    lines = [table(rows)] if streams else [f"The cache {str(path)!r} holds no stream yet."]
    return "\n".join(lines + [line for stream in streams for line in _settings(stream)])


def _settings(stream: CachedStream) -> list[str]:
    spec = stream.spec
    values = ", ".join(f"{key}={_short(value)}" for key, value in spec.settings.items())
    lines = [f"{stream.name}: {values or 'no settings'}; computed in {spec.compute_dtype}"]
    if spec.checkpoint is not None:
        named = {key: value[:12] if key.endswith("sha256") else value for key, value in spec.checkpoint.items()}
        lines.append(f"  weights: {', '.join(f'{key} {value}' for key, value in named.items())}")
    return lines + _int8_errors(stream)


def _int8_errors(stream: CachedStream) -> list[str]:
    """Return what int8 cost the frames held at present, where it was measured."""
    located = ((name, stream.locate(name).index) for name in stream.ids) if stream.spec.dtype == "int8" else ()
    errors = {name: each for name, index in located if (each := index.int8_errors.get(name))}
    if not errors:
        return []
    worst, name, layer = max((max(each), name, each.index(max(each))) for name, each in errors.items())
    mean = sum(sum(each) / len(each) for each in errors.values()) / len(errors)
    return [
        f"  int8: relative error {100 * mean:.2g} % in the mean, at most {100 * worst:.2g} % ({name!r}, "
        f"{stream.spec.layers[layer]})"
    ]


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        if "kind" in value:  # the stream that this one is made of
            return StreamSpec.from_json(value).name
        return ", ".join(f"{key}={_short(item)}" for key, item in value.items()) or "default"
    return f"{len(value)} names" if isinstance(value, list) and len(value) > _SHOWN else str(value)


def coverage(path: Path, manifest: Path, inputs: bool) -> tuple[str, bool]:
    """Return which utterances each stream holds, and whether every stream holds all, for the inputs as they are now."""
    from tqdm import tqdm

    from featcache.manifest import Manifest
    from featcache.verify import coverage as measure_coverage

    with tqdm(desc="comparing inputs", unit=" utt", file=sys.stderr, leave=False, delay=2) as progress:

        def advance(count: int) -> None:
            progress.update(count)

        found = measure_coverage(open_cache(path), Manifest.read(manifest), inputs, advance)
    rows = [("stream", "present", "changed", "failed", "missing")]
    for one in found:
        parts = (one.present, one.changed, one.failed, one.missing)
        rows.append((one.stream, *(str(len(part)) for part in parts)))  # type: ignore[arg-type]
    lines = [table(rows)] if found else [f"The cache {str(path)!r} holds no stream yet."]
    for one in found:
        lines += _listed(f"{one.stream}: changed", one.changed)
        lines += _listed(f"{one.stream}: failed", one.failed)
        lines += _listed(f"{one.stream}: missing", dict.fromkeys(one.missing, "never extracted"))
    return "\n".join(lines), bool(found) and not any(one.changed or one.failed or one.missing for one in found)


def metrics(run: "Run") -> str:
    """Return a run's metrics, fold by fold and in the mean, in percent."""
    measured = run.metrics
    rows = [["fold", "n", *_TITLES]]
    for fold in measured["folds"]:
        rows.append([fold["fold"], str(fold["n"]), *(f"{100 * value:.1f}" for value in _values(fold))])
    if len(measured["folds"]) > 1:
        cells = []
        for name in _METRICS:
            std = measured["std"][name]
            cells.append(f"{100 * measured['mean'][name]:.1f}" + ("" if std is None else f" ± {100 * std:.1f}"))
        rows.append(["mean ± std", "", *cells])
        pooled = measured["pooled"]
        rows.append(["pooled", str(pooled["n"]), *(f"{100 * value:.1f}" for value in _values(pooled))])
    return "\n".join([table(rows), *provisos([run.config or {}])])


def provisos(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what must stand beside the numbers of runs, by their records or rows of results; nothing for most."""
    found = []
    for flag, sentence in _PROVISOS.items():
        count = sum(bool(record.get(flag)) for record in records)
        if count:
            found.append(sentence if count == len(records) else f"{sentence[:-1]} (of {count} of {len(records)} runs).")
    return found


def over_seeds(runs: "Sequence[Run]") -> str:
    """Return the mean over folds of runs that differ in their seed, and their mean and standard deviation."""
    means = [[100 * run.metrics["mean"][name] for name in _METRICS] for run in runs]
    rows = [["seed", *_TITLES]]
    for run, values in zip(runs, means, strict=True):
        rows.append([run.folder.name.removeprefix("seed-"), *(f"{value:.1f}" for value in values)])
    if len(runs) > 1:
        rows.append(
            ["mean ± std", *(f"{mean(column):.1f} ± {stdev(column):.1f}" for column in zip(*means, strict=True))]
        )
    return table(rows)


def _values(measured: "Pooled") -> tuple[float, ...]:
    return measured["wa"], measured["ua"], measured["macro_f1"], measured["weighted_f1"]


def plugins() -> str:
    """Return every plug-in with its title."""
    from featcache import registry
    from featcache.aligner import Aligner
    from featcache.corpus import Corpus
    from featcache.stream import Stream
    from heads.head import Head
    from pipelines.ablate_spec import ablation_names
    from pipelines.config import preset_names, read_preset
    from pipelines.paper import paper_names, read_paper

    lines = []
    for heading, package, contract in (
        ("Corpora", "featcache.corpora", Corpus),
        ("Streams", "featcache.streams", Stream),
        ("Aligners", "featcache.aligners", Aligner),
        ("Heads", "heads.models", Head),
    ):
        lines.append(f"{heading}:")
        for name in registry.names(package):
            try:
                title = registry.load(package, name, contract).title  # type: ignore[attr-defined]
            except (FeatcacheError, ImportError) as error:
                title = f"not usable here: {error}"
            lines.append(f"  {name:16} {title}")
    lines += ["Backends:", *(f"  {name}" for name in registry.names("featcache.backends"))]
    lines += ["Ablations:", *(f"  {name}" for name in ablation_names())]
    papers = {name: read_paper(name) for name in paper_names()}
    lines += ["Papers (featcache reproduce):", *(f"  {name:16} {paper.title}" for name, paper in papers.items())]
    width = max(map(len, preset_names()))
    lines += ["Presets:", *(f"  {name:{width}} {read_preset(name).get('about', '')}" for name in preset_names())]
    return "\n".join(lines)


@contextmanager
def bar(name: str, unit: str = " steps") -> "Iterator[OnProgress]":
    """Show a progress bar; yields a function that takes what is done and what there is to do."""
    from tqdm import tqdm

    from pipelines.extract import interval_s

    # Late enough that what is refused at once has no bar above it.
    with tqdm(desc=name, unit=unit, file=sys.stderr, mininterval=interval_s(), delay=0.5) as progress:

        def advance(done: int, total: int) -> None:
            progress.total = total
            progress.update(done - progress.n)

        yield advance
