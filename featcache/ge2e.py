"""Resemblyzer's speaker encoder: its weights, its front end and its network, without importing it.

Source: https://github.com/resemble-ai/Resemblyzer 0.1.4, an implementation of Wan et al. 2018 ("GE2E"), trained on
VoxCeleb and LibriSpeech: three LSTM layers of 256 units on 40 mels at 10 ms, then a linear layer, ReLU and L2 norm.
The weights come in its wheel. Everything here is tested to equal the package: the mels bit for bit, the network to
float32's rounding. Weights that were trained further are saved as a checkpoint folder, see :func:`save_encoder`.

The package itself stays unimported because it pulls in ``scipy.ndimage.morphology``, which SciPy 2 removes, and
``pkg_resources``, which setuptools 82 removes. Departure: where :func:`normalise_volume` drives samples beyond full
scale, they are clipped before voice detection; the package lets them wrap around.
"""

import importlib.util
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featcache import checkpoints
from featcache.checkpoints import Checkpoint, file_sha256, inference
from featcache.errors import CheckpointError, ConfigError, StreamError
from featcache.files import quoted, write_atomically, write_json

if TYPE_CHECKING:
    import torch

SAMPLE_RATE_HZ = 16000
HOP = 160
WINDOW = 400
NUM_MELS = 40
NUM_LAYERS = 3
DIM = 256
PARTIAL_FRAMES = 160
"""Frames that the encoder was trained on: 1.6 s."""

MODEL_TYPE = "ge2e"
"""What ``config.json`` of a saved encoder says it is."""

_WEIGHTS_FILE = "model.safetensors"
_SHAPES = {
    **{
        f"lstm.{name}_l{number}": shape
        for number in range(NUM_LAYERS)
        for name, shape in (
            ("weight_ih", (4 * DIM, NUM_MELS if number == 0 else DIM)),
            ("weight_hh", (4 * DIM, DIM)),
            ("bias_ih", (4 * DIM,)),
            ("bias_hh", (4 * DIM,)),
        )
    },
    "linear.weight": (DIM, DIM),
    "linear.bias": (DIM,),
}
_LEAST_RMS = 1e-9  # -180 dBFS; the step of 24-bit audio is 1.2e-7
_TARGET_DBFS = -30
_FULL_SCALE = 2**15 - 1
_VAD_WINDOW = 480  # 30 ms
_VAD_AVERAGE = 8  # windows
_VAD_SILENCE = 6  # windows
_PARTIAL_STEP = 77  # frames: the package's rate of 1.3 partials a second
_LEAST_COVERAGE = 0.75


def identity(checkpoint: str | None = None) -> dict[str, str]:
    """Return what a :class:`~featcache.stream.StreamSpec` records of the weights.

    Args:
        checkpoint: a folder that :func:`save_encoder` wrote; None is the weights of the wheel.

    Raises:
        CheckpointError: there are none, or they are of another kind.
    """
    if checkpoint is None:
        return {"name": "resemblyzer", "weights_sha256": file_sha256(_weights_path())}
    return _resolve(checkpoint).identity()


def libraries() -> dict[str, str]:
    """Return the versions of libraries that the front end's numbers depend on."""
    return {"librosa": version("librosa")}


def check_signal(samples: np.ndarray) -> None:
    """Refuse what the encoder would answer with a vector that means nothing.

    Args:
        samples: ``(samples,)`` at 16 kHz.

    Raises:
        StreamError: shorter than one window of 25 ms, not finite, or silent.
    """
    if len(samples) < WINDOW:
        raise StreamError(
            f"it has {len(samples)} samples; the speaker encoder needs at least {WINDOW} (25 ms at 16 kHz). "
            "Leave it out, or give a longer span."
        )
    if not np.isfinite(samples).all():
        raise StreamError("it holds NaN or infinite samples. Export the recording again from its source.")
    if rms(samples) < _LEAST_RMS:
        raise StreamError(f"it is silent: its RMS is {rms(samples):.3g} where full scale is 1. Leave it out.")


def rms(samples: np.ndarray) -> float:
    """Return the root mean square, computed in float64; full scale is 1."""
    return math.sqrt(np.mean(np.square(samples, dtype=np.float64)))


def scaled(samples: np.ndarray, target_rms: float) -> np.ndarray:
    """Return ``(samples,)`` float32 at a level, up or down.

    Args:
        samples: ``(samples,)`` at 16 kHz.
        target_rms: root mean square that they get; full scale is 1.

    Raises:
        StreamError: as :func:`check_signal`.
    """
    check_signal(samples)
    return (samples.astype(np.float64) * (target_rms / rms(samples))).astype(np.float32)


def check_level(target_rms: float) -> None:
    """Refuse a level that samples cannot be scaled to.

    Raises:
        ConfigError: it is not a positive number.
    """
    if not (math.isfinite(target_rms) and target_rms > 0):
        raise ConfigError(f"target_rms must be a positive number, such as 0.03, got {target_rms!r}.")


def num_frames(num_samples: int) -> int:
    """Return ``1 + num_samples // 160``; 0 below one window of 400 samples."""
    return 1 + num_samples // HOP if num_samples >= WINDOW else 0


def mel_power(samples: np.ndarray) -> np.ndarray:
    """Return ``(frames, 40)`` float32 mel power, not its logarithm; ``1 + samples // 160`` frames of 10 ms.

    Args:
        samples: ``(samples,)`` float32 at 16 kHz.
    """
    import librosa

    power = librosa.feature.melspectrogram(
        y=samples, sr=SAMPLE_RATE_HZ, n_fft=WINDOW, hop_length=HOP, n_mels=NUM_MELS, pad_mode="constant"
    )
    return np.ascontiguousarray(power.T, dtype=np.float32)


def normalise_volume(samples: np.ndarray) -> np.ndarray:
    """Return `samples` amplified to -30 dBFS; what is louder stays as it is."""
    rms = np.sqrt(np.mean((samples * _FULL_SCALE) ** 2))
    gain_db = _TARGET_DBFS - 20 * np.log10(rms / _FULL_SCALE)
    return samples if gain_db < 0 else samples * (10 ** (gain_db / 20))


def trim_long_silences(samples: np.ndarray) -> np.ndarray:
    """Return `samples` without what WebRTC's detector takes for long silence; possibly none.

    Decisions are made for windows of 30 ms, averaged over 8 of them and dilated by 3 on each side.

    Args:
        samples: ``(samples,)`` float32 at 16 kHz.
    """
    # The extension itself: webrtcvad.py around it imports pkg_resources, only to learn its own version.
    import _webrtcvad  # type: ignore[import-not-found]
    from scipy.ndimage import binary_dilation

    num_windows = len(samples) // _VAD_WINDOW
    samples = samples[: num_windows * _VAD_WINDOW]
    if num_windows == 0:
        return samples
    pcm = (
        np.clip(np.round(samples * _FULL_SCALE), -(2**15), _FULL_SCALE).astype("<i2").reshape(num_windows, _VAD_WINDOW)
    )
    detector = _webrtcvad.create()
    _webrtcvad.init(detector)
    _webrtcvad.set_mode(detector, 3)
    flags = [_webrtcvad.process(detector, SAMPLE_RATE_HZ, window.tobytes(), _VAD_WINDOW) for window in pcm]
    padded = np.concatenate((np.zeros((_VAD_AVERAGE - 1) // 2), flags, np.zeros(_VAD_AVERAGE // 2)))
    sums = np.cumsum(padded, dtype=float)
    sums[_VAD_AVERAGE:] = sums[_VAD_AVERAGE:] - sums[:-_VAD_AVERAGE]
    voiced = np.round(sums[_VAD_AVERAGE - 1 :] / _VAD_AVERAGE).astype(bool)
    voiced = binary_dilation(voiced, np.ones(_VAD_SILENCE + 1))
    return samples[np.repeat(voiced, _VAD_WINDOW)]


def partials(samples: np.ndarray) -> np.ndarray:
    """Return the mel power of 1.6 s pieces that cover an utterance, ``(partials, 160, 40)`` float32.

    A new piece starts every 0.77 s. The last one is padded with zeros, or left out where less than three quarters
    of it are in the utterance and it is not the only one.

    Args:
        samples: ``(samples,)`` float32 at 16 kHz.
    """
    num_frames = -(-(len(samples) + 1) // HOP)
    starts = list(range(0, max(1, num_frames - PARTIAL_FRAMES + _PARTIAL_STEP + 1), _PARTIAL_STEP))
    covered = (len(samples) - starts[-1] * HOP) / (PARTIAL_FRAMES * HOP)
    if covered < _LEAST_COVERAGE and len(starts) > 1:
        starts.pop()
    missing = (starts[-1] + PARTIAL_FRAMES) * HOP - len(samples)
    mels = mel_power(np.pad(samples, (0, max(0, missing))))
    return np.stack([mels[start : start + PARTIAL_FRAMES] for start in starts])


def load_weights(checkpoint: str | None = None) -> "dict[str, torch.Tensor]":
    """Return the network's weights, by the names that the package gives them: ``lstm.weight_ih_l0``, ``linear.bias``.

    Args:
        checkpoint: a folder that :func:`save_encoder` wrote; None is the weights of the wheel.

    Raises:
        CheckpointError: they are missing or not those of this network.
    """
    import torch
    from safetensors.torch import load_file

    if checkpoint is None:
        what, path = "resemblyzer", _weights_path()
        remedy = "Install it again with: pip install --force-reinstall --no-deps resemblyzer"
    else:
        what, path = repr(checkpoint), _resolve(checkpoint).folder / _WEIGHTS_FILE
        remedy = "Save the encoder again."
    try:
        if checkpoint is None:
            weights = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
        else:
            weights = load_file(path)
        return _checked(weights)
    except Exception as error:  # torch and safetensors raise many kinds on a damaged file
        raise CheckpointError(
            f"{path.name!r} of {what} does not hold the weights expected ({error}). {remedy}"
        ) from error


def save_encoder(folder: Path, weights: "Mapping[str, torch.Tensor]") -> None:
    """Write weights as a checkpoint folder, which the setting ``checkpoint`` of ge2e_states takes.

    Args:
        folder: where; made when missing.
        weights: as :func:`load_weights` returns them; further ones are left out.

    Raises:
        CheckpointError: some are missing or of another shape.
    """
    from safetensors.torch import save

    try:
        kept = _checked(weights)
    except ValueError as error:
        raise CheckpointError(f"These are no weights of the speaker encoder: {error}.") from error
    content = save({name: value.detach().cpu().contiguous() for name, value in kept.items()}, {"format": "pt"})
    write_atomically(folder / _WEIGHTS_FILE, content)
    write_json(folder / "config.json", {"model_type": MODEL_TYPE})


def _checked(weights: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """Return the weights that the network has.

    Raises:
        ValueError: one is missing or of another shape.
    """
    for name, shape in _SHAPES.items():
        if name not in weights:
            raise ValueError(f"{name} is missing")
        if tuple(weights[name].shape) != shape:
            raise ValueError(f"{name} is of shape {tuple(weights[name].shape)}, not {shape}")
    return {name: weights[name] for name in _SHAPES}


class Encoder:
    """The network, for inference.

    Args:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        checkpoint: a folder that :func:`save_encoder` wrote; None is the published weights.

    Raises:
        CheckpointError: the weights are missing or not those of this network.
    """

    def __init__(self, device: str, checkpoint: str | None = None) -> None:
        from torch import nn

        weights = load_weights(checkpoint)
        layers = []
        for number in range(NUM_LAYERS):
            layer = nn.LSTM(NUM_MELS if number == 0 else DIM, DIM, batch_first=True)
            layer.load_state_dict(
                {f"{name[:-1]}0": weights[f"lstm.{name[:-1]}{number}"] for name in layer.state_dict()}
            )
            layers.append(layer)
        linear = nn.Linear(DIM, DIM)
        linear.load_state_dict({name: weights[f"linear.{name}"] for name in linear.state_dict()})
        self._layers = nn.ModuleList(layers).eval().requires_grad_(False).to(device)
        self._linear = linear.eval().requires_grad_(False).to(device)
        self._device = device

    def states(self, mels: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return what each LSTM layer gives at each frame, of whole utterances as single sequences.

        Zeros behind a shorter sequence cannot reach back: the network is causal.

        Args:
            mels: ``(frames, 40)`` float32 each.

        Returns:
            ``(3, frames, 256)`` float32 each, layers from the input up.
        """
        import torch
        from torch.nn.utils.rnn import pad_sequence

        with inference():
            below = pad_sequence([torch.from_numpy(mel) for mel in mels], batch_first=True).to(self._device)
            outputs = []
            for layer in self._layers:
                below, _ = layer(below)  # (batch, frames, dim)
                outputs.append(below)
            states = torch.stack(outputs, dim=1).cpu().numpy()  # (batch, layers, frames, dim)
        return [states[row, :, : len(mel)] for row, mel in enumerate(mels)]

    def embed(self, mels: np.ndarray) -> np.ndarray:
        """Return the embeddings of sequences of equal length: of non-negative values and unit length.

        Args:
            mels: ``(batch, frames, 40)`` float32.

        Returns:
            ``(batch, 256)`` float32.
        """
        import torch

        with inference():
            below = torch.from_numpy(mels).to(self._device)
            for layer in self._layers:
                below, _ = layer(below)
            raw = torch.relu(self._linear(below[:, -1]))
            return (raw / torch.linalg.vector_norm(raw, dim=1, keepdim=True)).cpu().numpy()


def _resolve(checkpoint: str) -> Checkpoint:
    found = checkpoints.resolve(checkpoint, need=(_WEIGHTS_FILE,))
    if (kind := found.config.get("model_type")) != MODEL_TYPE:
        raise CheckpointError(
            f"The checkpoint {checkpoint!r} is of type {quoted(kind)}; ge2e_states takes a speaker encoder that "
            "'featcache finetune' saved, or none for Resemblyzer's own."
        )
    return found


def _weights_path() -> Path:
    spec = importlib.util.find_spec("resemblyzer")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).with_name("pretrained.pt")
        if path.is_file():
            return path
    raise CheckpointError(
        "The speaker encoder's weights are not installed. They come with: pip install resemblyzer==0.1.4"
    )
