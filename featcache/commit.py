"""Writing a cache: a part is written aside, flushed, renamed into place, and committed by its index.

Killed at any instant, everything committed is whole. What a killed process left aside lies in ``CACHE/.tmp`` and is
removed by the next writer, see :mod:`featcache.claims`.
"""

import os
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import TracebackType

import numpy as np

from featcache import dtypes
from featcache.backend import Backend, load_backend
from featcache.claims import remove, remove_abandoned, workplace
from featcache.errors import CacheError, StreamError
from featcache.files import sync, write_json
from featcache.index import FORMAT, Entry, Index, checksum
from featcache.integrity import part_attributes, part_problems
from featcache.stream import EXACT_DTYPES, Features, StreamSpec
from featcache.tuned import RECORD, Tuned, write_tuned


@dataclass(frozen=True)
class Stored:
    """One utterance in its stored form, ready to be put into a part.

    Attributes:
        id: its id.
        input: digest of its input.
        generation: see :class:`featcache.index.Entry`.
        num_frames: its length.
        frames: ``(layers, frames, dim)`` in the stored type, or None for the stats tier.
        frame_arrays: arrays along its frames.
        utterance_arrays: arrays of one value, mean and std among them.
        int8_errors: relative error of each layer where frames are int8; otherwise empty.
    """

    id: str
    input: str
    generation: int
    num_frames: int
    frames: np.ndarray | None
    frame_arrays: Mapping[str, np.ndarray]
    utterance_arrays: Mapping[str, np.ndarray]
    int8_errors: tuple[float, ...] = ()


def store(name: str, digest: str, generation: int, features: Features, spec: StreamSpec, tier: str) -> Stored:
    """Check one utterance's features against the spec, take their stats, and convert them to the stored type.

    Raises:
        StreamError: shapes that disagree with the spec, no frames, values that are not finite or do not fit.
    """
    frames = features.frames
    if frames.ndim != 3 or (frames.shape[0], frames.shape[2]) != (len(spec.layers), spec.dim):
        raise StreamError(f"got frames of shape {frames.shape}, expected ({len(spec.layers)}, frames, {spec.dim})")
    num_frames = frames.shape[1]
    if num_frames == 0:
        raise StreamError("the input is too short to give a single frame")
    for kind, declared, given in (
        ("frame", spec.frame_arrays, features.frame_arrays),
        ("utterance", spec.utterance_arrays, features.utterance_arrays),
    ):
        if set(declared) != set(given):
            raise StreamError(f"got the {kind} arrays {sorted(given)}, expected {sorted(declared)}")
    stored, extra = dtypes.encode(frames, spec.dtype, spec.layers)
    _check_arrays(features, spec)
    if spec.dtype in EXACT_DTYPES:
        return Stored(name, digest, generation, num_frames, stored, features.frame_arrays, features.utterance_arrays)
    mean, std = _stats(frames)
    utterance_arrays = {
        **features.utterance_arrays,
        "mean": mean.astype(np.float32),
        "std": std.astype(np.float32),
    }
    if tier == "stats":
        return Stored(name, digest, generation, num_frames, None, {}, utterance_arrays)
    errors = dtypes.layer_errors(frames, stored, extra) if stored.dtype == np.int8 else ()
    return Stored(
        name, digest, generation, num_frames, stored, features.frame_arrays, {**utterance_arrays, **extra}, errors
    )


def _stats(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation over the frames, each ``(layers, dim)`` float64.

    In float64, so that they do not depend on how NumPy pairs its additions. One layer at a time, in a buffer that stays
    in the processor's cache: a third of the time of NumPy's own functions for a whole utterance, and the same bits.
    """
    layers, num_frames, dim = frames.shape
    size = frames.itemsize
    if dim == 1 or frames.strides[2] != size or frames.strides[1] < dim * size:
        # Where frames do not lie one after the other, NumPy adds in another order.
        return frames.mean(axis=1, dtype=np.float64), frames.std(axis=1, dtype=np.float64)
    mean, square = np.empty((layers, dim)), np.empty((layers, dim))
    values = np.empty((num_frames, dim))
    for layer, of_layer in enumerate(frames):
        np.copyto(values, of_layer)
        np.add.reduce(values, axis=0, out=mean[layer])
        mean[layer] /= num_frames
        values -= mean[layer]
        np.multiply(values, values, out=values)
        np.add.reduce(values, axis=0, out=square[layer])
    return mean, np.sqrt(square / num_frames)


def _check_arrays(features: Features, spec: StreamSpec) -> None:
    """Refuse further arrays that are not what the spec declares, or not finite."""
    for declared, given, ahead in (
        (spec.frame_arrays, features.frame_arrays, (features.frames.shape[1],)),
        (spec.utterance_arrays, features.utterance_arrays, ()),
    ):
        for name, form in declared.items():
            values, dtype, shape = given[name], np.dtype(form["dtype"]), (*ahead, *form["shape"])
            if (values.dtype, values.shape) != (dtype, shape):
                raise StreamError(
                    f"array {name!r} is {values.dtype} of shape {values.shape}, expected {dtype} of {shape}"
                )
            # In exact streams NaN is a measure that an aligner does not know.
            if spec.dtype not in EXACT_DTYPES and not dtypes.all_finite(values):
                raise StreamError(f"array {name!r} holds NaN or infinite values. Check the audio and the checkpoint.")


class StreamWriter:
    """Commits parts of one stream into a cache. Use it as a context manager.

    Args:
        cache: the cache's folder; made when missing.
        spec: the stream.
        backend: plug-in to write with.
        tier: ``"frames"`` or ``"stats"``.
        compress: smaller parts, which cannot be mapped into memory.
        tuned: what the encoder has learnt from, where it was fine-tuned.

    Raises:
        CacheError: the cache cannot be written to.
    """

    def __init__(
        self,
        cache: Path,
        spec: StreamSpec,
        backend: str,
        tier: str,
        compress: bool = False,
        tuned: Tuned | None = None,
    ) -> None:
        self.spec = spec
        self._tuned = tuned
        self.folder = cache / spec.name
        self._backend: Backend = load_backend(backend)
        self._backend_name = backend
        self.tier = tier
        self._compress = compress
        self._is_new = not cache.exists()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_abandoned(cache)
            self._stack = ExitStack()
            self.workplace = self._stack.enter_context(workplace(cache))
        except OSError as error:
            raise CacheError(
                f"The cache {str(cache)!r} cannot be written to: {error.strerror or error}. Nothing was computed."
            ) from error

    def __enter__(self) -> "StreamWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        remove_abandoned(self.folder.parent)  # of writers that were killed meanwhile
        with suppress(OSError):  # it holds what was committed
            self.folder.rmdir()
            if self._is_new:
                self.folder.parent.rmdir()

    def write_spec(self) -> None:
        """Write what decides the stream's numbers, what made it and what that has learnt from, unless that is there."""
        if self._tuned is not None and not (self.folder / RECORD).exists():
            write_tuned(self.folder / RECORD, self._tuned, self.workplace)
        path = self.folder / "stream.json"
        if not path.exists():
            spec = {**self.spec.identity(), "notes": self.spec.notes}
            write_json(path, {"format": FORMAT, "spec": spec, "made_with": _versions()}, self.workplace)

    def commit(
        self,
        utterances: Sequence[Stored],
        failures: Mapping[str, str],
        generations: Mapping[str, int] | None = None,
    ) -> str:
        """Write one part and commit it.

        Args:
            utterances: what it holds, in order; may be empty when there are failures to record.
            failures: id to reason.
            generations: generation of each failure; 0 where it is not told.

        Returns:
            The part's name.

        Raises:
            CacheError: the disk is full or cannot be written to. Parts committed before are whole.
        """
        arrays = _assemble(utterances) if utterances else {}
        index = Index(
            stream=self.spec.name,
            backend=self._backend_name,
            tier=self.tier,
            entries=_entries(utterances),
            failures=dict(failures),
            failed_generations={
                name: generation for name, generation in (generations or {}).items() if generation and name in failures
            },
            arrays={name: {"dtype": str(values.dtype), "shape": list(values.shape)} for name, values in arrays.items()},
            compressed=self._compress,
            int8_errors={item.id: item.int8_errors for item in utterances if item.int8_errors},
        )
        try:
            self.write_spec()
            if arrays:
                self._write_arrays(index, arrays)
            index.write(self.folder, self.workplace)
        except OSError as error:
            raise CacheError(
                f"{self.spec.name}: a part of {len(utterances)} utterances could not be written: "
                f"{_reason(error)}. Parts committed before are whole; make room and run the command again."
            ) from error
        return index.name

    def _write_arrays(self, index: Index, arrays: Mapping[str, np.ndarray]) -> None:
        target = self.folder / (index.name + self._backend.suffix)
        if target.exists():
            # Of a run killed between its rename and its index, or of a second writer: adopted when it is whole.
            if not any(part_problems(self.folder, index, self.spec)):
                return
            target.rename(self.workplace / f"damaged-{secrets.token_hex(4)}")
        aside = self.workplace / target.name
        try:
            self._backend.write(aside, arrays, part_attributes(index, self.spec), self._compress)
            sync(aside)
            try:
                aside.rename(target)
            except OSError:
                if not target.exists():
                    raise
            sync(self.folder, below=False)
        finally:
            remove(aside)


def _reason(error: OSError) -> str:
    """Return what the system said, also where it is inside what the HDF5 library says."""
    inside = re.search(r"errno = (\d+)", str(error))
    return os.strerror(int(inside[1])) if inside else error.strerror or str(error)


def _versions() -> dict[str, str]:
    """Return the releases of what may have a part in the numbers, for readers; no part of the identity."""
    found = {}
    for name in ("featcache", "numpy", "torch", "transformers", "zarr", "h5py"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _assemble(utterances: Sequence[Stored]) -> dict[str, np.ndarray]:
    """Lay the utterances' arrays one after the other; ``offsets`` says where each one's frames begin and end."""
    first = utterances[0]
    arrays: dict[str, np.ndarray] = {
        "offsets": np.cumsum([0, *(item.num_frames for item in utterances)], dtype=np.int64)
    }
    if first.frames is not None:
        arrays["frames"] = np.concatenate([item.frames for item in utterances], axis=1)
    for name in sorted(first.frame_arrays):
        arrays[name] = np.concatenate([item.frame_arrays[name] for item in utterances])
    for name in sorted(first.utterance_arrays):
        arrays[name] = np.stack([item.utterance_arrays[name] for item in utterances])
    return arrays


def _entries(utterances: Sequence[Stored]) -> tuple[Entry, ...]:
    entries: list[Entry] = []
    start = 0
    for item in utterances:
        arrays = {**item.frame_arrays, **item.utterance_arrays}
        digest = checksum(item.frames, [arrays[name] for name in sorted(arrays)])
        entries.append(Entry(item.id, item.input, start, item.num_frames, digest, item.generation))
        start += item.num_frames
    return tuple(entries)
