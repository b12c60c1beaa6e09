"""The index of a part: what it holds, from which inputs, and how to tell that it is whole.

An index is a JSON file beside its part, written last; a part without its index does not exist. A part's name
is the digest of its index, so two writers that store the same thing write the same names, and a part is
never changed after its commit.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np

from featcache.errors import CacheError
from featcache.files import canonical_json, write_json

FORMAT = 1
"""Version of the cache's layout. Readers refuse newer ones."""

STATS = ("mean", "std")
"""The stats tier: ``(utterances, layers, dim)`` float32, over each utterance's frames."""


class Entry(NamedTuple):
    """One utterance in a part. A tuple, since opening a cache makes one for each of its utterances.

    Attributes:
        id: its id in the manifest.
        input: digest of what was fed to the stream.
        start: its first frame along the part's frame axis.
        num_frames: its length in frames.
        checksum: CRC-32C over its bytes in every array, in hexadecimal.
        generation: raised by one each time the utterance's input changed; the highest is current.
    """

    id: str
    input: str
    start: int
    num_frames: int
    checksum: str
    generation: int = 0


@dataclass(frozen=True)
class Index:
    """What a part holds.

    Attributes:
        stream: full name of the stream.
        backend: plug-in that wrote the part.
        tier: ``"frames"``, or ``"stats"`` where only the stats were kept.
        entries: its utterances, in order.
        failures: id to reason, of utterances that could not be computed.
        failed_generations: generation of a failure where that is not 0: an utterance may be held for an earlier input.
        arrays: name to dtype and shape.
        compressed: whether chunks are compressed.
        int8_errors: id to the relative error of each layer, where frames are int8; see :mod:`featcache.dtypes`.
    """

    stream: str
    backend: str
    tier: str
    entries: tuple[Entry, ...]
    failures: Mapping[str, str] = field(default_factory=dict)
    failed_generations: Mapping[str, int] = field(default_factory=dict)
    arrays: Mapping[str, Any] = field(default_factory=dict)
    compressed: bool = False
    int8_errors: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @cached_property
    def name(self) -> str:
        """The part's name, ``part-`` and 16 digits, from all that it holds but the wording of failures."""
        return _name(self._plain())

    def write(self, folder: Path, aside: Path) -> None:
        """Commit the part: write its index into the stream's folder, atomically, by way of another folder."""
        write_json(folder / f"{self.name}.json", {"format": FORMAT, **self._plain()}, aside)

    def _plain(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        for name in ("failed_generations", "int8_errors"):
            if not values[name]:  # most parts have none, and those of earlier releases do not know of it
                del values[name]
        return {**values, "entries": [entry._asdict() for entry in self.entries]}

    @classmethod
    def read(cls, path: Path) -> "Index":
        """Read an index.

        Raises:
            CacheError: it is damaged, or of a newer format.
        """
        try:
            values = json.loads(path.read_bytes())
            version = values.pop("format")
            if version > FORMAT:
                raise CacheError(
                    f"{str(path)!r} has format {version}; this featcache reads up to {FORMAT}. Install a newer one."
                )
            name = _name(values)
            entries = tuple(Entry(**entry) for entry in values.pop("entries"))
            index = cls(entries=entries, **values)
        except CacheError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CacheError(
                f"The index {str(path)!r} is damaged ({error}). Delete it and run the same extract again: only its "
                "part is computed again."
            ) from None
        if name != path.stem:
            raise CacheError(
                f"The index {str(path)!r} does not match its name: it was changed after it was written. Delete it and "
                "run the same extract again: only its part is computed again."
            )
        vars(index)["name"] = name  # the property, cached: to take the digest again would cost as much as the reading
        return index


def _name(content: Mapping[str, Any]) -> str:
    """Return a part's name from the fields of its index as JSON values."""
    named = {**content, "failures": sorted(content["failures"])}
    return f"part-{hashlib.sha256(canonical_json(named)).hexdigest()[:16]}"


def checksum(frames: np.ndarray | None, rows: Sequence[np.ndarray]) -> str:
    """Return the CRC-32C, in hexadecimal, over one utterance's stored bytes.

    Args:
        frames: ``(layers, frames, dim)`` as stored, or None for the stats tier.
        rows: its part of every other array, sorted by array name.
    """
    value = 0
    for layer in () if frames is None else frames:
        value = google_crc32c.extend(value, np.ascontiguousarray(layer).tobytes())
    for row in rows:
        value = google_crc32c.extend(value, np.ascontiguousarray(row).tobytes())
    return f"{value:08x}"
