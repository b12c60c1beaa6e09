"""What decides a number and is changed is computed again, and told; what decides none changes no byte of the cache.

Each mutation changes one thing of a small world: a corpus, models, settings, libraries, and a cache of what they gave.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch
from fake_mfa import Fake
from makers import speech_checkpoint, tone
from safetensors.numpy import load_file, save_file
from test_aligners_imported import textgrid
from test_cache import tree
from text_makers import text_checkpoint

from featcache import Manifest, Utterance, ge2e, registry
from featcache import open as open_cache
from featcache.extract import extract
from featcache.stream import Stream
from featcache.streams.ge2e_states import Ge2eStates
from featcache.streams.hidden_states import HiddenStates
from pipelines import show
from pipelines.config import ExtractConfig
from pipelines.extract import dry_run, run

RATE_HZ = 16000
TEXTS = ("the weather is lovely", "it is so happy today", "so sad")
NAMES = [f"u{number}" for number in range(len(TEXTS))]
LOOSE = {"worst_phone_fit_nats": -1000, "worst_silence_fit_nats": -1000}  # the recordings are tones


@dataclass
class World:
    """All that an extraction reads; the last of `streams` is the one that is looked at."""

    folder: Path
    patch: pytest.MonkeyPatch
    manifest: Manifest
    streams: dict[str, dict[str, Any]]
    options: dict[str, Any] = field(default_factory=dict)
    cache: Path = Path()

    def __post_init__(self) -> None:
        self.cache = self.folder / "cache"

    @property
    def settings(self) -> dict[str, Any]:
        return self.streams[list(self.streams)[-1]]

    @property
    def config(self) -> ExtractConfig:
        options = {"device": "cpu", "batch_size": 1, "workers": 1, **self.options}
        return ExtractConfig(streams=self.streams, **options)

    def extract(self, cache: Path | None = None) -> list[Any]:
        return run(self.config, self.manifest, self.cache if cache is None else cache)

    def plan(self) -> str:
        return show.plan(*dry_run(self.config, self.manifest, self.cache), 10**12)


def content(cache: Path, name: str) -> dict[tuple[str, str], np.ndarray]:
    """Return every array of every utterance that a stream serves."""
    stream = open_cache(cache)[name]
    kept = {array for index in stream.indices.values() for array in index.arrays} - {"offsets", "frames"}
    arrays = {(one, "frames"): np.array(stream[one]) for one in stream.ids}
    for array in sorted(kept):
        along = array in stream.spec.frame_arrays
        arrays |= {
            (one, array): stream.frame_array(array, one) if along else stream.array(array, [one])[0]
            for one in stream.ids
        }
    return arrays


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


# The worlds.


def write_corpus(folder: Path) -> None:
    """Write 16-bit recordings; the last one is at another rate than any stream's."""
    folder.mkdir(parents=True)
    for number, name in enumerate(NAMES):
        rate = 22050 if number == 2 else RATE_HZ
        soundfile.write(folder / f"{name}.wav", tone(1.0, rate, seed=number), rate, subtype="PCM_16")


def read_manifest(folder: Path) -> Manifest:
    rows = [
        Utterance(name, f"{name}.wav", text=text, label="sad", speaker=f"s{number % 2}", session="1")
        for number, (name, text) in enumerate(zip(NAMES, TEXTS, strict=True))
    ]
    return Manifest(rows, folder=folder)


def write_intervals(folder: Path) -> None:
    (folder / "files").mkdir()
    for name in NAMES:
        rows = "words,0.1,0.4,go\nphones,0.1,0.2,g\nphones,0.2,0.4,ow\nphones,0.4,1,sil\n"
        (folder / "files" / f"{name}.csv").write_text(f"tier,start_s,end_s,label\n{rows}")
        (folder / "files" / f"{name}.TextGrid").write_bytes(textgrid())


def write_dictionary(folder: Path) -> None:
    (folder / "own.dict").write_text("lovely L AH V L IY\n")


def alignment(aligner: str, **settings: Any) -> dict[str, Any]:
    return {"aligner": aligner, "settings": settings}


def imported(folder: Path) -> dict[str, Any]:
    return alignment("intervals", folder=str(folder / "files"), symbols="english", times_from="utterance")


def mfa_settings(folder: Path) -> dict[str, Any]:
    files = {"acoustic_model": "english.zip", "dictionary": "english.dict", "program": "bin/mfa"}
    return alignment("mfa", **{name: str(folder / "mfa" / file) for name, file in files.items()})


@dataclass(frozen=True)
class Setup:
    """What makes the files of a world, beside its recordings; and its streams, from its folder."""

    make: Callable[[Path], object]
    streams: Callable[[Path], dict[str, dict[str, Any]]]


def plain(kind: str) -> Setup:
    return Setup(lambda _: None, lambda _: {kind: {}})


SETUPS: Mapping[str, Setup] = {
    "hidden_states": Setup(
        lambda folder: speech_checkpoint(folder / "models" / "small"),
        lambda folder: {"hidden_states": {"checkpoint": str(folder / "models" / "small")}},
    ),
    "conv_features": Setup(
        lambda folder: speech_checkpoint(folder / "models" / "small"),
        lambda folder: {"conv_features": {"checkpoint": str(folder / "models" / "small")}},
    ),
    "token_states": Setup(
        lambda folder: text_checkpoint(folder / "models" / "small"),
        lambda folder: {"token_states": {"checkpoint": str(folder / "models" / "small")}},
    ),
    "tokens": Setup(
        lambda folder: text_checkpoint(folder / "models" / "small"),
        lambda folder: {"tokens": {"checkpoint": str(folder / "models" / "small")}},
    ),
    "characters": plain("characters"),
    "waveform": plain("waveform"),
    "log_mel": plain("log_mel"),
    "egemaps": plain("egemaps"),
    "speaker": plain("speaker"),
    "ge2e_states": plain("ge2e_states"),
    "ge2e_mels": plain("ge2e_mels"),
    "alignment": Setup(write_intervals, lambda folder: {"alignment": imported(folder)}),
    "phones": Setup(write_intervals, lambda folder: {"alignment": imported(folder), "phones": {}}),
    "mfa": Setup(lambda folder: Fake(folder / "mfa"), lambda folder: {"alignment": mfa_settings(folder)}),
    "pocketsphinx": Setup(
        write_dictionary,
        lambda folder: {"alignment": alignment("pocketsphinx", dictionary=str(folder / "own.dict"), **LOOSE)},
    ),
}
VOLUME = ("hidden_states", "conv_features", "log_mel", "egemaps", "speaker", "ge2e_states")
SOUND = (*VOLUME, "waveform", "ge2e_mels")
AUDIO = (*SOUND, "alignment", "phones")
CHECKPOINTS = ("hidden_states", "token_states")
PARTIAL = ("conv_features", "tokens")
"""Those that read a part of their checkpoint, and are identified by the whole of it."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the folder of a world as it was before it is changed; each is made once."""
    folders: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in folders:
            if name == "egemaps":
                pytest.importorskip("opensmile")
            folders[name] = folder = tmp_path_factory.mktemp(name)
            write_corpus(folder / "corpus")
            SETUPS[name].make(folder)
            with pytest.MonkeyPatch.context() as patch:
                world = World(folder, patch, read_manifest(folder / "corpus"), SETUPS[name].streams(folder))
                assert world.extract()[-1].computed == NAMES
        return folders[name]

    return make


@pytest.fixture
def world_of(made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], World]:
    """Return a function that gives a copy of a world."""

    def copy(name: str) -> World:
        folder = tmp_path / "world"
        shutil.copytree(made(name), folder)
        return World(folder, monkeypatch, read_manifest(folder / "corpus"), SETUPS[name].streams(folder))

    return copy


# Changes; each takes a world.


def settings(world: World, **changed: Any) -> None:
    world.settings.update(changed)


def aligner_settings(world: World, **changed: Any) -> None:
    world.streams["alignment"]["settings"].update(changed)


def options(world: World, **changed: Any) -> None:
    world.options.update(changed)


def utterance(world: World, name: str, **changed: Any) -> None:
    rows = [replace(one, **changed) if one.id == name else one for one in world.manifest]
    world.manifest = Manifest(rows, folder=world.manifest.folder)


def release(world: World, where: str, package: str) -> None:
    """Let a module see another version of one package."""
    module, _, name = where.rpartition(".")
    original = getattr(__import__(module, fromlist=[name]), name)
    world.patch.setattr(where, lambda asked: "99.0" if asked == package else original(asked))


def one_weight(world: World) -> None:
    path = world.folder / "models" / "small" / "model.safetensors"
    weights = dict(load_file(path))
    name = next(
        name for name in sorted(weights) if re.search(r"layers?\.0\..*(output_dense|output\.dense)\.bias", name)
    )
    weights[name] = weights[name].copy()
    weights[name][0] += 0.01
    save_file(weights, path, {"format": "pt"})


def one_speaker_weight(world: World) -> None:
    path = world.folder / "pretrained.pt"
    saved = torch.load(ge2e._weights_path(), map_location="cpu", weights_only=True)
    saved["model_state"]["lstm.bias_ih_l0"][0] += 0.1
    torch.save(saved, path)
    world.patch.setattr(ge2e, "_weights_path", lambda: path)


def model_file(world: World, file: str, **changed: Any) -> None:
    path = world.folder / "models" / "small" / file
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(values | changed))


def renamed_checkpoint(world: World) -> None:
    (world.folder / "models" / "small").rename(world.folder / "models" / "other")
    settings(world, checkpoint=str(world.folder / "models" / "other"))


def one_vocabulary_entry(world: World) -> None:
    path = world.folder / "models" / "small" / "vocab.txt"
    path.write_text(path.read_text().replace("\nweather\n", "\nwhether\n"))


def one_sample(world: World) -> None:
    path = world.folder / "corpus" / "u0.wav"
    samples, rate = soundfile.read(path, dtype="int16")
    samples[4000] += 1
    soundfile.write(path, samples, rate, subtype="PCM_16")


def another_rate(world: World) -> None:
    path = world.folder / "corpus" / "u0.wav"
    samples, rate = soundfile.read(path, dtype="float32")
    soundfile.write(path, soxr.resample(samples, rate, 24000), 24000, subtype="PCM_16")


def another_resampler(world: World) -> None:
    world.patch.setattr("featcache.audio.RESAMPLER", "soxr-99.0-HQ")


def one_interval(world: World) -> None:
    path = world.folder / "files" / "u0.csv"
    path.write_text(path.read_text().replace("0.1,0.2,g\nphones,0.2", "0.1,0.23,g\nphones,0.23"))


def another_aligner(world: World) -> None:
    world.streams["alignment"] = alignment("textgrid", folder=str(world.folder / "files"))


def one_pronunciation(world: World, file: str, old: str, new: str) -> None:
    path = world.folder / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def another_acoustic_model(world: World) -> None:
    (world.folder / "mfa" / "english.zip").write_bytes(b"another model")


def another_mfa(world: World) -> None:
    program = world.folder / "mfa" / "bin" / "mfa"
    text = program.read_text()
    assert "3.4.3" in text
    program.write_text(text.replace("3.4.3", "3.4.4"))


# Misses: what is changed, in which worlds, and what a user is told.

ALL = tuple(NAMES)


@dataclass(frozen=True)
class Miss:
    """A change that has to be noticed.

    Attributes:
        what: a name for it.
        worlds: where it is made.
        change: makes it.
        said: what summary and plan have to say, as a pattern.
        ids: utterances that have to be computed again.
        others: those of them that get other numbers; None is all.
    """

    what: str
    worlds: tuple[str, ...]
    change: Callable[[World], None]
    said: str
    ids: tuple[str, ...] = ALL
    others: tuple[str, ...] | None = None


FIRST, LAST = ("u0",), ("u2",)
RESAMPLED = r"its audio, or what resamples it \(now soxr-[\d.]+-HQ\), changed"
WAITS = "is made of alignment-[0-9a-f]{8}, which is to be computed first"
MISSES = [
    Miss("one weight", CHECKPOINTS, one_weight, "checkpoint.weights_sha256: "),
    Miss("one weight", PARTIAL, one_weight, "checkpoint.weights_sha256: ", others=()),
    Miss("one weight", ("speaker", "ge2e_states"), one_speaker_weight, "checkpoint.weights_sha256: "),
    Miss("config of the checkpoint", CHECKPOINTS, partial(model_file, file="config.json", layer_norm_eps=0.1),
         "checkpoint.config_sha256: "),
    Miss("config of the checkpoint", PARTIAL, partial(model_file, file="config.json", layer_norm_eps=0.1),
         "checkpoint.config_sha256: ", others=()),
    Miss("name of the checkpoint", (*CHECKPOINTS, *PARTIAL), renamed_checkpoint, "checkpoint.name: small -> other",
         others=()),
    Miss("tap", ("hidden_states",), partial(settings, tap="final_norm"), "settings.tap: layer_outputs -> final_norm"),
    Miss("normalise", ("hidden_states", "conv_features"), partial(settings, normalise=False),
         "settings.normalise: True -> False"),
    Miss("preprocessor of the checkpoint", ("hidden_states", "conv_features"),
         partial(model_file, file="preprocessor_config.json", do_normalize=False),
         "settings.normalise: True -> False"),
    Miss("pad", ("hidden_states", "conv_features"), partial(settings, pad="match_log_mel"),
         "settings.pad: none -> match_log_mel"),
    Miss("compute dtype", (*CHECKPOINTS, "conv_features"), partial(options, compute_dtype="bfloat16"),
         "compute_dtype: float32 -> bfloat16"),
    *(Miss(f"stored as {dtype}", ("token_states", *VOLUME), partial(options, dtype=dtype),
           rf"\bdtype: float16 -> {dtype}") for dtype in ("float32", "int8")),
    Miss("layers", ("token_states",), partial(settings, layers="last"), "settings.layers: all -> last"),
    Miss("layers", ("hidden_states",), partial(settings, layers="last"), "settings.layers: not there -> last"),
    Miss("most tokens", ("token_states", "tokens"), partial(settings, max_tokens=30),
         "settings.max_tokens: None -> 30", others=()),
    Miss("truncate", ("token_states", "tokens"), partial(settings, truncate=True),
         "settings.truncate: False -> True", others=()),
    Miss("one entry of the vocabulary", ("token_states", "tokens"), one_vocabulary_entry,
         "checkpoint.tokenizer_sha256: ", others=FIRST),
    Miss("tokenizer that keeps case", ("token_states", "tokens"),
         partial(model_file, file="tokenizer_config.json", do_lower_case=False), "checkpoint.tokenizer_sha256: ",
         others=()),
    *(Miss(f"{file} beside the others", ("token_states", "tokens"), partial(model_file, file=file, version="1.0"),
           "checkpoint.tokenizer_sha256: ", others=()) for file in ("sentencepiece.model", "tokenizer.4.0.0.json")),
    Miss("special tokens", ("token_states",), partial(settings, special_tokens=True),
         "settings.special_tokens: False -> True"),
    Miss("characters left out", ("characters",), partial(settings, unknown="drop"), "settings.unknown: error -> drop",
         others=()),
    Miss("one letter less", ("characters",), partial(settings, vocabulary="ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
         "settings.vocabulary: ", others=()),
    Miss("one character", ("characters",), partial(utterance, name="u0", text="the weather is lovely."),
         "'u0': its text changed", FIRST, others=()),
    Miss("one character", ("token_states", "tokens"), partial(utterance, name="u0", text="the weather is lovely."),
         "'u0': its text changed", FIRST),
    Miss("one character", ("alignment", "phones"), partial(utterance, name="u0", text="the weather is lovely."),
         "'u0': its text changed", FIRST, others=()),
    Miss("one character", ("pocketsphinx", "mfa"), partial(utterance, name="u0", text="the weather is lonely"),
         "'u0': its text changed", FIRST),
    Miss("one sample by one step", SOUND, one_sample, "'u0': its audio changed", FIRST),
    Miss("one sample by one step", ("alignment", "phones", "pocketsphinx"), one_sample, "'u0': its audio changed",
         FIRST, others=()),
    Miss("another sample rate", SOUND, another_rate, f"'u0': {RESAMPLED}", FIRST),
    Miss("another sample rate", ("alignment", "phones"), another_rate, f"'u0': {RESAMPLED}", FIRST, others=()),
    Miss("another resampler", AUDIO, another_resampler, f"'u2': {RESAMPLED.replace(chr(92) + 'd.', '99.0')}", LAST,
         others=()),
    Miss("another span", AUDIO, partial(utterance, name="u0", end_s=0.9), "'u0': its audio changed", FIRST),
    Miss("definition of the mels", ("log_mel",), partial(settings, definition="mel128_10ms"),
         "settings.definition: mel80_20ms -> mel128_10ms"),
    Miss("cut silences", ("speaker",), partial(settings, preprocess=False), "settings.preprocess: True -> False"),
    Miss("level", ("ge2e_states", "ge2e_mels"), partial(settings, target_rms=0.04),
         "settings.target_rms: 0.03 -> 0.04"),
    *(Miss(f"release of {package}", (world,), partial(release, where=where, package=package),
           f"libraries.{package}: [^;]+ -> 99.0", others=())
      for world, where, package in (
          ("token_states", "featcache.text_encoders.version", "transformers"),
          ("token_states", "featcache.text_encoders.version", "tokenizers"),
          ("tokens", "featcache.text_encoders.version", "transformers"),
          ("tokens", "featcache.text_encoders.version", "tokenizers"),
          ("log_mel", "featcache.streams.log_mel.version", "librosa"),
          ("log_mel", "featcache.streams.log_mel.version", "scipy"),
          ("egemaps", "featcache.streams.egemaps.version", "opensmile"),
          ("speaker", "featcache.ge2e.version", "librosa"),
          ("speaker", "featcache.streams.speaker.version", "webrtcvad"),
          ("ge2e_states", "featcache.ge2e.version", "librosa"),
          ("ge2e_mels", "featcache.ge2e.version", "librosa"),
          ("pocketsphinx", "importlib.metadata.version", "pocketsphinx"),
          ("pocketsphinx", "importlib.metadata.version", "num2words"),
          ("mfa", "importlib.metadata.version", "num2words"),
      )),
    Miss("release of espeak-ng", ("pocketsphinx",),
         lambda world: world.patch.setattr("featcache.espeak.engine_version", lambda: "99.0"),
         "libraries.espeak-ng: .* -> 99.0", others=()),
    Miss("release of MFA", ("mfa",), another_mfa, "libraries.montreal-forced-aligner: 3.4.3 -> 3.4.4", others=()),
    Miss("acoustic model", ("mfa",), another_acoustic_model, "checkpoint.acoustic_sha256: ", others=()),
    Miss("dictionary", ("mfa",),
         partial(one_pronunciation, file="mfa/english.dict", old="dog\t", new="sad\tS AE1 D\ndog\t"),
         "checkpoint.dictionary_sha256: ", others=LAST),
    Miss("dictionary", ("pocketsphinx",), partial(one_pronunciation, file="own.dict", old="L AH V", new="L IY V"),
         "checkpoint.*sha256: ", others=FIRST),
    Miss("beam", ("mfa",), partial(aligner_settings, beam=20), "settings.settings.beam: None -> 20", others=()),
    Miss("unknown words", ("pocketsphinx",), partial(aligner_settings, unknown_word="mark"),
         "settings.settings.unknown_word: guess -> mark", others=()),
    Miss("worst fit", ("pocketsphinx",), partial(aligner_settings, worst_phone_fit_nats=-999),
         "settings.settings.worst_phone_fit_nats: -1000.0 -> -999.0", others=()),
    Miss("labels of silence", ("alignment", "phones"), partial(aligner_settings, silence=["sil", "ow"]),
         r"settings.settings.silen\w+: "),
    Miss("tolerance", ("alignment", "phones"), partial(aligner_settings, tolerance_s=0.06),
         "settings.settings.tolerance_s: 0.05 -> 0.06", others=()),
    Miss("one interval", ("alignment", "phones"), one_interval, "'u0': its alignment changed", FIRST),
    Miss("another aligner", ("alignment", "phones"), another_aligner, "settings.aligner: intervals -> textgrid"),
    Miss("inventory", ("phones",), partial(settings, inventory="occurring"), "settings.inventory: "),
    Miss("frame shift", ("phones",), partial(settings, frame_shift_ms=10), "frame_shift_s: 0.02 -> 0.01"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "miss"), [pytest.param(name, miss, id=f"{name}-{miss.what}") for miss in MISSES for name in miss.worlds]
)
def test_what_decides_a_number_is_computed_again_and_told(
    world_of: Callable[[str], World], name: str, miss: Miss
) -> None:
    world = world_of(name)
    [before_name] = [one for one in open_cache(world.cache) if one.startswith(f"{list(world.streams)[-1]}-")]
    before, files = content(world.cache, before_name), tree(world.cache)
    miss.change(world)

    planned = world.plan()
    *_, summary = world.extract()
    told = show.summary(summary)

    assert re.search(miss.said, told), told
    assert re.search(WAITS if name == "phones" and "is made of" in planned else miss.said, planned), planned
    assert (summary.computed, summary.failures) == (list(miss.ids), {})
    served = expected = content(world.cache, summary.stream)
    if miss.others != ():
        *_, fresh = world.extract(world.folder / "fresh")
        assert fresh.stream == summary.stream
        expected = content(world.folder / "fresh", fresh.stream)
    assert served.keys() == expected.keys()
    assert all(same(served[key], expected[key]) for key in expected)
    for one in NAMES:
        unchanged = all(key in served and same(before[key], served[key]) for key in before if key[0] == one)
        assert unchanged != (one in (miss.ids if miss.others is None else miss.others)), one
    after = tree(world.cache)
    assert all(after[file] == data for file, data in files.items() if "part-" in file)
    if miss.ids == ALL:
        assert all(same(data, content(world.cache, before_name)[key]) for key, data in before.items())
    *_, again = world.extract()
    assert again.computed == []


# Hits.


def moved_corpus(world: World) -> None:
    (world.folder / "corpus").rename(world.folder / "elsewhere")
    world.manifest = Manifest(list(world.manifest), folder=world.folder / "elsewhere")


def linked_corpus(world: World) -> None:
    (world.folder / "link").symlink_to(world.folder / "corpus")
    world.manifest = Manifest(list(world.manifest), folder=world.folder / "link")


def another_container(world: World) -> None:
    for name in NAMES:
        samples, rate = soundfile.read(world.folder / "corpus" / f"{name}.wav", dtype="int16")
        soundfile.write(world.folder / "corpus" / f"{name}.flac", samples, rate, subtype="PCM_16")
        (world.folder / "corpus" / f"{name}.wav").unlink()
        utterance(world, name, audio=f"{name}.flac")


def both_channels(world: World) -> None:
    path = world.folder / "corpus" / "u0.wav"
    samples, rate = soundfile.read(path, dtype="int16")
    soundfile.write(path, np.stack([samples, samples], axis=1), rate, subtype="PCM_16")


def touched(world: World) -> None:
    for part in ("corpus", "models", "files", "mfa"):
        for path in (world.folder / part).rglob("*"):
            os.utime(path, ns=(10**18, 10**18))


def reversed_manifest(world: World) -> None:
    world.manifest = Manifest(list(world.manifest)[::-1], folder=world.manifest.folder)


def fewer_utterances(world: World) -> None:
    world.manifest = world.manifest.select(["u1", "u0"])


def other_columns(world: World) -> None:
    for name in NAMES:
        utterance(world, name, label="happy", speaker="another", session="2", extra={"mood": "calm"})


def moved_checkpoint(world: World) -> None:
    (world.folder / "elsewhere").mkdir()
    moved = (world.folder / "models" / "small").rename(world.folder / "elsewhere" / "small")
    settings(world, checkpoint=f"{moved}/")


def linked_checkpoint(world: World) -> None:
    (world.folder / "models" / "small").rename(world.folder / "models" / "snapshot")
    (world.folder / "models" / "small").symlink_to(world.folder / "models" / "snapshot")


def saved_by_another_release(world: World) -> None:
    model_file(
        world, "config.json", transformers_version="4.1.0", _name_or_path="somewhere/else", torch_dtype="float32"
    )


def without_the_preprocessors_default(world: World) -> None:
    model_file(world, "preprocessor_config.json", do_normalize=True, sampling_rate=RATE_HZ, feature_size=1)


def moved_files(world: World) -> None:
    (world.folder / "files").rename(world.folder / "elsewhere")
    aligner_settings(world, folder=str(world.folder / "elsewhere"))


def renamed_dictionary(world: World, file: str, to: str) -> None:
    (world.folder / file).rename(world.folder / to)
    aligner_settings(world, dictionary=str(world.folder / to))


def moved_cache(world: World) -> None:
    world.cache = world.cache.rename(world.folder / "kept")


def linked_cache(world: World) -> None:
    world.cache = world.cache.rename(world.folder / "kept")
    (world.folder / "cache").symlink_to(world.cache)
    world.cache = world.folder / "cache"


def relative_cache(world: World) -> None:
    world.patch.chdir(world.folder)
    world.cache = Path("cache")


@dataclass(frozen=True)
class Hit:
    """A change that must not cost anything."""

    what: str
    worlds: tuple[str, ...]
    change: Callable[[World], None]


EVERY = tuple(SETUPS)
OWN_COMPUTE = tuple(name for name in EVERY if name not in (*CHECKPOINTS, "conv_features"))
EXACT = ("alignment", "phones", "mfa", "pocketsphinx", "tokens", "characters", "waveform", "ge2e_mels")
HITS = [
    Hit("nothing", EVERY, lambda _: None),
    Hit("device", EVERY, partial(options, device="cuda:7")),  # not even asked for
    *(Hit(f"batches of {size}", EVERY, partial(options, batch_size=size)) for size in (3, 8)),
    Hit("workers", EVERY, partial(options, workers=2)),
    Hit("backend", EVERY, partial(options, backend="hdf5")),
    Hit("compression", EVERY, partial(options, compress=True)),
    Hit("stats, where frames are", EVERY, partial(options, tier="stats")),
    Hit("corpus moved", EVERY, moved_corpus),
    Hit("corpus linked", EVERY, linked_corpus),
    Hit("container", EVERY, another_container),
    Hit("both channels alike", EVERY, both_channels),
    Hit("span that is the whole", EVERY, partial(utterance, name="u0", start_s=0.0, end_s=1.0)),
    Hit("modification times", EVERY, touched),
    Hit("order of the manifest", EVERY, reversed_manifest),
    Hit("fewer utterances", EVERY, fewer_utterances),
    Hit("label, speaker, session and others", EVERY, other_columns),
    Hit("cache moved", EVERY, moved_cache),
    Hit("cache linked", EVERY, linked_cache),
    Hit("cache by a relative path", EVERY, relative_cache),
    Hit("checkpoint moved", (*CHECKPOINTS, *PARTIAL), moved_checkpoint),
    Hit("checkpoint linked", (*CHECKPOINTS, *PARTIAL), linked_checkpoint),
    Hit("who saved the checkpoint", (*CHECKPOINTS, *PARTIAL), saved_by_another_release),
    Hit("the default, said", ("hidden_states", "conv_features"), partial(settings, normalise=True)),
    Hit("preprocessor that does the default", ("hidden_states", "conv_features"), without_the_preprocessors_default),
    # Its tap points are modules, so that releases do not decide what they give; see docs/design.md.
    Hit("release of transformers", ("hidden_states", "conv_features"),
        partial(release, where="importlib.metadata.version", package="transformers")),
    Hit("release of the detector, not asked for", ("ge2e_states",),
        partial(release, where="featcache.streams.speaker.version", package="webrtcvad")),
    Hit("compute dtype", OWN_COMPUTE, partial(options, compute_dtype="bfloat16")),
    *(Hit(f"stored as {dtype}", EXACT, partial(options, dtype=dtype)) for dtype in ("float32", "int8")),
    Hit("text", SOUND, partial(utterance, name="u0", text="something else")),
    Hit("audio", ("token_states", "tokens", "characters"), one_sample),
    Hit("resampler", ("token_states", "tokens", "characters"), another_resampler),
    Hit("files moved", ("alignment", "phones"), moved_files),
    Hit("a file of nobody", ("alignment", "phones"),
        lambda world: (world.folder / "files" / "u9.csv").write_text("nothing")),
    Hit("longest utterance", ("pocketsphinx",), partial(aligner_settings, longest_s=60)),
    Hit("name of the dictionary", ("pocketsphinx",), partial(renamed_dictionary, file="own.dict", to="mine.dict")),
    Hit("name of the dictionary", ("mfa",),
        partial(renamed_dictionary, file="mfa/english.dict", to="mfa/british.dict")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "hit"), [pytest.param(name, hit, id=f"{name}-{hit.what}") for hit in HITS for name in hit.worlds]
)
def test_what_decides_no_number_computes_nothing_and_changes_no_byte(
    world_of: Callable[[str], World], name: str, hit: Hit
) -> None:
    world = world_of(name)
    before = tree(world.cache)
    hit.change(world)

    def refuse(*_: object) -> None:
        raise AssertionError("a model was loaded")

    for kind in world.streams:
        world.patch.setattr(registry.load("featcache.streams", kind, Stream), "load", refuse)
    for summary in world.extract():
        assert (summary.computed, summary.changed, summary.failures, summary.others) == ([], {}, {}, {})
        assert summary.present == world.manifest.ids
    assert tree(world.cache) == before


def test_a_stream_that_is_kept_sees_that_its_checkpoint_changed(world_of: Callable[[str], World]) -> None:
    world = world_of("hidden_states")
    stream = HiddenStates(**world.settings)
    assert extract(world.manifest, world.cache, stream, world.config).computed == []
    one_weight(world)
    assert extract(world.manifest, world.cache, stream, world.config).computed == NAMES


def test_a_number_is_the_same_setting_as_integer_and_as_float() -> None:
    assert Ge2eStates(target_rms=1).spec().name == Ge2eStates(target_rms=1.0).spec().name


def test_every_kind_of_stream_is_among_the_worlds() -> None:
    changed = {list(SETUPS[name].streams(Path()))[-1] for miss in MISSES for name in miss.worlds}
    assert changed == set(registry.names("featcache.streams"))
