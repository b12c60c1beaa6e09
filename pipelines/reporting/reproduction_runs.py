"""What was run for a paper's tables, and how that differs from what the paper ran."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from featcache.cache import Cache
from featcache.stream import StreamSpec
from heads.runs import Run
from pipelines.config import TrainConfig, recorded_config
from pipelines.reporting.differences import differences
from pipelines.reporting.facts import inputs
from pipelines.reporting.tables import Grid
from pipelines.reporting.wording import text
from pipelines.reproduce_plan import Plan
from pipelines.reproduce_rows import Training, kind_of, run_of

_RUNS = (
    "run", "preset", "head", "parameters", "reads", "training", "utterances", "differs from the paper's preset in",
)  # fmt: skip


@dataclass(frozen=True)
class Form:
    """How a row was run that was not run in the paper's form.

    Attributes:
        name: of the small form, of it or of what it is made of: ``demo`` or ``laptop``; empty where it is none.
        instead: checkpoints, or streams, in place of the paper's.
    """

    name: str
    instead: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """What to know of it, beside its number."""
        name = f"{self.name} form" if self.name else "not the paper's form"
        return name + (f": {', '.join(self.instead)}" if self.instead else " (see What was run)")


def forms_of(plan: Plan, runs: Mapping[str, Run]) -> dict[str, Form]:
    """Return how each row was run, of those that were not run in the paper's form."""
    cache = Cache(plan.cache)
    forms: dict[str, Form] = {}
    for key, training in plan.trainings.items():
        if key in runs and _differences(plan, training, runs[key], cache):
            demo = training.preset != plan.paper.runs[key].preset
            forms[key] = Form(plan.form if demo else "", tuple(_instead(training, runs[key], cache)))
    for key, probe in plan.probes.items():
        own = (
            Form(plan.form if probe.preset != probe.of.preset else "")
            if differences(probe.config, probe.published)
            else None
        )
        forms |= _joined(key, [own, forms.get(probe.of.run)])
    for key, fusion in plan.fusions.items():
        forms |= _joined(key, [forms.get(run) for run in fusion.runs])
    return forms


def _joined(key: str, forms: Sequence[Form | None]) -> dict[str, Form]:
    """Return the form of what is made of others; none where all of them are in the paper's."""
    found = [form for form in forms if form is not None]
    instead = dict.fromkeys(name for form in found for name in form.instead)
    return {key: Form(next((form.name for form in found if form.name), ""), tuple(instead))} if found else {}


def runs_grid(plan: Plan, runs: Mapping[str, Run]) -> Grid:
    """Return a line for each run: what was trained, from what, and what differs from the paper's preset."""
    cache = Cache(plan.cache)
    rows = []
    for key, run in runs.items():
        config = run.config or {}
        count = f"{len(set(run.scores.ids)):,}"
        if key in plan.trainings:
            training, made = plan.trainings[key], recorded_config(config)
            specs = _specs(cache, run)
            reads = "; ".join(
                f"{kind}: a stream a fold" if run_of(kind) else _stream(spec) for kind, spec in specs.items()
            )
            lines = _differences(plan, training, run, cache)
            rows.append(
                [
                    key,
                    training.preset,
                    made.head,
                    _count(config),
                    reads,
                    _fit(made),
                    count,
                    "; ".join(lines) or "nothing",
                ]
            )
        elif key in plan.probes:
            probe = plan.probes[key]
            lines = differences(probe.config, probe.published)
            reads = f"the codes of {probe.of.run}, for {probe.of.target}"
            rows.append(
                [
                    key,
                    probe.preset,
                    probe.config.head,
                    _count(config),
                    reads,
                    _fit(probe.config),
                    count,
                    "; ".join(lines) or "nothing",
                ]
            )
        else:
            rows.append(
                [key, "–", "fusion", "–", _fused(config), text(config.get("method")) or "weights given", count, "–"]
            )
    return Grid(_RUNS, rows, [False, False, False, True, False, False, True, False])


def _instead(training: Training, run: Run, cache: Cache) -> list[str]:
    """Return what a training read in place of what the paper's reads: checkpoints by name, other streams by kind."""
    stated = (training.published_preset.get("extract") or {}).get("streams") or {}
    names = []
    for kind, spec in _specs(cache, run).items():
        wanted, found = (stated.get(kind) or {}).get("checkpoint"), (spec.checkpoint or {}).get("name")
        if kind not in training.published.streams:
            names.append(kind)
        elif wanted is not None and not run_of(kind) and not _alike("checkpoint", found, wanted):
            names.append(PurePath(str(found)).name if found else spec.kind)
    return names


def _differences(plan: Plan, training: Training, run: Run, cache: Cache) -> list[str]:
    """Return what differs between a run and what the paper's preset would have trained, streams first."""
    published = training.published
    # What has no label no paper can have learnt from.
    made = replace(recorded_config(run.config or {}), drop_unlabelled=published.drop_unlabelled)
    stated = (training.published_preset.get("extract") or {}).get("streams") or {}
    ours = _specs(cache, run)
    wanted = [kind for kind in published.streams if kind not in ours]
    instead = [kind for kind in ours if kind not in published.streams]
    lines = []
    if wanted or instead:
        lines.append(f"{' and '.join(instead) or 'no stream'} in place of {' and '.join(wanted) or 'none'}")
    for kind, spec in ours.items():
        for name, value in (stated.get(kind) or {}).items():
            if name == "checkpoint" and run_of(kind):
                continue
            found = (spec.checkpoint or {}).get("name") if name == "checkpoint" else spec.settings.get(name)
            if not _alike(name, found, value):
                lines.append(f"{name} of {kind} {text(found) or 'unset'} ({text(value) or 'unset'})")
    aligners = [text((stated.get("alignment") or {}).get("aligner")), plan.paper.aligner]
    lines += [
        f"phones aligned by {_aligner(spec)} ({' or '.join(name for name in aligners if name)})"
        for spec in ours.values()
        if any(aligners) and _aligner(spec) not in ("", *aligners)
    ]
    return lines + differences(made, published)


def _specs(cache: Cache, run: Run) -> dict[str, StreamSpec]:
    """Return the streams of a run by kind; of those that fold encoders made, by their common name, the first fold's."""
    config = run.config or {}
    of_folds = config.get("fold_streams") or {}
    first = {name: next(iter(by_fold.values())) for name, by_fold in of_folds.items()}
    return {kind_of(name): cache[first.get(name, name)].spec for name in recorded_config(config).streams}


def _alike(name: str, found: Any, wanted: Any) -> bool:
    if name == "checkpoint":  # a folder of a checkpoint's name is the checkpoint
        return PurePath(str(found)).name == PurePath(str(wanted)).name
    return bool(found == wanted) or (name == "layers" and wanted == "last" and found == "all")


def _count(config: Mapping[str, Any]) -> str:
    """Return how many parameters a run's module has, in words."""
    count = config.get("parameters")
    return f"{count:,}" if isinstance(count, int) else "–"


def _fit(config: TrainConfig) -> str:
    rates = " or ".join(f"{rate:g}" for rate in config.fit.learning_rate)
    return f"{config.fit.steps:,} {config.fit.unit}s of batch {config.fit.batch_size}, rate {rates}"


def _fused(config: Mapping[str, Any]) -> str:
    """Return what was fused, with its weights, fold by fold where each has its own."""
    weights = config.get("weights")
    if not isinstance(weights, Mapping):
        return inputs(config)
    by_run = zip(*weights.values(), strict=True)
    return " + ".join(
        f"{name} × {' | '.join(f'{weight:.2g}' for weight in ours)}"
        for name, ours in zip(config["fused"], by_run, strict=True)
    )


def _stream(spec: StreamSpec) -> str:
    """Return a stream with what made it."""
    made = [spec.checkpoint["name"]] if spec.checkpoint else []
    digests = [value[:12] for key, value in (spec.checkpoint or {}).items() if key.endswith("sha256")][:1]
    aligner = _aligner(spec)
    made += [*digests, *([f"aligned by {aligner}"] if aligner else [])]
    return spec.name + (f" ({', '.join(made)})" if made else "")


def _aligner(spec: StreamSpec) -> str:
    alignment = spec.settings.get("alignment")
    return text(alignment.get("settings", {}).get("aligner")) if isinstance(alignment, Mapping) else ""
