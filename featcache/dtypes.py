"""How float32 frames are stored: as they are, as float16, or as int8 with scales.

int8 keeps, for each utterance, layer and dimension, the scale ``max|x| / 127``: a few dimensions of
transformer layers are orders of magnitude larger than the rest, and would swallow a scale shared with them.

What storing costs is measured for each utterance, layer and dimension: the norm over the frames of what was lost, over
the norm of what was there. Each dimension counts alike, for the same reason, and because heads may standardise.

- float16 rounds by at most 2^-11 of a value down to 2^-14, and below that by up to 2^-25, until 2^-25 becomes zero. A
  dimension that loses more than 2^-10 (0.1 %), twice what rounding can cost, is lost to that. Some always are, and
  harmless: in MiniLM 3 of 384 dimensions lie at 1e-32. A layer of which more than a tenth is lost, of the dimensions
  that are not zero throughout, is an error, as a value beyond 65504 is.
- int8 loses about 0.5 % of log-mels and of a text encoder's states, 1.5 % of an LSTM's; more where single frames stand
  out. It is nowhere refused: the index keeps each layer's error, the root mean square of its dimensions'.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from featcache.errors import ConfigError, StreamError
from featcache.stream import DTYPES, EXACT_DTYPES

SCALE = "scale"
"""Name of the utterance array that int8 frames need: ``(utterances, layers, dim)`` float32."""

MOST_LOST = 2.0**-10
"""Share of a dimension's norm that float16 may take away."""

MOST_LOST_DIMENSIONS = 0.1
"""Share of a layer's dimensions that may lose more than :data:`MOST_LOST`."""

_SMALLEST = 2.0**-14
"""Float16's smallest normal number: what is below is rounded to multiples of 2^-24, whatever its size."""


def check(dtype: str) -> None:
    """Raise ConfigError for a type that frames cannot be stored in."""
    if dtype not in DTYPES:
        raise ConfigError(f"Frames cannot be stored as {dtype!r}. Choose one of: {', '.join(DTYPES)}.")


def encode(frames: np.ndarray, dtype: str, layers: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Convert one utterance's frames to their stored form.

    Args:
        frames: ``(layers, frames, dim)`` float32, or of the stored type where that is exact.
        dtype: stored type.
        layers: layer names, for messages.

    Returns:
        The stored frames, and the utterance arrays that decoding needs.

    Raises:
        StreamError: NaN, infinity, a value out of float16's range, or a layer that is too small for it; names the
            layer and the remedy.
    """
    finite = np.isfinite(frames)
    if not finite.all():
        layer, frame, _ = np.argwhere(~finite)[0]
        raise StreamError(
            f"layer {layers[layer]!r} has {int((~finite).sum())} values that are NaN or infinite, first in frame "
            f"{frame}. Check the audio and the checkpoint, or compute in float32."
        )
    if dtype in EXACT_DTYPES:
        if frames.dtype != dtype:
            raise StreamError(f"its frames are {frames.dtype}, where the stream keeps {dtype} as it is")
        return frames, {}
    if dtype == "float32":
        return frames.astype(np.float32, copy=False), {}
    largest = np.abs(frames).max(axis=1) if frames.shape[1] else np.zeros(frames.shape[::2], np.float32)
    if dtype == "float16":
        limit = float(np.finfo(np.float16).max)
        if largest.size and largest.max() > limit:
            layer = int(largest.max(axis=1).argmax())
            raise StreamError(
                f"layer {layers[layer]!r} reaches {largest.max():.4g}, beyond float16's {limit:.0f}. "
                "Store this stream with --dtype float32."
            )
        stored = frames.astype(np.float16)
        _check_small(frames, stored, largest, layers)
        return stored, {}
    scale = (largest / 127.0).astype(np.float32)
    divisor = np.where(scale > 0, scale, 1.0)[:, None]
    return np.rint(frames / divisor).clip(-127, 127).astype(np.int8), {SCALE: scale}


def decode(stored: np.ndarray, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return frames ``(layers, frames, dim)`` as floating point; float16 and float32 come back untouched.

    Args:
        stored: frames as stored.
        arrays: for int8, ``scale`` of the same layers, ``(layers, dim)``.
    """
    if stored.dtype != np.int8:
        return stored
    return stored.astype(np.float32) * arrays[SCALE][:, None]


def all_finite(values: np.ndarray) -> bool:
    """Say whether an array holds no NaN and no infinity; one of integers never does."""
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())


def losses(frames: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return which share of each dimension's norm is lost, ``(dim,)`` float64; 0 where there was nothing.

    Args:
        frames: ``(frames, dim)`` of one layer, as computed.
        kept: the same, as they will be read.
    """
    exact = frames.astype(np.float64)
    # By the largest value first, whose square may be too large or too small for a number.
    unit = np.abs(exact).max(axis=0)
    unit[unit == 0] = 1.0
    exact /= unit
    lost = np.linalg.norm(exact - kept.astype(np.float64) / unit, axis=0)
    norm = np.linalg.norm(exact, axis=0)
    return np.divide(lost, norm, out=np.zeros_like(lost), where=norm > 0)


def layer_errors(frames: np.ndarray, stored: np.ndarray, arrays: Mapping[str, np.ndarray]) -> tuple[float, ...]:
    """Return the relative error of each layer of one utterance, to four digits.

    It is the root mean square of what :func:`losses` gives for the dimensions that are not zero throughout.

    Args:
        frames: ``(layers, frames, dim)`` as computed.
        stored: the same as :func:`encode` gave them.
        arrays: what it gave beside them.
    """
    errors = []
    for number, layer in enumerate(frames):
        one = {name: values[number : number + 1] for name, values in arrays.items()}
        lost = losses(layer, decode(stored[number : number + 1], one)[0])
        num_dimensions = int(layer.any(axis=0).sum())
        error = math.sqrt(float(np.square(lost).sum()) / num_dimensions) if num_dimensions else 0.0
        errors.append(float(f"{error:.4g}"))
    return tuple(errors)


def _check_small(frames: np.ndarray, stored: np.ndarray, largest: np.ndarray, layers: Sequence[str]) -> None:
    """Refuse a layer that float16 does not keep, see the module's docstring; `largest` is ``(layers, dim)``."""
    allowed = MOST_LOST_DIMENSIONS * (largest > 0).sum(axis=1)
    # |x - stored| is at most 2^-11 |x| + 2^-25, so a dimension that reaches this loses at most 2^-10 of its norm.
    suspect = (largest > 0) & (largest < _SMALLEST * math.sqrt(frames.shape[1]))
    for layer in np.flatnonzero(suspect.sum(axis=1) > allowed).tolist():
        num_lost = int((losses(frames[layer], stored[layer]) > MOST_LOST).sum())
        if num_lost > allowed[layer]:
            raise StreamError(
                f"layer {layers[layer]!r} is too small for float16, its largest value being {largest[layer].max():.4g}:"
                f" {num_lost} of its {int((largest[layer] > 0).sum())} dimensions lose more than "
                f"{100 * MOST_LOST:.1f} %. Store this stream with --dtype float32."
            )
