"""A small task with every stream that speech heads read, in a cache made without any model."""

from pathlib import Path

import numpy as np

import featcache
from featcache import Manifest, Utterance
from featcache.commit import StreamWriter, store
from featcache.stream import Features, StreamSpec
from heads.folds import make_folds
from heads.task import Task

LAYERS, DIM, MELS, SPEAKER, PHONES = 4, 6, 5, 3, 7
SPECS = {
    "toy": StreamSpec(
        "toy", 1, "audio", {}, tuple(f"l{n}" for n in range(LAYERS)), DIM, frame_shift_s=0.02, dtype="float32"
    ),
    "log_mel": StreamSpec("log_mel", 1, "audio", {}, ("log_mel",), MELS, frame_shift_s=0.02, dtype="float32"),
    "speaker": StreamSpec("speaker", 1, "audio", {}, ("embedding",), SPEAKER, dtype="float32"),
    "phones": StreamSpec(
        "phones", 1, "speech", {"inventory": [f"p{n}" for n in range(PHONES)]}, ("phone",), 1, frame_shift_s=0.02,
        dtype="int16",
    ),
}  # fmt: skip


def features(number: int, num_frames: int, informative: int = 2, noise: float = 0.3) -> dict[str, np.ndarray]:
    """Return the frames of one utterance of class ``number % 3``, for each stream."""
    generator = np.random.default_rng(number)
    hidden = noise * generator.standard_normal((LAYERS, num_frames, DIM)).astype(np.float32)
    hidden[informative, :, number % 3] += 1.0
    phones = generator.integers(0, PHONES, (1, num_frames, 1)).astype(np.int16)
    mel = np.clip(0.5 + 0.1 * generator.standard_normal((1, num_frames, MELS)), 0, 1).astype(np.float32)
    mel[0, :, number % 3] += 0.5
    # Speakers differ little, so that a head can learn from some and be tested on another.
    speaker = 1 + 0.1 * np.random.default_rng([9, number // 3 % 4]).standard_normal((1, 1, SPEAKER)).astype(np.float32)
    return {"toy": hidden, "log_mel": mel, "speaker": speaker, "phones": phones}


def make_task(folder: Path, lengths: list[int], shorter: dict[str, int] | None = None, unlike: bool = False) -> Task:
    """Write every stream of utterances of these lengths and return their task, with four speakers.

    Args:
        folder: the cache.
        lengths: frames of each utterance.
        shorter: stream to how many frames fewer it has.
        unlike: each utterance has another embedding of its speaker.
    """
    everything = [features(number, length) for number, length in enumerate(lengths)]
    if unlike:
        everything = [frames | {"speaker": frames["speaker"] + number} for number, frames in enumerate(everything)]
    for name, spec in SPECS.items():
        with StreamWriter(folder, spec, "zarr", "frames") as writer:
            stored = []
            for number, frames in enumerate(everything):
                left = frames[name][:, : frames[name].shape[1] - (shorter or {}).get(name, 0)]
                stored.append(store(f"u{number:03d}", "0", 0, Features(left), spec, "frames"))
            writer.commit(stored, {})
    utterances = [
        Utterance(f"u{number:03d}", label="abc"[number % 3], speaker=f"s{number // 3 % 4}")
        for number in range(len(lengths))
    ]
    cache = featcache.open(folder)
    return Task(
        {name: cache[name] for name in SPECS},
        [utterance.id for utterance in utterances],
        np.array([number % 3 for number in range(len(lengths))]),
        ("a", "b", "c"),
        tuple(make_folds(Manifest(utterances), "speaker")),
        speakers=[utterance.speaker for utterance in utterances],
    )
