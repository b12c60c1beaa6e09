"""What reproducing a paper takes: which rows, from which streams, in which form, and what is there already.

All that can be refused is refused here, before anything trains: presets and settings, streams that the cache lacks,
utterances that a stream lacks, folds that would leak, folders that hold something else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.cache import Cache
from featcache.cache import open as open_cache
from featcache.errors import CacheError, ConfigError, ProtocolError, UnknownNameError
from featcache.manifest import Manifest, Utterance
from heads.fold_copies import with_their_copies
from heads.folds import FoldSet, make_folds
from pipelines.config import ExtractConfig, TrainConfig, read_preset
from pipelines.paper import FusionOf, Paper
from pipelines.prepare import learnable
from pipelines.reproduce_folders import check_folders
from pipelines.reproduce_rows import (
    Options,
    Probe,
    Training,
    check_settings,
    columns_of,
    form_of,
    kind_of,
    probe_of,
    run_of,
    training_of,
)
from pipelines.run_folders import check_folder


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        paper: the paper.
        manifest: the utterances that every row is measured on.
        num_dropped: utterances left out because a stream lacks them, or what they are copies of.
        cache: the cache's folder.
        out: the folder of all that is written.
        trainings: by key.
        probes: by key.
        fusions: by key.
        not_run: key to reason, of what is left out.
        missing: sentence to the keys that the cache lacks something for.
        folds: the folds of each training, by key.
        presets: the preset of each of the paper's runs, by key.
        form: see :attr:`Options.form`.
    """

    paper: Paper
    manifest: Manifest
    num_dropped: int
    cache: Path
    out: Path
    trainings: Mapping[str, Training]
    probes: Mapping[str, Probe]
    fusions: Mapping[str, FusionOf]
    not_run: Mapping[str, str]
    missing: Mapping[str, Sequence[str]]
    folds: Mapping[str, FoldSet]
    presets: Mapping[str, str]
    form: str = ""

    @property
    def num_unlabelled(self) -> int:
        """Utterances of the manifest that are left out because they have no label."""
        return max((folds.num_unlabelled for folds in self.folds.values()), default=0)


def make_plan(paper: Paper, manifest: Manifest, cache: Path, out: Path, options: Options) -> Plan:
    """Return what reproducing a paper takes; nothing is written.

    Args:
        paper: the paper.
        manifest: labelled utterances.
        cache: the cache's folder.
        out: folder of all that would be written.
        options: how.

    Raises:
        ConfigError: settings that do not fit, a stream that no row reads, or a folder below `out` holds something else.
        CacheError: there is no cache.
        UnknownNameError: a preset or a stream that does not exist.
        ProtocolError: folds that would leak, or labels that are missing.
    """
    check_folder(out)
    check_settings(options.settings)
    opened = open_cache(cache)
    presets = {key: form_of(of, options) for key, of in paper.runs.items()}
    _check_streams(opened, options.streams, [read_preset(paper.preset(name)) for name in presets.values() if name])
    trainings, not_run, missing = _trainings(paper, opened, out, options)
    lacking = _lacking(opened, manifest, trainings)
    num_dropped = 0
    if options.missing == "drop":
        left_out = with_their_copies({item for ids in lacking.values() for item in ids}, manifest)
        num_dropped = len(left_out)
        manifest = manifest.select(item for item in manifest.ids if item not in left_out)
        if not len(manifest):
            raise CacheError(f"Every utterance is lacking in one of {', '.join(lacking)}: nothing is left to train on.")
    else:
        for name, ids in lacking.items():
            keys = [key for key, training in trainings.items() if name in training.config.streams]
            missing[_uncovered(opened, name, ids, len(manifest))] = keys
    not_run |= {key: sentence for sentence, keys in missing.items() for key in keys}
    for key, training in trainings.items():
        # A corpus without any labels is refused below: no row could be run.
        wanted = [training.config.votes, *([training.config.label] if training.config.label != "label" else [])]
        for column in filter(None, wanted):
            if not any(utterance.column(column) for utterance in manifest):
                not_run[key] = f"no utterance has the column {column}"
    trainings = _possible(trainings, not_run)
    _check_families(trainings)
    probes = _probes(paper, manifest, trainings, not_run, out, options)
    fusions = _fusions(paper, trainings, not_run)
    check_folders(trainings, probes, fusions, out, options.overwrite)
    folds = _folds(manifest, trainings)
    return Plan(
        paper, manifest, num_dropped, cache, out, trainings, probes, fusions, not_run, missing, folds,
        {key: name for key, name in presets.items() if name is not None}, options.form,
    )  # fmt: skip


def _trainings(
    paper: Paper, cache: Cache, out: Path, options: Options
) -> tuple[dict[str, Training], dict[str, str], dict[str, list[str]]]:
    """Return the trainings, why others have no form, and what the cache lacks with the keys that need it."""
    trainings: dict[str, Training] = {}
    not_run: dict[str, str] = {}
    missing: dict[str, list[str]] = {}
    for key, of in paper.runs.items():
        if form_of(of, options) is None:
            needed = _checkpoints(read_preset(paper.preset(of.preset)), of.preset)
            not_run[key] = f"needs {needed}, no {options.form} form"
            continue
        try:
            trainings[key] = training_of(paper, key, of, cache, out, options)
        except CacheError as error:
            missing.setdefault(str(error), []).append(key)
    return trainings, not_run, missing


def _possible(trainings: Mapping[str, Training], not_run: dict[str, str]) -> dict[str, Training]:
    """Return the trainings whose own inputs there will be, each after those that it needs; others go to `not_run`."""
    left = {key: training for key, training in trainings.items() if key not in not_run}
    possible: dict[str, Training] = {}
    while left:
        ready = {key: one for key, one in left.items() if all(before in possible for before in one.after)}
        if not ready:
            break
        possible |= ready
        left = {key: one for key, one in left.items() if key not in ready}
    for key, training in left.items():
        lacking = [before for before in training.after if before not in possible]
        not_run[key] = f"{' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} left out"
    return possible


def _check_families(trainings: Mapping[str, Training]) -> None:
    """Refuse runs that want one stream of another run's encoders with several settings."""
    seen: dict[str, tuple[str, ExtractConfig]] = {}
    for key, training in trainings.items():
        for stream, config in training.families.items():
            other, wanted = seen.setdefault(stream, (key, config))
            if wanted != config:
                raise ConfigError(f"{other} and {key} read {stream!r} with different settings of the preset's extract.")


def _probes(
    paper: Paper,
    manifest: Manifest,
    trainings: Mapping[str, Training],
    not_run: dict[str, str],
    out: Path,
    options: Options,
) -> dict[str, Probe]:
    """Return the probes; why others are left out goes into `not_run`."""
    probes = {}
    for key, of in paper.probes.items():
        columns = columns_of(of.target)
        if of.run not in trainings:
            not_run[key] = f"{of.run} is left out"
        elif options.form and of.demo is None:
            not_run[key] = f"no {options.form} form"
        elif columns and not any(utterance.column(column) for utterance in manifest for column in columns):
            not_run[key] = f"no utterance has the column {' or '.join(columns)}"
        else:
            probes[key] = probe_of(paper, key, of, trainings[of.run], out, options)
    return probes


def _fusions(paper: Paper, trainings: Mapping[str, Training], not_run: dict[str, str]) -> dict[str, FusionOf]:
    """Return the fusions; why others are left out goes into `not_run`."""
    fusions = {}
    for key, fusion in paper.fusions.items():
        absent = [run for run in fusion.runs if run not in trainings]
        if absent:
            not_run[key] = f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} left out"
        else:
            fusions[key] = fusion
    return fusions


def _check_streams(cache: Cache, names: Sequence[str], presets: Sequence[Mapping[str, Any]]) -> None:
    """Refuse streams that the cache lacks, or that no row reads."""
    read = dict.fromkeys(
        str(kind)
        for preset in presets
        for kind in (preset.get("train") or {}).get("streams") or ()
        if not run_of(str(kind))
    )
    for name in names:
        if name not in list(cache):
            raise UnknownNameError(f"stream in the cache {str(cache.path)!r} for --stream", name, list(cache))
        if kind_of(name) not in read:
            raise ConfigError(f"--stream {name}: no row reads a stream of that kind. Rows read: {', '.join(read)}.")


def _checkpoints(preset: Mapping[str, Any], name: str) -> str:
    """Return the checkpoints that a preset's streams need, or its name where they need none."""
    streams = (preset.get("extract") or {}).get("streams") or {}
    named = [str(settings["checkpoint"]) for settings in streams.values() if settings and "checkpoint" in settings]
    return " and ".join(named) or f"the preset {name}"


def _lacking(cache: Cache, manifest: Manifest, trainings: Mapping[str, Training]) -> dict[str, list[str]]:
    """Return the utterances that each stream lacks, or failed on, of streams that lack any."""
    wanted: dict[str, dict[str, None]] = {}
    for training in trainings.values():
        config = training.config
        labelled = [one.id for one in learnable(manifest, config) if one.label or not config.drop_unlabelled]
        for name in (stream for stream in config.streams if stream not in training.families):
            wanted.setdefault(name, {}).update(dict.fromkeys(labelled))
    found = {}
    for name, ids in wanted.items():
        stream = cache[name]
        failed = stream.failures  # also of what is held for an earlier input
        lacking = [item for item in ids if item not in stream or item in failed]
        if lacking:
            found[name] = lacking
    return found


def _uncovered(cache: Cache, name: str, ids: Sequence[str], number: int) -> str:
    reason = cache[name].failures.get(ids[0], "never extracted")
    return (
        f"{name} lacks {len(ids)} of {number} utterances, such as {ids[0]!r} ({reason}). See 'featcache coverage "
        f"{cache.path} MANIFEST'; run its extract again, or leave them out of every row with --missing drop."
    )


def _folds(manifest: Manifest, trainings: Mapping[str, Training]) -> dict[str, FoldSet]:
    """Return the folds of each training; the same ones are made once."""
    made: dict[tuple[Any, ...], FoldSet] = {}
    found = {}
    for key, training in trainings.items():
        config = training.config
        what = (config.label, config.folds, config.validation, config.validation_by, config.fit.seed, config.allow,
                config.drop_unlabelled, config.copies)  # fmt: skip
        if what not in made:
            corpus = learnable(manifest, config)
            _check_labels(corpus, config)
            made[what] = make_folds(
                corpus, config.folds, validation=config.validation, validation_by=config.validation_by,
                seed=config.fit.seed, allow=config.allow, drop_unlabelled=config.drop_unlabelled,
            )  # fmt: skip
        found[key] = made[what]
    return found


def _check_labels(corpus: Sequence[Utterance], config: TrainConfig) -> None:
    unlabelled = [utterance.id for utterance in corpus if not utterance.label]
    if unlabelled and not config.drop_unlabelled:
        raise ProtocolError(
            f"{len(unlabelled)} of {len(corpus)} utterances have no {config.label}, such as {unlabelled[0]!r}, so they "
            "can neither train nor be scored. Take them out of the manifest, or leave them out of every row with "
            "--drop-unlabelled."
        )
