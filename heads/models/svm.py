"""Support vector machine with a radial kernel, on functionals: the baseline most readers know.

scikit-learn's ``StandardScaler`` and ``SVC``. Where ``C`` has several values, one is chosen on validation; the model
that scores test is then trained on train and validation together, as a model without choices would be.

Scores are the softmax of the one-against-rest decision values: their order is the machine's decision, their size is
not calibrated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from featcache.cache import CachedStream
from featcache.errors import ConfigError
from heads.head import Candidate, FitSettings, Head, OnProgress, Outcome, Task
from heads.metrics import ua, wa

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline


@dataclass(frozen=True)
class Svm(Head):
    """A support vector machine.

    Attributes:
        features: ``"functionals"`` reads the stream's array of that name (egemaps), ``"stats"`` mean and standard
            deviation over time of every layer, ``"auto"`` functionals where the stream has them.
        C: cost of an error; one or several values.
        gamma: width of the kernel: ``"scale"``, ``"auto"`` or a number, as scikit-learn.
        kernel: ``"rbf"`` or ``"linear"``.
        balanced: weigh classes by the inverse of their frequency.
    """

    title: ClassVar[str] = "support vector machine on functionals (scikit-learn)"
    tier: ClassVar[Literal["frames", "stats"]] = "stats"

    features: Literal["auto", "functionals", "stats"] = "auto"
    C: tuple[float, ...] = (1.0,)
    gamma: Literal["scale", "auto"] | float = "scale"
    kernel: Literal["rbf", "linear"] = "rbf"
    balanced: bool = True

    def __post_init__(self) -> None:
        if not self.C or min(self.C) <= 0:
            raise ConfigError(f"C needs one or more positive numbers, got {self.C}.")

    def train(self, task: Task, settings: FitSettings, on_progress: OnProgress) -> list[Outcome]:
        """Train on every fold; of the settings only `select_by` is used."""
        values = self._read(task.stream(self.kind()), task.ids)
        outcomes = []
        for number, fold in enumerate(task.folds, start=1):
            train, validation, test = (task.positions(part) for part in (fold.train, fold.validation, fold.test))
            outcomes.append(self._fold(fold.name, values, task, (train, validation, test), settings))
            on_progress(number, len(task.folds))
        return outcomes

    def _fold(
        self,
        name: str,
        values: np.ndarray,
        task: Task,
        parts: tuple[np.ndarray, np.ndarray, np.ndarray],
        settings: FitSettings,
    ) -> Outcome:
        train, validation, test = parts
        metric = ua if settings.select_by == "ua" else wa
        candidates, on_validation, on_test = [], [], []
        for cost in self.C:
            if len(validation):
                chooser = self._fit(values[train], task.labels[train], cost)
                on_validation.append(_probabilities(chooser, values[validation], len(task.classes)))
                chosen_by = metric(task.labels[validation], on_validation[-1].argmax(1))
            else:
                on_validation.append(np.empty((0, len(task.classes))))
                chosen_by = float("nan")
            both = np.concatenate([train, validation])
            model = self._fit(values[both], task.labels[both], cost)
            on_test.append(_probabilities(model, values[test], len(task.classes)))
            candidates.append(Candidate({"C": cost}, chosen_by, metric(task.labels[test], on_test[-1].argmax(1))))
        if len(self.C) > 1 and not len(validation):
            raise ConfigError(
                f"Fold {name!r} has no validation part to choose C on. Give one C, or a validation share."
            )
        best = max(range(len(self.C)), key=lambda index: candidates[index].validation) if len(self.C) > 1 else 0
        return Outcome(name, on_test[best], on_validation[best], {"C": self.C[best]}, candidates)

    def _fit(self, values: np.ndarray, labels: np.ndarray, cost: float) -> "Pipeline":
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVC

        # break_ties makes the decision the largest decision value, which is what the scores show.
        machine = SVC(
            C=cost,
            gamma=self.gamma,
            kernel=self.kernel,
            class_weight="balanced" if self.balanced else None,
            decision_function_shape="ovr",
            break_ties=True,
        )
        return make_pipeline(StandardScaler(), machine).fit(values, labels)

    def _read(self, stream: CachedStream, ids: Sequence[str]) -> np.ndarray:
        """Return ``(utterances, features)`` float64."""
        has = "functionals" in stream.spec.utterance_arrays
        if self.features == "functionals" and not has:
            raise ConfigError(f"The stream {stream.name!r} has no functionals. Use egemaps, or set features to stats.")
        if self.features == "functionals" or (self.features == "auto" and has):
            return stream.array("functionals", ids).astype(np.float64)
        mean, std = stream.stats(ids)
        return np.concatenate([mean, std], axis=-1).reshape(len(ids), -1).astype(np.float64)


def _probabilities(model: "Pipeline", values: np.ndarray, num_classes: int) -> np.ndarray:
    """Return ``(utterances, classes)``, 0 for classes that training did not have."""
    decision = model.decision_function(values)
    if decision.ndim == 1:  # two classes: one value, positive for the second
        decision = np.stack([-decision / 2, decision / 2], axis=1)
    exponent = np.exp(decision - decision.max(axis=1, keepdims=True))
    probabilities = np.zeros((len(values), num_classes))
    probabilities[:, model.classes_] = exponent / exponent.sum(axis=1, keepdims=True)
    return probabilities
