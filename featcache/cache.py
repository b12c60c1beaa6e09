"""Reading a cache: streams by name, utterances by id.

    cache = featcache.open("CACHE")
    hidden = cache["hidden_states"]
    hidden.ids, hidden.spec
    hidden["Ses01F_impro01_F000"]                     # (layers, frames, dim)
    hidden.window("Ses01F_impro01_F000", 0, 96)       # (layers, 96, dim)
    mean, std = hidden.stats(hidden.ids)              # each (utterances, layers, dim) float32

A cache only grows: what was read once stays valid, and a second process may extract into it meanwhile.
:meth:`Cache.__getitem__` looks at the folder again each time.
"""

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache import dtypes
from featcache.backend import READ_ERRORS, PartFile, load_backend
from featcache.errors import CacheError, UnknownNameError
from featcache.index import FORMAT, STATS, Entry, Index
from featcache.stream import StreamSpec
from featcache.tuned import Tuned, of_stream

_MOST_OPEN_PARTS = 512

DESCRIPTION = "stream.json"
"""Name of the file in a stream's folder that says what decided its numbers."""


def open(path: str | Path) -> "Cache":  # noqa: A001
    """Open a cache for reading.

    Raises:
        CacheError: there is no such folder.
    """
    path = Path(path)
    if not path.is_dir():
        raise CacheError(
            f"There is no cache {str(path)!r}. Make one with: featcache extract MANIFEST --cache {path} --stream NAME"
        )
    return Cache(path)


class Cache(Mapping[str, "CachedStream"]):
    """A folder of streams. Keys are full names; a kind alone will do where only one stream is of that kind.

    The streams of one fine-tuning run are a family, see :mod:`featcache.families`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()

    def __getitem__(self, name: str) -> "CachedStream":
        """Return a stream by its full name, or by its kind where that is unique.

        Streams of encoders that were fine-tuned here go by the name of their family; the kind alone is the other one.

        Raises:
            UnknownNameError: no such stream.
            CacheError: several streams are of that kind; the message says how they differ. Or the name is that of a
                family, a stream for each fold; see :mod:`featcache.families`.
        """
        if "@" in name:
            raise CacheError(
                f"{name!r} names the streams of a fine-tuning run, one a fold, and one stream is wanted here. Give the "
                "full name of a fold's."
            )
        known = list(self)
        matches = [full for full in known if full == name or full.rpartition("-")[0] == name]
        if not matches:
            raise UnknownNameError(f"stream in the cache {str(self.path)!r}", name, known)
        if len(matches) > 1:
            specs = [read_spec(self.path / full) for full in matches]
            matches = [spec.name for spec in specs if "tuned" not in (spec.checkpoint or {})]
            if len(matches) != 1:
                raise CacheError(_ambiguous(name, specs))
        return CachedStream(self.path / matches[0])

    def __contains__(self, name: object) -> bool:
        """Say whether there is a stream of that full name, or one or more of that kind."""
        return any(name in (full, full.rpartition("-")[0]) for full in self)

    def __iter__(self) -> Iterator[str]:
        names = [path.parent.name for path in self.path.glob(f"*/{DESCRIPTION}")]
        return iter(sorted(names))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"Cache({str(self.path)!r}, streams={list(self)})"


def _ambiguous(name: str, specs: Sequence[StreamSpec]) -> str:
    """Return how streams of one kind differ; those of fine-tuning runs by run and fold."""
    told = {spec.name: spec.checkpoint or {} for spec in specs}
    runs = sorted({of["tuned"] for of in told.values() if "tuned" in of})
    lines = []
    first = next((spec for spec in specs if "tuned" not in told[spec.name]), None)
    for spec in specs:
        tuned, fold = (told[spec.name].get(key) for key in ("tuned", "fold"))
        how = f"fold {fold} of {tuned}" if tuned else "; ".join(spec.differences(first)) if first else ""
        lines.append(f"  {spec.name}{f': {how}' if how else ''}")
    lines += [f"The folds of one fine-tuning run go by the name {name}@{run}." for run in runs]
    return f"{name!r} could be any of these; give the full name:\n" + "\n".join(lines)


def read_spec(folder: Path) -> StreamSpec:
    """Read a stream's spec from its folder.

    Raises:
        CacheError: it is missing, damaged, of a newer format, or not the spec the folder is named after.
    """
    path = folder / DESCRIPTION
    try:
        values = json.loads(path.read_bytes())
        if values["format"] > FORMAT:
            raise CacheError(f"{str(path)!r} has format {values['format']}; this featcache reads up to {FORMAT}.")
        spec = StreamSpec.from_json(values["spec"])
        name = spec.name
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CacheError(
            f"{str(path)!r} cannot be read ({error}). Delete that file and run the same extract again: it is written "
            "anew and no features are lost."
        ) from None
    if name != folder.name:
        raise CacheError(
            f"{str(path)!r} describes the stream {name!r}, not {folder.name!r}: it was changed after it was written. "
            "Delete that file and run the same extract again."
        )
    return spec


@dataclass(frozen=True)
class Located:
    """Where an utterance lies: its entry, its part, and its position in the part."""

    entry: Entry
    index: Index
    position: int


class CachedStream:
    """One stream of a cache, as it was when it was opened.

    Args:
        path: its folder.
        spec: what decided its numbers; None reads it from the folder.

    Attributes:
        path: its folder.
        spec: what decided its numbers.
        indices: the index of each committed part, by name.
    """

    def __init__(self, path: Path, spec: StreamSpec | None = None) -> None:
        self.path = path
        self.spec = read_spec(path) if spec is None else spec
        self.indices = {
            name[:-5]: Index.read(path / name)
            for name in sorted(os.listdir(path))
            if name.startswith("part-") and name.endswith(".json")
        }
        self._located = _locate(self.indices.values())
        self._open: OrderedDict[str, PartFile] = OrderedDict()
        self._arrays: dict[tuple[str, str], np.ndarray] = {}

    @property
    def name(self) -> str:
        """The stream's full name."""
        return self.path.name

    @property
    def tuned(self) -> Tuned | None:
        """What the encoder that made it has learnt from; None where none was fine-tuned by this project.

        Raises:
            CacheError: one was, and the record of it is missing or damaged.
        """
        return of_stream(self.path, self.spec.checkpoint)

    @property
    def ids(self) -> list[str]:
        """Ids of all utterances held, sorted."""
        return sorted(self._located)

    @property
    def failures(self) -> dict[str, str]:
        """Id to reason, of utterances that could not be computed and have not been since.

        An utterance may be held and be here: its input changed after it was computed, and what it is now failed.
        """
        failed: dict[str, tuple[int, str]] = {}
        for index in self.indices.values():
            for name, reason in index.failures.items():
                generation = index.failed_generations.get(name, 0)
                if name not in failed or generation >= failed[name][0]:
                    failed[name] = (generation, reason)
        return {
            name: reason
            for name, (generation, reason) in sorted(failed.items())
            if name not in self._located or generation > self._located[name].entry.generation
        }

    def __contains__(self, name: object) -> bool:
        return name in self._located

    def __len__(self) -> int:
        return len(self._located)

    def __repr__(self) -> str:
        return f"CachedStream({self.name!r}, {len(self)} utterances, {len(self.spec.layers)} x {self.spec.dim})"

    def locate(self, name: str) -> Located:
        """Return where an utterance lies.

        Raises:
            UnknownNameError: the stream does not hold it; the message gives the reason where it failed.
        """
        if name not in self._located:
            reason = self.failures.get(name)
            if reason is not None:
                raise CacheError(f"{self.name}: {name!r} could not be computed: {reason}")
            raise UnknownNameError(f"utterance in {self.name}", name, self._located)
        return self._located[name]

    def num_frames(self, name: str) -> int:
        """Return an utterance's length in frames."""
        return self.locate(name).entry.num_frames

    def __getitem__(self, name: str) -> np.ndarray:
        """Return one utterance's frames, ``(layers, frames, dim)``, read-only or a copy, in the stored float type.

        Raises:
            UnknownNameError: the stream does not hold it.
            CacheError: only its stats were kept, or its part is damaged.
        """
        return self.window(name, 0, self.num_frames(name))

    def window(self, name: str, start: int, num_frames: int, layers: Sequence[int] | None = None) -> np.ndarray:
        """Return consecutive frames of one utterance, ``(layers, num_frames, dim)``.

        Args:
            name: the utterance's id.
            start: first frame.
            num_frames: how many.
            layers: positions of the layers wanted, in that order; None is all.

        Raises:
            UnknownNameError: the stream does not hold the utterance, or has no such layer.
            CacheError: the window leaves the utterance, only stats were kept, or the part is damaged.
        """
        stored = self.stored_window(name, start, num_frames, layers)
        if stored.dtype != np.int8:
            return stored
        scale = self.array(dtypes.SCALE, [name])[0]
        return dtypes.decode(stored, {dtypes.SCALE: scale if layers is None else scale[list(layers)]})

    def stored_window(self, name: str, start: int, num_frames: int, layers: Sequence[int] | None = None) -> np.ndarray:
        """Return what :meth:`window` returns, in the type it is stored in."""
        located = self.locate(name)
        entry = located.entry
        if located.index.tier == "stats":
            raise CacheError(
                f"{self.name}: only the stats of {name!r} were kept. "
                "For frames, run the same extract with --tier frames."
            )
        if start < 0 or num_frames < 0 or start + num_frames > entry.num_frames:
            raise CacheError(
                f"{self.name}: frames {start} to {start + num_frames} were asked of {name!r}, "
                f"which has {entry.num_frames}."
            )
        if layers is not None:
            bad = [layer for layer in layers if not 0 <= layer < len(self.spec.layers)]
            if bad:
                raise UnknownNameError(f"layer in {self.name}", bad[0], range(len(self.spec.layers)))
        first = entry.start + start
        return self._read(located.index, lambda part: part.frames(first, first + num_frames, layers))

    def stats(self, ids: Sequence[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation (population) over each utterance's frames.

        Args:
            ids: utterances wanted, in order; None is :attr:`ids`.

        Returns:
            Two arrays, each ``(utterances, layers, dim)`` float32, from the frames before they were rounded to the
            stored type.
        """
        mean, std = (self.array(name, ids) for name in STATS)
        return mean, std

    def array(self, name: str, ids: Sequence[str] | None = None) -> np.ndarray:
        """Return an array of one value an utterance, ``(utterances, ...)``.

        Raises:
            UnknownNameError: no such array, or the stream does not hold an utterance.
        """
        located = [self.locate(utterance) for utterance in (self.ids if ids is None else ids)]
        if not located:
            raise CacheError(f"{self.name}: no utterances were asked for.")
        parts: dict[str, list[int]] = {}
        for row, item in enumerate(located):
            parts.setdefault(item.index.name, []).append(row)
        result: np.ndarray | None = None
        for rows in parts.values():  # part by part, so that a corpus' stats are in memory once and not twice
            values = self._whole(located[rows[0]].index, name)
            if result is None:
                result = np.empty((len(located), *values.shape[1:]), values.dtype)
            result[rows] = values[[located[row].position for row in rows]]
        return np.empty(0) if result is None else result

    def frame_array(self, name: str, utterance: str) -> np.ndarray:
        """Return a further array along one utterance's frames, ``(frames, ...)``.

        Raises:
            UnknownNameError: no such array, or the stream does not hold the utterance.
        """
        located = self.locate(utterance)
        if name not in self.spec.frame_arrays:
            raise UnknownNameError(f"frame array in {self.name}", name, self.spec.frame_arrays)
        start = located.entry.start
        return self._whole(located.index, name)[start : start + located.entry.num_frames]

    def _whole(self, index: Index, name: str) -> np.ndarray:
        if name not in index.arrays or name == "frames":
            raise UnknownNameError(f"array in {self.name}", name, set(index.arrays) - {"frames"})
        if name in STATS:
            return self._read(index, lambda part: part.array(name))
        key = (index.name, name)
        if key not in self._arrays:
            self._arrays[key] = self._read(index, lambda part: part.array(name))
        return self._arrays[key]

    def _read(self, index: Index, read: Callable[[PartFile], np.ndarray]) -> np.ndarray:
        try:
            return read(self._part(index))
        except READ_ERRORS as error:
            raise CacheError(
                f"{self.name}/{index.name} cannot be read: {error}. If 'featcache verify {self.path.parent}' says the "
                f"same, delete {index.name}.json and run the same extract again: only that part is computed again."
            ) from error

    def _part(self, index: Index) -> PartFile:
        if index.name in self._open:
            self._open.move_to_end(index.name)
            return self._open[index.name]
        backend = load_backend(index.backend)
        part = backend.open(self.path / (index.name + backend.suffix))
        self._open[index.name] = part
        if len(self._open) > _MOST_OPEN_PARTS:
            self._open.popitem(last=False)[1].close()
        return part


def _locate(indices: Iterable[Index]) -> dict[str, Located]:
    """Return the current entry of each utterance: the latest input, and frames rather than stats alone."""
    best: dict[str, Located] = {}
    for index in sorted(indices, key=lambda index: (index.tier == "frames", index.name)):
        for position, entry in enumerate(index.entries):
            if entry.id not in best or entry.generation >= best[entry.id].entry.generation:
                best[entry.id] = Located(entry, index, position)
    return best
