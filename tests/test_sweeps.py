"""Candidates side by side give what a plain loop gives, to rounding, whatever their number and the cores."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import heads.fit
from benchmarks.sweeps import (
    Size,
    largest_difference,
    make_task,
    probe_plain,
    superb_plain,
    train_plainly,
    write_corpus,
)
from featcache.errors import ConfigError, FeatcacheError
from heads import threads
from heads.fit import fit, fit_each, side_by_side
from heads.fit_settings import FitSettings
from heads.head import Head
from heads.models.layer_mix import LayerMix
from heads.models.linear_probe import LinearProbe
from heads.models.mean_pool import MeanPool
from heads.models.svm import Svm
from heads.task import Outcome, Task
from pipelines.cli import app

SIZE = Size(utterances=300, layers=5, dim=48)
SETTINGS = FitSettings(steps=100, eval_every=100, learning_rate=(1e-2, 1e-3, 1e-4), weight_decay=(0.0, 0.1))


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return make_task(tmp_path_factory.mktemp("cache"), SIZE)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("rate", SETTINGS.learning_rate)
def test_superbs_head_ends_at_the_weights_of_a_plain_loop(task: Task, rate: float, weight_decay: float) -> None:
    head, fold = LayerMix(), task.folds[1]
    settings = replace(SETTINGS, learning_rate=(rate,), weight_decay=(weight_decay,))
    [outcome] = fit(head, replace(task, folds=(fold,)), settings)
    torch.manual_seed(settings.seed)
    start = [value.detach() for value in head.module(**head.shapes(task)).parameters()]
    module = train_plainly(superb_plain, head.inputs(task).values, task, fold, settings, start)
    assert largest_difference(outcome, module) < 1e-5
    module = train_plainly(superb_plain, head.inputs(task).values, task, fold, replace(settings, steps=99), start)
    assert largest_difference(outcome, module) > 1e-5 * rate / 1e-2  # the bound is tight enough to miss a step


def test_a_probe_ends_at_the_weights_of_a_plain_loop(task: Task) -> None:
    head, fold = LinearProbe(layer=2, standardise=False), task.folds[0]
    settings = replace(SETTINGS, learning_rate=(1e-2,), weight_decay=(0.0,))
    [outcome] = fit(head, replace(task, folds=(fold,)), settings)
    torch.manual_seed(settings.seed)
    start = [value.detach() for value in head.module(**head.shapes(task)).parameters()]
    module = train_plainly(probe_plain, head.inputs(task).values[:, 2], task, fold, settings, start)
    assert largest_difference(outcome, module) < 1e-5


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("weighting", ["softmax", "ratio"])
def test_taking_the_product_of_the_linear_maps_first_is_the_same_function(standardise: bool, weighting: str) -> None:
    torch.manual_seed(1)
    module = LayerMix(weighting=weighting, standardise=standardise, projector_dim=7).module(3, 11, 4).double()  # type: ignore[arg-type]
    if standardise:
        module[0].set_from(torch.randn(3, 11), torch.rand(3, 11))  # type: ignore[index,operator]
    hidden = torch.randn(6, 3, 11, dtype=torch.float64)
    plain = torch.nn.Sequential(*module)  # type: ignore[misc]
    gradients = []
    for one in (module, plain):
        one.zero_grad()
        torch.nn.functional.cross_entropy(one(hidden), torch.arange(6) % 4).backward()
        gradients.append([parameter.grad for parameter in one.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(module(hidden), plain(hidden), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("head", [LayerMix(projector_dim=8), LinearProbe()], ids=["layer_mix", "linear_probe"])
def test_neither_cores_nor_the_size_of_jobs_decide_a_number(
    task: Task, head: LayerMix | LinearProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores = torch.get_num_threads()
    outcomes = []
    try:
        for number, most in ((1, 2**40), (4, 2**40), (4, 1)):
            torch.set_num_threads(number)
            monkeypatch.setattr(heads.fit, "_JOB_BYTES", most)
            outcomes.append(fit(head, task, replace(SETTINGS, steps=20, eval_every=2, patience=2)))
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(cores)
    first, *others = outcomes
    for other in others:
        for one, same in zip(first, other, strict=True):
            assert one.fold == same.fold
            assert [candidate.settings for candidate in one.candidates] == [c.settings for c in same.candidates]
            np.testing.assert_allclose(one.test, same.test, rtol=1e-5, atol=1e-7)
    for one, same in zip(first, others[0], strict=True):
        assert np.array_equal(one.test, same.test)  # the same jobs on more cores: the same bits


def test_dropout_is_refused_where_trainings_share_a_generator(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def module(self: LinearProbe, num_layers: int, dim: int, num_classes: int) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Dropout(0.1), torch.nn.Linear(dim, num_classes))

    monkeypatch.setattr(LinearProbe, "module", module)
    with pytest.raises(FeatcacheError, match="with dropout cannot train side by side"):
        fit(LinearProbe(standardise=False), task, replace(SETTINGS, steps=2))


def test_threads_that_start_after_a_training_may_use_all_cores(task: Task) -> None:
    cores = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        fit(LinearProbe(), task, replace(SETTINGS, steps=2))
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(cores)


def test_nothing_is_begun_after_a_training_failed() -> None:
    begun: list[int] = []

    def work(number: int, report: threads.Callable[[int], None]) -> None:
        begun.append(number)
        raise FeatcacheError("at once")

    with pytest.raises(FeatcacheError, match="at once"):
        threads.run([partial(work, number) for number in range(50)], [1] * 50, lambda *_: None)
    assert len(begun) <= torch.get_num_threads()


def test_a_training_that_fails_stops_the_others() -> None:
    seen: list[tuple[int, int]] = []

    def good(report: threads.Callable[[int], None]) -> str:
        for step in range(10**9):
            report(step)
        return "never"

    def bad(report: threads.Callable[[int], None]) -> str:
        raise FeatcacheError("this one")

    cores = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(FeatcacheError, match="this one"):
            threads.run([good, bad, good], [10**9] * 3, lambda done, total: seen.append((done, total)))
    finally:
        torch.set_num_threads(cores)
    assert all(total == 3 * 10**9 for _, total in seen)


def test_results_are_in_order_and_progress_adds_up() -> None:
    seen: list[tuple[int, int]] = []

    def work(name: str, report: threads.Callable[[int], None]) -> str:
        for step in range(1, 4):
            report(step)
        return name

    works = [lambda report, name=name: work(name, report) for name in "abcde"]
    assert threads.run(works, [3] * len(works), lambda done, total: seen.append((done, total))) == list("abcde")
    assert seen[-1] == (15, 15)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def assert_same(together: Outcome, alone: Outcome) -> None:
    assert (together.fold, together.chosen) == (alone.fold, alone.chosen)
    assert [one.settings for one in together.candidates] == [one.settings for one in alone.candidates]
    assert [one.validation for one in together.candidates] == [one.validation for one in alone.candidates]
    assert [point["step"] for point in together.curve] == [point["step"] for point in alone.curve]
    np.testing.assert_allclose(together.test, alone.test, atol=1e-6, rtol=0)
    np.testing.assert_allclose(together.validation, alone.validation, atol=1e-6, rtol=0)
    assert together.weights.keys() == alone.weights.keys()
    for name, values in together.weights.items():
        np.testing.assert_allclose(values, alone.weights[name], atol=1e-5, rtol=1e-5)


def test_probes_of_several_layers_and_rates_that_train_as_one_are_each_as_alone(task: Task) -> None:
    settings = replace(SETTINGS, steps=30, eval_every=5, patience=3)
    trainings = [
        (LinearProbe(layer=0), replace(settings, learning_rate=(1e-2,), weight_decay=(0.0,))),
        (LinearProbe(layer=-1), replace(settings, learning_rate=(1e-3, 1e-2), weight_decay=(0.1,))),
        (LinearProbe(layer="each"), replace(settings, learning_rate=(1e-2,), weight_decay=(0.0,))),
        (LinearProbe(layer=0), replace(settings, learning_rate=(1e-2,), weight_decay=(0.0,))),  # the first again
    ]
    together = fit_each(trainings, task)
    for outcomes, (head, how) in zip(together, trainings, strict=True):
        for one, same in zip(outcomes, fit(head, task, how), strict=True):
            assert_same(one, same)
    assert [len(outcomes[0].candidates) for outcomes in together] == [1, 2, 5, 1]
    assert np.array_equal(together[0][0].test, together[3][0].test)
    assert not np.allclose(together[0][0].test, together[1][0].test)


@pytest.mark.parametrize("head", [LayerMix(projector_dim=8), MeanPool(projector_dim=8)], ids=["layer_mix", "mean_pool"])
def test_rates_that_train_as_one_are_each_as_alone(task: Task, head: LayerMix | MeanPool) -> None:
    settings = replace(SETTINGS, steps=6, eval_every=3)
    rates = [replace(settings, learning_rate=(rate,), weight_decay=(0.0,)) for rate in (1e-2, 1e-3)]
    small = replace(task, folds=task.folds[:2])
    if isinstance(head, MeanPool):  # trains alone: nothing but what it reads would be shared
        with pytest.raises(ConfigError, match="Only trainings that differ"):
            fit_each([(head, how) for how in rates], small)
        return
    for outcomes, how in zip(fit_each([(head, how) for how in rates], small), rates, strict=True):
        for one, same in zip(outcomes, fit(head, small, how), strict=True):
            assert_same(one, same)


def test_what_trains_as_one_job_differs_in_rate_decay_and_layer_alone() -> None:
    settings = FitSettings()
    other = replace(settings, learning_rate=(0.1, 0.2), weight_decay=(0.3,))

    def alike(one: Head, first: FitSettings, two: Head, second: FitSettings) -> bool:
        return side_by_side(one, first) == side_by_side(two, second)

    assert alike(LinearProbe(layer=1), settings, LinearProbe(layer="each"), other)
    assert alike(LayerMix(), settings, LayerMix(), other)
    assert not alike(LinearProbe(), settings, LinearProbe(std=True), settings)
    assert not alike(LayerMix(), settings, LayerMix(projector_dim=8), settings)
    assert not alike(LinearProbe(), settings, LinearProbe(), replace(settings, seed=1))
    assert not alike(LinearProbe(), settings, LayerMix(), settings)
    assert not alike(MeanPool(), settings, MeanPool(), other)
    assert not alike(Svm(), settings, Svm(C=(2.0,)), settings)


def test_the_corpus_of_the_whole_sweep_is_trained_by_superbs_preset(tmp_path: Path) -> None:
    write_corpus(tmp_path, Size(utterances=60, layers=3, dim=8))
    command = ["train-heads", f"{tmp_path}/manifest.jsonl", "--cache", str(tmp_path), "--preset", "superb"]
    settings = ["--set", "fit.steps=4", "--set", "fit.eval_every=4"]
    done = CliRunner().invoke(app, [*command, *settings, "--out", f"{tmp_path}/run"])
    assert done.exit_code == 0, done.output
    assert len((tmp_path / "run" / "scores.csv").read_text().splitlines()) == 60 + 1
