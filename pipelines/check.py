"""Check a manifest before anything expensive: every recording decoded, every fold looked at for leaks."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from featcache import audio
from featcache.errors import FeatcacheError, ProtocolError
from featcache.manifest import Manifest, Utterance
from heads.folds import make_folds


def run(
    path: Path, folds: str | None, allow: Sequence[str], root: Path | None, on_line: Callable[[str], None]
) -> list[str]:
    """Check a manifest.

    Args:
        path: the manifest.
        folds: folds to check with it; None is none.
        allow: names of leaks to let pass.
        root: refuse audio outside this folder.
        on_line: called with each line to show.

    Returns:
        The problems found: recordings that cannot be used, utterances with neither audio nor text, leaks.
    """
    manifest = Manifest.read(path, root)
    on_line(f"{len(manifest)} utterances")
    problems = _check_inputs(manifest, on_line)
    for column in ("label", "speaker", "session", "text"):
        lacking = sum(not utterance.column(column) for utterance in manifest)
        if lacking > 0:
            on_line(f"  {lacking} have no {column}")
    labels = Counter(utterance.label for utterance in manifest if utterance.label)
    on_line("  classes: " + (", ".join(f"{label} {count}" for label, count in sorted(labels.items())) or "none"))
    if folds is not None:
        try:
            made = make_folds(manifest, folds, allow=allow)
        except ProtocolError as error:
            on_line(str(error))
            return [*problems, str(error)]
        for fold in made:
            on_line(
                f"  fold {fold.name}: train {len(fold.train)}, validation {len(fold.validation)}, test {len(fold.test)}"
            )
        for problem in made.problems:
            on_line(f"  {problem}")
        problems += [str(problem) for problem in made.leaks]
    on_line("No problems." if not problems else f"{len(problems)} problems.")
    return problems


def _check_inputs(manifest: Manifest, on_line: Callable[[str], None]) -> list[str]:
    def inspect(utterance: Utterance) -> tuple[str | None, float, int]:
        if utterance.audio is None:
            return (None if (utterance.text or "").strip() else f"{utterance.id!r} has neither audio nor text"), 0.0, 0
        try:
            recording = audio.decode(manifest.audio_path(utterance), utterance.start_s, utterance.end_s)
        except FeatcacheError as error:
            return f"{utterance.id!r}: {error}", 0.0, 0
        return None, len(recording.samples) / recording.sample_rate_hz, recording.sample_rate_hz

    problems: list[str] = []
    seconds = 0.0
    rates: Counter[int] = Counter()
    with ThreadPoolExecutor() as pool:
        results = pool.map(inspect, manifest)
        for problem, duration_s, rate in tqdm(results, total=len(manifest), unit=" utt", file=sys.stderr, leave=False):
            if problem is not None:
                problems.append(problem)
                on_line(f"  {problem}")
            elif rate:
                seconds += duration_s
                rates[rate] += 1
    if rates:
        listed = ", ".join(f"{count} at {rate} Hz" for rate, count in sorted(rates.items()))
        on_line(f"  {seconds / 3600:.2f} h of audio: {listed}")
    return problems
