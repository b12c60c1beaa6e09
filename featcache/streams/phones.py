"""One phone id for each frame, from the cached stream ``alignment``.

Frame ``i`` stands for the time from ``i`` to ``i + 1`` frame shifts and gets the phone with the longest overlap
(Makiuchi et al. 2021, section 3.1.1); silence competes as a phone does. There are as many frames as ``log_mel`` has at
the same shift, and as ``hidden_states`` with ``pad=match_log_mel``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from featcache import alignment as intervals
from featcache import registry
from featcache.alignment import Alignment
from featcache.cache import Cache, CachedStream
from featcache.errors import CacheError, ConfigError, StreamError
from featcache.frames import longest_overlap
from featcache.inventory import SILENCE_ID, Inventory, arpabet128, occurring
from featcache.manifest import Utterance
from featcache.stream import Attachment, Context, Extractor, Features, InputKind, Speech, Stream, StreamSpec


@dataclass(frozen=True)
class Phones(Stream):
    """The phone spoken in each frame.

    Attributes:
        alignment: which cached alignment: a full name, or the name of an aligner; needed where the cache holds several.
        inventory: ``"arpabet128"``, for English; or ``"occurring"``, built from the phones of all utterances wanted,
            for any language.
        frame_shift_ms: time from one frame to the next, in milliseconds.
    """

    input: ClassVar[InputKind] = "speech"
    source: ClassVar[str | None] = "alignment"
    title: ClassVar[str] = "one phone id for each 20 ms, from an alignment"

    alignment: str = "alignment"
    inventory: Literal["arpabet128", "occurring"] = "arpabet128"
    frame_shift_ms: int = 20
    _bound: ClassVar[tuple[CachedStream, Inventory] | None] = None
    _failed: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        if self.frame_shift_ms < 1:
            raise ConfigError(f"frame_shift_ms must be at least 1, got {self.frame_shift_ms}.")

    def bind(self, context: Context) -> "Phones":
        """Return this stream with the alignment it is made of.

        Raises:
            CacheError: the cache holds no such alignment, or several.
            ConfigError: it is not in English symbols, and the inventory is.
            StreamError: a phone of it maps to nothing.
        """
        source = find_alignment(Cache(context.cache), context.made.get("alignment", self.alignment))
        self.check_source(source.spec)
        if self.inventory == "arpabet128":
            inventory = arpabet128()
        else:
            symbol_set = source.spec.settings["symbols"]
            held = [name for name in context.manifest.ids if name in source]
            inventory = occurring((intervals.read(source, name), symbol_set) for name in held)
        bound = replace(self)
        object.__setattr__(bound, "_bound", (source, inventory))
        object.__setattr__(bound, "_failed", source.failures)
        return bound

    def check_source(self, spec: StreamSpec) -> None:
        """Refuse an alignment whose symbols are not English, where the inventory is.

        Raises:
            ConfigError: it is; lists the inventory.
        """
        if self.inventory == "arpabet128" and spec.settings["symbols"] == "other":
            raise ConfigError(
                f"{spec.name} ({spec.settings['aligner']}) has phones in symbols of its own, which map to nothing in "
                f"the English inventory arpabet128: {' '.join(arpabet128().symbols)}. For another language set "
                "phones.inventory=occurring (featcache align: --inventory occurring). If it is English, give the "
                "aligner the setting symbols=english or symbols=espeak."
            )

    def attachment(self, utterance: Utterance, digest: str) -> Attachment:
        """Return the utterance's alignment.

        Raises:
            StreamError: it has none, or one of other audio or text.
        """
        source, _ = self._parts()
        if utterance.id in self._failed or utterance.id not in source:
            raise StreamError(f"it has no alignment: {self._failed.get(utterance.id, 'it was never aligned')}")
        if source.locate(utterance.id).entry.input.partition("+")[0] != digest:
            raise StreamError("its alignment is of other audio or text than it has now. Run 'featcache align' again.")
        alignment = intervals.read(source, utterance.id)
        return Attachment(alignment, intervals.content_digest(alignment))

    def spec(self, dtype: str = "float16", compute_dtype: str = "float32") -> StreamSpec:
        """Return what decides the ids: the alignment and the inventory. Ids are int16, whatever `dtype` asks."""
        source, inventory = self._parts()
        return StreamSpec(
            kind=self.kind(),
            version=1,
            input=self.input,
            settings={
                "alignment": source.spec.identity(),
                "inventory": list(inventory.symbols),
                "positions": inventory.positions,
            },
            layers=("phone",),
            dim=1,
            frame_shift_s=self.frame_shift_ms / 1000,
            sample_rate_hz=self.sample_rate_hz,
            compute_dtype="int16",
            dtype="int16",
            notes="a frame is an id: the position of its phone in settings.inventory; 0 is silence, 1 an unknown word",
        )

    def load(self, device: str, compute_dtype: str) -> "PhonesExtractor":
        """Return what turns intervals into frames."""
        source, inventory = self._parts()
        return PhonesExtractor(self, source, inventory)

    def num_frames(self, num_samples: int) -> int:
        """Return ``1 + num_samples // hop``, as ``log_mel`` does."""
        return 1 + num_samples // (self.sample_rate_hz * self.frame_shift_ms // 1000)

    def batches(self, lengths: Sequence[int], batch_size: int) -> list[list[int]]:
        """Group utterances; they do not touch each other."""
        return [list(range(first, min(first + 64, len(lengths)))) for first in range(0, len(lengths), 64)]

    def seconds_per_second(self, device: str, compute_dtype: str) -> float:
        """Return a rough cost."""
        return 0.001

    def _parts(self) -> tuple[CachedStream, Inventory]:
        if self._bound is None:
            raise ConfigError("The stream 'phones' is made of an alignment in a cache: bind it to one first.")
        return self._bound


class PhonesExtractor(Extractor):
    """Turns intervals into frames.

    Args:
        stream: which frames.
        source: the alignment.
        inventory: the ids.
    """

    def __init__(self, stream: Phones, source: CachedStream, inventory: Inventory) -> None:
        self._stream = stream
        self._symbol_set = source.spec.settings["symbols"]
        self._inventory = inventory

    def extract(self, inputs: Sequence[Speech]) -> list[Features | StreamError]:
        """Return ids ``(1, frames, 1)`` int16 for each utterance."""
        results: list[Features | StreamError] = []
        for speech in inputs:
            try:
                results.append(Features(self._ids(speech.attachment, speech)[np.newaxis, :, np.newaxis]))
            except StreamError as error:
                results.append(error)
        return results

    def _ids(self, alignment: Alignment, speech: Speech) -> np.ndarray:
        num_frames = self._stream.num_frames(len(speech.samples))
        ids = np.append(self._inventory.ids(alignment, self._symbol_set), np.int16(SILENCE_ID))
        times = [(phone.start_s, phone.end_s) for phone in alignment.phones]
        # -1, which is silence, points to the id that was appended.
        return ids[longest_overlap(times, num_frames, self._stream.frame_shift_ms / 1000, speech.duration_s)]


def find_alignment(cache: Cache, wanted: str) -> CachedStream:
    """Return a cached alignment.

    Args:
        cache: the cache.
        wanted: a full name, the name of an aligner, or ``"alignment"`` where there is one alone.

    Raises:
        CacheError: there is none, or several fit.
    """
    streams = {name: cache[name] for name in cache if name.rpartition("-")[0] == "alignment"}
    fitting = [
        name for name, stream in streams.items() if wanted in (name, "alignment", stream.spec.settings.get("aligner"))
    ]
    if len(fitting) == 1:
        return streams[fitting[0]]
    listed = ", ".join(f"{name} ({stream.spec.settings.get('aligner')})" for name, stream in streams.items()) or "none"
    if not fitting:
        aligner = wanted if wanted in registry.names("featcache.aligners") else "pocketsphinx"
        remedy = f"Make one with: featcache align MANIFEST --cache {cache.path} --aligner {aligner}"
        raise CacheError(
            f"The cache {str(cache.path)!r} holds no alignment {wanted!r}; it holds: {listed}. "
            f"{'Name one of those.' if wanted.startswith('alignment-') and streams else remedy}"
        )
    raise CacheError(
        f"{wanted!r} could be any of several alignments in {str(cache.path)!r}: {listed}. Name one in full, or by its "
        "aligner (the stream phones: by its setting alignment)."
    )
