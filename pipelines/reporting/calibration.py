"""How far a run's probabilities can be believed: reliability by confidence, the calibration error, the Brier score.

The confidence is the probability of the class that was recognised. Bins are those of Guo et al. 2017 ("On calibration
of modern neural networks", section 2): 15 of equal width, ``((m - 1) / 15, m / 15]``; the expected calibration error is
their equation 3, the mean over utterances of how far a bin's accuracy is from its mean confidence. The Brier score is
Brier's own of 1950: the squared differences between probabilities and truth, summed over classes, mean over
utterances; 0 is best, 2 worst. Some programs halve it for two classes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heads.scores import Scores

NUM_BINS = 15


@dataclass(frozen=True, eq=False)
class Calibration:
    """Confidence against accuracy.

    Attributes:
        counts: (bins,) utterances by confidence, in bins of equal width from 0 to 1.
        confidence: (bins,) its mean; NaN in an empty bin.
        accuracy: (bins,) share that was recognised; NaN in an empty bin.
        ece: expected calibration error, a fraction.
        brier: Brier score, 0 to 2.
    """

    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    ece: float
    brier: float


def calibration(scores: Scores) -> Calibration:
    """Return how well probabilities say how often they are right, all folds pooled."""
    confidence = scores.probabilities.max(axis=1)
    right = (scores.predicted == scores.reference).astype(np.float64)
    bins = np.digitize(confidence, np.arange(1, NUM_BINS) / NUM_BINS, right=True)
    counts = np.bincount(bins, minlength=NUM_BINS)
    sums = [np.bincount(bins, values, NUM_BINS) for values in (confidence, right)]
    truth = np.eye(len(scores.classes))[scores.reference]
    means = [np.divide(total, counts, out=np.full(NUM_BINS, np.nan), where=counts > 0) for total in sums]
    ece = np.abs(sums[1] - sums[0]).sum() / len(right)
    brier = ((scores.probabilities - truth) ** 2).sum(axis=1).mean()
    return Calibration(counts.astype(np.int64), means[0], means[1], float(ece), float(brier))
