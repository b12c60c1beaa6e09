"""Training that was stopped goes on to the same numbers as training that never was."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers import write_corpus
from speech_task import make_task

from featcache import Manifest
from featcache.extract import Options, extract
from featcache.streams.log_mel import LogMel
from heads.fit_settings import FitSettings
from heads.head import GradientHead
from heads.models.encoder_decoder import EncoderDecoder
from heads.models.layer_mix import LayerMix
from heads.models.mean_pool import MeanPool
from heads.task import Outcome, Task
from heads.unfinished import Unfinished
from pipelines import train_heads
from pipelines.config import TrainConfig

TINY = EncoderDecoder(
    window=8, bottleneck=4, factor=4, channels=12, phone_channels=8, phone_dim=3, decoder_channels=8, decoder_dim=6,
    post_net_channels=8, classifier_dim=16,
)  # fmt: skip
SETTINGS = FitSettings(steps=30, eval_every=4, batch_size=4, learning_rate=(1e-2, 1e-3))


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return make_task(tmp_path_factory.mktemp("cache"), [6 + number % 11 for number in range(36)])


def same(one: list[Outcome], other: list[Outcome]) -> None:
    for first, second in zip(one, other, strict=True):
        assert np.array_equal(first.test, second.test)
        assert np.array_equal(first.validation, second.validation)
        assert first.curve == second.curve
        assert first.chosen == second.chosen
        for name, values in first.weights.items():
            assert np.array_equal(values, second.weights[name]), name


def stop_at(number: int) -> Any:
    """Return a progress callback that interrupts at a step of the whole job."""

    def advance(done: int, total: int) -> None:
        if done >= number:
            raise KeyboardInterrupt

    return advance


@pytest.mark.parametrize("stops", [(5,), (13, 14, 29), (30,), (47, 200)])
@pytest.mark.parametrize("head", [LayerMix(), MeanPool(), TINY], ids=lambda head: head.kind())
def test_a_resumed_run_equals_an_unbroken_one(
    task: Task, tmp_path: Path, head: GradientHead, stops: tuple[int, ...]
) -> None:
    if not head.further_streams():
        task = replace(task, streams={"toy": task.streams["toy"]})
    task = replace(task, folds=task.folds[:2])
    whole = head.train(task, SETTINGS, lambda *_: None)
    kept = replace(task, unfinished=Unfinished(tmp_path, every_s=0.0))
    interrupted = 0
    for stop in stops:
        try:
            head.train(kept, SETTINGS, stop_at(stop))
        except KeyboardInterrupt:
            interrupted += 1
    assert interrupted
    torch.manual_seed(99)  # what is random elsewhere has no part
    same(head.train(kept, SETTINGS, lambda *_: None), whole)


def test_what_was_done_is_not_done_again(task: Task, tmp_path: Path) -> None:
    kept = replace(
        task, streams={"toy": task.streams["toy"]}, folds=task.folds[:2], unfinished=Unfinished(tmp_path, every_s=0.0)
    )
    one = FitSettings(steps=30, eval_every=4, batch_size=4)
    with pytest.raises(KeyboardInterrupt):
        MeanPool().train(kept, one, stop_at(41))
    seen: list[int] = []
    MeanPool().train(kept, one, lambda done, total: seen.append(done))
    assert seen[0] == 30  # the first fold is there whole
    assert seen[1] == 30 + 11  # the second goes on from its last step that was kept
    assert seen[-1] == 60


def test_a_damaged_state_begins_anew(task: Task, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = replace(
        task, streams={"toy": task.streams["toy"]}, folds=task.folds[:1], unfinished=Unfinished(tmp_path, every_s=0.0)
    )
    one = FitSettings(steps=12, eval_every=4, batch_size=4)
    whole = MeanPool().train(replace(kept, unfinished=None), one, lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        MeanPool().train(kept, one, stop_at(9))
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    same(MeanPool().train(kept, one, lambda *_: None), whole)
    assert "begins anew" in caplog.text


def test_the_same_command_goes_on_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_heads, "Unfinished", partial(Unfinished, every_s=0.0))
    manifest = write_corpus(tmp_path / "corpus", [0.4 + 0.05 * number for number in range(24)], speakers=3)
    extract(manifest, tmp_path / "cache", LogMel(), Options(device="cpu"))
    settings = FitSettings(steps=20, eval_every=4, batch_size=4)
    config = TrainConfig(head="mean_pool", streams=("log_mel",), folds="speaker", fit=settings, device="cpu")
    whole = train_heads.run(config, manifest, tmp_path / "cache", tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_heads.run(config, manifest, tmp_path / "cache", tmp_path / "broken", on_progress=stop_at(30))
    assert not (tmp_path / "broken" / "scores.csv").exists()
    messages: list[str] = []
    train_heads.run(config, manifest, tmp_path / "cache", tmp_path / "broken", on_message=messages.append)
    assert any("going on where it stopped" in message for message in messages)
    files = {path.name for path in (tmp_path / "broken").iterdir()}
    assert files == {path.name for path in (tmp_path / "whole").iterdir()}
    for name in ("scores.csv", "validation_scores.csv", "curves.csv", "candidates.csv", "weights.safetensors"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert whole.run.metrics["mean"]["ua"] > 0


def test_training_goes_on_where_nothing_can_be_kept(
    task: Task, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")  # a folder cannot be made below it
    kept = replace(
        task, streams={"toy": task.streams["toy"]}, folds=task.folds[:1],
        unfinished=Unfinished(tmp_path / "file" / "kept", every_s=0.0),
    )  # fmt: skip
    one = FitSettings(steps=12, eval_every=4, batch_size=4)
    same(
        MeanPool().train(kept, one, lambda *_: None),
        MeanPool().train(replace(kept, unfinished=None), one, lambda *_: None),
    )
    assert "cannot be kept" in caplog.text


def test_nothing_is_kept_more_often_than_asked(task: Task, tmp_path: Path) -> None:
    kept = replace(task, streams={"toy": task.streams["toy"]}, unfinished=Unfinished(tmp_path / "kept"))
    with pytest.raises(KeyboardInterrupt):
        LayerMix().train(kept, SETTINGS, stop_at(20))
    assert not (tmp_path / "kept").exists()


_TRAIN = """
import sys
from functools import partial
from pathlib import Path
from featcache.manifest import Manifest
from heads.fit_settings import FitSettings
from heads.unfinished import Unfinished
from pipelines import train_heads
from pipelines.config import TrainConfig

folder, out = map(Path, sys.argv[1:])
train_heads.Unfinished = partial(Unfinished, every_s=0.0)
settings = FitSettings(steps=1500, eval_every=10, batch_size=4)
config = TrainConfig(head="mean_pool", streams=("log_mel",), folds="speaker", fit=settings, device="cpu")
train_heads.run(config, Manifest.read(folder / "m.jsonl"), folder / "cache", out)
"""


def newest(folder: Path) -> float:
    """Return when the latest state below a folder was written; 0 where there is none."""
    times = [0.0]
    for path in folder.rglob("*.safetensors"):
        with suppress(FileNotFoundError):  # the run ended meanwhile
            times.append(path.stat().st_mtime)
    return max(times)


@pytest.mark.heavy
def test_training_that_is_killed_at_random_instants_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path / "corpus", [0.4 + 0.05 * number for number in range(24)], speakers=3)
    manifest.write(tmp_path / "m.jsonl")
    extract(Manifest.read(tmp_path / "m.jsonl"), tmp_path / "cache", LogMel(), Options(device="cpu"))

    def start(out: Path) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-c", _TRAIN, str(tmp_path), str(out)]
        return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})

    assert start(tmp_path / "whole").wait() == 0
    generator = np.random.default_rng(0)
    killed = 0
    for _ in range(12):
        process = start(tmp_path / "broken")
        began_s = time.time()
        while process.poll() is None and newest(tmp_path / "broken") <= began_s:
            time.sleep(0.01)
        time.sleep(float(generator.uniform(0, 0.3)))  # from its first new state on, at any instant
        killed += process.poll() is None
        process.kill()
        if process.wait() == 0:
            break
    assert killed >= 2
    assert start(tmp_path / "broken").wait() == 0
    for name in ("scores.csv", "validation_scores.csv", "curves.csv", "candidates.csv", "weights.safetensors"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not (tmp_path / "broken" / ".unfinished").exists()
