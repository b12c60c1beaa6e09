"""Windows a second in training the encoder-decoder, beside a plain implementation that reads one .npy a sample.

`full`: 25 x 1024, 96-frame windows, 84,427,101 parameters, batches of 2 as in the paper, and of 16. `demo`: the model
of the preset makiuchi-speech-small-demo, fed with 3 x 256. 24 utterances of 4.5 s, IEMOCAP's mean, of random numbers;
all files are in the page cache, which flatters the plain reader: IEMOCAP's float32 files are 127 GB. `plain` is
benchmarks/plain_speech.py: PyTorch's own modules, Adam as it comes, the utterance's files read whole for each sample.
`featcache` trains from maps of a Zarr cache on disk, or from memory, and has PyTorch ask for huge pages
(`THP_MEM_ALLOC_ENABLE`), without which each fresh gradient costs a page fault every 4 KiB; `plain, huge pages` is the
reference with them too. Neither bounds the gradient, as the paper. Each side is a process of its own, since such pages
are a setting of the process; they take turns, with a step that is not counted at each change. `loading` is the share
of a step before the batch is there. Takes about 5 minutes.
"""

import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

import featcache
from benchmarks.plain_speech import PlainModel, load_batch, plain_step, save_files
from benchmarks.timing import compare
from featcache.commit import StreamWriter, store
from featcache.stream import Features, StreamSpec
from heads.fit_settings import FitSettings
from heads.folds import Fold
from heads.members import Alone
from heads.models.encoder_decoder import EncoderDecoder
from heads.task import Task

UTTERANCES, FRAMES, CLASSES, MELS, SPEAKER, PHONES = 24, 225, 4, 80, 256, 128


class Way(NamedTuple):
    """How a batch is read and trained on."""

    side: str
    precision: str
    source: str


HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
REFERENCE = Way("plain", "float32", "float32 .npy")
WAYS = (
    REFERENCE,
    Way("plain, huge pages", "float32", "float32 .npy"),
    Way("plain", "float32", "float16 .npy"),
    Way("plain", "bfloat16", "float16 .npy"),
    Way("featcache", "float32", "disk"),
    Way("featcache", "float32", "memory"),
    Way("featcache", "bfloat16", "memory"),
)


@dataclass(frozen=True)
class Size:
    """A model and what it is fed: its settings, layers and size of a frame, and steps at a time for each batch size."""

    head: EncoderDecoder
    layers: int
    dim: int
    steps: dict[int, int]


FULL = EncoderDecoder()
DEMO = EncoderDecoder(
    channels=128, phone_channels=64, phone_dim=16, decoder_channels=64, decoder_dim=128, post_net_channels=64
)
TINY = EncoderDecoder(channels=8, phone_channels=8, phone_dim=4, decoder_channels=8, decoder_dim=8, post_net_channels=8)
SIZES = {"full": Size(FULL, 25, 1024, {2: 2, 16: 1}), "demo": Size(DEMO, 3, 256, {16: 10})}
QUICK = {"tiny": Size(TINY, 3, 16, {2: 1})}


def run(quick: bool = False) -> list[dict[str, object]]:
    """Measure every way of every size."""
    rows: list[dict[str, object]] = []
    for name, size in (QUICK if quick else SIZES).items():
        folder = Path(tempfile.mkdtemp())
        try:
            _write(folder, size)
            with ExitStack() as stack:
                sides = {
                    side: stack.enter_context(_process(target, huge, folder, size))
                    for side, (target, huge) in SIDES.items()
                }
                for batch in size.steps:
                    rows += _rows(name, size, batch, sides, rounds=2 if quick else 5)
        finally:
            shutil.rmtree(folder)
    return rows


def _rows(name: str, size: Size, batch: int, sides: dict[str, Connection], rounds: int) -> list[dict[str, object]]:
    steps = size.steps[batch]
    loading: dict[Way, list[float]] = {way: [] for way in WAYS}

    def take(way: Way) -> None:
        sides[way.side].send((way, batch, steps))
        loading[way].append(sides[way.side].recv())

    def warm(way: Way) -> None:
        sides[way.side].send((way, batch, 1))
        sides[way.side].recv()

    contestants: dict[str, Callable[[], None]] = {}
    for way in WAYS:
        # The first step after another process had the machine pays for the change: it is not counted.
        contestants |= {f"warm {' '.join(way)}": partial(warm, way), " ".join(way): partial(take, way)}
    times = compare(contestants, rounds)
    base = times[" ".join(REFERENCE)][0]
    rows: list[dict[str, object]] = []
    for way in WAYS:
        seconds, spread = times[" ".join(way)]
        rows.append(
            {
                "model": name,
                "batch": batch,
                **way._asdict(),
                "windows/s": round(steps * batch / seconds, 2),
                "ms a step": round(1e3 * seconds / steps, 1),
                "spread ms": round(1e3 * spread / steps, 1),
                "loading": f"{100 * median(loading[way][1:]) / seconds:.1f} %",
                "of plain float32": round(base / seconds, 2),
            }
        )
    return rows


@contextmanager
def _process(
    side: Callable[[Connection, Path, Size], None], huge_pages: bool, folder: Path, size: Size
) -> Iterator[Connection]:
    """Run one side in a process of its own, which takes (way, batch, steps) and gives the seconds spent on loading."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=side, args=(there, folder, size), daemon=True)
    before = os.environ.get(HUGE_PAGES)
    os.environ[HUGE_PAGES] = "1" if huge_pages else "0"  # PyTorch reads it once, when it first allocates
    try:
        process.start()
    finally:
        if before is None:
            del os.environ[HUGE_PAGES]
        else:
            os.environ[HUGE_PAGES] = before
    there.close()
    try:
        yield here
    finally:
        here.close()
        process.join()


def _serve(connection: Connection, load: Callable[[Way, int], object], step: Callable[[Way, object], None]) -> None:
    while True:
        try:
            way, batch, steps = connection.recv()
        except EOFError:
            return
        loading_s = 0.0
        for _ in range(steps):
            start = time.perf_counter()
            loaded = load(way, batch)
            loading_s += time.perf_counter() - start
            step(way, loaded)
        connection.send(loading_s)


def _plain(connection: Connection, folder: Path, size: Size) -> None:
    torch.manual_seed(0)
    model = PlainModel(size.head, size.layers, size.dim, CLASSES, MELS, SPEAKER, PHONES)
    optimiser = torch.optim.Adam(model.parameters(), 1e-4)

    def load(way: Way, batch: int) -> list[torch.Tensor]:
        numbers = torch.randint(UTTERANCES, (batch,)).tolist()
        return load_batch(folder, way.source.split()[0], numbers, size.head.window, PHONES)

    def step(way: Way, batch: list[torch.Tensor]) -> None:
        plain_step(model, optimiser, batch, torch.zeros(len(batch[0]), dtype=torch.int64), way.precision)

    _serve(connection, load, step)  # type: ignore[arg-type]


def _featcache(connection: Connection, folder: Path, size: Size) -> None:

    torch.manual_seed(0)
    head = size.head
    inputs = {place: head.inputs(_task(folder, size, place)) for place in ("disk", "memory")}  # type: ignore[arg-type]
    model = Alone(head.module(**head.shapes(_task(folder, size, "disk"))))
    model.train(True)
    optimiser = model.optimiser(FitSettings(gradient_clip=None), [1e-4], [0.0])
    generator = torch.Generator().manual_seed(0)

    def load(way: Way, batch: int) -> tuple[torch.Tensor, ...]:
        indices = torch.randint(UTTERANCES, (1, batch), generator=generator)
        return inputs[way.source].training_batch(indices, None, generator)

    def step(way: Way, batch: tuple[torch.Tensor, ...]) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=way.precision == "bfloat16"):
            logits, further = model(batch)
        labels = torch.zeros(logits.shape[1], dtype=torch.int64)
        (F.cross_entropy(logits[0].float(), labels) + further.sum()).backward()
        optimiser.step()

    _serve(connection, load, step)  # type: ignore[arg-type]


SIDES = {"plain": (_plain, False), "plain, huge pages": (_plain, True), "featcache": (_featcache, True)}


def _specs(size: Size) -> tuple[StreamSpec, ...]:
    layers = tuple(f"layer_{number}" for number in range(size.layers))
    inventory = [str(number) for number in range(PHONES)]
    return (
        StreamSpec("hidden_states", 1, "audio", {}, layers, size.dim, frame_shift_s=0.02),
        StreamSpec("log_mel", 1, "audio", {}, ("log_mel",), MELS, frame_shift_s=0.02),
        StreamSpec("speaker", 1, "audio", {}, ("embedding",), SPEAKER),
        StreamSpec(
            "phones", 1, "speech", {"inventory": inventory}, ("phone",), 1, frame_shift_s=0.02, dtype="int16"
        ),
    )  # fmt: skip


def _write(folder: Path, size: Size) -> None:
    """Write the corpus twice: a cache, and files as a plain script keeps them."""
    generator = np.random.default_rng(0)
    specs = {spec.kind: spec for spec in _specs(size)}
    corpus = [
        {
            "hidden_states": generator.standard_normal((size.layers, FRAMES, size.dim), np.float32),
            "log_mel": generator.random((1, FRAMES, MELS), np.float32),
            "speaker": generator.random((1, 1, SPEAKER), np.float32),
            "phones": generator.integers(0, PHONES, (1, FRAMES, 1)).astype(np.int16),
        }
        for _ in range(UTTERANCES)
    ]
    for kind, spec in specs.items():
        stored = [store(f"u{n:02d}", "0", 0, Features(item[kind]), spec, "frames") for n, item in enumerate(corpus)]
        with StreamWriter(folder / "cache", spec, "zarr", "frames") as writer:
            writer.commit(stored, {})
    for number, item in enumerate(corpus):
        hidden = item["hidden_states"]
        arrays = {"float32": hidden, "float16": hidden.astype(np.float16), "log_mel": item["log_mel"][0]}
        save_files(folder, number, arrays | {"phones": item["phones"][0, :, 0], "speaker": item["speaker"][0, 0]})


def _task(folder: Path, size: Size, place: str) -> Task:
    cache = featcache.open(folder / "cache")
    ids = [f"u{number:02d}" for number in range(UTTERANCES)]
    fold = Fold("one", tuple(ids), tuple(ids), tuple(ids))
    return Task(
        {spec.kind: cache[spec.kind] for spec in _specs(size)},
        ids,
        np.arange(UTTERANCES) % CLASSES,
        tuple("abcd"),
        (fold,),
        "cpu",
        speakers=["s"] * UTTERANCES,
        place=place,  # type: ignore[arg-type]
    )
