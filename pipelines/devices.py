"""One stream on several devices: a process for each, which share out the parts by the cache alone.

The parent plans, and each child carries out the whole plan beside the others, see :mod:`featcache.sharing`; what it
tells is JSON in its messages. One that ends early leaves its parts to the others.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from featcache.claims import remove_abandoned
from featcache.errors import StreamError
from featcache.extract import Options, Summary, carry_out, context, plan_stream, resolve_device
from featcache.manifest import Manifest
from featcache.plan import Plan
from featcache.stream import Stream, StreamSpec
from pipelines import jobs

logger = logging.getLogger(__name__)


def extract_on(
    devices: Sequence[str],
    manifest: Manifest,
    cache: Path,
    stream: Stream,
    options: Options,
    on_planned: Callable[[Plan], None],
    on_done: Callable[[int, float], None],
    on_checked: Callable[[int], None],
    on_message: Callable[[str], None],
    made: Mapping[str, str],
    on_elsewhere: Callable[[int, float], None],
) -> Summary:
    """Do what :func:`featcache.extract.extract` does, on several devices at once; a device may be named twice.

    What a process did that ended early is taken back from `on_done`, by negative numbers: another did it, or had it.

    Raises:
        ConfigError: no such device.
        StreamError: every process ended early; says how.
    """
    devices = [resolve_device(device) for device in devices]
    bound, spec, _, plan = plan_stream(manifest, cache, stream, options, on_checked, made)
    on_planned(plan)
    if not plan.parts:
        return carry_out(plan, manifest, cache, bound, spec, options)
    summaries: list[Summary] = []
    done: dict[str, tuple[int, float]] = {}

    def told(name: str, text: str) -> None:
        what, values = json.loads(text)
        if what == "summary":
            summaries.append(Summary(**values))
        elif what == "done":
            (count, audio_s), (before, before_s) = values, done.get(name, (0, 0.0))
            done[name] = (before + count, before_s + audio_s)
            on_done(count, audio_s)
        else:
            on_message(*values)

    workers = options.workers or max(1, len(os.sched_getaffinity(0)) // len(devices))
    each = {
        f"{device}, process {number}": replace(options, device=device, workers=workers)
        for number, device in enumerate(devices, 1)
    }
    work = [
        jobs.Job(name, partial(_extract, plan, manifest, cache, stream, spec, one, dict(made)))
        for name, one in each.items()
    ]
    try:
        failures = jobs.run(work, len(devices), on_message=told)
    finally:
        remove_abandoned(cache)  # of children that were killed
    if not summaries:
        raise StreamError(
            f"{spec.name}: no process came to the end. {_sentences(failures)} Parts committed before are whole; run "
            "the command again to go on."
        )
    if failures:
        logger.warning("%s: other processes did what these left. %s", spec.name, _sentences(failures))
    for name in failures:
        count, audio_s = done.get(name, (0, 0.0))
        on_done(-count, -audio_s)
    summary = _merged(plan, spec.name, summaries)
    elsewhere = set(summary.elsewhere)
    for item in plan.items:
        if item.utterance.id in elsewhere:
            on_elsewhere(1, item.length / plan.sample_rate_hz if plan.sample_rate_hz else 0.0)
    return summary


def _extract(
    plan: Plan,
    manifest: Manifest,
    cache: Path,
    stream: Stream,
    spec: StreamSpec,
    options: Options,
    made: Mapping[str, str],
    on_progress: Callable[[int, int], None],
    on_message: Callable[[str], None],
) -> None:
    """Extract on one device: what a child does."""

    def tell(what: str, *values: Any) -> None:
        on_message(json.dumps([what, values]))

    summary = carry_out(
        plan, manifest, cache, stream.bind(context(manifest, cache, options, made)), spec, options,
        on_done=partial(tell, "done"), on_message=partial(tell, "message"),
    )  # fmt: skip
    on_message(json.dumps(["summary", asdict(summary)]))


def _merged(plan: Plan, name: str, summaries: Iterable[Summary]) -> Summary:
    """Return what all processes did. Each of them saw the whole plan done."""
    merged = Summary(name, present=plan.present, failures=dict(plan.failures))
    computed: set[str] = set()
    for summary in summaries:
        computed |= set(summary.computed)
        merged.failures |= summary.failures
        merged.num_bytes += summary.num_bytes
        merged.others = summary.others
    planned = [item.utterance.id for item in plan.items]
    merged.computed = [one for one in planned if one in computed]
    merged.elsewhere = [one for one in planned if one not in computed and one not in merged.failures]
    merged.changed = {one: why for one, why in plan.changed.items() if one not in merged.failures}
    return merged


def _sentences(failures: Mapping[str, str]) -> str:
    """Return why processes ended early, each reason once."""
    where: dict[str, list[str]] = {}
    for name, reason in failures.items():
        where.setdefault(reason.rstrip("."), []).append(name)
    return " ".join(f"On {' and '.join(names)}: {reason}." for reason, names in where.items())
