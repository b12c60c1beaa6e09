"""What `featcache ablate` prints of a plan: runs, jobs, and what they cost."""

from typing import Any

from pipelines import show
from pipelines.ablate_plan import Plan
from pipelines.ablate_time import estimate, kind
from pipelines.extract import free_bytes

_SHOWN = 10


def plan(planned: Plan) -> str:
    """Return a plan in words: what runs, in how many jobs, how long it takes by what was measured, and its disk."""
    ablation, todo = planned.ablation, planned.todo
    together = [batch for batch in planned.batches if len(batch.runs) > 1]
    batched = sum(len(batch.runs) for batch in together)
    lines = [ablation.about] if ablation.about else []
    lines += [_table(planned), ""]
    lines.append(
        f"{len(ablation.runs)} runs: {len(planned.done)} there, {len(todo)} to train"
        + (f", {len(planned.refused)} that cannot run" if planned.refused else "")
        + (f"; then {len(ablation.fusions)} fusions" if ablation.fusions else "")
        + "."
    )
    if todo:
        jobs, at_once = len(planned.batches), min(planned.at_once, len(planned.batches))
        lines.append(
            f"{jobs} jobs, {at_once} at a time"
            + (f"; {batched} runs train side by side in {len(together)} of them" if together else "")
            + f". Time: {estimate(planned)}. Disk: about {show.size(planned.num_bytes)}, "
            f"{show.size(free_bytes(planned.out))} free."
        )
    for sentence, names in _by_sentence(planned.refused).items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        lines.append(f"Cannot run: {', '.join(names[:3])}{more}: {sentence}")
    if planned.strangers:
        more = f" and {len(planned.strangers) - 3} more" if len(planned.strangers) > 3 else ""
        lines.append(
            f"{planned.out} has runs that are not of this ablation: {', '.join(planned.strangers[:3])}{more}. They "
            "stay, and the results leave them out."
        )
    return "\n".join(lines)


def names(planned: Plan) -> str:
    """Return every run with what is known of it, for a dry run."""
    batches = {name: number for number, batch in enumerate(planned.batches, start=1) for name in batch.runs}
    rows = [["run", "state", "job"]]
    for run in planned.ablation.runs:
        state = "there" if run.name in planned.done else "cannot run" if run.name in planned.refused else "to train"
        rows.append([run.name, state, str(batches.get(run.name, ""))])
    rows += [[fusion.name, f"fusion of {len(fusion.runs)}", ""] for fusion in planned.ablation.fusions]
    return show.table(rows)


def _table(planned: Plan) -> str:
    """Return the runs by head and streams."""
    groups: dict[tuple[str, str], list[str]] = {}
    for run in planned.ablation.runs:
        groups.setdefault(kind(run.config), []).append(run.name)
    rows = [["head", "streams", "runs", "there", "steps to do"]]
    todo = set(planned.todo)
    for (head, streams), members in groups.items():
        there = sum(name in planned.done for name in members)
        steps = sum(planned.work[name] for name in members if name in todo)
        rows.append([head, streams, str(len(members)), str(there), f"{steps:,}"])
    return show.table(rows)


def _by_sentence(refused: Any) -> dict[str, list[str]]:
    sentences: dict[str, list[str]] = {}
    for name, sentence in refused.items():
        sentences.setdefault(sentence, []).append(name)
    return sentences
