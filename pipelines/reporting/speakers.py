"""How well a run does on each speaker."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from heads import metrics
from heads.fold_files import natural_key
from heads.runs import Run


@dataclass(frozen=True)
class SpeakerRow:
    """One speaker's test utterances: how many were scored, and their metrics as fractions.

    `ua` is over the classes that the speaker has.
    """

    name: str
    num_utterances: int
    ua: float
    wa: float


def by_speaker(run: Run, speakers: Mapping[str, str] | None) -> list[SpeakerRow]:
    """Return a row for each speaker, in natural order; none where every fold is one speaker, which says the same.

    Args:
        run: the run.
        speakers: utterance id to speaker; None where not known.
    """
    if speakers is None:
        return []
    names = np.array([speakers[name] for name in run.scores.ids], dtype=object)
    if len(set(names)) == len(set(run.scores.folds)) == len(set(zip(names, run.scores.folds, strict=True))):
        return []
    reference, predicted = run.scores.reference, run.scores.predicted
    rows = []
    for name in sorted(set(names), key=natural_key):
        own = names == name
        pair = reference[own], predicted[own]
        rows.append(SpeakerRow(name, int(own.sum()), metrics.ua(*pair), metrics.wa(*pair)))
    return rows
