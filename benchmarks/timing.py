"""Medians of repeated, interleaved measurements, so that a noisy machine disturbs every contestant alike."""

import time
from collections.abc import Callable, Mapping
from statistics import median, quantiles


def compare(contestants: Mapping[str, Callable[[], object]], rounds: int = 7) -> dict[str, tuple[float, float]]:
    """Return for each contestant the median time in seconds and its interquartile range; a first round is discarded."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, contestant in contestants.items():
            start = time.perf_counter()
            contestant()
            if number:
                times[name].append(time.perf_counter() - start)
    spread = {name: quantiles(values, n=4) for name, values in times.items()}
    return {name: (median(values), spread[name][2] - spread[name][0]) for name, values in times.items()}
