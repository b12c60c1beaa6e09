"""Train probes on the codes of a run, fold by fold, and write a run folder.

Each fold of the run has an encoder of its own, so each has its own stream of codes and its own probe. The folder is
that of any training (:mod:`pipelines.train_heads`); its ``config.yaml`` also tells what was asked, of which run, and
for each fold how often chance and the commonest class of train are right. Classes of a fold are those of its train
part; the score table has those of all folds, with probability 0 where a fold lacks one. Augmented copies that the run
was trained with are left out: a probe asks of recordings as they were made.
"""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from featcache.cache import Cache, CachedStream
from featcache.cache import open as open_cache
from featcache.errors import ConfigError, ProtocolError
from featcache.extract import resolve_device
from featcache.manifest import COLUMNS, Manifest, Utterance
from heads.fold_copies import originals
from heads.fold_files import read_folds
from heads.folds import FoldSet
from heads.head import Head, OnProgress
from heads.models.mlp_probe import MlpProbe
from heads.probing import Probe, majority_rate, make_probe, over_classes, speaker_dependent_fold, united
from heads.protocol import Fold, check_folds, shown
from heads.runs import Run, read_run
from heads.task import Outcome
from heads.unfinished import Unfinished
from pipelines.config import TrainConfig
from pipelines.run_folders import UNFINISHED, existing_run, facts, membership, plain, versions, write_training
from pipelines.train_heads import covered, load_head, relabelled

SPEAKER, PHONE = "speaker", "phone"

COLUMNS_OF: Mapping[str, tuple[str, ...]] = {"emotion": ("label",), "sex": ("sex", "gender")}
"""Targets to the columns that hold them, the first that a manifest has; every other target is a column itself."""

TEST_SHARE = 0.2
"""Of each speaker's utterances, where the target is the speaker (Makiuchi et al. 2021, section 6.2)."""

_BY_DESIGN = (
    "By design every speaker of a fold is in train, validation and test, since the probe is to tell them apart."
)
_OF_THE_DESIGN = ("speaker", "class")  # what the checks find of it: a fold has the speakers of its train part alone


def run(
    run_folder: str | Path,
    manifest: Manifest,
    cache: str | Path,
    out: str | Path,
    target: str,
    config: TrainConfig,
    codes: Mapping[str, str],
    overwrite: bool = False,
    on_progress: OnProgress = lambda *_: None,
    on_message: Callable[[str], None] = lambda _: None,
) -> Run:
    """Train a probe on every fold's codes.

    Args:
        run_folder: the run whose encoders made the codes.
        manifest: the utterances that it was trained on.
        cache: the cache's folder.
        out: the run folder of the probe.
        target: ``speaker``, ``emotion``, ``sex``, ``phone`` or a column of the manifest.
        config: head, its settings and how it trains. `validation` is the share of each speaker's utterances that are
            not tested, where the target is the speaker; elsewhere the run's folds have a validation part. For
            ``phone``, `streams` may name the phones (otherwise those that the run read), and the setting `frames` of
            mlp_probe is 1 unless it is given. Folds, label and `allow` are not read.
        codes: fold of the run to the full name of its codes' stream.
        overwrite: replace another run that lies in `out`.
        on_progress: called with what is done and what there is to do.
        on_message: called with a sentence for each thing worth knowing.

    Returns:
        The probe's run; where `out` held the very same already, nothing was trained.

    Raises:
        ConfigError: settings that do not fit, folds without codes, a column that is not there, or `out` holds another
            run.
        UnknownNameError: no such stream.
        CacheError: the cache lacks utterances and `config.missing` is ``"error"``.
        ProtocolError: the run has no folds, or what is left of one cannot be learnt.
    """
    run_folder, out = Path(run_folder), Path(out)
    config = _fitting(config, target)
    head = load_head(config)
    folds = _run_folds(run_folder, manifest)
    of_run = (read_run(run_folder).config or {}) if (run_folder / "scores.csv").exists() else {}
    opened = open_cache(cache)
    streams = _codes(opened, folds, codes)
    phones = {"phones": _phones(opened, config, of_run)} if target == PHONE else {}
    labelled = _labelled(manifest, folds, target, on_message)
    dropped: set[str] = set()
    rare: set[str | None] = set()
    probes: list[Probe] = []
    known: list[list[Any]] = []
    for fold in folds:
        reads = {"codes": streams[fold.name], **phones}
        fold = _reduced(fold, target)
        wanted = [labelled[name] for part in fold.parts.values() for name in part if name in labelled]
        kept, lacking = covered(wanted, reads, config, opened)
        dropped.update(lacking)
        probes.append(_probe(fold, kept, streams[fold.name], phones.get("phones"), target, config))
        if target == SPEAKER:
            rare |= {utterance.speaker for utterance in kept} - {item.speaker for item in probes[-1].items.values()}
        known.append([membership(probes[-1].fold), *(facts(utterance, reads.values()) for utterance in kept)])
    if dropped:
        on_message(f"{len(dropped)} utterances are left out: a stream lacks them ({min(dropped)!r} and so on).")
    if rare:
        on_message(f"{len(rare)} speakers are left out: they have too few utterances to be in every part.")
    checked, problems = _check(probes, target)
    for problem in problems:
        on_message(problem)
    named: dict[str, Any] = {"codes": {name: stream.name for name, stream in streams.items()}}
    named |= {name: stream.name for name, stream in phones.items()}
    digest = config.digest(target, of_run.get("digest"), named, known)
    existing = existing_run(out, digest, overwrite)
    if existing is not None:
        shutil.rmtree(out / UNFINISHED, ignore_errors=True)  # of a kill after the last file was written
        on_message(f"{str(out)!r} holds this very run already: nothing was trained.")
        return existing
    if (out / UNFINISHED / digest).exists():
        on_message("An earlier run of the same was not finished: going on where it stopped.")
    started = time.perf_counter()
    outcomes = _train(probes, head, config, out / UNFINISHED / digest, on_progress)
    seconds = time.perf_counter() - started
    task = united(probes)
    record = {
        **_recorded(config, run_folder.resolve().name, target),
        "target": target,
        "of_run": {"folder": str(run_folder), "digest": of_run.get("digest")},
        "digest": digest,
        "streams": named,
        "classes": list(task.classes),
        "chance": {probe.fold.name: 1 / len(probe.classes) for probe in probes},
        "majority": {probe.fold.name: majority_rate(probe.labels("train"), probe.labels("test")) for probe in probes},
        "num_utterances": len(task.ids),
        "dropped": len(dropped),
        "speaker_independent": checked.speaker_independent,
        "synthetic": any(utterance.extra.get("synthetic") for utterance in labelled.values()),
        "problems": problems,
        "allowed_leaks": [str(leak) for leak in checked.leaks if str(leak) in problems],
        "seconds": round(seconds, 3),
        "versions": versions(),
    }
    written = write_training(out, task, outcomes, record)
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    return written


def _fitting(config: TrainConfig, target: str) -> TrainConfig:
    """Return the configuration as the target wants it: a phone is asked of one code, not of a window of them.

    Raises:
        ConfigError: streams or a head that the target has no use for.
    """
    if target == PHONE:
        if config.head != MlpProbe.kind():
            raise ConfigError(
                f"The target 'phone' classifies frames, which the head {config.head!r} does not. Use mlp_probe."
            )
        return replace(config, settings={"frames": 1, **config.settings})
    if config.streams:
        raise ConfigError(
            f"A probe reads the codes of its fold and, for the target 'phone', a stream of phones; it was given "
            f"{', '.join(config.streams)}. Leave the streams out."
        )
    return config


def _run_folds(run_folder: Path, manifest: Manifest) -> list[Fold]:
    """Return the folds of a run, without augmented copies.

    Raises:
        ProtocolError: it has none, or of utterances that the manifest lacks; see also :func:`heads.protocol.lineages`.
    """
    path = run_folder / "folds.json"
    if not path.is_file():
        raise ProtocolError(
            f"{str(run_folder)!r} has no folds.json, which a trained head leaves there. Name the folder of such a run."
        )
    folds = read_folds(path)
    unknown = sorted({name for fold in folds for part in fold.parts.values() for name in part} - set(manifest.ids))
    if unknown:
        raise ProtocolError(
            f"The manifest lacks {len(unknown)} utterances of the folds of {str(run_folder)!r} ({shown(unknown)}). "
            "Give the manifest that it was trained on."
        )
    copies = originals(manifest)
    return [fold.without(copies) for fold in folds]


def _codes(cache: Cache, folds: Sequence[Fold], codes: Mapping[str, str]) -> dict[str, CachedStream]:
    """Return each fold's codes.

    Raises:
        ConfigError: folds without codes, codes without a fold, or codes of another fold's encoder.
        UnknownNameError: no such stream.
    """
    names = [fold.name for fold in folds]
    if set(names) != set(codes):
        raise ConfigError(
            f"The run has the folds {', '.join(names)}, and codes were given for {', '.join(codes) or 'none'}. Give "
            "each fold its own: featcache codes."
        )
    streams = {name: cache[codes[name]] for name in names}
    for name, stream in streams.items():
        made_by = stream.spec.settings.get("fold", name)
        if made_by != name:
            raise ConfigError(
                f"{stream.name} holds codes of the encoder of fold {made_by!r}, which may have been trained on what "
                f"fold {name!r} tests. Give fold {name!r} its own."
            )
    return streams


def _phones(cache: Cache, config: TrainConfig, of_run: Mapping[str, Any]) -> CachedStream:
    """Return the phones: those that are named, those that the run read, or the only ones that the cache holds.

    Raises:
        ConfigError: more than one stream is named.
        UnknownNameError: no such stream.
    """
    if len(config.streams) > 1:
        raise ConfigError(
            f"A probe of phones reads one stream of them beside the codes, got {', '.join(config.streams)}."
        )
    read = of_run.get("streams")
    full_names = read.values() if isinstance(read, Mapping) else ()
    of_kind = [str(name) for name in full_names if str(name).rpartition("-")[0] == "phones"]
    return cache[[*config.streams, *of_kind, "phones"][0]]


def _labelled(
    manifest: Manifest, folds: Sequence[Fold], target: str, on_message: Callable[[str], None]
) -> dict[str, Utterance]:
    """Return the folds' utterances that have a value of the target, by id; it becomes their label.

    Raises:
        ConfigError: none has.
        ProtocolError: all have the same.
    """
    inside = {name for fold in folds for part in fold.parts.values() for name in part}
    utterances = [utterance for utterance in manifest if utterance.id in inside]
    if target == PHONE:
        return {utterance.id: utterance for utterance in utterances}
    columns = COLUMNS_OF.get(target, (target,))
    column = next((name for name in columns if any(one.column(name) is not None for one in utterances)), columns[0])
    found = [relabelled(utterance, column) for utterance in utterances]
    labelled = {utterance.id: utterance for utterance in found if utterance.label}
    if not labelled:
        extra = sorted({name for utterance in utterances for name in utterance.extra})
        known = [name for name in COLUMNS if any(one.column(name) is not None for one in utterances)]
        raise ConfigError(
            f"No utterance has the target {target!r} (column {' or '.join(map(repr, columns))}). Columns that exist: "
            f"{', '.join(known + extra)}."
        )
    values = {utterance.label for utterance in labelled.values()}
    if len(values) < 2:
        raise ProtocolError(f"Every utterance has the {target} {values.pop()!r}: there is nothing to tell apart.")
    if len(labelled) < len(utterances):
        on_message(f"{len(utterances) - len(labelled)} utterances are left out: they have no {column}.")
    return labelled


def _reduced(fold: Fold, target: str) -> Fold:
    """Return a fold without the part that the target does not read: speakers are told apart on known ones alone."""
    return replace(fold, test=()) if target == SPEAKER else fold


def _probe(
    fold: Fold,
    kept: Sequence[Utterance],
    codes: CachedStream,
    phones: CachedStream | None,
    target: str,
    config: TrainConfig,
) -> Probe:
    """Return what a fold's probe learns from the utterances that were kept.

    Raises:
        ProtocolError: it is nothing that could be learnt.
    """
    by_id = {utterance.id: utterance for utterance in kept}
    if target == SPEAKER:
        speakers = {name: utterance.speaker for name, utterance in by_id.items()}
        fold = speaker_dependent_fold(fold.within(by_id), speakers, config.fit.seed, TEST_SHARE, config.validation)
    return make_probe(fold, by_id, codes, phones, config.fit.seed)


def _check(probes: Sequence[Probe], target: str) -> tuple[FoldSet, list[str]]:
    """Return the folds with what the protocol checks find, and what is to be told of it; nothing stops a probe."""
    items = {name: item for probe in probes for name, item in probe.items.items()}
    folds = tuple(probe.fold for probe in probes)
    checked = FoldSet(folds, target, tuple(check_folds(folds, items.values())))
    if target != SPEAKER:
        return checked, [str(problem) for problem in checked.problems]
    told = [str(problem) for problem in checked.problems if problem.name not in _OF_THE_DESIGN]
    return checked, [_BY_DESIGN, *told]


def _train(
    probes: Sequence[Probe], head: Head, config: TrainConfig, unfinished: Path, on_progress: OnProgress
) -> list[Outcome]:
    """Train fold by fold; outcomes are over the classes of all folds."""
    classes = united(probes).classes
    outcomes = []
    for number, probe in enumerate(probes):

        def advance(done: int, total: int, number: int = number) -> None:
            on_progress(number * total + done, len(probes) * total)

        # Not by the fold's name, which may hold anything.
        task = probe.task(resolve_device(config.device), Unfinished(unfinished / f"fold-{number}"))
        [outcome] = head.train(task, config.fit, advance)
        outcomes.append(over_classes(outcome, probe.classes, classes))
    return outcomes


def _recorded(config: TrainConfig, of_run: str, target: str) -> dict[str, Any]:
    """Return a configuration as it was used, for ``config.yaml``."""
    values = {**plain(asdict(config)), "label": target}
    if target == SPEAKER:
        return values | {"folds": f"a fifth of each speaker, of {of_run}", "validation_by": "utterance"}
    left = {name: value for name, value in values.items() if name not in ("validation", "validation_by")}
    return left | {"folds": f"those of {of_run}"}
