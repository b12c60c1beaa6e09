"""Whether a part holds what its index promises. Used by `verify`, and before a part that is found is adopted."""

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from featcache.backend import PartFile, load_backend
from featcache.index import Index, checksum


def part_problems(folder: Path, index: Index, frame_arrays: Collection[str], full: bool = True) -> Iterator[str]:
    """Yield what is wrong with a part; nothing for a whole one.

    Args:
        folder: the stream's folder.
        index: the part's index.
        frame_arrays: names of the arrays that run along the frames.
        full: compare every byte with the checksums; otherwise shapes, types, offsets and ids.
    """
    backend = load_backend(index.backend)
    try:
        part = backend.open(folder / (index.name + backend.suffix))
    except (OSError, ValueError, KeyError) as error:
        yield f"it cannot be opened: {error}"
        return
    try:
        yield from _problems(part, index, frame_arrays, full)
    except (OSError, ValueError, KeyError, IndexError) as error:
        yield f"it cannot be read: {error}"
    finally:
        part.close()


def _problems(part: PartFile, index: Index, frame_arrays: Collection[str], full: bool) -> Iterator[str]:
    for name, declared in sorted(index.arrays.items()):
        found = part.describe(name)
        if found != (declared["dtype"], tuple(declared["shape"])):
            yield f"array {name!r} is {found}, the index says {(declared['dtype'], tuple(declared['shape']))}"
            return
    if part.ids() != [entry.id for entry in index.entries]:
        yield "its ids are not those of the index"
    arrays = {name: part.array(name) for name in sorted(index.arrays) if name != "frames"}
    offsets = [0, *(entry.start + entry.num_frames for entry in index.entries)]
    if not np.array_equal(arrays.pop("offsets"), offsets):
        yield "its offsets are not those of the index"
    for position, entry in enumerate(index.entries):
        frames = None
        stop = entry.start + entry.num_frames
        if "frames" in index.arrays:
            frames = part.frames(entry.start, stop if full else min(stop, entry.start + 1))
        if not full:
            continue
        rows = [
            values[entry.start : stop] if name in frame_arrays else values[position]
            for name, values in sorted(arrays.items())
        ]
        if checksum(frames, rows) != entry.checksum:
            yield f"the bytes of {entry.id!r} changed since they were written"
