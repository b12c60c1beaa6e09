"""Check a manifest before anything expensive, or a run folder after it.

Of a manifest every recording is decoded, and every fold looked at for leaks. Of a run its own files are held against
each other: whether what was scored was trained on, or chosen on.
"""

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from featcache import audio
from featcache.errors import ConfigError, FeatcacheError, ProtocolError, ScoresError
from featcache.files import listed
from featcache.manifest import Manifest, Utterance
from heads.duplicates import copied
from heads.fold_copies import completed, originals
from heads.fold_files import natural_key, read_folds
from heads.folds import make_folds
from heads.learnt import Audio, check_learnt
from heads.models.encoder_decoder import SPEAKER
from heads.protocol import Fold, Problem, check_folds, shown
from heads.runs import Run, read_run
from heads.scores import Scores
from pipelines.provenance import LEARNT, audio_of_run, read_learnt
from pipelines.reporting.details import read_candidates
from pipelines.reporting.wording import texts

_LENGTHS = ("length", "fixed_length")
"""What heads call the length that they pad to, where the utterances of the task decide it."""


def run(
    path: Path, folds: str | None, allow: Sequence[str], root: Path | None, on_line: Callable[[str], None],
    drop_unlabelled: bool = False,
) -> list[str]:  # fmt: skip
    """Check a manifest or a run folder.

    Args:
        path: the manifest, or the folder of a run.
        folds: folds to check with a manifest; None is none.
        allow: names of leaks to let pass.
        root: refuse audio outside this folder.
        on_line: called with each line to show.
        drop_unlabelled: leave utterances without a label out of the folds.

    Returns:
        The problems found: recordings that cannot be used, utterances with neither audio nor text, leaks.

    Raises:
        ConfigError: options of a manifest for a run folder.
        ManifestError: the manifest is not usable.
        ScoresError: the folder is not a run, or a file in it is not usable; it names the utterance whose scores are
            not finite.
    """
    if not path.is_dir():
        problems = _check_manifest(Manifest.read(path, root), folds, allow, on_line, drop_unlabelled)
    elif folds is None and root is None and not allow:
        problems = _check_folder(path, on_line)
    else:
        raise ConfigError(f"--folds, --allow and --root are for a manifest, and {str(path)!r} is a folder.")
    on_line("No problems." if not problems else f"{len(problems)} problems.")
    return problems


def _check_manifest(
    manifest: Manifest, folds: str | None, allow: Sequence[str], on_line: Callable[[str], None], drop_unlabelled: bool
) -> list[str]:
    on_line(f"{len(manifest)} utterances")
    problems, digests = _check_inputs(manifest, on_line)
    try:
        copies_of = originals(manifest)
        manifest = Manifest(completed(list(manifest)), manifest.folder)
    except ProtocolError as error:
        on_line(f"  {error}")
        return [*problems, str(error)]
    if copies_of:
        on_line(f"  {len(copies_of)} are augmented copies of {len(set(copies_of.values()))} others, for training alone")
    for column in ("label", "speaker", "session", "text"):
        lacking = sum(not utterance.column(column) for utterance in manifest)
        if lacking > 0:
            on_line(f"  {lacking} have no {column}")
    labels = Counter(utterance.label for utterance in manifest if utterance.label)
    on_line("  classes: " + (", ".join(f"{label} {count}" for label, count in sorted(labels.items())) or "none"))
    if folds is None:
        copies = copied(manifest, digests)
        if copies:
            on_line(
                f"  {len(copies)} utterances are copies of one another: {shown(sorted(copies, key=copies.__getitem__))}"
            )
        return problems
    try:
        made = make_folds(manifest, folds, allow=allow, drop_unlabelled=drop_unlabelled, audio=digests)
    except ProtocolError as error:
        on_line(str(error))
        return [*problems, str(error)]
    for fold in made:
        on_line(
            f"  fold {fold.name}: train {len(fold.train)}, validation {len(fold.validation)}, test {len(fold.test)}"
        )
    for problem in made.problems:
        on_line(f"  {'allowed' if problem.severity == 'error' else 'warning'}: {problem}")
    return [*problems, *(str(problem) for problem in made.leaks)]


def _check_inputs(manifest: Manifest, on_line: Callable[[str], None]) -> tuple[list[str], dict[str, str]]:
    """Return what is wrong with recordings and texts, and by id the digest of each recording."""
    digests: dict[str, str] = {}

    def inspect(utterance: Utterance) -> tuple[str | None, float, int]:
        if utterance.audio is None:
            return (None if (utterance.text or "").strip() else f"{utterance.id!r} has neither audio nor text"), 0.0, 0
        try:
            recording = audio.decode(manifest.audio_path(utterance), utterance.start_s, utterance.end_s)
        except FeatcacheError as error:
            return f"{utterance.id!r}: {error}", 0.0, 0
        digests[utterance.id] = f"{recording.sample_rate_hz} {recording.digest(recording.sample_rate_hz)}"
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
        by_rate = ", ".join(f"{count} at {rate} Hz" for rate, count in sorted(rates.items()))
        on_line(f"  {seconds / 3600:.2f} h of audio: {by_rate}")
    return problems, digests


def _check_folder(folder: Path, on_line: Callable[[str], None]) -> list[str]:
    run = read_run(folder)
    on_line(f"{len(run.scores.ids)} scores in {len(run.metrics['folds'])} folds")
    found = check_run(run)
    for problem in found:
        on_line(f"  {problem.severity}: {problem}")
    return [str(problem) for problem in found if problem.severity == "error"]


def check_run(run: Run) -> list[Problem]:
    """Return everything that is wrong or doubtful about a run, as far as its folder shows it.

    - ``folds.json`` is checked as when it was made; what was allowed then is an error here.
    - ``trained``: a scored utterance is in the training part of its fold.
    - ``selected``: a scored utterance has validation scores in its fold, or is in its validation part; or the
      candidate whose scores the run holds is not the one that validation prefers; or there was nothing to choose on.
    - ``label``: what a scored utterance is labelled, or the order of classes, is not what the run was made with.
    - ``other-folds``, a warning: a fusion's weights were found on test scores of other folds.
    - ``context``, a warning: scores depend on what was taken of several utterances, tested ones among them.
    - ``tuned``: a fine-tuned encoder that it read, or a run that it began with, has learnt from what is scored.

    Args:
        run: the run, as `heads.runs.read_run` gives it.

    Raises:
        ScoresError: a file in the run's folder is not usable.
        ProtocolError: ``folds.json`` is not usable.
    """
    config = run.config or {}
    problems: list[Problem] = []
    folds: list[Fold] = []
    if (run.folder / "folds.json").is_file():
        folds = read_folds(run.folder / "folds.json")
        # Without a manifest nothing is known of speakers, labels and recordings, but ids are.
        ids = sorted({name for fold in folds for part in fold.parts.values() for name in part})
        problems += check_folds(folds, run.manifest or [Utterance(name) for name in ids])
        problems += _check_scored(run.scores, folds)
    problems += _check_learnt(run, folds)
    told = {str(problem) for problem in problems}
    problems += [
        Problem("allowed", "error", None, text) for text in texts(config.get("allowed_leaks")) if text not in told
    ]
    if run.validation_scores is not None:
        problems += _check_validation(run.scores, run.validation_scores, folds)
    problems += _check_labels(run)
    problems += _check_choice(run, {fold.name: fold for fold in folds})
    if config.get("searched_on") == "other-folds":
        text = (
            "what fuses each fold was found on the test scores of the other folds, whose models have trained on "
            "utterances of this one"
        )
        problems.append(Problem("other-folds", "warning", None, text))
    return [*problems, *_check_context(run)]


def _check_learnt(run: Run, folds: Sequence[Fold]) -> list[Problem]:
    """Hold what had learnt before the run was trained against what it scored."""
    sources = read_learnt(run.folder)
    audio = audio_of_run(run.folder) if sources else Audio()
    problems = check_learnt(folds, sources, run.manifest or (), audio)
    streams = (run.config or {}).get("fold_streams")
    lacking = sorted({fold.name for fold in folds} - set(sources), key=natural_key) if streams else []
    if lacking:
        text = f"{LEARNT!r} does not say what the encoders of the folds {shown(lacking)} have learnt from"
        problems.append(Problem("tuned", "error", None, text))
    return problems


def _check_context(run: Run) -> Iterator[Problem]:
    """Tell what scores depend on beside weights and the utterance.

    Raises:
        ScoresError: the file that keeps it is damaged.
    """
    from pipelines.run_folders import CONTEXT

    path = run.folder / CONTEXT
    if not path.is_file():
        return
    try:
        with safe_open(path, "np") as file:
            names = list(file.keys())
    except (SafetensorError, OSError) as error:
        raise ScoresError(f"{str(path)!r} is damaged ({error}). Train the run again with --overwrite.") from None
    speakers = [name for name in names if name.startswith(SPEAKER)]
    lengths = [name for name in names if name in _LENGTHS]
    others = sorted({*names} - {*speakers, *lengths})
    told = []
    if speakers:
        told.append(
            f"means over each speaker's utterances ({CONTEXT!r} holds those of {len(speakers)} speakers), tested ones "
            "among them, without their labels; an utterance that comes alone has no such mean"
        )
    if lengths:
        told.append(
            f"the one length that all utterances are padded to ({CONTEXT!r}, {listed(lengths)}): that of the longest, "
            "be it a tested one; nothing else of the tested utterances is in it"
        )
    if others:
        told.append(
            f"what {CONTEXT!r} holds beside weights and the utterance ({listed(others)}), which was taken of tested "
            "utterances too"
        )
    for what in told:
        yield Problem("context", "warning", None, f"scores depend on {what}")


def _by_fold(scores: Scores) -> dict[str, set[str]]:
    ids: dict[str, set[str]] = {}
    for fold, name in zip(scores.folds, scores.ids, strict=True):
        ids.setdefault(fold, set()).add(name)
    return dict(sorted(ids.items(), key=lambda item: natural_key(item[0])))


def _check_scored(scores: Scores, folds: Sequence[Fold]) -> Iterator[Problem]:
    """Hold scored utterances against the folds that they say they were scored in."""
    scored = _by_fold(scores)
    known = {fold.name: fold for fold in folds}
    for name in (name for name in scored if name not in known):
        yield Problem("unknown", "error", name, "'scores.csv' has this fold, and 'folds.json' has not")
    for name, fold in known.items():
        ids = scored.get(name, set())
        other = ids - set(fold.test)
        for kind, part, of in (("trained", "train", fold.train), ("selected", "validation", fold.validation)):
            found = sorted(other & set(of))
            if found:
                yield Problem(kind, "error", name, f"{len(found)} scored utterances are in {part} ({shown(found)})")
        strange = sorted(other - set(fold.train) - set(fold.validation))
        if strange:
            yield Problem(
                "unknown", "error", name, f"{len(strange)} scored utterances are in no part ({shown(strange)})"
            )
        left_out = sorted(set(fold.test) - ids)
        if left_out:
            text = f"{len(left_out)} of {len(fold.test)} utterances of test have no scores ({shown(left_out)})"
            yield Problem("unscored", "warning", name, text)


def _check_validation(scores: Scores, validation: Scores, folds: Sequence[Fold]) -> Iterator[Problem]:
    tested = _by_fold(scores)
    trained = {fold.name: set(fold.train) for fold in folds}
    for name, ids in _by_fold(validation).items():
        both = sorted(ids & tested.get(name, set()))
        if both:
            text = (
                f"{len(both)} of {len(tested[name])} tested utterances have validation scores too ({shown(both)}): "
                "what was chosen on validation was chosen on test"
            )
            yield Problem("selected", "error", name, text)
        learnt = sorted(ids & trained.get(name, set()))
        if learnt:
            text = f"{len(learnt)} utterances with validation scores are in train ({shown(learnt)})"
            yield Problem("trained", "warning", name, text)


def _check_labels(run: Run) -> Iterator[Problem]:
    classes = (run.config or {}).get("classes")
    if isinstance(classes, list) and texts(classes) != list(run.scores.classes):
        orders = f"{listed(classes)}, in this order, and 'scores.csv' {listed(run.scores.classes)}"
        text = f"'config.yaml' has the classes {orders}: scores may stand under the names of other classes"
        yield Problem("label", "error", None, text)
    labels = {one.id: one.label for one in run.manifest or () if one.label is not None}
    pairs = zip(run.scores.ids, run.scores.labels, strict=True)
    differing = sorted({name for name, label in pairs if labels.get(name, label) != label})
    if differing:
        text = f"{len(differing)} scored utterances have another label in 'manifest.jsonl' ({shown(differing)})"
        yield Problem("label", "error", None, text)


def _check_choice(run: Run, folds: Mapping[str, Fold]) -> Iterator[Problem]:
    """Hold the candidates that were chosen against what validation said of them."""
    found = read_candidates(run.folder, [fold["fold"] for fold in run.metrics["folds"]])
    if found is None:
        return
    for name in dict.fromkeys(found.folds):
        rows = [row for row, fold in enumerate(found.folds) if fold == name]
        if len(rows) > 1 and name in folds and not folds[name].validation:
            text = f"one of {len(rows)} candidates was chosen, and there is no validation part to choose on"
            yield Problem("selected", "error", name, text)
            continue
        known = [row for row in rows if not math.isnan(found.validation[row])]
        if len(rows) > 1 and not any(found.chosen[row] for row in known):
            text = f"one of {len(rows)} candidates was chosen, of which nothing is known on validation"
            yield Problem("selected", "error", name, text)
            continue
        best = max((found.validation[row] for row in known), default=0.0)
        chosen = max((found.validation[row] for row in known if found.chosen[row]), default=best)
        if chosen < best:
            text = (
                f"the candidate of this run has {chosen:.3f} on validation and another has {best:.3f}: it was not "
                "chosen there"
            )
            yield Problem("selected", "error", name, text)
