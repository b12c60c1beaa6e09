"""The Montreal Forced Aligner is run as its documentation says, and every utterance is accounted for.

A small program stands in for ``mfa`` and behaves as version 3.4.3 was seen to: exit code 0 although a TextGrid is
missing, a blank row of scores for it, unknown words with the one phone ``spn``, exit code 2 for a missing model. Where
the real one is installed, it is run as well.
"""

import csv
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from fake_mfa import DICTIONARY, Fake
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import tone, write_corpus

from featcache import mfa_program
from featcache import open as open_cache
from featcache.aligners.mfa import Mfa
from featcache.alignment import Alignment, Interval, read
from featcache.errors import ConfigError, FeatcacheError, StreamError
from featcache.extract import Options, extract
from featcache.mfa_corpus import QUALITY, dictionary_words, named, transcript
from featcache.mfa_folder import RunFolder, remove_abandoned
from featcache.settings import build
from featcache.stream import Speech
from featcache.streams.alignment import AlignmentStream
from featcache.textgrids import read_textgrid


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    monkeypatch.setenv("PYTHONPATH", "/somewhere/else")
    monkeypatch.delenv("MFA_ROOT_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return Fake(tmp_path / "fake")


def spoken(ident: str, text: str, speaker: str | None = "A", seconds: float = 1.0) -> Speech:
    return Speech(ident, speaker, tone(seconds), 16000, text)


def left_behind(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "temporary").iterdir())


def worked(
    aligner: Mfa,
    speech: Sequence[Speech],
    logs: Path,
    on_message: Callable[[str], None] = lambda _: None,
    workers: int = 2,
) -> list[Alignment | StreamError]:
    session = aligner.session(workers, logs)
    try:
        session.prepare(iter(speech), on_message)
        return list(session.align(speech))
    finally:
        session.close()


def test_the_command_is_the_documented_one(fake: Fake, tmp_path: Path) -> None:
    worked(fake.aligner(), [spoken("one", "hello")], tmp_path / "logs", workers=3)
    asked = fake.asked()[0]
    folder = Path(asked["root"]).parent
    assert asked["argv"] == [
        "align", f"{folder}/corpus", str(fake.dictionary), str(fake.model), f"{folder}/aligned",
        "--clean", "--final_clean", "-j", "3", "--temporary_directory", f"{folder}/root",
    ]  # fmt: skip
    assert asked["pythonpath"] is None
    assert asked["path"].split(os.pathsep)[0] == str(fake.program.parent)
    assert asked["before"] == ["corpus", "lock", "root"]
    assert folder.parent == tmp_path / "temporary"


def test_every_setting_reaches_the_command(fake: Fake, tmp_path: Path) -> None:
    guesser = tmp_path / "g2p.zip"
    guesser.write_bytes(b"g2p")
    aligner = fake.aligner(g2p_model=str(guesser), beam="100", retry_beam=400, single_speaker=True)
    command = aligner.command(fake.program, Path("/run"), 1)
    options = ["--g2p_model_path", str(guesser), "--single_speaker", "--beam", "100", "--retry_beam", "400"]
    assert command[command.index("/run/root") + 1 :] == options
    fake.behave(version="4.0.1")
    assert aligner.command(fake.program, Path("/run"), 1)[1] == "align_legacy"


def test_the_corpus_folder_is_what_mfa_reads(fake: Fake, tmp_path: Path) -> None:
    fake.behave(keep_corpus=str(tmp_path / "seen"))
    speech = [
        spoken("a", "Hello,  [LAUGHTER] world!", "F"),
        spoken("b", "hello", "M", 0.5),
        spoken("c", "world", "F"),
        spoken("d", "hello", None),
        spoken("e", "hello", None),
    ]
    worked(fake.aligner(), speech, tmp_path / "logs")
    labs = {name: text for name, text in fake.asked()[0]["files"].items() if name.endswith(".lab")}
    assert labs == {
        "s0001/u000001.lab": "hello [laughter] world\n",
        "s0002/u000002.lab": "hello\n",
        "s0001/u000003.lab": "world\n",
        "s0003/u000004.lab": "hello\n",
        "s0004/u000005.lab": "hello\n",
    }
    wav = soundfile.info(tmp_path / "seen" / "s0002" / "u000002.wav")
    assert (wav.samplerate, wav.channels, wav.subtype, wav.frames) == (16000, 1, "PCM_16", 8000)
    samples, _ = soundfile.read(tmp_path / "seen" / "s0002" / "u000002.wav", dtype="float32")
    np.testing.assert_allclose(samples, speech[1].samples, atol=1 / 32768)
    log = next((tmp_path / "logs").iterdir())
    table = list(csv.reader((log / "utterances.csv").read_text().splitlines()))
    assert table[:2] == [["file", "id"], ["s0001/u000001", "a"]]


def test_numbers_are_spelt_in_english_and_kept_in_other_languages(fake: Fake, tmp_path: Path) -> None:
    speech = [spoken("one", "Hello 42 [door slams]")]
    worked(fake.aligner(), speech, tmp_path / "logs")
    worked(fake.aligner(symbols="other"), speech, tmp_path / "logs")
    texts = [run["files"]["s0001/u000001.lab"] for run in fake.asked()]
    assert texts == ["hello forty two [door_slams]\n", "Hello 42 [door_slams]\n"]


def test_words_phones_scores_and_unknown_words_come_back(fake: Fake, tmp_path: Path) -> None:
    (found,) = worked(fake.aligner(), [spoken("one", "Hello blorf, [BREATHING] (laughter) world")], tmp_path / "logs")
    assert isinstance(found, Alignment)
    assert [word.label for word in found.words] == ["hello", "blorf", "[BREATHING]", "[LAUGHTER]", "world"]
    assert [phone.label for phone in found.phones][4:7] == ["spn", "[BREATHING]", "[LAUGHTER]"]
    assert found.words[0] == Interval(0.0, 0.2, "hello")
    assert found.unknown_words == ("blorf",)
    assert list(found.quality) == list(QUALITY)
    assert found.quality["snr"] == 3.66
    assert np.isnan(found.quality["intensity_deviation"])


def test_guessed_words_are_listed_and_joined_ones_are_not(fake: Fake, tmp_path: Path) -> None:
    guesser = tmp_path / "g2p.zip"
    guesser.write_bytes(b"g2p")
    (found,) = worked(fake.aligner(g2p_model=str(guesser)), [spoken("one", "dog's blorf")], tmp_path / "logs")
    assert isinstance(found, Alignment)
    assert found.unknown_words == ("blorf",)
    assert "B" in [phone.label for phone in found.phones]


def test_whoever_comes_back_without_textgrid_is_named_with_its_reason(fake: Fake, tmp_path: Path) -> None:
    speech = [
        spoken("good", "hello"), spoken("wrong", "unspoken text"), spoken("gone", "dropped"),
        spoken("silent", " ... !"), spoken("short", "hello", seconds=0.02), spoken("empty", "hello", seconds=0.0),
    ]  # fmt: skip
    told: list[str] = []
    good, *bad = worked(fake.aligner(), speech, tmp_path / "logs", told.append)
    assert isinstance(good, Alignment)
    assert all(isinstance(one, StreamError) for one in bad)
    wrong, gone, silent, short, empty = map(str, bad)
    assert "MFA gave it no alignment. Its scores are blank" in wrong
    assert "beam=100" in wrong
    assert "dropped it before aligning" in gone
    assert "has no word" in silent
    assert "0.020 s is shorter than one phone" in short
    assert "0.000 s is shorter than one phone" in empty
    assert told[-1].startswith("mfa: 1 of 3 aligned; its log is ")
    stranger = fake.aligner().session(1, tmp_path / "logs")
    assert "was not given to MFA" in str(stranger.align([speech[0]])[0])


def test_a_run_without_scores_gives_nan(fake: Fake, tmp_path: Path) -> None:
    fake.behave(no_analysis=True)
    good, bad = worked(fake.aligner(), [spoken("a", "hello"), spoken("b", "unspoken")], tmp_path / "logs")
    assert isinstance(good, Alignment)
    assert all(np.isnan(value) for value in good.quality.values())
    assert "Most often the text is not what is spoken" in str(bad)


def test_none_aligned_fails_each_and_not_the_run(fake: Fake, tmp_path: Path) -> None:
    fake.behave(none=True)
    found = worked(fake.aligner(), [spoken("a", "hello"), spoken("b", "world")], tmp_path / "logs")
    assert ["MFA gave it no alignment" in str(one) for one in found] == [True, True]


def test_nothing_to_align_does_not_start_the_program(fake: Fake, tmp_path: Path) -> None:
    assert isinstance(worked(fake.aligner(), [spoken("a", "...")], tmp_path / "logs")[0], StreamError)
    assert not fake.record.exists() or fake.asked() == []
    assert left_behind(tmp_path) == []
    assert not (tmp_path / "logs").exists()


def test_a_refusal_says_what_to_download_of_what_was_given_by_name(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.behave(refuse=True)
    with pytest.raises(ConfigError, match=r"said: Error \| Could not find a model named x\.") as raised:
        worked(fake.aligner(), [spoken("a", "hello")], tmp_path / "logs")
    assert "download" not in str(raised.value)
    for kind, path in (("dictionary", fake.dictionary), ("g2p", fake.model)):
        installed = tmp_path / "root" / "pretrained_models" / kind
        installed.mkdir(parents=True)
        (installed / path.name).write_bytes(path.read_bytes())
    monkeypatch.setenv("MFA_ROOT_DIR", str(tmp_path / "root"))
    aligner = fake.aligner(dictionary="english", g2p_model="english")
    expected = r"fetched by 'mfa model download dictionary english' and 'mfa model download g2p english'\. The log"
    with pytest.raises(ConfigError, match=expected) as raised:
        worked(aligner, [spoken("a", "hello")], tmp_path / "logs")
    assert "acoustic" not in str(raised.value)
    assert left_behind(tmp_path) == []


def test_a_crash_is_told_with_its_last_lines_and_its_log(fake: Fake, tmp_path: Path) -> None:
    fake.behave(traceback=True)
    with pytest.raises(FeatcacheError, match="failed with code 1.*Error opening x.wav.*The log is") as raised:
        worked(fake.aligner(), [spoken("a", "hello")], tmp_path / "logs")
    (log,) = (tmp_path / "logs").iterdir()
    assert str(log) in str(raised.value)
    assert log.name.startswith("mfa-20")
    assert log.name.endswith(f"-{os.getpid()}")
    assert "Error opening x.wav" in (log / "output.txt").read_text()
    assert (log / "log" / "align.1.log").read_text() == "kaldi\n"
    assert left_behind(tmp_path) == []


def test_the_log_is_kept_although_mfa_removes_its_own(fake: Fake, tmp_path: Path) -> None:
    worked(fake.aligner(), [spoken("a", "hello")], tmp_path / "logs")
    (log,) = (tmp_path / "logs").iterdir()
    assert "Aligned 1, errors on 1" in (log / "corpus.log").read_text()
    assert (log / "output.txt").read_text().startswith(f"{fake.program} align ")
    assert (log / "alignment_analysis.csv").exists()
    assert left_behind(tmp_path) == []


def test_progress_is_shown_as_plain_lines(fake: Fake, tmp_path: Path) -> None:
    told: list[str] = []
    worked(fake.aligner(), [spoken("a", "hello")], tmp_path / "logs", told.append)
    assert told[:3] == ["mfa: Setting up corpus information...", "mfa: 50% 1/2", "mfa: 100% 2/2 [ 0:00:02 < 0:00:00 ]"]
    assert told[3] == "mfa: Done! Everything took 23.064 seconds"


def test_ids_and_speakers_of_any_kind_are_safe(fake: Fake, tmp_path: Path) -> None:
    ids = ["../../etc/passwd", "a b", ".", "x" * 10_000, "日本語", "-j", "nul\0", "\ud800"]
    speech = [spoken(ident, f"hello {'blorf ' * number}", ident) for number, ident in enumerate(ids)]
    found = worked(fake.aligner(), [*speech, speech[0]], tmp_path / "logs")
    assert [len(one.words) for one in found if isinstance(one, Alignment)] == [1, 2, 3, 4, 5, 6, 7, 8, 1]
    assert sorted(fake.asked()[0]["files"])[::2] == [f"s{n:04d}/u{n:06d}.lab" for n in range(1, 9)]


def test_runs_side_by_side_share_no_folder(fake: Fake, tmp_path: Path) -> None:
    speech = [spoken("a", "hello")]
    threads = [threading.Thread(target=worked, args=(fake.aligner(), speech, tmp_path / "logs")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runs = fake.asked()
    assert len({run["root"] for run in runs}) == len({run["argv"][1] for run in runs}) == 4
    assert len(list((tmp_path / "logs").iterdir())) == 4
    assert left_behind(tmp_path) == []
    assert not (tmp_path / "home").exists()


def alive(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


@pytest.fixture
def pids(tmp_path: Path) -> Callable[[], list[int]]:
    file = tmp_path / "pids"
    return lambda: [int(part) for part in file.read_text().split()]


def test_an_interruption_ends_every_process_and_keeps_the_log(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pids: Callable[[], list[int]]
) -> None:
    monkeypatch.setattr(mfa_program, "_TICK_S", 0.05)
    fake.behave(child=str(tmp_path / "pids"))
    told: list[str] = []

    def stop(line: str) -> None:
        told.append(line)
        if (tmp_path / "pids").exists() and line.endswith(" s)"):  # while the program says nothing
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        worked(fake.aligner(), [spoken("a", "hello")], tmp_path / "logs", stop)
    assert told[-1].startswith("mfa: 100% 2/2 [ 0:00:02 < 0:00:00 ] (")
    assert [alive(process) for process in pids()] == [False, False]
    assert left_behind(tmp_path) == []
    (log,) = (tmp_path / "logs").iterdir()
    assert "Setting up" in (log / "output.txt").read_text()
    assert "Beginning run" in (log / "corpus.log").read_text()


CHILD = """
import json, sys
from pathlib import Path
from featcache.manifest import Manifest
from pipelines import align
manifest, cache, settings = sys.argv[1:]
align.run(Manifest.read(Path(manifest)), Path(cache), "mfa", json.loads(settings), None, {"workers": 1})
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_command_cleans_up(
    fake: Fake, tmp_path: Path, pids: Callable[[], list[int]], how: signal.Signals
) -> None:
    fake.behave(child=str(tmp_path / "pids"))
    corpus = write_corpus(tmp_path / "corpus", [1.0])
    corpus.write(tmp_path / "corpus" / "manifest.jsonl")
    models = [f"acoustic_model={fake.model}", f"dictionary={fake.dictionary}", f"program={fake.program}"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, corpus.folder / "manifest.jsonl", tmp_path / "cache", json.dumps(models)],
        env=environment | {"TMPDIR": str(tmp_path / "temporary")}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    until = time.monotonic() + 60
    while not (tmp_path / "pids").exists() and child.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    child.send_signal(how)
    assert child.wait(60) != 0
    # A process that is killed cannot wait until its watcher has cleaned up.
    until = time.monotonic() + (20 if how is signal.SIGKILL else 0)
    while time.monotonic() < until and (
        left_behind(tmp_path) or any(map(alive, pids())) or not list(tmp_path.glob("cache/logs/*/output.txt"))
    ):
        time.sleep(0.05)
    assert [alive(process) for process in pids()] == [False, False]
    assert left_behind(tmp_path) == []
    (log,) = (tmp_path / "cache" / "logs").iterdir()
    assert "Setting up" in (log / "output.txt").read_text()


def test_what_a_killed_run_left_is_removed_by_the_next_and_what_is_in_use_is_not(fake: Fake, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    for name in ("dead", "live"):
        (temporary / f"featcache-mfa-{name}" / "corpus").mkdir(parents=True)
        (temporary / f"featcache-mfa-{name}" / "corpus" / "u.wav").write_bytes(b"x")
        (temporary / f"featcache-mfa-{name}" / "lock").touch()
    (temporary / "featcache-mfa-empty").mkdir()
    (temporary / "featcache-mfa-other").mkdir()
    (temporary / "featcache-mfa-other" / "no lock of ours").touch()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "lock").touch()
    (temporary / "featcache-mfa-link").symlink_to(tmp_path / "kept")
    with (temporary / "featcache-mfa-live" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        worked(fake.aligner(), [spoken("a", "hello")], tmp_path / "logs")
        assert left_behind(tmp_path) == ["featcache-mfa-link", "featcache-mfa-live", "featcache-mfa-other"]
    assert (tmp_path / "kept" / "lock").exists()
    worked(fake.aligner(), [spoken("a", "hello")], tmp_path / "logs")
    assert "featcache-mfa-live" not in left_behind(tmp_path)


def test_a_folder_in_use_is_locked_and_no_watcher_stays_behind(fake: Fake) -> None:
    folder = RunFolder()
    remove_abandoned()
    assert (folder.path / "lock").is_file()
    watcher = folder._watcher
    assert watcher is not None
    assert watcher.poll() is None
    folder.close()
    assert watcher.poll() == 0
    assert not folder.path.exists()


def test_without_its_watcher_a_run_goes_on(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder()
    assert folder._watcher is not None
    folder._watcher.kill()
    folder._watcher.wait()
    folder.follow(0)
    folder.close()
    assert not folder.path.exists()
    monkeypatch.setattr(sys, "executable", "/none/python")
    assert isinstance(worked(fake.aligner(), [spoken("a", "hello")], tmp_path / "logs")[0], Alignment)
    assert left_behind(tmp_path) == []


def test_a_program_that_ends_and_leaves_a_process_is_not_waited_for(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pids: Callable[[], list[int]]
) -> None:
    monkeypatch.setattr(mfa_program, "_TICK_S", 0.05)
    monkeypatch.setattr(mfa_program, "_STRAGGLE_S", 0.2)
    fake.behave(child=str(tmp_path / "pids"), leave=True)
    with pytest.raises(FeatcacheError, match="failed with code 1"):
        worked(fake.aligner(), [spoken("a", "hello")], tmp_path / "logs")
    assert [alive(process) for process in pids()] == [False, False]


def test_no_room_is_told_with_the_remedy(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(soundfile, "write", full)
    with pytest.raises(FeatcacheError, match="No space left.*TMPDIR"):
        worked(fake.aligner(), [spoken("a", "hello")], tmp_path / "logs")
    assert left_behind(tmp_path) == []


def test_the_identity_is_versions_and_contents_and_not_places(fake: Fake, tmp_path: Path, monkeypatch: Any) -> None:
    def spec(aligner: Mfa) -> str:
        settings = {name: value for name, value in vars(aligner).items() if value is not None}
        return AlignmentStream("mfa", settings).spec().digest

    first = spec(fake.aligner())
    installed = tmp_path / "root" / "pretrained_models"
    for kind, path in (("acoustic", fake.model), ("dictionary", fake.dictionary)):
        (installed / kind).mkdir(parents=True)
        (installed / kind / path.name).write_bytes(path.read_bytes())
    monkeypatch.setenv("MFA_ROOT_DIR", str(tmp_path / "root"))
    by_name = Mfa(acoustic_model="english", dictionary="english", program=str(fake.program))
    assert spec(by_name) == first
    moved = tmp_path / "elsewhere" / "mfa"
    moved.parent.mkdir()
    fake.program.rename(moved)
    assert spec(replace(by_name, program=str(moved))) == first
    monkeypatch.setenv("PATH", f"{moved.parent}{os.pathsep}{os.environ['PATH']}")
    assert spec(replace(by_name, program=None)) == first
    renamed = tmp_path / "another_name.txt"
    renamed.write_bytes(fake.dictionary.read_bytes())
    assert spec(replace(by_name, dictionary=str(renamed), program=str(moved))) == first
    for other in (replace(by_name, beam=20), replace(by_name, single_speaker=True), replace(by_name, symbols="other")):
        assert spec(replace(other, program=str(moved))) != first
    with monkeypatch.context() as patch:
        patch.setattr("featcache.aligners.mfa.SILENCE", frozenset({"hush"}))
        assert spec(replace(by_name, program=str(moved))) != first
    fake.dictionary.write_text(DICTIONARY + "blorf\tB L AO1 R F\n")
    assert spec(replace(fake.aligner(), program=str(moved))) != first


def test_the_version_is_asked_once(fake: Fake, tmp_path: Path) -> None:
    for _ in range(3):
        assert fake.aligner().identity().libraries["montreal-forced-aligner"] == "3.4.3"
    assert fake.record.read_text() == "version\n"
    assert mfa_program.status(str(fake.program)) == mfa_program.Status(fake.program, "3.4.3", "")
    assert left_behind(tmp_path) == []


def test_a_missing_program_says_how_to_install_it(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = "no program 'mfa' at '/none/mfa'.*conda env create -f environment.yml.*set program to the path"
    with pytest.raises(ConfigError, match=expected):
        fake.aligner(program="/none/mfa").identity()
    monkeypatch.setenv("PATH", "/none")
    with pytest.raises(ConfigError, match="no program 'mfa' on PATH"):
        fake.aligner(program=None).identity()
    assert mfa_program.status().path is None


@pytest.mark.parametrize(
    ("how", "reason"),
    [({"no_kalpy": True}, "code 1 and \"ModuleNotFoundError: No module named '_kalpy'\""),
     ({"version": "None"}, "code 0 and 'None'"), ({"version": "2.2.17"}, "is version 2.2.17"),
     ({"version": "5.0.0"}, "is version 5.0.0")],
)  # fmt: skip
def test_a_program_that_does_not_run_is_told_apart(fake: Fake, how: dict[str, Any], reason: str) -> None:
    fake.behave(**how)
    with pytest.raises(ConfigError) as raised:
        fake.aligner().identity()
    assert reason in str(raised.value)
    assert "conda env create" in str(raised.value)
    state = mfa_program.status(str(fake.program))
    assert (state.path, state.version, state.problem) == (fake.program, None, str(raised.value))


def test_missing_models_say_how_to_get_them(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "root" / "pretrained_models" / "acoustic"
    folder.mkdir(parents=True)
    (folder / "german_mfa.zip").write_bytes(b"")
    monkeypatch.setenv("MFA_ROOT_DIR", str(tmp_path / "root"))
    expected = "installed there: german_mfa. Download it with 'mfa model download acoustic english_us_arpa'"
    with pytest.raises(ConfigError, match=expected):
        Mfa(program=str(fake.program)).identity()
    with pytest.raises(ConfigError, match="no file '/none/x.zip' for MFA's acoustic model"):
        fake.aligner(acoustic_model="/none/x.zip").identity()
    with pytest.raises(ConfigError, match=r"ends in \.dict or \.txt"):
        fake.aligner(dictionary=str(fake.model)).identity()
    with pytest.raises(ConfigError, match="YAML files of several models"):
        fake.aligner(dictionary="speakers.yaml").identity()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"beam": 0}, "beam must be at least 1"), ({"beam": 40, "retry_beam": 40}, "retry_beam must be larger than beam"),
     ({"retry_beam": 10}, r"larger than beam \(10\)"), ({"symbols": "x"}, "symbols"), ({"beams": 1}, "no setting")],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        build(Mfa, settings, "aligner mfa")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello.", ("Hello.", ())),
        ("[LAUGHTER]", ("[laughter]", ("LAUGHTER",))),
        ("a(loud noise)b <breath!>", ("a [loud_noise] b [breath]", ("LOUD_NOISE", "BREATH"))),
        ("one\n\ttwo\0 [] [unclosed {x", ("one two unclosed x", ())),
        ("[a [b] c]", ("a [b] c", ("B",))),
        ("Schön, 日本!", ("Schön, 日本!", ())),
    ],
)
def test_transcripts_keep_their_words_and_name_their_events(text: str, expected: tuple[str, tuple[str, ...]]) -> None:
    assert transcript(text) == expected


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet=st.sampled_from("aB'é1 .[](){}<>\n\0\x01\ud800"), max_size=30))
def test_any_transcript_has_as_many_bracketed_words_as_events(text: str) -> None:
    cleaned, events = "", ()
    with suppress(StreamError):
        cleaned, events = transcript(text)
    assert [word[1:-1].upper() for word in cleaned.split() if word.startswith("[")] == list(events)
    assert not set(cleaned) & set("(){}<>\n\0\x01")


def test_events_that_cannot_be_matched_keep_the_name_that_mfa_gave(tmp_path: Path) -> None:
    intervals = (Interval(0.0, 0.1, "[laughter]"), Interval(0.1, 0.2, "<unk>"))
    phones = (Interval(0.0, 0.1, "spn"), Interval(0.1, 0.2, "spn"))
    found = named(Alignment(intervals, phones), ("COUGH", "LAUGHTER"))
    assert [word.label for word in found.words] == ["[LAUGHTER]", "<unk>"]
    assert [phone.label for phone in found.phones] == ["[LAUGHTER]", "spn"]
    assert found.unknown_words == ("<unk>",)


def test_a_corpus_goes_through_the_cache(fake: Fake, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [2.5, 3.0, 2.2])
    utterances = [replace(one, text=text) for one, text in zip(corpus, ("hello world", "unspoken", "dog"), strict=True)]
    manifest = type(corpus)(utterances, folder=corpus.folder)
    settings = {"acoustic_model": str(fake.model), "dictionary": str(fake.dictionary), "program": str(fake.program)}
    told: list[str] = []
    stream = AlignmentStream("mfa", settings)
    summary = extract(manifest, tmp_path / "cache", stream, Options(workers=1), on_message=told.append)
    assert list(summary.failures) == ["u001"]
    assert "MFA gave it no alignment" in summary.failures["u001"]
    held = open_cache(tmp_path / "cache")["alignment"]
    assert [word.label for word in read(held, "u000").words] == ["hello", "world"]
    assert held.array("snr", ["u000"]) == 3.66
    assert "mfa: Done! Everything took 23.064 seconds" in told
    assert left_behind(tmp_path) == []
    again = extract(manifest, tmp_path / "cache", stream, Options(workers=1))
    assert again.failures == summary.failures


@pytest.fixture(scope="session")
def shared_run(shared_data: Path) -> Path:
    return shared_data / "alignment" / "mfa"


def shared_speech(shared_run: Path, count: int) -> list[Speech]:
    found = []
    for lab in sorted((shared_run / "corpus").rglob("*.lab"))[:count]:
        samples, rate = soundfile.read(lab.with_suffix(".wav"), dtype="float32")
        found.append(Speech(lab.stem, lab.parent.name, samples, rate, lab.read_text()))
    return found


def test_real_textgrids_come_back_whole(fake: Fake, shared_run: Path, tmp_path: Path) -> None:
    speech = shared_speech(shared_run, 60)
    grids = {one.id: shared_run / "aligned" / str(one.speaker) / f"{one.id}.TextGrid" for one in speech}
    fake.behave(real={" ".join(re.findall("[a-z']+", one.text.lower())): str(grids[one.id]) for one in speech})
    found = worked(fake.aligner(), speech, tmp_path / "logs")
    assert len({one.text for one in speech}) == 60
    for one, aligned in zip(speech, found, strict=True):
        assert isinstance(aligned, Alignment)
        words, phones, _ = read_textgrid(grids[one.id])
        assert (aligned.words, aligned.phones, aligned.unknown_words) == (words, phones, ())


def test_the_real_dictionary_has_every_word_of_the_real_corpus(shared_run: Path) -> None:
    words = dictionary_words(shared_run / "dictionary.txt")
    grids = [read_textgrid(path) for path in (shared_run / "aligned" / "spk1").glob("*.TextGrid")]
    assert {word.label for grid in grids for word in grid.words} <= words


def test_the_real_program_aligns_the_real_corpus(shared_run: Path, tmp_path: Path) -> None:
    if mfa_program.status().version is None:
        pytest.skip("the Montreal Forced Aligner is not installed")
    speech = shared_speech(shared_run, 240)
    speech[1] = replace(speech[1], text=speech[1].text + " blorfing")
    aligner = Mfa(acoustic_model=str(shared_run / "acoustic_model.zip"), dictionary=str(shared_run / "dictionary.txt"))
    told: list[str] = []
    found = worked(aligner, speech, tmp_path / "logs", told.append)
    apart_s = []
    for one, aligned in zip(speech, found, strict=True):
        assert isinstance(aligned, Alignment), one.id
        grid = read_textgrid(shared_run / "aligned" / str(one.speaker) / f"{one.id}.TextGrid")
        if one is not speech[1]:
            assert [word.label for word in aligned.words] == [word.label for word in grid.words]
            apart_s += [abs(a.start_s - b.start_s) for a, b in zip(aligned.words, grid.words, strict=True)]
            assert np.isfinite(aligned.quality["overall_log_likelihood"])
    assert np.mean(np.array(apart_s) <= 0.0101) > 0.95
    unknown = found[1]
    assert isinstance(unknown, Alignment)
    assert unknown.unknown_words == ("blorfing",)
    assert any("Done!" in line for line in told)
