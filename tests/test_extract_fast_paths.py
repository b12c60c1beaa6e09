"""Fast paths of an extraction give the bits of the slow ones."""

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers import speech_checkpoint, tone, write_corpus
from test_cache import Ramp, RampExtractor, expected, tree

import featcache
from featcache import commit, stages
from featcache.commit import store
from featcache.errors import CacheError, StreamError
from featcache.extract import Options, extract
from featcache.staging import StagedExtractor, Staging
from featcache.stream import Features, StreamSpec
from featcache.streams.hidden_states import HiddenStates

ORDERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as they come": lambda frames: frames,
    "layers of a batch": lambda frames: np.stack([frames, frames + 1]).swapaxes(0, 1).copy().swapaxes(0, 1)[0],
    "cut": lambda frames: np.concatenate([frames, frames], axis=1)[:, : frames.shape[1]],
    "frames first": lambda frames: np.ascontiguousarray(frames.swapaxes(0, 1)).swapaxes(0, 1),
    "transposed": lambda frames: np.ascontiguousarray(frames.swapaxes(1, 2)).swapaxes(1, 2),
    "every second": lambda frames: np.repeat(frames, 2, axis=2)[:, :, ::2],
    "backwards": lambda frames: np.ascontiguousarray(frames[:, ::-1])[:, ::-1],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (3, 1, 8), (1, 2, 1), (2, 5000, 1), (25, 7, 96), (2, 9000, 2), (1, 137, 1024), (4, 33, 5)],
    ids=str,
)
def test_stats_are_numpys_to_the_last_bit(shape: tuple[int, int, int], order: str) -> None:
    generator = np.random.default_rng(sum(shape))
    frames = generator.standard_normal(shape) * generator.choice([1e-6, 1.0, 300.0], size=shape)
    frames = ORDERS[order](frames.astype(np.float32))
    spec = StreamSpec("x", 1, "audio", {}, tuple(f"l{layer}" for layer in range(shape[0])), shape[2], dtype="float32")
    stored = store("u", "0", 0, Features(frames), spec, "frames").utterance_arrays
    assert np.array_equal(stored["mean"], frames.mean(axis=1, dtype=np.float64).astype(np.float32))
    assert np.array_equal(stored["std"], frames.std(axis=1, dtype=np.float64).astype(np.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 17, 8), (5, 3, 4)], ids=str)
def test_states_arrive_as_stacked_float32(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(shape, generator=generator).to(dtype) for _ in range(3)]
    states[1] = states[1].transpose(1, 2).contiguous().transpose(1, 2)  # a model may give any order
    copied = Staging().start(states)()
    assert copied.dtype == np.float32
    assert np.array_equal(copied, torch.stack(states, dim=1).float().numpy())


def test_a_batch_may_be_started_before_the_one_before_it_was_fetched(tmp_path: Path) -> None:
    extractor = HiddenStates(checkpoint=str(speech_checkpoint(tmp_path / "w"))).load("cpu", "float32")
    assert isinstance(extractor, StagedExtractor)
    first, second = ([tone(0.5, seed=seed)] for seed in (1, 2))
    one, other = extractor.start(first), extractor.start(second)
    assert np.array_equal(other()[0].frames, extractor.extract(second)[0].frames)
    assert np.array_equal(one()[0].frames, extractor.extract(first)[0].frames)


class Staged(Ramp):
    """Ramp in batches of two, started ahead as a GPU's are; `log` tells in what order."""

    log: list[str]
    wrong: dict[str, Exception]

    def load(self, device: str, compute_dtype: str) -> "StagedRamp":
        return StagedRamp(self)

    def batches(self, lengths: Sequence[int], batch_size: int) -> list[list[int]]:
        return [list(range(first, min(first + 2, len(lengths)))) for first in range(0, len(lengths), 2)]


class StagedRamp(StagedExtractor):
    def __init__(self, stream: Staged) -> None:
        self._stream = stream
        self._ramp = RampExtractor(stream.gain)
        self._started = 0

    def start(self, inputs: Sequence[Any]) -> Callable[[], list[Features]]:
        self._started += 1
        number = self._started
        self._stream.log.append(f"start {number}")
        if f"start {number}" in self._stream.wrong:
            raise self._stream.wrong[f"start {number}"]

        def finish() -> list[Features]:
            self._stream.log.append(f"finish {number}")
            if f"finish {number}" in self._stream.wrong:
                raise self._stream.wrong[f"finish {number}"]
            return self._ramp.extract(inputs)

        return finish


def staged(**wrong: Exception) -> Staged:
    stream = Staged()
    object.__setattr__(stream, "log", [])
    object.__setattr__(stream, "wrong", {name.replace("_", " "): error for name, error in wrong.items()})
    return stream


DURATIONS_S = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8]


def test_the_next_batch_runs_while_one_is_fetched_and_the_cache_is_the_same(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path / "corpus", DURATIONS_S)
    stream = staged()
    extract(manifest, tmp_path / "staged", stream, Options(device="cpu"))
    assert stream.log == ["start 1", "start 2", "finish 1", "start 3", "finish 2", "finish 3"]
    extract(manifest, tmp_path / "plain", Ramp(), Options(device="cpu"))
    assert tree(tmp_path / "staged") == tree(tmp_path / "plain")


OUT_OF_MEMORY = [
    MemoryError("no more"),
    torch.OutOfMemoryError("no more"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
]
ORDER_AFTER = {
    # The second batch, once the first is finished, and before the third is started.
    "start_2": ["start 1", "start 2", "finish 1", "start 3", "finish 3", "start 4", "finish 4"],
    # Its two utterances, one after the other, while the third batch is under way.
    "finish_2": ["start 1", "start 2", "finish 1", "start 3", "finish 2", "start 4", "finish 4", "start 5", "finish 5",
                 "finish 3"],
}  # fmt: skip


@pytest.mark.parametrize("error", [*OUT_OF_MEMORY, StreamError("a fault")], ids=str)
@pytest.mark.parametrize("when", ["start_2", "finish_2"])
def test_a_batch_that_fails_is_run_again_alone(tmp_path: Path, when: str, error: Exception) -> None:
    manifest = write_corpus(tmp_path / "corpus", DURATIONS_S)
    stream = staged(**{when: error})
    summary = extract(manifest, tmp_path / "cache", stream, Options(device="cpu"))
    assert (summary.computed, summary.failures) == (manifest.ids, {})
    assert stream.log == ORDER_AFTER[when]
    cached = featcache.open(tmp_path / "cache")["ramp"]
    assert all(np.array_equal(cached[name], expected(manifest, name).astype("float16")) for name in manifest.ids)


@pytest.mark.parametrize("kind", [RuntimeError, IndexError, ValueError])
@pytest.mark.parametrize("when", [["finish_2"], ["start_2", "start_3"]], ids=str)
def test_a_fault_of_a_model_is_raised_and_says_where(tmp_path: Path, when: list[str], kind: type[Exception]) -> None:
    manifest = write_corpus(tmp_path / "corpus", DURATIONS_S)
    with pytest.raises(kind, match="a bug") as caught:
        extract(manifest, tmp_path / "cache", staged(**dict.fromkeys(when, kind("a bug"))), Options(device="cpu"))
    assert caught.value.__notes__ == [f"while stream {Ramp().spec().name} computed a batch of 2 utterances: u002, u003"]


@pytest.mark.parametrize("where", ["store", "stream_input"])
def test_memory_that_runs_out_beside_the_model_costs_one_utterance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    manifest = write_corpus(tmp_path / "corpus", DURATIONS_S)
    real = getattr(stages, where)

    def full(*arguments: Any) -> Any:
        if arguments[0] == "u001" or getattr(arguments[-1], "id", "") == "u001":
            raise MemoryError("Unable to allocate 3.00 GiB")
        return real(*arguments)

    monkeypatch.setattr(stages, where, full)
    summary = extract(manifest, tmp_path / "cache", Ramp(), Options(device="cpu"))
    assert summary.computed == [name for name in manifest.ids if name != "u001"]
    assert list(summary.failures) == ["u001"]
    assert summary.failures["u001"].startswith("memory ran out: Unable to allocate 3.00 GiB. Leave it out, cut it,")


def test_a_cache_that_cannot_be_written_is_said_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Loaded(Ramp):
        def load(self, device: str, compute_dtype: str) -> RampExtractor:
            raise AssertionError("it is of no use, and its processes would have to be ended")

    def read_only(_: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(commit, "workplace", read_only)
    manifest = write_corpus(tmp_path / "corpus", DURATIONS_S)
    with pytest.raises(CacheError, match="cannot be written to: Read-only file system. Nothing was computed"):
        extract(manifest, tmp_path / "cache", Loaded(), Options(device="cpu"))
