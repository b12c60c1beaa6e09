"""The utterances that are hardest: what was taken for another class with the greatest confidence, and what was said.

A corpus's recordings may be put into the page as well, so that they can be listened to where they are looked at. They
are then in a file that people send around, which is why nothing does so unasked.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soundfile
from numpy.typing import NDArray

from featcache import audio
from featcache.errors import AudioError, ManifestError
from featcache.manifest import Manifest, Utterance
from heads.fold_files import natural_key
from heads.runs import Run
from heads.scores import Scores

NUM_HARDEST = 10
LONGEST_S = 10
"""Seconds of a recording that are put into the page."""

SAMPLE_RATE_HZ = 16000


@dataclass(frozen=True)
class Hard:
    """An utterance that was taken for another class.

    Attributes:
        id: its name.
        speaker: who speaks; empty where unknown.
        label: its class.
        taken_for: the class it was taken for; over several runs, the one that most of them took it for.
        confidence: probability of that class, a fraction; mean over runs.
        true_probability: probability of its own class, likewise.
        text: what is said; empty where unknown.
        audio: ``data:`` address of its recording; empty where there is none.
    """

    id: str
    speaker: str
    label: str
    taken_for: str
    confidence: float
    true_probability: float
    text: str
    audio: str


def hardest(run: Run, with_audio: bool = False, most: int = NUM_HARDEST) -> list[Hard]:
    """Return the utterances that were taken for another class with the greatest confidence.

    Args:
        run: the run; one scored several times counts by its worst.
        with_audio: put recordings in.
        most: how many are wanted.
    """
    scores = run.scores
    predicted, reference = scores.predicted, scores.reference
    confidence = scores.probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != reference)
    order = sorted(wrong, key=lambda row: (-confidence[row], natural_key(scores.ids[row])))
    first: dict[str, int] = {}
    for row in order:
        first.setdefault(scores.ids[row], int(row))
    rows = list(first.values())[:most]
    return [
        _hard(scores, row, int(predicted[row]), scores.probabilities[row], run.manifest, with_audio) for row in rows
    ]


def lost(aligned: Sequence[Scores], manifest: Manifest | None, with_audio: bool = False) -> tuple[list[Hard], int]:
    """Return the utterances that no run recognises, those first whose class is given least; and how many there are.

    Args:
        aligned: scores of the runs, with the same rows and classes; see :func:`heads.scores.align`.
        manifest: who says what in them, where it is known.
        with_audio: put recordings in.
    """
    scores = aligned[0]
    reference = scores.reference
    predicted = np.stack([one.predicted for one in aligned])
    rows = np.flatnonzero((predicted != reference).all(axis=0))
    mean = np.mean([one.probabilities[rows] for one in aligned], axis=0)
    order = sorted(
        range(len(rows)), key=lambda place: (mean[place, reference[rows[place]]], natural_key(scores.ids[rows[place]]))
    )
    found = []
    for place in order[:NUM_HARDEST]:
        row = int(rows[place])
        votes = np.bincount(predicted[:, row], minlength=len(scores.classes))
        found.append(_hard(scores, row, int(votes.argmax()), mean[place], manifest, with_audio))
    return found, len(rows)


def _hard(
    scores: Scores,
    row: int,
    taken_for: int,
    probabilities: NDArray[np.float64],
    manifest: Manifest | None,
    with_audio: bool,
) -> Hard:
    name, true = scores.ids[row], scores.reference[row]
    utterance = Utterance(name) if manifest is None else manifest.utterance(name)
    return Hard(
        name,
        utterance.speaker or "",
        scores.labels[row],
        scores.classes[taken_for],
        float(probabilities[taken_for]),
        float(probabilities[true]),
        utterance.text or "",
        _recording(manifest, utterance) if with_audio and manifest is not None else "",
    )


def _recording(manifest: Manifest, utterance: Utterance) -> str:
    """Return the beginning of an utterance's recording as a ``data:`` address; nothing where it cannot be read."""
    try:
        found = audio.decode(manifest.audio_path(utterance), utterance.start_s, utterance.end_s)
    except (AudioError, ManifestError):
        return ""
    samples = found.at_rate(SAMPLE_RATE_HZ)[: LONGEST_S * SAMPLE_RATE_HZ]
    # MP3 and not Ogg: libsndfile numbers each Ogg stream at random, and the same runs are to give the same page.
    form, kind = ("MP3", "mpeg") if "MP3" in soundfile.available_formats() else ("FLAC", "flac")
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE_HZ, format=form)
    return f"data:audio/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
