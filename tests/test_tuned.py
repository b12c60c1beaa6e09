"""What fine-tuned encoders have learnt from: kept with them, and held against every fold that reads their features."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from makers import speech_checkpoint

import featcache
from featcache import Manifest, Utterance
from featcache.checkpoints import resolve
from featcache.commit import StreamWriter, store
from featcache.errors import CacheError, CheckpointError, ConfigError, ProtocolError, ScoresError, UnknownNameError
from featcache.families import open_family
from featcache.files import write_json
from featcache.stream import Features, StreamSpec
from featcache.tuned import (
    FLAG,
    PROVENANCE,
    RECORD,
    Tuned,
    fold_checkpoints,
    folder_name,
    read_tuned,
    tuned_from,
    write_tuned,
)
from heads.fit_settings import FitSettings
from heads.fold_files import read_folds
from heads.folds import make_folds
from heads.learnt import Audio, Source, audio_form, audio_of, check_learnt
from heads.protocol import Fold
from pipelines import codes
from pipelines.beginning import shares_of_votes
from pipelines.check import check_run
from pipelines.config import TrainConfig
from pipelines.provenance import LEARNT, records_of_run
from pipelines.restore import restore
from pipelines.train_heads import Preparer, run

FORM = audio_form(16000)
RECORDED = Tuned("ft", "d" * 16, "A", ("u1", "u2"), ("u3",), {"u1": "x1"}, FORM, {"u2": "u9"})
SMALL = FitSettings(steps=4, eval_every=2, batch_size=4)


def corpus(sessions: str = "ABC") -> list[Utterance]:
    """Eight utterances of two classes a session, of one speaker each."""
    return [
        Utterance(f"{session}{number}", audio=f"{session}{number}.wav", label="xy"[number % 2], speaker=f"s{session}",
                  session=session)
        for session in sessions
        for number in range(8)
    ]  # fmt: skip


def write_stream(
    cache: Path, ids: Sequence[str], tuned: Tuned | None = None, digests: Mapping[str, str] = {}, scale: float = 1.0,
    rate_hz: int = 16000, **settings: object,
) -> str:  # fmt: skip
    """Write a stream of two layers, of a fine-tuned encoder where a record is given, and return its full name."""
    checkpoint = None if tuned is None else {"name": tuned.fold, "weights_sha256": "0", **tuned.identity()}
    spec = StreamSpec(
        "toy", 1, "audio", settings, ("a", "b"), 4, frame_shift_s=0.02, sample_rate_hz=rate_hz, dtype="float32",
        checkpoint=checkpoint,
    )  # fmt: skip
    with StreamWriter(cache, spec, "zarr", "frames", tuned=tuned) as writer:
        stored = []
        for number, name in enumerate(ids):
            frames = np.random.default_rng(number).standard_normal((2, 5, 4)).astype(np.float32)
            frames[..., number % 2] += scale
            stored.append(store(name, digests.get(name, f"of {name}"), 0, Features(frames), spec, "frames"))
        writer.commit(stored, {})
    return spec.name


def tuned_for(fold: str, everything: Sequence[Utterance], digest: str = "1" * 16, run: str = "ft") -> Tuned:
    """Return the record of an encoder that was fine-tuned for a session."""
    [part] = [one for one in make_folds(everything, "session") if one.name == fold]
    ids = [*part.train, *part.validation]
    return Tuned(run, digest, fold, part.train, part.validation, {name: f"of {name}" for name in ids}, FORM)


@pytest.fixture
def family(tmp_path: Path) -> tuple[Path, Manifest]:
    """A cache with the stream of each of three folds, and the manifest."""
    everything = corpus()
    for number, fold in enumerate("ABC"):
        write_stream(tmp_path / "cache", [one.id for one in everything], tuned_for(fold, everything), scale=number + 1)
    return tmp_path / "cache", Manifest(everything, tmp_path)


def test_a_kind_alone_is_the_stream_that_was_not_fine_tuned(family: tuple[Path, Manifest]) -> None:
    cache, manifest = family
    with pytest.raises(CacheError, match=r"(?s)could be any of these.*: fold A of ft.*go by the name toy@ft"):
        featcache.open(cache)["toy"]
    own = write_stream(cache, manifest.ids, None)
    assert featcache.open(cache)["toy"].name == own
    other = write_stream(cache, manifest.ids, None, gain=5)
    with pytest.raises(CacheError, match=rf"(?s)could be any of these.*{own}.*: fold B of ft|{other}: settings.gain"):
        featcache.open(cache)["toy"]


def config(*streams: str, **more: object) -> TrainConfig:
    return TrainConfig(head="linear_probe", streams=streams, fit=SMALL, **more)  # type: ignore[arg-type]


def test_a_record_comes_back_as_it_was_written_with_what_came_before(tmp_path: Path) -> None:
    record = replace(RECORDED, before=(replace(RECORDED, fold="ü/<b>"),))
    write_tuned(tmp_path / RECORD, record)
    assert read_tuned(tmp_path / RECORD) == record
    assert record.sha256 != RECORDED.sha256
    assert record.everything() == [record, record.before[0]]


@pytest.mark.parametrize(
    "change",
    [{"format": 2}, {"train": "u1"}, {"fold": None}, {"audio": {"u1": 3}}, {"before": [{}]}, {"validation": [1]}],
)
def test_a_damaged_record_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"format|say"):
        tuned_from({**RECORDED.as_json(), **change})


def test_names_of_folders_hold_whatever_a_fold_is_called() -> None:
    names = ["Ses01", "a/b", "..", ".", "ü" * 200, "ü" * 201, "a%2Fb"]
    folders = [folder_name(name) for name in names]
    assert len(set(folders)) == len(names)
    assert folders[0] == "Ses01"
    assert all("/" not in folder and not folder.startswith(".") and len(folder) < 200 for folder in folders)


def test_a_checkpoint_tells_what_it_learnt_from_and_misses_a_lost_record(tmp_path: Path) -> None:
    folder = speech_checkpoint(tmp_path / "run" / "encoders" / "A")
    plain = resolve(str(folder))
    assert plain.tuned is None
    assert "tuned" not in plain.identity()
    values = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**values, FLAG: RECORDED.sha256})
    with pytest.raises(CheckpointError, match=PROVENANCE):
        resolve(str(folder))
    write_tuned(folder / PROVENANCE, RECORDED)
    found = resolve(str(folder))
    assert found.tuned == RECORDED
    assert found.identity() == {
        **plain.identity(), "config_sha256": found.config_sha256, "tuned": "ft", "fold": "A",
        "tuned_sha256": RECORDED.sha256,
    }  # fmt: skip
    assert fold_checkpoints(tmp_path / "run") == fold_checkpoints(tmp_path / "run" / "encoders") == {"A": folder}
    assert not fold_checkpoints(folder)
    write_tuned(folder / PROVENANCE, replace(RECORDED, train=("u7",)))
    with pytest.raises(CheckpointError, match="was changed"):
        resolve(str(folder))
    (folder / PROVENANCE).write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        resolve(str(folder))


def test_a_stream_whose_record_is_lost_or_changed_is_never_read(family: tuple[Path, Manifest]) -> None:
    cache, manifest = family
    [member] = [one for one in open_family(featcache.open(cache), "toy@ft").members.values() if one.spec.checkpoint and
                one.spec.checkpoint["fold"] == "A"]  # fmt: skip
    record = member.tuned
    assert record is not None
    write_tuned(member.path / RECORD, replace(record, train=()))
    for name in ("toy@ft", member.name):
        with pytest.raises(CacheError, match="was changed after"):
            Preparer(manifest, cache).prepare(config(name))
    (member.path / RECORD).unlink()
    for name in ("toy@ft", member.name):
        with pytest.raises(CacheError, match="it is missing"):
            Preparer(manifest, cache).prepare(config(name))


def test_each_fold_is_trained_and_scored_on_the_stream_of_its_own(family: tuple[Path, Manifest]) -> None:
    cache, manifest = family
    prepared = Preparer(manifest, cache).prepare(config("toy@ft"))
    told = {task.folds[0].name: task.streams["toy@ft"].spec.checkpoint for task in prepared.tasks()}
    assert {fold: (checkpoint or {})["fold"] for fold, checkpoint in told.items()} == {"A": "A", "B": "B", "C": "C"}
    out = cache.parent / "run"
    trained = run(config("toy@ft"), manifest, cache, out)
    assert not trained.folds.problems
    for fold in "ABC":  # as if that fold alone had been trained, on its own stream by name
        [task] = [task for task in prepared.tasks() if task.folds[0].name == fold]
        [alone] = prepared.head.train(task, SMALL, lambda *_: None)
        rows = [row for row, name in enumerate(trained.run.scores.folds) if name == fold]
        np.testing.assert_allclose(trained.run.scores.probabilities[rows], alone.test, atol=1e-6)
    record = trained.run.config or {}
    assert record["streams"] == {"toy@ft": "toy@ft"}
    assert set(record["fold_streams"]["toy@ft"]) == set("ABC")
    assert record["random_weights"] is False
    assert record["parameters"] > 0
    assert run(config("toy@ft"), manifest, cache, out).skipped
    restored = restore(out)
    assert {fold: (restored.specs_of(fold)["toy@ft"].checkpoint or {})["fold"] for fold in "ABC"} == {
        "A": "A", "B": "B", "C": "C"
    }  # fmt: skip
    assert not [problem for problem in check_run(trained.run) if problem.severity == "error"]


def test_the_digest_depends_on_every_folds_stream(family: tuple[Path, Manifest]) -> None:
    cache, manifest = family
    before = Preparer(manifest, cache).prepare(config("toy@ft"))
    last = before.families["toy@ft"].members["C"]
    shutil.rmtree(last.path)
    record = last.spec.checkpoint
    assert record is not None
    everything = list(manifest)
    write_stream(cache, [one.id for one in everything], tuned_for("C", everything), scale=7.0)
    assert Preparer(manifest, cache).prepare(config("toy@ft")).digest != before.digest


def test_another_folds_stream_is_refused_by_its_full_name(family: tuple[Path, Manifest]) -> None:
    cache, manifest = family
    name = open_family(featcache.open(cache), "toy@ft").members["A"].name
    with pytest.raises(ProtocolError, match=r"(?s)fold 'B'.*has learnt from 8 of 8 tested.*'B0'.*toy@ft"):
        Preparer(manifest, cache).prepare(config(name))
    allowed = Preparer(manifest, cache).prepare(config(name, allow=("tuned",)))
    assert {problem.fold for problem in allowed.folds.leaks} == {"B", "C"}


def test_a_single_fold_may_read_its_own_stream_by_its_full_name(family: tuple[Path, Manifest]) -> None:
    cache, manifest = family
    rows = [replace(one, extra={"split": "test" if one.session == "A" else "train"}) for one in manifest]
    name = open_family(featcache.open(cache), "toy@ft").members["A"].name
    prepared = Preparer(Manifest(rows, manifest.folder), cache).prepare(config(name, folds="split"))
    assert not prepared.folds.leaks
    assert any("validation" in str(problem) for problem in prepared.folds.problems)  # cut from what it trained on


def test_a_family_without_a_fold_or_of_two_runs_or_settings_is_refused(family: tuple[Path, Manifest]) -> None:
    cache, manifest = family
    with pytest.raises(CacheError, match="no stream of the fold"):
        Preparer(manifest, cache).prepare(config("toy@ft", folds="random:3"))
    with pytest.raises(UnknownNameError, match="toy@ft"):
        open_family(featcache.open(cache), "toy@other")
    everything = list(manifest)
    ids = [one.id for one in everything]
    write_stream(cache, ids, tuned_for("A", everything), pad="none")
    with pytest.raises(CacheError, match=r"several settings.*\n.*\n.*pad"):
        open_family(featcache.open(cache), "toy@ft")
    named = open_family(featcache.open(cache), "toy@ft".replace("toy", _plain(cache)))
    assert set(named.members) == set("ABC")
    write_stream(cache, ids, tuned_for("B", everything, digest="2" * 16))
    with pytest.raises(CacheError, match="2 runs of that name"):
        open_family(featcache.open(cache), "toy@ft")
    assert set(open_family(featcache.open(cache), f"toy@{'2' * 16}").members) == {"B"}
    with pytest.raises(CacheError, match="one a fold"):
        featcache.open(cache)["toy@ft"]


def _plain(cache: Path) -> str:
    """Return the full name of a stream without settings."""
    opened = featcache.open(cache)
    return next(name for name in opened if not opened[name].spec.settings)


def test_folds_of_the_same_names_from_another_seed_are_warned_of(family: tuple[Path, Manifest]) -> None:
    cache, manifest = family
    prepared = Preparer(manifest, cache).prepare(config("toy@ft", validation=0.5))
    told = [problem for problem in prepared.folds.problems if problem.name == "tuned"]
    assert {problem.fold for problem in told} == set("ABC")
    assert all(problem.severity == "warning" and "validation" in problem.text for problem in told)


FOLD = Fold("A", ("t1",), ("v1",), ("e1", "e2"))
KNOWN = [Utterance(name, label="x", speaker=f"s{name[0]}") for name in ("t1", "v1", "e1", "e2")]

UNKNOWN = Audio()


def found(
    record: Tuned, audio: Audio = UNKNOWN, known: Sequence[Utterance] = KNOWN, fold: Fold = FOLD
) -> list[tuple[str, str]]:
    problems = check_learnt([fold], {"A": [Source("the encoder", record)]}, known, audio)
    return [(problem.name, problem.severity) for problem in problems]


def test_what_was_learnt_is_found_by_ids_and_by_audio() -> None:
    def learnt(*train: str, **more: object) -> Tuned:
        return Tuned("r", "d", "F", train, (), **more)  # type: ignore[arg-type]

    leak, warning = ("tuned", "error"), ("tuned", "warning")
    assert found(learnt("t1", "elsewhere")) == []
    assert found(learnt("e1")) == [leak]
    assert found(replace(learnt(), validation=("e2",))) == [leak]
    assert found(learnt("v1")) == [warning]
    assert found(replace(learnt(), validation=("v1",))) == []
    # Renamed since: the audio tells.
    heard = Audio({"e1": "x1", "e2": "x2"}, FORM)
    assert found(learnt("renamed", audio={"renamed": "x2"}, audio_form="of old"), heard) == [leak]
    # Another corpus of the same ids: its audio differs, where both are known and were taken alike.
    few = Fold("A", ("t1",), (), ("e1", "e2", "e3"))
    assert found(learnt("e1", audio={"e1": "y1"}, audio_form=FORM), heard, fold=few) == [warning]
    # Half of what is tested: the very corpus, converted since.
    assert found(learnt("e1", audio={"e1": "y1"}, audio_form=FORM), heard) == [leak]
    assert found(learnt("e1", audio={"e1": "y1"}, audio_form="16000 Hz, soxr-0"), heard) == [leak]
    assert found(learnt("e1", audio={"e1": "y1"}, audio_form=FORM)) == [leak]
    assert found(learnt("e1"), heard) == [leak]
    # A copy of a tested utterance, by the record's word or by the manifest's; a copy of a copy too.
    assert found(learnt("loud", copies={"loud": "e1"})) == [leak]
    copies = [Utterance("loud", extra={"version_of": "e1"}), Utterance("louder", extra={"version_of": "loud"})]
    assert found(learnt("louder"), known=[*KNOWN, *copies]) == [leak]
    # What it began with counts as well.
    assert found(replace(learnt("t1"), before=(learnt("e1"),))) == [leak]
    # A tested speaker whom the fold itself does not hear.
    spoken = [*KNOWN, Utterance("more", speaker="se")]
    assert found(learnt("more"), known=spoken) == [("speaker", "error")]
    assert found(learnt("more", audio={"more": "y"}, audio_form=FORM), Audio({"more": "z"}, FORM), spoken) == []


def test_tested_speakers_are_found_wherever_they_were_heard() -> None:
    error, warning = ("speaker", "error"), ("speaker", "warning")
    spoken = [*KNOWN, Utterance("more", speaker="se")]
    assert found(Tuned("r", "d", "F", ("t1",), ("more",)), known=spoken) == [error]
    # By the record's own word, of utterances that are not in the manifest.
    gone = Tuned("r", "d", "F", ("t1", "gone"), (), speakers={"t1": "st", "gone": "se"})
    assert found(gone) == [error]
    assert found(replace(gone, speakers={})) == []
    # Of a corpus of which nothing is here, the names alone say little.
    assert found(replace(gone, train=("gone",))) == [warning]
    # Who is tested by an utterance that was learnt itself is told once.
    assert found(replace(gone, train=("e1",), speakers={"e1": "se"})) == [("tuned", "error")]
    both = [*KNOWN[:2], Utterance("e1", speaker="s1"), Utterance("e2", speaker="s2"), Utterance("x", speaker="s2")]
    assert found(Tuned("r", "d", "F", ("e1", "x"), ()), known=both) == [("tuned", "error"), error]


def test_a_record_without_speakers_is_as_it_was() -> None:
    assert "speakers" not in RECORDED.as_json()
    spoken = replace(RECORDED, speakers={"u1": "sü"})
    assert tuned_from(spoken.as_json()) == spoken
    assert spoken.sha256 != RECORDED.sha256
    with pytest.raises(ValueError, match="say"):
        tuned_from({**spoken.as_json(), "speakers": {"u1": 3}})


def test_converted_audio_is_refused_and_says_how_to_name_another_corpus() -> None:
    converted = Tuned("r", "d", "F", ("e1", "e2"), (), {"e1": "y1", "e2": "y2"}, FORM)
    heard = Audio({"e1": "x1", "e2": "x2"}, FORM)
    [problem] = check_learnt([FOLD], {"A": [Source("the encoder", converted)]}, KNOWN, heard)
    assert (problem.name, problem.severity) == ("tuned", "error")
    assert "2 of 2 tested utterances have ids" in problem.text
    assert "converted since" in problem.text
    assert "give them other ids in the manifest" in problem.text


def test_audio_is_known_utterance_by_utterance(tmp_path: Path) -> None:
    write_stream(tmp_path, ["a", "b"], side=1)
    write_stream(tmp_path, ["b", "c"], side=2)
    streams = list(map(featcache.open(tmp_path).__getitem__, featcache.open(tmp_path)))
    audio = audio_of(streams, ["a", "b", "c", "nowhere"])
    assert audio == Audio({"a": "of a", "b": "of b", "c": "of c"}, FORM)
    assert audio_of(streams, ["nowhere"]) == Audio()
    name = write_stream(tmp_path, ["a", "c", "d"], digests={"a": "at 22 kHz"}, rate_hz=22050)
    other = featcache.open(tmp_path)[name]  # whose digests are no match for the others
    assert audio_of([other, *streams], ["a", "b", "c"]) == audio
    assert audio_of([other, *streams], ["d"]) == Audio({"d": "of d"}, audio_form(22050))


def test_what_was_allowed_is_no_speaker_independent_result(family: tuple[Path, Manifest]) -> None:
    cache, manifest = family
    assert Preparer(manifest, cache).prepare(config("toy@ft")).folds.speaker_independent
    name = open_family(featcache.open(cache), "toy@ft").members["A"].name
    assert not Preparer(manifest, cache).prepare(config(name, allow=("tuned",))).folds.speaker_independent


def test_a_lost_or_changed_record_of_a_run_is_missed(family: tuple[Path, Manifest]) -> None:
    cache, manifest = family
    out = cache.parent / "run"
    trained = run(config("toy@ft"), manifest, cache, out)
    kept = (out / LEARNT).read_text()
    write_json(out / LEARNT, {**json.loads(kept), "folds": {}})
    readers: list[Callable[[], object]] = [
        lambda: check_run(trained.run),
        lambda: records_of_run(out),
        lambda: restore(out),
        lambda: Preparer(manifest, cache).prepare(config("toy@ft", start=str(out))),
    ]
    for read in readers:
        with pytest.raises(ScoresError, match="was changed"):
            read()
    (out / LEARNT).unlink()
    for read in readers:
        with pytest.raises(ScoresError, match="is missing"):
            read()
    (out / LEARNT).write_text(kept)
    assert records_of_run(out)["A"].speakers["B0"] == "sB"


def test_codes_of_one_folds_model_are_no_features(tmp_path: Path) -> None:
    everything = corpus()
    spec = StreamSpec(
        "codes", 1, "cache", {"fold": "A"}, ("code",), 4, frame_shift_s=None, sample_rate_hz=None, dtype="float32"
    )
    with StreamWriter(tmp_path / "cache", spec, "zarr", "frames") as writer:
        frames = Features(np.zeros((1, 5, 4), np.float32))
        writer.commit([store(one.id, "d", 0, frames, spec, "frames") for one in everything], {})
    with pytest.raises(ConfigError, match=r"codes of a trained head.*fold 'A'.*featcache probe"):
        Preparer(Manifest(everything, tmp_path), tmp_path / "cache").prepare(config(spec.name))


def test_codes_of_a_run_of_fold_streams_are_refused(family: tuple[Path, Manifest]) -> None:
    cache, manifest = family
    out = cache.parent / "run"
    run(config("toy@ft"), manifest, cache, out)
    with pytest.raises(ConfigError, match=r"each of its folds reads the encoder of its own \(toy@ft\)"):
        codes.run(out, manifest, cache, device="cpu")


def test_two_checkpoints_of_one_fold_are_refused(tmp_path: Path) -> None:
    for name in ("A", "A-backup"):
        write_tuned(tmp_path / name / PROVENANCE, RECORDED)
    with pytest.raises(CheckpointError, match=r"A'.*A-backup'.*both of the fold 'A'"):
        fold_checkpoints(tmp_path)


def test_streams_of_folds_that_are_not_made_are_not_read(family: tuple[Path, Manifest]) -> None:
    cache, manifest = family
    whole = Preparer(manifest, cache).prepare(config("toy@ft"))
    write_stream(cache, ["elsewhere"], replace(tuned_for("A", list(manifest)), fold="D"))
    prepared = Preparer(manifest, cache).prepare(config("toy@ft"))
    assert set(prepared.families["toy@ft"].members) == set("ABC")
    assert prepared.digest == whole.digest


def test_the_run_keeps_what_its_encoders_learnt_from_and_check_finds_it(family: tuple[Path, Manifest]) -> None:
    cache, manifest = family
    out = cache.parent / "run"
    name = open_family(featcache.open(cache), "toy@ft").members["A"].name
    trained = run(config(name, allow=("tuned",)), manifest, cache, out)
    assert (trained.run.config or {})["allowed_leaks"]
    assert {problem.fold for problem in check_run(trained.run) if problem.name == "tuned"} == {"B", "C"}
    records = records_of_run(out)
    assert [one.run for one in records["B"].everything()] == ["run", "ft"]
    assert records["B"].audio["A0"] == "of A0"
    values = json.loads((out / LEARNT).read_text())
    values["folds"]["A"][0]["record"]["train"] = 3
    (out / LEARNT).write_text(json.dumps(values))
    with pytest.raises(ScoresError, match="was changed"):
        check_run(trained.run)


def test_what_begins_with_a_run_is_held_against_what_that_learnt_from(tmp_path: Path) -> None:
    everything = corpus()
    cache, manifest = tmp_path / "cache", Manifest(everything, tmp_path)
    write_stream(cache, [one.id for one in everything])
    first = config("toy", folds="within:session", label="session")
    trained = run(first, manifest, cache, tmp_path / "first")
    inner = {fold.name: fold for fold in trained.folds}
    assert set(inner) == set("ABC")
    assert not any(name.startswith(fold) for fold in "ABC" for part in inner[fold].parts.values() for name in part)
    begun = config("toy", start=str(tmp_path / "first"))
    prepared = Preparer(manifest, cache).prepare(begun)
    assert not prepared.folds.leaks
    assert set(prepared.task().start) == set("ABC")
    # By weights and not by where they lie.
    shutil.copytree(tmp_path / "first", tmp_path / "moved")
    moved = Preparer(manifest, cache).prepare(replace(begun, start=str(tmp_path / "moved")))
    assert moved.digest == prepared.digest != Preparer(manifest, cache).prepare(config("toy")).digest
    run(config("toy", folds="column:speaker"), manifest, cache, tmp_path / "second")
    next_one = {"sA": "sB", "sB": "sC", "sC": "sA"}
    renamed = Manifest([replace(one, speaker=next_one[str(one.speaker)]) for one in everything], tmp_path)
    with pytest.raises(ProtocolError, match=r"the run 'second' has learnt from"):
        Preparer(renamed, cache).prepare(config("toy", folds="speaker", start=str(tmp_path / "second")))
    with pytest.raises(ConfigError, match=r"has no fold '1'.*A, B, C"):
        Preparer(manifest, cache).prepare(replace(begun, folds="random:2"))
    with pytest.raises(ConfigError, match="does not begin with"):
        Preparer(manifest, cache).prepare(replace(begun, head="svm", settings={}))
    with pytest.raises(ScoresError, match="no trained run"):
        Preparer(manifest, cache).prepare(replace(begun, start=str(tmp_path)))


VOTED = [
    Utterance("a", label="x", extra={"votes": {"x": 3, "y": 1}}),
    Utterance("b", label="y", extra={"votes": {"y": 1, "other": 3}}),
    Utterance("c", label="y", extra={"votes": {"other": 3}}),
    Utterance("d", label="y"),
]
LABELS = np.array([0, 1, 1, 1])


def test_votes_become_shares_and_labels_stand_in() -> None:
    shares, voted = shares_of_votes(VOTED, "votes", ("x", "y"), LABELS)
    np.testing.assert_allclose(shares, np.array([[0.75, 0.25], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]))
    assert voted == 2


@pytest.mark.parametrize("votes", [[1, 2], "x", {"x": -1}, {"x": "two"}, {"x": float("nan")}, {"x": True}, 3])
def test_votes_that_are_none_are_refused_by_name(votes: object) -> None:
    with pytest.raises(ConfigError, match="'a' has"):
        shares_of_votes([Utterance("a", extra={"votes": votes})], "votes", ("x",), np.array([0]))


def test_votes_are_a_part_of_what_a_run_is(tmp_path: Path) -> None:
    rows = [replace(one, extra={"votes": {"x": 2, "y": 1}}) for one in corpus()]
    cache, manifest = tmp_path / "cache", Manifest(rows, tmp_path)
    write_stream(cache, [one.id for one in rows])
    prepared = Preparer(manifest, cache).prepare(config("toy", votes="votes"))
    targets = prepared.task().targets
    assert targets is not None
    np.testing.assert_allclose(targets, np.tile([2 / 3, 1 / 3], (24, 1)), rtol=1e-6)
    assert "24 of 24 utterances aim at votes" in prepared.messages[0]
    others = [replace(one, extra={"votes": {"x": 1, "y": 1}}) for one in rows]
    assert Preparer(Manifest(others, tmp_path), cache).prepare(config("toy", votes="votes")).digest != prepared.digest
    with pytest.raises(ConfigError, match="Further columns that exist: votes"):
        Preparer(manifest, cache).prepare(config("toy", votes="ratings"))
    with pytest.raises(ConfigError, match="does not learn from votes"):
        Preparer(manifest, cache).prepare(replace(config("toy", votes="votes"), head="svm"))


def test_a_run_of_fold_streams_has_its_folds_file(family: tuple[Path, Manifest]) -> None:
    cache, manifest = family
    run(config("toy@ft"), manifest, cache, cache.parent / "run")
    assert [fold.name for fold in read_folds(cache.parent / "run" / "folds.json")] == list("ABC")
