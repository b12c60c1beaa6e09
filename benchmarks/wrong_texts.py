"""Which texts that are not what is said pocketsphinx refuses, and which right ones: share of utterances refused.

Right texts, and texts of other utterances with 0.8 to 1.25 times the phones (two for each utterance), of RAVDESS and of
240 synthetic sentences; and white noise with such texts. "stricter" is what the README's ``featcache keep`` leaves.
Reads the recordings of this project's makers, where they lie beside the checkout; without them there are no rows.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.alignment import DATA
from featcache import Manifest, Utterance, registry
from featcache.cache import open as open_cache
from featcache.corpus import Corpus
from featcache.extract import Options, extract
from featcache.sphinx import wheel_folder
from featcache.streams.alignment import AlignmentStream
from featcache.transcript import tokens

NOISES, NOISE_S = 120, 3.0
STRICTER = {"phone_fit_nats": (-8.5, 1), "rushed_share": (0.3, -1)}


def run(quick: bool = False) -> list[dict[str, object]]:
    if not DATA.is_dir():
        return [{"corpus": "none at hand", "text": "", "refused": "", "left by stricter": ""}]
    ravdess = registry.load("featcache.corpora", "ravdess", Corpus)().manifest(DATA / "ravdess")
    folder = DATA / "alignment" / "mfa" / "corpus"
    synthetic = Manifest(
        [
            Utterance(path.stem, f"{path.parent.name}/{path.name}", path.with_suffix(".lab").read_text().strip())
            for path in sorted(folder.rglob("*.wav"))
        ],
        folder=folder,
    )
    texts = sorted({str(one.text) for one in synthetic})
    count = _counter()
    with tempfile.TemporaryDirectory() as work:
        noise = Manifest(_noises(Path(work) / "noise", texts), folder=Path(work) / "noise")
        rows = []
        for name, manifest in (("ravdess", ravdess), ("synthetic", synthetic)):
            rows.append(_row(name, "right", manifest, Path(work)))
            wrong = Manifest(list(_wrong(manifest, texts, count)), folder=manifest.folder)
            rows.append(_row(name, "wrong, of like length", wrong, Path(work)))
        rows.append(_row("white noise", "any", noise, Path(work)))
    return rows


def _counter() -> Callable[[str], int]:
    """Return what counts the phones of a text, by the wheel's dictionary; letters stand for a word it lacks."""
    lines = (wheel_folder() / "cmudict-en-us.dict").read_text(encoding="utf-8").splitlines()
    said = {word: len(phones) for word, *phones in (line.split() for line in lines if line)}
    return lambda text: sum(
        said.get(token.spelling, len(token.spelling)) for token in tokens(text, said.__contains__)
    )  # fmt: skip


def _wrong(manifest: Manifest, texts: Sequence[str], count: Callable[[str], int]) -> list[Utterance]:
    generator = np.random.default_rng(0)
    sizes = np.array([count(text) for text in texts])
    wrong = []
    for utterance in manifest:
        own = count(str(utterance.text))
        fitting = [
            text
            for text, size in zip(texts, sizes, strict=True)
            if 0.8 <= size / own <= 1.25 and text.lower() != str(utterance.text).lower()
        ]
        for number, text in enumerate(generator.choice(fitting, 2, replace=False)):
            wrong.append(replace(utterance, id=f"{utterance.id} wrong {number}", text=str(text)))
    return wrong


def _noises(folder: Path, texts: Sequence[str]) -> list[Utterance]:
    folder.mkdir()
    generator = np.random.default_rng(1)
    utterances = []
    for number in range(NOISES):
        samples = 0.1 * generator.standard_normal(round(16000 * NOISE_S))
        soundfile.write(folder / f"{number}.wav", samples, 16000)
        utterances.append(Utterance(f"noise {number}", f"{number}.wav", str(generator.choice(texts))))
    return utterances


def _row(corpus: str, text: str, manifest: Manifest, work: Path) -> dict[str, object]:
    cache = work / f"cache {corpus} {text}"
    summary = extract(manifest, cache, AlignmentStream("pocketsphinx"), Options(device="cpu"))
    left = np.zeros(0, bool)
    if summary.computed:
        stream = open_cache(cache)[summary.stream]
        left = np.ones(len(stream), bool)
        for name, (limit, sign) in STRICTER.items():
            left &= sign * stream.array(name) >= sign * limit
    return {
        "corpus": corpus,
        "text": text,
        "refused": f"{len(summary.failures)} of {len(manifest)}",
        "left by stricter": f"{int(left.sum())} of {len(manifest)}",
    }
