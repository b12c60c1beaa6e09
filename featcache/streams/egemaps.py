"""openSMILE's eGeMAPSv02: 25 low-level descriptors every 10 ms, and their 88 functionals of the whole utterance.

Source: Eyben et al. 2016, "The Geneva Minimalistic Acoustic Parameter Set (GeMAPS) for Voice Research and Affective
Computing", in the form that opensmile 2.6 computes. The functionals are the baseline that a learned feature has to
beat: on EMO-DB, four emotions, leave-one-speaker-out, an RBF-SVM on them reaches an unweighted recall of about 73 %.

Licence: openSMILE's engine is free for research and non-commercial use only, which is why it is an optional extra.

openSMILE reads 16-bit integers. Departures: samples beyond full scale, which occur in float files and after resampling,
are clipped, where opensmile would let them wrap around to the other sign; audio below 60 ms is an error, where
opensmile gives NaN and a warning.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any, ClassVar, Literal

import numpy as np

from featcache.errors import MissingExtraError, StreamError
from featcache.stream import Extractor, Features, Stream, StreamSpec

Level = Literal["LowLevelDescriptors", "Functionals"]
_FEATURE_SET = "eGeMAPSv02"
_WINDOW = 960  # the longest window, 60 ms, for the pitch
_HOP = 160
_HIGHEST = 32767 / 32768  # opensmile multiplies by 32768 and casts
_LOST = 640  # samples in excess of whole hops that the windows take away


@dataclass(frozen=True)
class Egemaps(Stream):
    """Low-level descriptors as frames, functionals as the utterance array ``functionals``. There are no settings."""

    title: ClassVar[str] = "openSMILE eGeMAPSv02: 25 descriptors at 10 ms and 88 functionals (non-commercial licence)"

    def spec(self, dtype: str = "float16", compute_dtype: str = "float32") -> StreamSpec:
        """Return what decides the numbers; openSMILE computes in float32, whatever `compute_dtype` asks.

        Raises:
            MissingExtraError: opensmile is not installed.
        """
        frame_columns, functional_columns = _columns("LowLevelDescriptors"), _columns("Functionals")
        return StreamSpec(
            kind=self.kind(),
            version=1,
            input="audio",
            settings={
                "feature_set": _FEATURE_SET,
                "frame_columns": list(frame_columns),
                "functional_columns": list(functional_columns),
            },
            layers=("descriptors",),
            dim=len(frame_columns),
            frame_shift_s=_HOP / self.sample_rate_hz,
            sample_rate_hz=self.sample_rate_hz,
            libraries={"opensmile": version("opensmile")},
            compute_dtype="float32",
            dtype=dtype,
            utterance_arrays={"functionals": {"dtype": "float32", "shape": [len(functional_columns)]}},
            notes=(
                "frame_columns names the values of a frame, functional_columns those of the array functionals; units "
                "are openSMILE's"
            ),
        )

    def load(self, device: str, compute_dtype: str) -> "EgemapsExtractor":
        """Load openSMILE; it runs on the CPU.

        Raises:
            MissingExtraError: opensmile is not installed.
        """
        return EgemapsExtractor(self)

    def num_frames(self, num_samples: int) -> int:
        """Return how many frames openSMILE 2.6 gives; 0 below 60 ms, where it gives NaN."""
        return (num_samples - _LOST) // _HOP if num_samples >= _WINDOW else 0

    def seconds_per_second(self, device: str, compute_dtype: str) -> float:
        """Return a rough cost."""
        return 0.02


class EgemapsExtractor(Extractor):
    """Two openSMILE configurations, ready to run.

    Args:
        stream: its settings.
    """

    def __init__(self, stream: Egemaps) -> None:
        self._stream = stream
        self._descriptors = _smile("LowLevelDescriptors")
        self._functionals = _smile("Functionals")

    def extract(self, inputs: Sequence[np.ndarray]) -> list[Features]:
        """Compute a batch of ``(samples,)`` float32 arrays at 16 kHz, one after the other."""
        return [self._extract(samples) for samples in inputs]

    def _extract(self, samples: np.ndarray) -> Features:
        rate = self._stream.sample_rate_hz
        if not self._stream.num_frames(len(samples)):
            raise StreamError(
                f"it has {len(samples)} samples; eGeMAPS needs at least {_WINDOW} (60 ms at 16 kHz). Leave it out, or "
                "give a longer span."
            )
        if not np.isfinite(samples).all():
            raise StreamError("it holds NaN or infinite samples. Export the recording again from its source.")
        samples = np.clip(samples, -1.0, _HIGHEST)
        frames = self._descriptors.process_signal(samples, rate).to_numpy(np.float32)
        functionals = self._functionals.process_signal(samples, rate).to_numpy(np.float32)[0]
        _check(frames, "LowLevelDescriptors")
        _check(functionals, "Functionals")
        return Features(frames[np.newaxis], utterance_arrays={"functionals": functionals})


def _check(values: np.ndarray, level: Level) -> None:
    """Refuse ``(..., columns)`` values that are not finite."""
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise StreamError(f"openSMILE's {_columns(level)[bad[0][-1]]} is not finite in it. Leave it out.")


def _smile(level: Level) -> Any:
    try:
        import opensmile
    except ImportError:
        raise MissingExtraError("The stream egemaps", "opensmile", "egemaps") from None
    return opensmile.Smile(
        feature_set=opensmile.FeatureSet[_FEATURE_SET], feature_level=opensmile.FeatureLevel[level], num_workers=1
    )


@cache
def _columns(level: Level) -> tuple[str, ...]:
    return tuple(_smile(level).feature_names)
