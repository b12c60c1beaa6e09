"""Aligners against known or published times: onset errors, frames alike, failures, cost on one core.

The demo corpus always: espeak-ng knows when it spoke each phone. Beside them, where this project's makers' data lies
beside the checkout: LibriVox sentences with times from pocketsphinx's own tests, a run of the Montreal Forced Aligner
over synthetic speech with the synthesiser's times, RAVDESS, and EMO-DB with its hand-made times.
"""

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from featcache import Manifest, Utterance, registry
from featcache.agreement import compare, summarise
from featcache.alignment import DURATION, read
from featcache.cache import open as open_cache
from featcache.corpus import Corpus
from featcache.extract import Options, Summary, extract
from featcache.streams.alignment import AlignmentStream

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def run(quick: bool = False) -> list[dict[str, object]]:
    with tempfile.TemporaryDirectory() as folder:
        return list(_rows(Path(folder)))


def _rows(folder: Path) -> Iterator[dict[str, object]]:
    demo = registry.load("featcache.corpora", "demo", Corpus)().manifest(folder / "demo")
    truth = {"aligner": "intervals", "settings": {"column": "phones", "symbols": "espeak"}}
    yield _scored("demo", demo, folder, truth, {})
    if not DATA.is_dir():
        return
    librivox = Manifest(_librivox(folder / "librivox"), folder=DATA / "alignment" / "librivox")
    published = {"aligner": "intervals", "settings": {"folder": str(folder / "librivox"), "symbols": "english"}}
    yield _scored("librivox", librivox, folder, published, {})
    synthetic = Manifest(_synthetic(folder / "synthetic"), folder=DATA / "alignment" / "mfa" / "corpus")
    spoken = {"aligner": "intervals", "settings": {"folder": str(folder / "synthetic"), "symbols": "espeak"}}
    yield _scored("synthetic", synthetic, folder, spoken, {})
    mfa = {"aligner": "textgrid", "settings": {"folder": str(DATA / "alignment" / "mfa" / "aligned")}}
    yield _scored("synthetic, MFA 3.4.3", synthetic, folder, spoken, mfa)
    ravdess = registry.load("featcache.corpora", "ravdess", Corpus)().manifest(DATA / "ravdess")
    yield _scored("ravdess", ravdess, folder, None, {})
    emodb = registry.load("featcache.corpora", "emodb", Corpus)().manifest(DATA / "emodb")
    hand = {"aligner": "xlabel", "settings": {"folder": str(DATA / "emodb" / "lablaut")}}
    yield _scored("emodb, by hand", emodb, folder, None, hand)


def _librivox(folder: Path) -> Iterator[Utterance]:
    folder.mkdir()
    for path in sorted((DATA / "alignment" / "librivox").glob("*.phone.json")):
        name = path.name.removesuffix(".phone.json")
        words = [one for one in json.loads(path.read_text())["w"] if not one["t"].startswith("<")]
        tiers = {
            "words": [[one["b"], one["b"] + one["d"], one["t"].partition("(")[0]] for one in words],
            "phones": [[one["b"], one["b"] + one["d"], one["t"]] for word in words for one in word["w"]],
        }
        (folder / f"{name}.json").write_text(json.dumps(tiers))
        yield Utterance(name, f"{name}.wav", text=path.with_name(f"{name}.txt").read_text().strip())


def _synthetic(folder: Path) -> Iterator[Utterance]:
    """Yield the 240 utterances, and write what the synthesiser said of each: events that last until the next one."""
    folder.mkdir()
    corpus = DATA / "alignment" / "mfa" / "corpus"
    for name, told in sorted(json.loads((DATA / "alignment" / "mfa" / "truth.json").read_text()).items()):
        speaker = name.partition("_")[0]
        text = (corpus / speaker / f"{name}.lab").read_text().strip()
        events = [(sample / told["sr"], kind, what) for kind, sample, _, what in told["ev"]]
        phones = [(start, what) for start, kind, what in events if kind == "ph"]
        pauses = [start for start, what in phones if what.startswith("_")]
        # The synthesiser reports a word while the phone before it still sounds: it starts with its first phone.
        words = [
            (next((start for start, kind, what in events[at:] if kind == "ph" and what[0] != "_"), None), place)
            for at, (_, kind, place) in enumerate(events)
            if kind == "word"
        ]
        spoken = [(start, text[at : at + length].lower()) for start, (at, length) in words if start is not None]
        end_s = told["n"] / 16000  # of the recording, which is resampled
        tiers = {
            "phones": _until_the_next(phones, [], end_s),
            "words": _until_the_next(spoken, pauses, end_s),
        }
        (folder / f"{name}.json").write_text(json.dumps(tiers))
        yield Utterance(name, f"{speaker}/{name}.wav", text=text, speaker=speaker)


def _until_the_next(
    marks: Sequence[tuple[float, str]], stops: Sequence[float], end_s: float
) -> list[tuple[float, float, str]]:
    """Return intervals that last until the next mark, or a stop before it; marks that share a time make one."""
    starts = [start for start, _ in marks] + [end_s]
    return [
        (start, min([following, *(stop for stop in stops if stop > start)]), what)
        for (start, what), following in zip(marks, starts[1:], strict=True)
        if following > start
    ]


def _scored(
    title: str, manifest: Manifest, folder: Path, reference: Mapping[str, Any] | None, aligner: Mapping[str, Any]
) -> dict[str, object]:
    """Align on one core (by pocketsphinx unless told otherwise), and compare with a reference."""
    cache = folder / f"cache {title}"
    started = time.perf_counter()
    summary = _align(manifest, cache, aligner)
    seconds = time.perf_counter() - started
    stream = open_cache(cache)[summary.stream]
    durations_s = dict(zip(stream.ids, stream.array(DURATION).tolist(), strict=True))
    row: dict[str, object] = {
        "corpus": title,
        "aligned": f"{len(summary.computed)} of {len(manifest)}",
        "cost": f"{seconds / sum(durations_s.values()):.3f} x real time",
    }
    if reference is None:
        return row | dict.fromkeys(_COLUMNS, "")
    known = open_cache(cache)[_align(manifest, cache, reference).stream]
    symbols = known.spec.settings["symbols"], stream.spec.settings["symbols"]
    ids = [name for name in stream.ids if name in known]
    total = summarise(compare(read(known, name), read(stream, name), symbols, end_s=durations_s[name]) for name in ids)
    numbers = (
        *(_ms(value) for part in (total.words, total.phones) for value in (part.median_ms, part.p90_ms)),
        _share(total.phones.share_matched),
        _share(total.phones.within_50_ms),
        _share(total.frames.share_alike),
    )
    return row | dict(zip(_COLUMNS, numbers, strict=True))


_COLUMNS = (
    "words median", "words 90 %", "phones median", "phones 90 %", "phones matched", "<= 50 ms", "frames alike",
)  # fmt: skip


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.0f} ms"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _align(manifest: Manifest, cache: Path, settings: Mapping[str, Any]) -> Summary:
    return extract(manifest, cache, AlignmentStream(**settings), Options(device="cpu", workers=1))
