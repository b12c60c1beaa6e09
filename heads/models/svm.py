"""Support vector machine with a radial kernel, on functionals: the baseline most readers know.

scikit-learn's ``StandardScaler`` and ``SVC``. Where ``C`` has several values, one is chosen on validation; the model
that scores test is then trained on train and validation together, as a model without choices would be.

Scores are the softmax of the one-against-rest decision values: their order is the machine's decision, their size is
not calibrated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from typing import ClassVar, Literal

import numpy as np

from featcache.cache import CachedStream
from featcache.errors import ConfigError, ScoresError
from heads.fit_settings import FitSettings
from heads.head import Head, OnProgress
from heads.metrics import ua, wa
from heads.task import Candidate, Outcome, Task, Trained


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
        candidates, on_validation, on_test, models = [], [], [], []
        for cost in self.C:
            if len(validation):
                chooser = self._fit(values[train], task.labels[train], cost)
                on_validation.append(chooser.probabilities(values[validation], len(task.classes)))
                chosen_by = metric(task.labels[validation], on_validation[-1].argmax(1))
            else:
                on_validation.append(np.empty((0, len(task.classes))))
                chosen_by = float("nan")
            both = np.concatenate([train, validation])
            models.append(self._fit(values[both], task.labels[both], cost))
            on_test.append(models[-1].probabilities(values[test], len(task.classes)))
            candidates.append(Candidate({"C": cost}, chosen_by, metric(task.labels[test], on_test[-1].argmax(1))))
        if len(self.C) > 1 and not len(validation):
            raise ConfigError(
                f"Fold {name!r} has no validation part to choose C on. Give one C, or a validation share."
            )
        best = max(range(len(self.C)), key=lambda index: candidates[index].validation) if len(self.C) > 1 else 0
        chosen, weights = {"C": self.C[best]}, models[best].arrays()
        return Outcome(name, on_test[best], on_validation[best], chosen, candidates, weights=weights)

    def score(self, task: Task, trained: Trained) -> np.ndarray:
        """Return the class probabilities ``(utterances, classes)`` of all of a task's utterances."""
        values = self._read(task.stream(self.kind()), task.ids)
        return Machine.restored(self.kernel, trained.weights).probabilities(values, len(task.classes))

    def _fit(self, values: np.ndarray, labels: np.ndarray, cost: float) -> "Machine":
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
        scaler = StandardScaler()
        machine.fit(scaler.fit_transform(values), labels)
        return Machine(
            self.kernel, scaler.mean_, scaler.scale_, machine.support_vectors_, machine.dual_coef_,
            machine.intercept_, machine.n_support_, machine.classes_, np.array(machine._gamma),
        )  # fmt: skip

    def _read(self, stream: CachedStream, ids: Sequence[str]) -> np.ndarray:
        """Return ``(utterances, features)`` float64."""
        has = "functionals" in stream.spec.utterance_arrays
        if self.features == "functionals" and not has:
            raise ConfigError(f"The stream {stream.name!r} has no functionals. Use egemaps, or set features to stats.")
        if self.features == "functionals" or (self.features == "auto" and has):
            return stream.array("functionals", ids).astype(np.float64)
        mean, std = stream.stats(ids)
        return np.concatenate([mean, std], axis=-1).reshape(len(ids), -1).astype(np.float64)


@dataclass(frozen=True)
class Machine:
    """A trained machine as plain arrays: what scikit-learn's pipeline learnt, without its classes.

    Attributes:
        kernel: ``"rbf"`` or ``"linear"``.
        mean: ``(features,)`` subtracted first.
        scale: ``(features,)`` divided by then.
        support_vectors: ``(vectors, features)``, those of one class after the other.
        dual_coef: ``(classes - 1, vectors)``, as scikit-learn's ``dual_coef_``.
        intercept: ``(pairs of classes,)``.
        num_support: ``(classes,)`` support vectors of each class.
        classes: ``(classes,)`` positions of the classes that training had, sorted.
        gamma: width of the kernel.
    """

    kernel: str
    mean: np.ndarray
    scale: np.ndarray
    support_vectors: np.ndarray
    dual_coef: np.ndarray
    intercept: np.ndarray
    num_support: np.ndarray
    classes: np.ndarray
    gamma: np.ndarray

    @classmethod
    def restored(cls, kernel: str, arrays: Mapping[str, np.ndarray]) -> "Machine":
        """Return a machine from what :meth:`arrays` gave.

        Raises:
            ScoresError: an array is missing.
        """
        names = [one.name for one in fields(cls) if one.name != "kernel"]
        lacking = [name for name in names if name not in arrays]
        if lacking:
            raise ScoresError(f"The weights are not of the head 'svm': {', '.join(lacking)} missing.")
        return cls(kernel, **{name: arrays[name] for name in names})

    def arrays(self) -> dict[str, np.ndarray]:
        """Return every array by name."""
        return {one.name: np.asarray(getattr(self, one.name)) for one in fields(self) if one.name != "kernel"}

    def probabilities(self, values: np.ndarray, num_classes: int) -> np.ndarray:
        """Return ``(utterances, classes)`` of ``(utterances, features)``; 0 for classes that training did not have."""
        decision = self.decision(values)
        exponent = np.exp(decision - decision.max(axis=1, keepdims=True))
        probabilities = np.zeros((len(values), num_classes))
        probabilities[:, self.classes] = exponent / exponent.sum(axis=1, keepdims=True)
        return probabilities

    def decision(self, values: np.ndarray) -> np.ndarray:
        """Return one-against-rest decision values, ``(utterances, classes of training)``.

        They are scikit-learn's: the votes of the machines of two classes each, and, to break ties, a third of a vote or
        less for how sure these were.
        """
        from sklearn.metrics.pairwise import linear_kernel, rbf_kernel

        standard = (values - self.mean) / self.scale
        if self.kernel == "linear":
            kernel = linear_kernel(standard, self.support_vectors)
        else:
            kernel = rbf_kernel(standard, self.support_vectors, gamma=float(self.gamma))
        if len(self.classes) == 2:  # one value, positive for the second
            [second] = (kernel @ self.dual_coef.T + self.intercept).T
            return np.stack([-second / 2, second / 2], axis=1)
        votes, sureness = np.zeros((2, len(values), len(self.classes)))
        ends = np.cumsum(self.num_support)
        own = [slice(end - count, end) for end, count in zip(ends, self.num_support, strict=True)]
        for number, (first, second) in enumerate(combinations(range(len(self.classes)), 2)):
            value = self.intercept[number] + (
                kernel[:, own[first]] @ self.dual_coef[second - 1, own[first]]
                + kernel[:, own[second]] @ self.dual_coef[first, own[second]]
            )
            votes[:, first] += value >= 0
            votes[:, second] += value < 0
            sureness[:, first] += value
            sureness[:, second] -= value
        return votes + sureness / (3 * (np.abs(sureness) + 1))
