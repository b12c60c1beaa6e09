"""Probes on a run's codes: each fold on its own stream, on its own folds, in a run folder like any other."""

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from test_mlp_probe import write_stream
from test_probing import write_phones

from featcache import Manifest, Utterance
from featcache import open as open_cache
from featcache.errors import CacheError, ConfigError, ProtocolError, ScoresError, UnknownNameError
from heads.fit_settings import FitSettings
from heads.fold_files import read_folds, save_folds
from heads.folds import make_folds
from heads.models.mlp_probe import MlpProbe
from heads.probing import speaker_dependent_fold
from heads.runs import read_run
from heads.scores import Scores
from heads.unfinished import Unfinished
from pipelines import probe
from pipelines.config import TrainConfig, preset_names, read_preset, train_config
from pipelines.train_heads import load_head

FIT = FitSettings(steps=150, eval_every=50, batch_size=16, learning_rate=(1e-2,), select_by="wa")
CONFIG = TrainConfig(
    head="mlp_probe", settings={"hidden": [16, 8]}, fit=FIT, validation=0.1, missing="error", device="cpu"
)
NUM, SESSIONS, SPEAKERS = 96, 3, 6
PHONES = {0: "SIL", 6: "k", 8: "ih"}  # ids of arpabet128: SIL, k_B, ih_I


@dataclass(frozen=True)
class Corpus:
    """A cache with codes of three folds, the run that they are of, and its manifest.

    Codes hold, in separate dimensions, the speaker, the emotion and the phone; nothing of the dialogue.
    """

    folder: Path
    manifest: Manifest
    codes: Mapping[str, str]

    def copy(self, folder: Path) -> "Corpus":
        """Return a copy that a test may add to."""
        shutil.copytree(self.folder, folder)
        return replace(self, folder=folder)

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def run(self) -> Path:
        return self.folder / "encoder"

    def probe(self, out: Path, target: str, config: TrainConfig = CONFIG, **options: Any) -> Any:
        arguments = {"manifest": self.manifest, "codes": self.codes, **options}
        manifest, codes = arguments.pop("manifest"), arguments.pop("codes")
        return probe.run(self.run, manifest, self.cache, out, target, config, codes, **arguments)


def make_corpus(folder: Path) -> Corpus:
    generator = np.random.default_rng(0)
    utterances, spoken, numbers = [], {}, range(NUM)
    for number in numbers:
        speaker, emotion = number % SPEAKERS, number // SPEAKERS % 4
        utterances.append(
            Utterance(
                f"u{number:03d}", label="abcd"[emotion], speaker=f"s{speaker}", session=f"S{speaker // 2}",
                extra={"gender": "fm"[speaker % 2], "dialogue": str(generator.integers(2))},
            )
        )  # fmt: skip
        # Two frames of 20 ms a code; the middle of both lies in it.
        spoken[f"u{number:03d}"] = np.repeat(generator.choice(list(PHONES), 4 + number % 5), 2).tolist()
    manifest = Manifest(utterances)
    folds = make_folds(manifest, "session")
    (folder / "encoder").mkdir(parents=True)
    save_folds(folds, folder / "encoder" / "folds.json")
    codes = {}
    for place, fold in enumerate(folds):
        frames = {}
        for number in numbers:
            ids = spoken[f"u{number:03d}"][::2]
            values = 0.2 * generator.standard_normal((len(ids), 16))
            values[:, number % SPEAKERS] += 1
            values[:, 6 + number // SPEAKERS % 4] += 1
            values[np.arange(len(ids)), [10 + list(PHONES).index(phone) for phone in ids]] += 1
            frames[f"u{number:03d}"] = np.roll(values, 5 * place, axis=1).astype(np.float32)  # each encoder its own
        codes[fold.name] = write_stream(folder / "cache", frames, settings={"blocks": 2, "fold": fold.name}).name
    write_phones(folder / "cache", spoken)
    return Corpus(folder, manifest, codes)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def test_speakers_are_told_apart_on_folds_of_their_own(corpus: Corpus, tmp_path: Path) -> None:
    messages: list[str] = []
    steps: list[tuple[int, int]] = []
    run = corpus.probe(
        tmp_path / "out",
        "speaker",
        replace(CONFIG, validation=0.25),
        on_message=messages.append,
        on_progress=lambda *at: steps.append(at),
    )
    assert run.metrics["mean"]["wa"] == 1.0
    assert run.scores.classes == tuple(f"s{number}" for number in range(SPEAKERS))
    speakers = {utterance.id: utterance.speaker for utterance in corpus.manifest}
    for own, found in zip(
        read_folds(corpus.run / "folds.json"), read_folds(tmp_path / "out" / "folds.json"), strict=True
    ):
        assert found == speaker_dependent_fold(own, speakers, seed=0, validation=0.25)
        seen = {speakers[name] for name in own.train}
        for part in found.parts.values():
            assert {speakers[name] for name in part} == seen
        absent = [run.scores.classes.index(name) for name in set(speakers.values()) - seen]
        rows = [number for number, fold in enumerate(run.scores.folds) if fold == found.name]
        assert len(absent) == 2
        assert (run.scores.probabilities[np.ix_(rows, absent)] == 0).all()
        assert {run.scores.ids[number] for number in rows} == set(found.test)
    assert run.config is not None
    assert run.config["speaker_independent"] is False
    assert run.config["problems"] == messages
    assert len(messages) == 2
    assert messages[0].startswith("By design every speaker of a fold is in train, validation and test")
    assert "tested in more than one fold" in messages[1]  # each utterance is of the training part of two
    assert run.config["allowed_leaks"] == []
    assert run.config["chance"] == {f"S{number}": 0.25 for number in range(SESSIONS)}
    assert steps[0] == (0, 450)
    assert steps[-1] == (450, 450)
    assert steps == sorted(steps)
    assert not (tmp_path / "out" / ".unfinished").exists()


@pytest.mark.parametrize("target", ["speaker", "emotion", "phone"])
def test_copies_that_the_encoder_was_trained_with_are_in_no_part(corpus: Corpus, tmp_path: Path, target: str) -> None:
    half = NUM // 2
    first, second = corpus.manifest[:half], corpus.manifest[half:]
    copies = [
        replace(copy, extra={**copy.extra, "version_of": original.id})
        for original, copy in zip(first, second, strict=True)
    ]
    mine = corpus.copy(tmp_path / "corpus")
    folds = make_folds([*first, *copies], "session")
    assert all(any(one.id in fold.train for one in copies) for fold in folds)
    save_folds(folds, mine.run / "folds.json")
    mine.probe(tmp_path / "out", target, manifest=Manifest([*first, *copies]))
    for fold in read_folds(tmp_path / "out" / "folds.json"):
        used = {name.partition("@")[0] for part in fold.parts.values() for name in part}
        assert used
        assert used <= {one.id for one in first}


@pytest.mark.parametrize(("target", "classes"), [("emotion", "abcd"), ("sex", "fm")])
def test_everything_else_is_tested_on_speakers_that_nobody_has_heard(
    corpus: Corpus, tmp_path: Path, target: str, classes: str
) -> None:
    run = corpus.probe(tmp_path / "out", target)
    assert read_folds(tmp_path / "out" / "folds.json") == read_folds(corpus.run / "folds.json")
    assert run.scores.classes == tuple(classes)
    assert run.config["speaker_independent"] is True
    assert run.config["label"] == run.config["target"] == target
    labels = {one.id: one.label if target == "emotion" else one.extra["gender"] for one in corpus.manifest}
    assert all(labels[name] == label for name, label in zip(run.scores.ids, run.scores.labels, strict=True))
    if target == "emotion":
        assert run.metrics["mean"]["wa"] == 1.0
    else:  # it follows from the speaker, whom the probe has not heard
        assert run.metrics["mean"]["wa"] < 0.9


def test_a_column_that_codes_say_nothing_of_is_at_chance(corpus: Corpus, tmp_path: Path) -> None:
    run = corpus.probe(tmp_path / "out", "dialogue", replace(CONFIG, fit=replace(FIT, steps=50)))
    assert 0.3 < run.metrics["pooled"]["wa"] < 0.7


def test_what_the_commonest_class_of_train_would_score_is_told(corpus: Corpus, tmp_path: Path) -> None:
    # In three quarters of S0 it is 1, and in a quarter of the others.
    tilted = [
        replace(one, extra={"tilt": str(int((one.session == "S0") != (number // SPEAKERS % 4 == 0)))})
        for number, one in enumerate(corpus.manifest)
    ]
    quick = replace(CONFIG, fit=replace(FIT, steps=5))
    run = corpus.probe(tmp_path / "out", "tilt", quick, manifest=Manifest(tilted))
    values = {one.id: one.extra["tilt"] for one in tilted}
    for fold in read_folds(corpus.run / "folds.json"):
        counts = Counter(values[name] for name in fold.train)
        answer = max(sorted(counts), key=lambda value: counts[value])
        assert run.config["majority"][fold.name] == pytest.approx(
            np.mean([values[name] == answer for name in fold.test])
        )
    assert run.config["majority"]["S0"] == 0.25
    assert run.config["chance"] == {f"S{number}": 0.5 for number in range(SESSIONS)}


def test_phones_are_told_apart_frame_by_frame(corpus: Corpus, tmp_path: Path) -> None:
    run = corpus.probe(tmp_path / "out", "phone")
    assert run.scores.classes == ("SIL", "ih", "k")
    assert run.metrics["mean"]["wa"] > 0.98
    assert run.config["settings"] == {"frames": 1, "hidden": [16, 8]}
    assert run.config["streams"]["codes"] == corpus.codes
    assert run.config["streams"]["phones"].startswith("phones-")
    for own, found in zip(
        read_folds(corpus.run / "folds.json"), read_folds(tmp_path / "out" / "folds.json"), strict=True
    ):
        for part, ids in found.parts.items():
            assert {name.partition("@")[0] for name in ids} == set(own.parts[part])
            assert max(Counter(name.partition("@")[0] for name in ids).values()) <= 16
    windows = corpus.probe(tmp_path / "windows", "phone", replace(CONFIG, settings={"frames": 0, "hidden": [16, 8]}))
    assert (
        windows.metrics["mean"]["wa"] < run.metrics["mean"]["wa"]
    )  # a window does not say which of its codes is asked


def test_each_fold_reads_its_own_codes(corpus: Corpus, tmp_path: Path) -> None:
    run = corpus.probe(tmp_path / "own", "emotion")
    other = corpus.copy(tmp_path / "other")
    # The same streams, but those of two folds hold nothing: only these folds may suffer.
    frames = {one.id: np.ones((2, 16), np.float32) for one in corpus.manifest}
    codes = {**other.codes}
    for name in ("S1", "S2"):
        codes[name] = write_stream(other.cache, frames, settings={"empty": name}).name
    mixed = other.probe(tmp_path / "mixed", "emotion", codes=codes)
    was = [fold["wa"] for fold in run.metrics["folds"]]
    found = [fold["wa"] for fold in mixed.metrics["folds"]]
    assert found[0] == was[0]
    assert max(found[1:]) < 0.5 < min(was)


def test_a_class_that_train_lacks_is_tested_as_wrong_and_told(corpus: Corpus, tmp_path: Path) -> None:
    relabelled = [
        replace(one, label="z" if one.session == "S0" and one.label == "d" else one.label) for one in corpus.manifest
    ]
    messages: list[str] = []
    run = corpus.probe(tmp_path / "out", "emotion", manifest=Manifest(relabelled), on_message=messages.append)
    assert run.scores.classes == ("a", "b", "c", "d", "z")
    rows = [number for number, fold in enumerate(run.scores.folds) if fold == "S0"]
    assert (run.scores.probabilities[rows, 4] == 0).all()
    assert Counter(run.scores.labels[number] for number in rows)["z"] == 8
    assert run.metrics["folds"][0]["wa"] <= 24 / 32
    assert any("fold 'S0': train has no 'z', which test has" in message for message in messages)


def test_utterances_without_a_value_are_left_out_and_told(corpus: Corpus, tmp_path: Path) -> None:
    partly = Manifest(
        [replace(one, extra={}) if number % 6 == 0 else one for number, one in enumerate(corpus.manifest)]
    )
    messages: list[str] = []
    quick = replace(CONFIG, fit=replace(FIT, steps=5))
    run = corpus.probe(tmp_path / "out", "sex", quick, manifest=partly, on_message=messages.append)
    assert any(message == "16 utterances are left out: they have no gender." for message in messages)
    assert len(set(run.scores.ids)) == NUM - 16
    named = Manifest([replace(one, speaker="rare" if one.id == "u000" else one.speaker) for one in corpus.manifest])
    rare = corpus.probe(tmp_path / "rare", "speaker", quick, manifest=named, on_message=messages.append)
    assert any("1 speakers are left out: they have too few" in message for message in messages)
    assert "rare" not in rare.scores.classes


def test_utterances_that_a_stream_lacks_stop_a_probe_unless_they_are_dropped(corpus: Corpus, tmp_path: Path) -> None:
    frames = {one.id: np.ones((2, 16), np.float32) for one in corpus.manifest if one.id not in ("u004", "u010")}
    own = corpus.copy(tmp_path / "own")
    codes = {**own.codes, "S1": write_stream(own.cache, frames, settings={"fold": "S1"}).name}
    quick = replace(CONFIG, fit=replace(FIT, steps=5))
    with pytest.raises(CacheError, match=r"codes-\w+ lacks 2 of 96 utterances, such as 'u004' \(never extracted\)"):
        own.probe(tmp_path / "out", "emotion", quick, codes=codes)
    messages: list[str] = []
    dropped = replace(quick, missing="drop")
    run = own.probe(tmp_path / "out", "emotion", dropped, codes=codes, on_message=messages.append)
    assert any("2 utterances are left out: a stream lacks them ('u004' and so on)" in message for message in messages)
    assert run.config["dropped"] == 2
    # Speakers of S1, its test part, have no part in its probe for speakers.
    tested = {one.id for one in own.manifest if one.session == "S1"}
    held = {name: values for name, values in frames.items() if name not in tested}
    held |= {name: np.ones((2, 16), np.float32) for name in ("u004", "u010") if name not in tested}
    speakers = {**own.codes, "S1": write_stream(own.cache, held, settings={"fold": "S1", "only": "train"}).name}
    assert own.probe(tmp_path / "speakers", "speaker", quick, codes=speakers).config["dropped"] == 0


def files(folder: Path) -> dict[str, bytes]:
    """Return what a run left, without what tells when and where it was."""
    kept = {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in ("config.yaml", "log.txt")}
    config = yaml.safe_load((folder / "config.yaml").read_text())
    return kept | {"config.yaml": json.dumps({**config, "seconds": 0}).encode()}


def test_a_broken_run_goes_on_to_the_same_bytes_and_is_not_done_twice(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "Unfinished", partial(Unfinished, every_s=0.0))
    config = replace(CONFIG, fit=replace(FIT, steps=30, eval_every=5))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    corpus.probe(whole, "speaker", config)
    for stop in (12, 44, 71):

        def advance(done: int, total: int, stop: int = stop) -> None:
            if done >= stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            corpus.probe(broken, "speaker", config, on_progress=advance)
        assert not (broken / "scores.csv").exists()
    messages: list[str] = []
    seen: list[int] = []
    corpus.probe(broken, "speaker", config, on_message=messages.append, on_progress=lambda done, _: seen.append(done))
    assert any("going on where it stopped" in message for message in messages)
    assert seen[:4] == [30, 60, 71, 72]  # two folds were there whole, and the third up to the step it was cut off at
    assert files(broken) == files(whole)
    before = {path.name: path.stat().st_mtime_ns for path in whole.iterdir()}
    again = corpus.probe(whole, "speaker", config, on_message=messages.append)
    assert "holds this very run already: nothing was trained" in messages[-1]
    assert again.metrics == read_run(broken).metrics
    assert {path.name: path.stat().st_mtime_ns for path in whole.iterdir()} == before
    for target, changed in (("emotion", config), ("speaker", replace(config, validation=0.2))):
        with pytest.raises(ConfigError, match=r"holds another run. Give another --out, or --overwrite"):
            corpus.probe(whole, target, changed)
    assert corpus.probe(whole, "emotion", config, overwrite=True).scores.classes == ("a", "b", "c", "d")


def test_other_codes_or_another_run_are_another_probe(corpus: Corpus, tmp_path: Path) -> None:
    quick = replace(CONFIG, fit=replace(FIT, steps=2))
    own = corpus.copy(tmp_path / "own")
    first = own.probe(tmp_path / "out", "emotion", quick).config["digest"]
    frames = {one.id: np.ones((2, 16), np.float32) for one in own.manifest}
    codes = {**own.codes, "S1": write_stream(own.cache, frames, settings={"fold": "S1"}).name}
    same = open_cache(own.cache)[own.codes["S1"]]
    wider = write_stream(own.cache, {name: same[name] for name in same.ids}, settings={"blocks": 3, "fold": "S1"}).name
    digests = [
        own.probe(tmp_path / str(number), "emotion", quick, codes=others).config["digest"]
        for number, others in enumerate((codes, {**own.codes, "S1": wider}))
    ]
    shutil.copy(tmp_path / "out" / "scores.csv", own.run / "scores.csv")
    (own.run / "config.yaml").write_text("digest: 0123456789abcdef\n")
    run = own.probe(tmp_path / "run", "emotion", quick)
    assert run.config["of_run"] == {"folder": str(own.run), "digest": "0123456789abcdef"}
    assert len({first, *digests, run.config["digest"]}) == 4


def test_phones_are_those_that_the_run_read(corpus: Corpus, tmp_path: Path) -> None:
    own = corpus.copy(tmp_path / "own")
    quick = replace(CONFIG, fit=replace(FIT, steps=2))
    read = own.probe(tmp_path / "one", "phone", quick).config["streams"]["phones"]
    spoken = {one.id: [6, 8] * 4 for one in own.manifest}
    other = write_phones(own.cache, spoken, positions=False).name
    with pytest.raises(CacheError, match="'phones' could be any of these"):
        own.probe(tmp_path / "out", "phone", quick)
    named = own.probe(tmp_path / "named", "phone", replace(quick, streams=(other,)))
    assert named.scores.classes == ("ih_I", "k_B")
    shutil.copy(tmp_path / "one" / "scores.csv", own.run / "scores.csv")
    (own.run / "config.yaml").write_text(f"streams: {{log_mel: log_mel-00000000, phones: {read}}}\n")
    assert own.probe(tmp_path / "out", "phone", quick).config["streams"]["phones"] == read


def test_what_cannot_be_probed_is_refused_in_a_sentence(corpus: Corpus, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def refused(
        error: type[Exception], match: str, target: str = "emotion", config: TrainConfig = CONFIG, **more: Any
    ) -> None:
        with pytest.raises(error, match=match):
            corpus.probe(out, target, config, **more)
        assert not out.exists()

    refused(
        ConfigError,
        "No utterance has the target 'mood' .* exist: id, label, speaker, session, dialogue, gender",
        "mood",
    )
    same = Manifest([replace(one, label="a") for one in corpus.manifest])
    refused(ProtocolError, "Every utterance has the emotion 'a': there is nothing to tell apart", manifest=same)
    codes = dict(corpus.codes)
    refused(UnknownNameError, "no stream in the cache .* 'codes-nothing'", codes={**codes, "S1": "codes-nothing"})
    refused(ConfigError, "has the folds S0, S1, S2, and codes were given for S0", codes={"S0": codes["S0"]})
    turned = {"S0": codes["S1"], "S1": codes["S0"], "S2": codes["S2"]}
    refused(ConfigError, r"codes-\w+ holds codes of the encoder of fold 'S1', which may", codes=turned)
    refused(ConfigError, "it was given log_mel. Leave the streams out", config=replace(CONFIG, streams=("log_mel",)))
    refused(ConfigError, "reads one stream of them", "phone", replace(CONFIG, streams=("phones", "log_mel")))
    refused(ConfigError, "which the head 'mean_pool' does not", "phone", replace(CONFIG, head="mean_pool", settings={}))
    fewer = Manifest(list(corpus.manifest)[1:])
    refused(ProtocolError, r"The manifest lacks 1 utterances of the folds of .* \('u000'\)", manifest=fewer)
    with pytest.raises(ProtocolError, match="has no folds.json, which a trained head leaves there"):
        probe.run(tmp_path, corpus.manifest, corpus.cache, out, "emotion", CONFIG, codes)


def test_any_head_can_be_a_probe(corpus: Corpus, tmp_path: Path) -> None:
    config = replace(
        CONFIG, head="linear_probe", settings={"standardise": False}, fit=replace(FIT, learning_rate=(0.05,))
    )
    assert corpus.probe(tmp_path / "out", "emotion", config).metrics["mean"]["wa"] > 0.9


def test_scores_are_read_back_as_they_were_written(corpus: Corpus, tmp_path: Path) -> None:
    run = corpus.probe(tmp_path / "out", "speaker", replace(CONFIG, fit=replace(FIT, steps=5)))
    found = Scores.read(tmp_path / "out" / "scores.csv")
    assert found.ids == run.scores.ids
    assert np.array_equal(found.probabilities, run.scores.probabilities)
    with pytest.raises(ScoresError, match="is not a run"):
        read_run(tmp_path)


@pytest.mark.parametrize("name", [name for name in preset_names() if name.startswith("makiuchi-probe")])
def test_presets_probe_as_the_paper_except_where_they_say_demo(name: str) -> None:
    preset = read_preset(name)
    config = train_config(preset, {}, [])
    head = load_head(config)
    assert config.validation == 0.1
    if name.endswith("-demo"):
        assert head == MlpProbe(hidden=(256, 128, 128))
        assert f"laptop; narrower layers and {config.fit.steps} steps" in preset["about"]
        assert "none of them the paper's" in preset["about"]
    else:
        assert head == MlpProbe()
        assert config.fit == FitSettings(
            steps=95_000, batch_size=1, learning_rate=(1e-4,), gradient_clip=None, eval_every=9_500, select_by="wa"
        )
