"""The contract of a stream: one kind of frozen feature, and what decides its numbers.

A stream is a frozen dataclass; its fields are its settings. :meth:`Stream.spec` says, without loading a
model, everything that decides the numbers; :meth:`Stream.load` gives an :class:`Extractor` that computes them.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from featcache.errors import ConfigError, FeatcacheError
from featcache.files import canonical_json

if TYPE_CHECKING:
    from featcache.manifest import Manifest, Utterance

InputKind = Literal["audio", "text", "speech", "cache"]
"""What a stream is fed: samples, a text, a :class:`Speech`; or other streams of the cache alone, by a trained head."""

DTYPES = ("float16", "float32", "int8")
"""Types that frames can be stored in, as the user chooses."""

EXACT_DTYPES = ("int16", "int32", "float64")
"""Types of streams whose numbers are ids or times: they decide theirs themselves, and have no stats."""


@dataclass(frozen=True)
class Attachment:
    """A further input of one utterance, beside its audio and text: a file of intervals, what another stream holds.

    Attributes:
        value: what the extractor needs of it.
        digest: what identifies it.
    """

    value: Any
    digest: str


@dataclass(frozen=True)
class Speech:
    """What a stream of input ``"speech"`` is fed for one utterance.

    Attributes:
        id: the utterance's id.
        speaker: its speaker; None where unknown.
        samples: ``(samples,)`` float32, mono.
        sample_rate_hz: their rate.
        text: its transcript as the manifest has it; empty where there is none.
        attachment: value of the stream's :class:`Attachment`; None where it has none.
    """

    id: str
    speaker: str | None
    samples: np.ndarray
    sample_rate_hz: int
    text: str
    attachment: Any = None

    @property
    def duration_s(self) -> float:
        """Length of the audio, in seconds."""
        return len(self.samples) / self.sample_rate_hz

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True)
class Context:
    """Where a stream works.

    Attributes:
        cache: the cache's folder.
        manifest: the utterances wanted.
        workers: processes that it may use.
        made: kind to full name, of streams that the same command made before.
    """

    cache: Path
    manifest: "Manifest"
    workers: int = 1
    made: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StreamSpec:
    """Everything that decides a stream's numbers, and what its arrays mean.

    How the numbers are computed (device, batch size, workers) is not part of it, nor where the files lie.

    Attributes:
        kind: the stream's public name.
        version: raised by its author whenever the same settings give other numbers.
        input: what an utterance gives: its audio, its text, both as speech, or what the cache holds of it.
        settings: every setting, resolved.
        layers: name of each layer, in order.
        dim: size of a frame.
        axis: what the frame axis counts.
        frame_shift_s: time from one frame to the next, in seconds; None where frames are not in time.
        sample_rate_hz: rate of the audio fed to the stream; None for text.
        libraries: versions of libraries that the numbers depend on.
        checkpoint: name and digest of the weights; None where there are none.
        compute_dtype: type the model computes in.
        dtype: type the frames are stored in.
        frame_arrays: name to dtype and shape after the frame axis, of further arrays along the frames.
        utterance_arrays: name to dtype and shape of further arrays, one value an utterance.
        notes: units and meaning, for readers; not part of the identity.
    """

    kind: str
    version: int
    input: InputKind
    settings: Mapping[str, Any]
    layers: tuple[str, ...]
    dim: int
    axis: Literal["frames", "tokens", "intervals"] = "frames"
    frame_shift_s: float | None = None
    sample_rate_hz: int | None = None
    libraries: Mapping[str, str] = field(default_factory=dict)
    checkpoint: Mapping[str, str] | None = None
    compute_dtype: str = "float32"
    dtype: str = "float16"
    frame_arrays: Mapping[str, Any] = field(default_factory=dict)
    utterance_arrays: Mapping[str, Any] = field(default_factory=dict)
    notes: str = ""

    def __post_init__(self) -> None:
        # Names of arrays become names of files.
        bad = [name for name in (*self.frame_arrays, *self.utterance_arrays) if not name.isidentifier()]
        if bad:
            raise ConfigError(f"The stream {self.kind!r} has an array {bad[0]!r}: give it a plain name.")

    def identity(self) -> dict[str, Any]:
        """Return what decides the numbers, as plain JSON values."""
        values = asdict(self)
        values.pop("notes")
        values["layers"] = list(self.layers)
        return values

    @property
    def digest(self) -> str:
        """The identity's SHA-256, in hexadecimal."""
        return hashlib.sha256(canonical_json(self.identity())).hexdigest()

    @property
    def name(self) -> str:
        """The stream's full name, which is its folder in a cache: kind and the first 8 digits of its digest."""
        return f"{self.kind}-{self.digest[:8]}"

    def differences(self, other: "StreamSpec") -> list[str]:
        """Return a line for each thing that differs from `other`, as ``name: theirs -> ours``."""
        ours, theirs = _flat(self.identity()), _flat(other.identity())
        names = sorted(set(ours) | set(theirs))
        pairs = {key: (theirs.get(key, "not there"), ours.get(key, "not there")) for key in names}
        return [f"{key}: {before} -> {now}" for key, (before, now) in pairs.items() if before != now]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "StreamSpec":
        """Return the spec that :meth:`identity` and `notes` were written from."""
        return cls(**{**values, "layers": tuple(values["layers"])})


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    merged: dict[str, Any] = {}
    for key, item in value.items():
        merged.update(_flat(item, f"{prefix}.{key}" if prefix else str(key)))
    return merged


@dataclass(frozen=True)
class Features:
    """What a stream gives for one utterance.

    Attributes:
        frames: ``(layers, frames, dim)`` float32, or the stream's own type where that is exact.
        frame_arrays: name to array whose first axis is the frames.
        utterance_arrays: name to array of the shape that the spec declares.
    """

    frames: np.ndarray
    frame_arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    utterance_arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


class Extractor(ABC):
    """A loaded model, ready to compute a stream."""

    def prepare(self, inputs: Iterable[Any], on_message: Callable[[str], None]) -> None:
        """Do what needs all inputs at once, before the first batch; the default does nothing and reads none.

        Args:
            inputs: every input to come, read as it is drawn.
            on_message: called with lines of progress for people.
        """

    @abstractmethod
    def extract(self, inputs: Sequence[Any]) -> Sequence[Features | FeatcacheError]:
        """Compute one batch.

        Args:
            inputs: ``(samples,)`` float32 arrays at the stream's rate, texts, or :class:`Speech`.

        Returns:
            Features, one for each input and in their order, or why there are none. Batching never changes the numbers:
            float32 agrees with one at a time to 1e-5 relative.

        Raises:
            StreamError: an input cannot be used; the caller then finds out which one, one at a time.
        """

    def close(self) -> None:
        """Stop what runs beside; the default does nothing. Called once, however the work ends."""


class Stream(ABC):
    """One kind of feature. Subclasses are frozen dataclasses whose fields are the settings.

    Attributes:
        input: what an utterance gives: its audio, its text, or both as speech.
        source: kind of the stream that it is made of; None where it is made of the corpus alone.
        title: one line for listings.
    """

    input: ClassVar[InputKind] = "audio"
    source: ClassVar[str | None] = None
    title: ClassVar[str]

    @classmethod
    def kind(cls) -> str:
        """Return the public name: the stem of the plug-in's file."""
        return cls.__module__.rpartition(".")[2]

    @property
    def sample_rate_hz(self) -> int:
        """Rate of the audio wanted, which settings may decide; of no meaning for text."""
        return 16000

    def bind(self, context: Context) -> "Stream":
        """Return this stream, knowing where it works: for those made of another stream or of files beside the corpus.

        Raises:
            CacheError: the stream that it is made of is not in the cache.
            ConfigError: files that settings name are not there.
        """
        return self

    def check_source(self, spec: StreamSpec) -> None:
        """Refuse to be made of a stream, before that is computed; the default takes any.

        Raises:
            ConfigError: the two do not fit; says what to set.
        """

    def attachment(self, utterance: "Utterance", digest: str) -> Attachment | None:
        """Return a further input of an utterance; None, the default, where there is none.

        Args:
            utterance: it.
            digest: what identifies its audio and text as they are now.

        Raises:
            StreamError: this utterance lacks it.
        """
        return None

    @abstractmethod
    def spec(self, dtype: str = "float16", compute_dtype: str = "float32") -> StreamSpec:
        """Return what decides the numbers, without loading a model.

        Raises:
            CheckpointError: the checkpoint cannot be found or is of another kind.
            ConfigError: settings that do not fit together.
        """

    @abstractmethod
    def load(self, device: str, compute_dtype: str) -> Extractor:
        """Load the model on a device (``"cpu"``, ``"cuda"``, ``"cuda:1"``) and return it ready to run."""

    def num_frames(self, num_samples: int) -> int | None:
        """Return how many frames that many samples give; None where only the model knows (text)."""
        return None

    def batches(self, lengths: Sequence[int], batch_size: int) -> list[list[int]]:
        """Group utterances into batches.

        Args:
            lengths: samples, or characters of text, of each utterance.
            batch_size: most utterances in a batch.

        Returns:
            Positions in `lengths`, each exactly once. The default is one utterance a batch.
        """
        return [[index] for index in range(len(lengths))]

    def seconds_per_second(self, device: str, compute_dtype: str) -> float | None:
        """Return a rough cost, in seconds a second of audio (or an utterance of text), for plans; None is unknown."""
        return None
