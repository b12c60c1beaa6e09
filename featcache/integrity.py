"""Whether a part holds what its index promises. Used by `verify`, and before a part that is found is adopted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from featcache.backend import READ_ERRORS, PartFile, load_backend
from featcache.dtypes import all_finite
from featcache.index import Index, checksum
from featcache.stream import EXACT_DTYPES, StreamSpec


def part_attributes(index: Index, spec: StreamSpec) -> dict[str, Any]:
    """Return what is written beside a part's arrays, for programs other than this one."""
    return {"stream": spec.name, "ids": [entry.id for entry in index.entries], "layers": list(spec.layers)}


def part_problems(folder: Path, index: Index, spec: StreamSpec, full: bool = True) -> Iterator[str]:
    """Yield what is wrong with a part; nothing for a whole one.

    Args:
        folder: the stream's folder.
        index: the part's index.
        spec: the stream's.
        full: compare every byte with the checksums, and find numbers that are not finite; otherwise counts, shapes,
            types, offsets and ids.
    """
    backend = load_backend(index.backend)
    try:
        part = backend.open(folder / (index.name + backend.suffix))
    except READ_ERRORS as error:
        yield f"it cannot be opened: {error}"
        return
    try:
        yield from _problems(part, index, spec, full)
    except READ_ERRORS as error:
        yield f"it cannot be read: {error}"
    finally:
        part.close()


def _problems(part: PartFile, index: Index, spec: StreamSpec, full: bool) -> Iterator[str]:
    along_frames = {"frames", *spec.frame_arrays}
    num_frames = sum(entry.num_frames for entry in index.entries)
    for name, declared in sorted(index.arrays.items()):
        found = part.describe(name)
        if found != (declared["dtype"], tuple(declared["shape"])):
            yield f"array {name!r} is {found}, the index says {(declared['dtype'], tuple(declared['shape']))}"
            return
        wanted = num_frames if name in along_frames else len(index.entries) + (name == "offsets")
        if (length := found[1][1 if name == "frames" else 0]) != wanted:
            yield f"array {name!r} is of length {length}, where its utterances give {wanted}"
            return
    if part.ids() != [entry.id for entry in index.entries]:
        yield "its ids are not those of the index"
    elif part.metadata_changed(part_attributes(index, spec)):
        yield "what it says of itself to other programs changed since it was written"
    arrays = {name: part.array(name) for name in sorted(index.arrays) if name != "frames"}
    offsets = [0, *(entry.start + entry.num_frames for entry in index.entries)]
    if not np.array_equal(arrays.pop("offsets"), offsets):
        yield "its offsets are not those of the index"
    exact = index.arrays.get("frames", {}).get("dtype") in EXACT_DTYPES
    for position, entry in enumerate(index.entries):
        frames = None
        stop = entry.start + entry.num_frames
        if "frames" in index.arrays:
            frames = part.frames(entry.start, stop if full else min(stop, entry.start + 1))
        if not full:
            continue
        rows = [
            values[entry.start : stop] if name in spec.frame_arrays else values[position]
            for name, values in sorted(arrays.items())
        ]
        if checksum(frames, rows) != entry.checksum:
            yield f"the bytes of {entry.id!r} changed since they were written"
            continue
        for name, values in ("frames", frames), *zip(sorted(arrays), rows, strict=True):
            # An aligner's measures may be NaN, for unknown; its streams are the exact ones.
            if values is not None and not all_finite(values) and (name == "frames" or not exact):
                yield f"array {name!r} of {entry.id!r} holds NaN or infinite values"
