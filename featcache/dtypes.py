"""How float32 frames are stored: as they are, as float16, or as int8 with scales.

int8 keeps, for each utterance, layer and dimension, the scale ``max|x| / 127``: a few dimensions of
transformer layers are orders of magnitude larger than the rest, and would swallow a scale shared with them.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from featcache.errors import ConfigError, StreamError
from featcache.stream import DTYPES, EXACT_DTYPES

SCALE = "scale"
"""Name of the utterance array that int8 frames need: ``(utterances, layers, dim)`` float32."""


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
        StreamError: NaN, infinity, or a value out of float16's range; names the layer and the remedy.
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
        return frames.astype(np.float16), {}
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
