"""One vector for each speaker, averaged from the embeddings of some of the speaker's utterances.

Source: Makiuchi et al. 2021, section 3.1.2: the plain average over 100 randomly drawn utterances. An average uses
a speaker's other utterances, of test speakers as well, though never their labels: a protocol that a report has to name.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from featcache.errors import ConfigError, ManifestError, StreamError
from featcache.manifest import Utterance


class SupportsStats(Protocol):
    """What is needed of a :class:`featcache.cache.CachedStream`."""

    def stats(self, ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation over the frames, ``(utterances, layers, dim)`` float32 each."""


def speaker_means(
    stream: SupportsStats, utterances: Iterable[Utterance], limit: int = 100, seed: int = 0, normalise: bool = False
) -> dict[str, np.ndarray]:
    """Return the mean embedding of each speaker.

    Which utterances are drawn depends on the seed, the speaker's name and the ids of the speaker's utterances, not on
    their order nor on other speakers.

    Args:
        stream: a stream with one layer, such as ``speaker``.
        utterances: of all speakers wanted.
        limit: most utterances to average for a speaker; they are drawn without replacement.
        seed: of the draw.
        normalise: scale each mean to unit length, as Resemblyzer's ``embed_speaker`` does; the paper does not.

    Returns:
        Speaker to ``(dim,)`` float32, in the order of their names.

    Raises:
        ManifestError: utterances without a speaker.
        StreamError: the stream has more than one layer.
        ConfigError: the limit is below 1.
    """
    if limit < 1:
        raise ConfigError(f"The limit of utterances for a speaker must be at least 1, got {limit}.")
    ids: dict[str, list[str]] = {}
    nameless: list[str] = []
    for utterance in utterances:
        if utterance.speaker is None:
            nameless.append(utterance.id)
        else:
            ids.setdefault(utterance.speaker, []).append(utterance.id)
    if nameless:
        shown = ", ".join(repr(name) for name in nameless[:10]) + (", ..." if len(nameless) > 10 else "")
        raise ManifestError(
            f"{len(nameless)} utterances have no speaker: {shown}. Fill the manifest's column 'speaker', or leave "
            "them out."
        )
    means = {}
    for speaker in sorted(ids):
        embeddings, _ = stream.stats(_drawn(sorted(ids[speaker]), speaker, limit, seed))
        _, layers, _ = embeddings.shape
        if layers != 1:
            raise StreamError(f"the stream has {layers} layers; a speaker's mean needs one, as the stream speaker has.")
        mean = embeddings[:, 0].mean(axis=0, dtype=np.float64)
        means[speaker] = (mean / np.linalg.norm(mean) if normalise else mean).astype(np.float32)
    return means


def _drawn(ids: Sequence[str], speaker: str, limit: int, seed: int) -> list[str]:
    """Return at most `limit` of the ids, in their order."""
    if len(ids) <= limit:
        return list(ids)
    # hash() differs from process to process.
    name = int.from_bytes(hashlib.sha256(speaker.encode()).digest()[:8], "big")
    chosen = np.random.default_rng([seed, name]).choice(len(ids), size=limit, replace=False)
    return [ids[index] for index in sorted(chosen)]
