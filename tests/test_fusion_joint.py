"""Joint linear layers: the formula and its optimum by hand, and that the scored fold teaches them nothing."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy.optimize import brentq
from test_fusion_search import CLASSES, as_run, disturbed, ids_of, make_run, make_runs, take
from torch import nn

from featcache.errors import ConfigError, ScoresError
from heads import fusion_joint
from heads.fusion_data import Evidence
from heads.fusion_joint import WEIGHT_DECAY, join_runs, learn
from heads.fusion_stack import LinearModel
from heads.metrics import ua
from heads.runs import read_run, write_run
from heads.scores import Scores
from pipelines import fuse


def evidence(values: list, reference: list[int]) -> Evidence:
    table = np.array(values, float)
    return Evidence("1", tuple(f"u{n}" for n in range(len(reference))), table, np.array(reference))


def test_the_formula_is_a_layer_for_each_run_then_the_sum_then_the_softmax() -> None:
    """Two runs, two classes, one utterance: W1 p1 + W2 p2 + b = (0.9 + 0.4 + 0.5, 0.1 * 2 + 0.6 * 3) = (1.8, 2.0)."""
    coefficients = np.array([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 2.0], [0.0, 3.0]]])
    model = LinearModel(np.arange(2), coefficients, np.array([0.5, 0.0]))
    found = model(np.array([[[0.9, 0.1]], [[0.4, 0.6]]]))
    assert found == pytest.approx(np.array([[1.0, np.exp(0.2)]]) / (1 + np.exp(0.2)))


@pytest.mark.parametrize("decay", [1e-3, 0.1])
def test_the_optimum_of_two_certain_classes_is_that_by_hand(decay: float) -> None:
    """One run that is always right. By symmetry W = [[a, -a], [-a, a]] and no bias; the derivative of
    log(1 + exp(-2 a)) + decay / 2 * 4 a² is zero where 2 a decay = 1 / (1 + exp(2 a)).
    """
    model = learn(evidence([[[1, 0], [0, 1]]], [0, 1]), "wa", decay)
    a = brentq(lambda a: 2 * a * decay - 1 / (1 + np.exp(2 * a)), 0, 100)
    assert model.coefficients[:, 0] == pytest.approx(np.array([[a, -a], [-a, a]]), abs=1e-4)
    assert model.intercepts == pytest.approx([0, 0], abs=1e-4)


def test_two_biases_share_what_one_would_bear() -> None:
    """Runs that say nothing of two classes, 3 to 1: what is learnt is the prior, held back by the decay.

    With p = (1/2, 1/2) in R runs, logits are +-z, z = sum over runs of (w + b) with w = the mean of a row's two weights
    (each counts half). Weights and biases of one size s: z = R s (1/2 + 1/2 + 1), squared length 2 * 3 R s².
    """
    decay, runs = 0.1, 2
    model = learn(evidence([[[0.5, 0.5]] * 4] * runs, [0, 0, 0, 1]), "wa", decay)
    # Along logits (z, -z): a row's R * 2 weights u and R biases v give z = R (u + v); best is u = v / 2.
    # Its squared length is R (2 u² + v²), so that of both rows is 2 R (2 / 9 + 4 / 9) (z / R)² = 4 z² / (3 R).
    z = brentq(lambda z: -2 * (0.75 - 1 / (1 + np.exp(-2 * z))) + decay * 4 * z / (3 * runs), 0, 10)
    shown = model(np.full((runs, 1, 2), 0.5))[0]
    assert shown[0] == pytest.approx(1 / (1 + np.exp(-2 * z)), abs=1e-6)
    assert model.intercepts == pytest.approx([2 / 3 * z, -2 / 3 * z], abs=1e-5)


def test_it_is_what_the_papers_layers_learn_when_they_are_trained_to_the_end() -> None:
    """Two linear layers with biases, summed, cross-entropy, weight decay as in Adam, by torch."""
    generator = np.random.default_rng(0)
    values, reference = generator.dirichlet(np.ones(3), (2, 40)), generator.integers(0, 3, 40)
    reference[:30] = values[0, :30].argmax(1)
    model = learn(evidence(values.tolist(), reference.tolist()), "wa", 0.02)
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.Linear(3, 3, dtype=torch.float64) for _ in range(2)])
    optimiser = torch.optim.Adam(layers.parameters(), lr=0.01, weight_decay=0.02)
    inputs, target = torch.from_numpy(values), torch.from_numpy(reference)
    for _ in range(3000):
        optimiser.zero_grad()
        logits = layers[0](inputs[0]) + layers[1](inputs[1])
        nn.functional.cross_entropy(logits, target).backward()
        optimiser.step()
    for run, layer in enumerate(layers):
        assert model.coefficients[:, run] == pytest.approx(layer.weight.detach().numpy(), abs=1e-3)
    assert model.intercepts == pytest.approx((layers[0].bias + layers[1].bias).detach().numpy(), abs=1e-3)
    assert model(values) == pytest.approx(torch.softmax(logits, 1).detach().numpy(), abs=1e-3)


def test_by_ua_classes_weigh_alike_and_by_wa_utterances() -> None:
    """Repeating the rare class's utterances changes nothing by UA, and by WA it does."""
    generator = np.random.default_rng(1)
    values, reference = generator.dirichlet(np.ones(2), (1, 12)), np.array([0] * 9 + [1] * 3)
    more = np.concatenate([np.arange(12), [9, 10, 11] * 2])
    once = {by: learn(evidence(values.tolist(), reference.tolist()), by) for by in ("ua", "wa")}
    thrice = {by: learn(evidence(values[:, more].tolist(), reference[more].tolist()), by) for by in ("ua", "wa")}
    assert thrice["ua"].coefficients == pytest.approx(once["ua"].coefficients, abs=1e-4)
    assert thrice["wa"].coefficients == pytest.approx(once["ua"].coefficients, abs=1e-4)
    assert not np.allclose(once["wa"].coefficients, once["ua"].coefficients, atol=0.1)


@pytest.mark.parametrize("on", ["validation", "other-folds"])
def test_confused_classes_are_put_right(on: str) -> None:
    run = make_run(2, strength=4, in_fold=40)
    tables = [
        replace(one, probabilities=one.probabilities[:, [1, 2, 3, 0]]) for one in (run.scores, run.validation_scores)
    ]
    whole = ua(run.scores.reference, run.scores.predicted)
    found = join_runs([as_run(*tables)], search_on=on).fused.scores
    assert ua(tables[0].reference, tables[0].predicted) < 0.3 * whole
    assert ua(found.reference, found.predicted) > 0.95 * whole


@pytest.mark.parametrize("on", ["validation", "other-folds"])
def test_the_scored_fold_teaches_its_layers_nothing(on: str) -> None:
    runs = make_runs(5)
    before = join_runs(runs, search_on=on).folds
    for number, fold in enumerate(("1", "2", "3")):
        changed = [disturbed(run, ids_of(run, fold), seed) for seed, run in enumerate(runs)]
        after = join_runs(changed, search_on=on).folds
        for one, (mine, theirs) in enumerate(zip(before, after, strict=True)):
            same = np.array_equal(mine.model.coefficients, theirs.model.coefficients)
            assert same == (mine.on_search == theirs.on_search) == (one == number)


def test_the_order_of_runs_decides_nothing() -> None:
    runs, order = make_runs(6, (0.6, 0.8, 1.0)), [2, 0, 1]
    for mine, theirs in zip(join_runs(runs).folds, join_runs([runs[index] for index in order]).folds, strict=True):
        assert np.array_equal(theirs.model.coefficients, mine.model.coefficients[:, order])


def test_a_class_that_is_not_there_gets_little_and_one_class_alone_is_learned() -> None:
    run = make_run(8)
    kept = [row for row, label in enumerate(run.validation_scores.labels) if label != "sad"]
    found = join_runs([as_run(run.scores, take(run.validation_scores, kept))])
    sad = CLASSES.index("sad")
    assert 0 < found.fused.scores.probabilities[:, sad].max() < 0.15
    alone = learn(evidence([[[0.5, 0.5]] * 3], [1, 1, 1]), "ua")
    assert alone(np.full((1, 1, 2), 0.5))[0, 1] > 0.9


def test_certain_and_huge_inputs_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    reference = generator.integers(0, 8, 5000)
    values = np.stack([np.eye(8)[reference], np.eye(8)[generator.integers(0, 8, 5000)]])
    model = learn(evidence(values.tolist(), reference.tolist()), "wa")
    assert (model(values).argmax(1) == reference).all()
    monkeypatch.setattr(fusion_joint, "_MAX_ITERATIONS", 1)
    with pytest.raises(ScoresError, match="joint layers of fold '1' did not settle in 1 iterations"):
        learn(evidence(values.tolist(), reference.tolist()), "wa")


def test_what_cannot_be_learned_is_refused() -> None:
    run = make_run(9)
    with pytest.raises(ScoresError, match="nothing to search on: run kept no validation scores"):
        join_runs([as_run(run.scores)])
    with pytest.raises(ConfigError, match="Use ua or wa"):
        join_runs([run], select_by="f1")  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        join_runs([])


def test_fuse_writes_layers_and_takes_probabilities_alone(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("speech", "text")]
    runs = make_runs(20)
    for folder, run in zip(folders, runs, strict=True):
        write_run(folder, run.scores, run.validation_scores, {"head": "x", "speaker_independent": True})
    messages: list[str] = []
    fuse.run(folders, "joint", tmp_path / "out", select_by="wa", on_message=messages.append)
    config = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert (config["weights"], config["method"], config["space"], config["selected_by"]) == (
        "joint",
        "joint",
        "prob",
        "wa",
    )
    assert f"weight decay {WEIGHT_DECAY:g}" in config["regularisation"]
    assert messages == ["The fused validation scores are optimistic: the fusion was found on those utterances."]
    with (tmp_path / "out" / "fusion_coefficients.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["fold"] == "2"]
    assert len(rows) == 4 * (1 + 2 * 4)
    weights = {(row["class"], row["run"], row["score_of"]): float(row["coefficient"]) for row in rows}
    found: Scores = read_run(tmp_path / "out").scores
    row = found.folds.index("2")
    at = {name: run.scores.ids.index(found.ids[row]) for name, run in zip(("speech", "text"), runs, strict=True)}
    logits = [
        weights[one, "", ""] + sum(
            weights[one, name, of] * run.scores.probabilities[at[name], run.scores.classes.index(of)]
            for name, run in zip(("speech", "text"), runs, strict=True) for of in CLASSES
        )
        for one in found.classes
    ]  # fmt: skip
    assert found.probabilities[row] == pytest.approx(np.exp(logits) / np.exp(logits).sum(), abs=1e-6)
    for options in ({"space": "log"}, {"standardise": True}):
        with pytest.raises(ConfigError, match="joint takes probabilities as they are"):
            fuse.run(folders, "joint", tmp_path / "other", **options)
