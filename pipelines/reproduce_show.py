"""What reproducing a paper takes, in words: for a dry run, and for a refusal."""

from collections.abc import Mapping

from featcache.errors import CacheError
from heads.order import num_steps
from pipelines import show
from pipelines.paper import Paper
from pipelines.reproduce_folders import State, fusion_state
from pipelines.reproduce_plan import Plan
from pipelines.reproduce_rows import Options, extractions

_STATES: Mapping[State, str] = {"done": "there (inputs not compared)", "another": "another run"}


def refusal(plan: Plan) -> CacheError:
    """Return what to say where rows lack something and are not to be left out."""
    rows = [f"  {', '.join(keys)}: {sentence}" for sentence, keys in plan.missing.items()]
    count = len({key for keys in plan.missing.values() for key in keys})
    presets = dict.fromkeys(plan.presets[key] for keys in plan.missing.values() for key in keys)
    rows += [f"  featcache extract MANIFEST --cache {plan.cache} --preset {preset}" for preset in presets]
    rows.insert(len(plan.missing), "What makes all that they read:")
    return CacheError(
        f"{count} of the {len(plan.paper.runs)} trainings of {plan.paper.name} cannot run:\n" + "\n".join(rows) + "\n"
        "--extract makes what can be made; --skip-missing leaves these rows out; --demo runs small forms, --laptop "
        "those that need no download."
    )


def describe_extraction(paper: Paper, options: Options) -> str:
    """Return what would be extracted first, in words, for a dry run."""
    lines = ["To extract first, of what the cache lacks:"]
    for config in extractions(paper, options):
        for stream, settings in config.streams.items():
            told = ", ".join(f"{name}={value}" for name, value in settings.items())
            lines.append(f"  {stream}{f' ({told})' if told else ''}")
    return "\n".join(dict.fromkeys(lines))


def describe(plan: Plan) -> str:
    """Return a plan in words, for a dry run."""
    rows = [("row", "preset", "steps", "batch", "folds", "state", "reads")]
    for key, training in plan.trainings.items():
        fit, folds = training.config.fit, plan.folds[key]
        rows.append(
            (key, training.preset, f"{fit.steps:,}{' epochs' * (fit.unit == 'epoch')}", str(fit.batch_size),
             f"{folds.kind} ({len(folds)})",
             _words(training.state), ", ".join(training.config.streams))
        )  # fmt: skip
    for key, probe in plan.probes.items():
        fit = probe.config.fit
        rows.append(
            (key, probe.preset, f"{fit.steps:,}", str(fit.batch_size), f"its own ({len(plan.folds[probe.of.run])})",
             _words(probe.state), f"the codes of {probe.of.run}, for {probe.of.target}")
        )  # fmt: skip
    for key, fusion in plan.fusions.items():
        state = _words(fusion_state(plan.out / key))
        rows.append((key, "fusion", "", "", "", state, f"{' + '.join(fusion.runs)}: {fusion.weights}"))
    used = {run for table in plan.paper.tables for row in table.rows if (run := row.run)}
    lines = [show.table(rows), ""]
    reasons: dict[str, list[str]] = {}
    for key, reason in plan.not_run.items():
        if key in used | set(plan.paper.runs):
            reasons.setdefault(reason, []).append(key)
    lines += [f"{', '.join(keys)}: not run: {reason}" for reason, keys in reasons.items()]
    lines += ["--extract makes first what can be made of it."] if plan.missing else []
    if plan.num_dropped:
        lines.append(f"{plan.num_dropped} utterances are left out of every row: a stream lacks them.")
    if plan.num_unlabelled:
        lines.append(f"{plan.num_unlabelled} utterances are left out of every row: they have no label.")
    steps = sum(
        num_steps(training.config.fit, len(fold.train))
        for key, training in plan.trainings.items()
        for fold in plan.folds[key]
    )
    of_probes = sum(len(plan.folds[one.of.run]) * one.config.fit.steps for one in plan.probes.values())
    lines += [
        f"{len(plan.manifest) - plan.num_unlabelled:,} utterances.",
        f"Trainings: {len(plan.trainings)}, {steps:,} steps in all.",
        f"Probes: {len(plan.probes)}, {of_probes:,} steps in all.",
    ]
    return "\n".join(lines)


def _words(state: State) -> str:
    return _STATES.get(state, state)
