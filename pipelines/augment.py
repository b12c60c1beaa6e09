"""Write augmented copies of a manifest's recordings, and a manifest of originals and copies.

``OUT/audio`` holds a FLAC file for each copy, named after all that decides it, so that what is there is not made again.
``OUT/manifest.jsonl``, written last, and not where there is no copy, lists the originals as they are, each followed by
its copies: rows with the columns of the original, but an id and audio of their own, and further

* ``version_of``: the original's id, by which folds keep copies in training parts, with their original;
* ``augmentation``: what was drawn, such as ``{"snr_db": 17.25}``.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featcache.augmentation import Copy, Maker, Recipe, Reply, Request, draw, without_any
from featcache.claims import remove_abandoned, workplace
from featcache.errors import ConfigError, ManifestError
from featcache.files import listed, quoted
from featcache.manifest import Manifest, Utterance
from featcache.workers import Died, Workers
from heads.protocol import COPY_OF

AUDIO = "audio"
MANIFEST = "manifest.jsonl"
_DRAWN = "augmentation"
_OF_THE_FILE = ("sample_rate_hz", "num_samples", "num_channels", "duration_s")
"""Columns that corpora have, and that are not true of a copy."""
_EACH = 4
"""Originals that a process is given before the progress is told."""


@dataclass(frozen=True)
class Augmented:
    """What was written.

    Attributes:
        num_originals: utterances that are no copies.
        num_copies: copies that the manifest lists now.
        num_brought: those of them that the manifest that was read listed already.
        num_made: those of them that were made now.
        failures: id of an original to which copies it has not, and why.
        num_strangers: further files among the copies, of other recipes, seeds or recordings.
    """

    num_originals: int
    num_copies: int
    num_brought: int
    num_made: int
    failures: Mapping[str, str]
    num_strangers: int


def run(
    manifest: Manifest,
    out: Path,
    recipe: Recipe,
    copies: int = 1,
    seed: int = 0,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] = lambda *_: None,
    overwrite: bool = False,
) -> Augmented:
    """Write the copies that are not there yet, and the manifest.

    Args:
        manifest: the originals; copies among its rows are listed again, and not copied.
        out: folder to write.
        recipe: kinds of copies; see :mod:`featcache.augmentation`.
        copies: of each kind, for each original.
        seed: of what is drawn; the same gives the same files.
        workers: processes; None is one for each core.
        on_progress: called with originals done, and all of them.
        overwrite: replace a manifest in `out` that lists what the new one does not; files of copies stay.

    Raises:
        ManifestError: an original is called as a copy would be.
        ConfigError: `out` is a file, or holds a manifest that is not of copies, or that lists what the new one would
            not, be it as something cannot be made any more.
    """
    there = _manifest_there(manifest, out)
    originals = [utterance for utterance in manifest if not utterance.column(COPY_OF)]
    wanted = {utterance.id: draw(recipe, utterance.id, copies, seed) for utterance in originals}
    _check_ids(manifest, wanted)
    if not overwrite:
        drawn = [(copy.id, copy.drawn) for copies in wanted.values() for copy in copies]
        _check_kept(there, [*_drawn(manifest), *drawn], out)
    out.mkdir(parents=True, exist_ok=True)
    remove_abandoned(out)
    with workplace(out) as aside:
        replies = _made(manifest, originals, wanted, (out / AUDIO, aside), workers, on_progress)
    remove_abandoned(out)  # of a process that outlived its killed command
    rows: list[Utterance] = []
    for utterance in manifest:
        audio = None if utterance.audio is None else os.path.abspath(manifest.audio_path(utterance))
        rows.append(replace(utterance, audio=audio))
        if utterance.id in replies:
            files = replies[utterance.id].files
            rows += [_row(utterance, copy, files[copy.id]) for copy in wanted[utterance.id] if copy.id in files]
    failures = {name: _told(reply) for name, reply in replies.items() if reply.failures}
    if not overwrite:
        _check_kept(there, _drawn(rows), out, failures)
    num_new, num_brought = len(rows) - len(manifest), len(manifest) - len(originals)
    if num_new:
        Manifest(rows, folder=out).write(out / MANIFEST)
    named = {Path(row.audio).name for row in rows if row.audio is not None}
    files_there = {file.name for file in (out / AUDIO).glob("*.flac")}
    return Augmented(
        len(originals),
        num_brought + num_new,
        num_brought,
        sum(reply.num_made for reply in replies.values()),
        failures,
        len(files_there - named),
    )


def _made(
    manifest: Manifest,
    originals: Sequence[Utterance],
    wanted: Mapping[str, Sequence[Copy]],
    folders: tuple[Path, Path],
    workers: int | None,
    on_progress: Callable[[int, int], None],
) -> dict[str, Reply]:
    """Return what became of each original, by id; files are written in the second folder and renamed into the first."""
    replies: dict[str, Reply] = {}
    requests: dict[str, Request] = {}
    for utterance in originals:
        try:
            audio = manifest.audio_path(utterance)
            requests[utterance.id] = Request(audio, utterance.start_s, utterance.end_s, wanted[utterance.id])
        except ManifestError as error:
            replies[utterance.id] = without_any(wanted[utterance.id], str(error))
    folders[0].mkdir(parents=True, exist_ok=True)
    number = max(1, min(workers or len(os.sched_getaffinity(0)), len(requests)))
    processes: Workers[Request, Reply] = Workers(number, Maker, folders)
    try:
        names = list(requests)
        for start in range(0, len(names), _EACH * number):
            some = names[start : start + _EACH * number]
            for name, reply in zip(some, processes.map([requests[name] for name in some]), strict=True):
                replies[name] = without_any(wanted[name], f"its process {reply}") if isinstance(reply, Died) else reply
            on_progress(len(replies), len(originals))
    finally:
        processes.close()
    return replies


def _row(original: Utterance, copy: Copy, file: str) -> Utterance:
    extra = {name: value for name, value in original.extra.items() if name not in _OF_THE_FILE}
    extra |= {COPY_OF: original.id, _DRAWN: copy.drawn}
    return replace(original, id=copy.id, audio=f"{AUDIO}/{file}", start_s=None, end_s=None, extra=extra)


def _check_ids(manifest: Manifest, wanted: Mapping[str, Sequence[Copy]]) -> None:
    taken = set(manifest.ids)
    twice = next((copy.id for copies in wanted.values() for copy in copies if copy.id in taken), None)
    if twice is not None:
        raise ManifestError(
            f"{quoted(twice)} is in the manifest already, and a copy would be called so. Augment the manifest without "
            "its copies, or name the kinds of copies otherwise in a YAML file."
        )


def _manifest_there(manifest: Manifest, out: Path) -> Sequence[Utterance]:
    """Return what a manifest in a folder lists; refuse one that is not of copies, above all the one that is read."""
    nearest = next(path for path in (out, *out.parents) if path.exists())
    if not nearest.is_dir():
        raise ConfigError(f"{str(nearest)!r} is a file, and OUT is a folder to write. Name one, such as 'augmented'.")
    there = out / MANIFEST
    if not there.exists():
        return ()
    rows = Manifest.read(there)
    own = manifest.folder.resolve() == out.resolve()
    if own or not any(row.column(COPY_OF) for row in rows):
        raise ConfigError(
            f"{str(there)!r} is there already, and is {'what is read' if own else 'no manifest of copies'}. Give OUT "
            "a folder of its own."
        )
    return rows


def _drawn(rows: Iterable[Utterance]) -> list[tuple[str, Any]]:
    """Return ids, each with what was drawn for it: nothing for originals."""
    return [(row.id, row.column(_DRAWN)) for row in rows]


def _told(reply: Reply) -> str:
    """Return which copies an original has not, and why."""
    which = listed(name.rpartition("~")[2] for name in reply.failures) if reply.files else "copies"
    return f"no {which}: {'; '.join(dict.fromkeys(reply.failures.values()))}"


def _check_kept(
    there: Sequence[Utterance], kept: Iterable[tuple[str, Any]], out: Path, failures: Mapping[str, str] = {}
) -> None:
    """Refuse to replace a list by one that lacks some of it: utterances, or copies as they were drawn.

    Args:
        there: the list's rows.
        kept: id of each row of the new list to what was drawn for it.
        out: their folder.
        failures: id of an original to which copies cannot be made, and why; before they are made there are none.
    """
    drawn = dict(kept)
    lost = [row for row in there if row.id not in drawn or row.column(_DRAWN) != drawn[row.id]]
    if not lost:
        return
    source = str(lost[0].column(COPY_OF) or "")
    what = "copies" if all(row.column(COPY_OF) for row in lost) else "utterances"
    why, remedy = (
        (f"cannot be made now ({source}: {failures[source]})", "Bring back what they are made of")
        if source in failures
        else (
            "this manifest, recipe and seed would leave out or draw otherwise",
            "Give another folder, name the kinds and numbers of copies that are there as well",
        )
    )
    raise ConfigError(
        f"{str(out / MANIFEST)!r} lists {len(lost)} {what}, such as {quoted(lost[0].id)}, that {why}. {remedy}, or "
        "replace the list with --overwrite; files of copies stay."
    )
