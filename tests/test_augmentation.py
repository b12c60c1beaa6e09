"""Augmented copies: what each effect does, that a seed decides every byte, and that one bad file fails alone."""

import io
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from makers import tone, write_corpus
from typer.testing import CliRunner

import featcache
from featcache import Manifest, Utterance
from featcache.audio import Recording, decode
from featcache.augmentation import EFFECTS, Copy, augmented, draw, read_recipe
from featcache.errors import AudioError, ConfigError, FeatcacheError, ManifestError, UnknownNameError
from pipelines import augment
from pipelines.cli_augment import app

QUICK = {"noise": {"noise": (10.0, 20.0)}, "late": {"shift": (0.1, 0.2), "noise": (0.0, 5.0)}}
RATE = 16000


def made(effects: dict[str, float], samples: np.ndarray, name: str = "u") -> np.ndarray:
    """Return the samples of a copy."""
    content = augmented(Recording(samples, RATE), Copy(name, "k", 1, 0, effects))
    found, rate = soundfile.read(io.BytesIO(content), dtype="float32")
    assert rate == RATE
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_corpus(tmp_path / "corpus", [0.3, 0.4, 0.5])


def test_noise_has_the_ratio_that_was_drawn() -> None:
    samples = tone(1.0)
    for snr_db in (0.0, 10.0, 25.0):
        noise = made({"noise": snr_db}, samples) - samples
        found = 10 * np.log10(np.mean(samples**2.0) / np.mean(noise**2.0))
        assert found == pytest.approx(snr_db, abs=0.15)
    assert not np.allclose(made({"noise": 10.0}, samples), made({"noise": 10.0}, samples, name="other"), atol=1e-3)


def test_pitch_moves_the_pitch_and_keeps_the_length() -> None:
    time_s = np.arange(RATE) / RATE
    samples = (0.5 * np.sin(2 * np.pi * 440 * time_s)).astype(np.float32)
    for semitones in (-12.0, 2.0):
        found = made({"pitch": semitones}, samples)
        assert len(found) == len(samples)
        peak = np.abs(np.fft.rfft(found * np.hanning(len(found)))).argmax()
        assert peak == pytest.approx(440 * 2 ** (semitones / 12), abs=3)


def test_stretch_changes_the_length_and_keeps_the_pitch() -> None:
    samples = (0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)
    found = made({"stretch": 1.25}, samples)
    assert len(found) == RATE / 1.25
    assert np.abs(np.fft.rfft(found)).argmax() * RATE / len(found) == pytest.approx(440, abs=5)
    assert len(made({"stretch": 0.8}, samples)) == RATE / 0.8


def test_shift_is_around_the_end() -> None:
    samples = tone(0.5)
    np.testing.assert_allclose(made({"shift": 0.1}, samples), np.roll(samples, 1600), atol=1 / 32768)
    np.testing.assert_allclose(made({"shift": -0.7}, samples), np.roll(samples, -11200), atol=1 / 32768)


def test_effects_follow_one_another() -> None:
    samples = tone(0.5)
    both = made({"shift": 0.1, "stretch": 2.0}, samples)
    shifted = made({"shift": 0.1}, samples)
    np.testing.assert_allclose(both, made({"stretch": 2.0}, shifted), atol=1e-3)


def test_what_exceeds_full_scale_is_made_quieter_as_a_whole() -> None:
    samples = 0.99 * tone(0.5) / np.abs(tone(0.5)).max()
    found = made({"shift": 0.01, "noise": 5.0}, samples)
    assert 0.99 < np.abs(found).max() < 1
    assert (np.abs(found) > 0.98).sum() < 5


def test_audio_that_an_effect_cannot_take_is_named() -> None:
    for effect in ("pitch", "stretch"):
        with pytest.raises(AudioError, match="it has 2047 samples; pitch and stretch need 2048 or more"):
            made({effect: 1.0}, tone(1.0)[:2047])
    assert len(made({"noise": 10.0, "shift": 0.2}, tone(1.0)[:1])) == 1
    with pytest.raises(AudioError, match="too quiet to be written with 16 bits"):
        made({"shift": 0.1}, np.full(100, 1e-6, np.float32))


def test_what_is_drawn_lies_in_its_range_and_follows_seed_id_kind_and_number_alone() -> None:
    recipe = read_recipe("noise,pitch,stretch,shift")
    first = [one.drawn for one in draw(recipe, "u", 50, 3)]
    assert [one.drawn for one in draw(recipe, "u", 60, 3)][:50] == first[:50]
    assert draw({"pitch": recipe["pitch"]}, "u", 50, 3) == [
        one for one in draw(recipe, "u", 50, 3) if one.name == "pitch"
    ]
    for effect, one in EFFECTS.items():
        amounts = [copy.effects[effect] for copy in draw(recipe, "u", 50, 3) if copy.name == effect]
        assert one.usual[0] <= min(amounts) < max(amounts) <= one.usual[1]
        assert len(set(amounts)) == 50
        assert amounts != [copy.effects[effect] for copy in draw(recipe, "v", 50, 3) if copy.name == effect]
        assert amounts != [copy.effects[effect] for copy in draw(recipe, "u", 50, 4) if copy.name == effect]


def test_recipes_are_effects_or_files(tmp_path: Path) -> None:
    assert read_recipe("pitch, noise") == {"pitch": {"pitch": (-2.0, 2.0)}, "noise": {"noise": (10.0, 30.0)}}
    path = tmp_path / "own.yaml"
    path.write_text("far: {pitch: [-4, 4], noise: 5}\nplain: {shift: }\n")
    assert read_recipe(str(path)) == {
        "far": {"pitch": (-4.0, 4.0), "noise": (5.0, 5.0)}, "plain": {"shift": (-0.25, 0.25)}
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("far: {echo: 3}", "There is no effect 'echo'. Known: noise, pitch, shift, stretch"),
        ("far: {noise: [30, 10]}", "noise takes snr_db as two numbers, least and most, of -20 to 100"),
        ("far: {noise: [1, 2, 3]}", "noise takes snr_db as two numbers"),
        ("far: {stretch: 0}", "stretch takes speed as two numbers, least and most, of 0.25 to 4"),
        ("far: {pitch: [.nan, 1]}", "pitch takes semitones as two numbers"),
        ("far: {pitch: [low, high]}", "pitch takes semitones as two numbers"),
        ("far: {pitch: [true, true]}", "pitch takes semitones as two numbers"),
        ("far: noise", "give its effects with their ranges"),
        ("Far Away: {noise: 3}", "named with a to z, 0 to 9 and hyphens"),
        ("'../up': {noise: 3}", "named with a to z, 0 to 9 and hyphens"),
        ("[noise]", "must hold kinds of copies by name"),
        ("", "must hold kinds of copies by name"),
        ("{", "cannot be read"),
    ],
)
def test_recipes_that_cannot_be_are_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(FeatcacheError, match=words):
        read_recipe(str(path))


def test_names_of_effects_are_checked() -> None:
    with pytest.raises(UnknownNameError, match="no effect 'echo'"):
        read_recipe("noise,echo")
    with pytest.raises(ConfigError, match="occurs twice"):
        read_recipe("noise,noise")
    with pytest.raises(ConfigError, match="There is no recipe 'none.yaml'"):
        read_recipe("none.yaml")


def test_the_manifest_lists_originals_and_copies(tmp_path: Path, manifest: Manifest) -> None:
    extra = {"votes": {"sad": 2}, "num_samples": 4800, "duration_s": 0.3, "sample_rate_hz": RATE}
    rows = [replace(manifest[0], start_s=0.05, end_s=0.25, extra=extra), *manifest[1:]]
    done = augment.run(Manifest(rows, manifest.folder), tmp_path / "out", QUICK, copies=2, seed=7, workers=1)
    assert (done.num_originals, done.num_copies, done.num_made, done.failures) == (3, 12, 12, {})
    written = Manifest.read(tmp_path / "out" / "manifest.jsonl")
    assert written.ids[:6] == ["u000", *(f"u000~{kind}-{n}" for kind in ("noise", "late") for n in (1, 2)), "u001"]
    for original in rows:
        there = written.utterance(original.id)
        assert replace(there, audio=original.audio) == original
        assert written.audio_path(there) == manifest.folder / original.audio
    copy = written.utterance("u000~late-2")
    assert (copy.text, copy.label, copy.speaker, copy.session) == (rows[0].text, "sad", "s0", "s0")
    assert (copy.start_s, copy.end_s) == (None, None)
    assert (copy.audio or "").startswith("audio/u000-late-2-")
    assert set(copy.extra) == {"votes", "version_of", "augmentation"}
    assert copy.extra["version_of"] == "u000"
    [expected] = [one.drawn for one in draw(QUICK, "u000", 2, 7) if one.id == copy.id]
    assert copy.extra["augmentation"] == expected
    assert set(expected) == {"shift_s", "snr_db"}
    assert len(decode(written.audio_path(copy)).samples) == 3200


def test_the_same_seed_gives_the_same_bytes_however_many_work_and_in_any_order(
    tmp_path: Path, manifest: Manifest
) -> None:
    augment.run(manifest, tmp_path / "one", QUICK, seed=1, workers=1)
    augment.run(manifest.select(reversed(manifest.ids)), tmp_path / "two", QUICK, seed=1, workers=2)
    assert files(tmp_path / "one" / "audio") == files(tmp_path / "two" / "audio")
    augment.run(manifest, tmp_path / "other", QUICK, seed=2, workers=1)
    assert not set(files(tmp_path / "one" / "audio")) & set(files(tmp_path / "other" / "audio"))


def test_another_process_gives_the_same_bytes(tmp_path: Path, manifest: Manifest) -> None:
    recipe = {"all": {"pitch": (-2.0, 2.0), "stretch": (0.8, 1.25), "noise": (10.0, 20.0)}}
    augment.run(manifest.select(["u002"]), tmp_path / "out", recipe, seed=1, workers=1)
    [copy], recording = draw(recipe, "u002", 1, 1), decode(manifest.folder / "u002.wav")
    content = augmented(recording, copy)
    assert files(tmp_path / "out" / "audio") == {copy.file_name(recording): content}


def test_what_is_there_is_not_made_again_and_what_changed_is(tmp_path: Path, manifest: Manifest) -> None:
    out = tmp_path / "out"
    augment.run(manifest, out, QUICK, workers=1)
    before = files(out)
    gone = sorted((out / "audio").glob("u001*"))[0]
    gone.unlink()
    again = augment.run(manifest, out, QUICK, workers=1)
    assert (again.num_made, again.num_strangers, files(out)) == (1, 0, before)
    more = augment.run(manifest, out, QUICK, copies=2, workers=1)
    assert (more.num_made, more.num_copies, more.num_strangers) == (6, 12, 0)
    soundfile.write(manifest.folder / "u001.wav", tone(0.4, seed=99), RATE, subtype="FLOAT")
    changed = augment.run(manifest, out, QUICK, copies=2, workers=1)
    assert (changed.num_made, changed.num_copies, changed.num_strangers) == (4, 12, 4)
    assert set(before) < set(files(out))


def test_one_bad_file_fails_alone_with_its_reason(tmp_path: Path, manifest: Manifest) -> None:
    (manifest.folder / "u001.wav").write_bytes(b"no audio")
    soundfile.write(manifest.folder / "u002.wav", np.zeros(1000), RATE)
    odd = Utterance("../päth, <b> 1", audio="u000.wav", label="sad")
    whole = Manifest([*manifest, Utterance("text", text="words alone"), odd], manifest.folder)
    steps: list[tuple[int, int]] = []
    done = augment.run(whole, tmp_path / "out", QUICK, workers=2, on_progress=lambda *step: steps.append(step))
    assert set(done.failures) == {"u001", "u002", "text"}
    assert "cannot be decoded" in done.failures["u001"]
    assert "digital silence" in done.failures["u002"]
    assert "has no audio" in done.failures["text"]
    assert steps[-1] == (5, 5)
    written = Manifest.read(tmp_path / "out" / "manifest.jsonl")
    assert [one.id for one in written if one.column("version_of")] == [
        "u000~noise-1", "u000~late-1", "../päth, <b> 1~noise-1", "../päth, <b> 1~late-1"
    ]  # fmt: skip
    assert [one.id for one in written if not one.column("version_of")] == whole.ids
    assert {path.parent for path in (tmp_path / "out").rglob("*.flac")} == {tmp_path / "out" / "audio"}
    # Two utterances of one recording draw differently.
    assert len(files(tmp_path / "out" / "audio")) == 4


def test_an_effect_that_fails_leaves_the_other_copies(tmp_path: Path, manifest: Manifest) -> None:
    soundfile.write(manifest.folder / "u001.wav", tone(0.05), RATE)  # too short for pitch
    recipe = {"noise": {"noise": (10.0, 20.0)}, "higher": {"pitch": (1.0, 2.0)}, "late": {"shift": (0.1, 0.2)}}
    for num_made in (8, 0):
        done = augment.run(manifest, tmp_path / "out", recipe, workers=1)
        assert (done.num_copies, done.num_made, done.num_strangers) == (8, num_made, 0)
        assert list(done.failures) == ["u001"]
        assert done.failures["u001"].startswith("no higher-1: it has 800 samples")
        written = Manifest.read(tmp_path / "out" / "manifest.jsonl")
        assert [one.id for one in written if one.column("version_of") == "u001"] == ["u001~noise-1", "u001~late-1"]
        assert "u001-late-1-" in str(written.utterance("u001~late-1").audio)


@pytest.mark.parametrize("gone", [["u001"], ["u000", "u001", "u002"]])
def test_a_list_does_not_shrink_because_a_recording_is_gone(
    tmp_path: Path, manifest: Manifest, gone: list[str]
) -> None:
    out = tmp_path / "out"
    augment.run(manifest, out, QUICK, workers=1)
    before = files(out)
    for name in gone:
        (manifest.folder / f"{name}.wav").unlink()
    words = (
        rf"lists {2 * len(gone)} copies, such as '{gone[0]}~noise-1', that cannot be made now \({gone[0]}: no copies"
    )
    with pytest.raises(ConfigError, match=words + r": .*Bring back what they are made of, or replace .* --overwrite"):
        augment.run(manifest, out, QUICK, copies=2, workers=1)
    assert before.items() <= files(out).items()
    done = augment.run(manifest, out, QUICK, workers=1, overwrite=True)
    assert done.num_copies == 6 - 2 * len(gone)


def test_copies_are_not_copied(tmp_path: Path, manifest: Manifest) -> None:
    augment.run(manifest, tmp_path / "out", QUICK, workers=1)
    once = Manifest.read(tmp_path / "out" / "manifest.jsonl")
    with pytest.raises(ManifestError, match="'u000~noise-1' is in the manifest already"):
        augment.run(once, tmp_path / "more", QUICK, workers=1)
    done = augment.run(once, tmp_path / "more", {"soft": {"noise": (40.0, 50.0)}}, workers=1)
    assert (done.num_originals, done.num_copies, done.num_brought, done.num_made) == (3, 9, 6, 3)
    written = Manifest.read(tmp_path / "more" / "manifest.jsonl")
    assert len(written) == 12
    assert all(written.audio_path(one).is_file() for one in written)


def test_a_manifest_is_never_written_over(tmp_path: Path, manifest: Manifest) -> None:
    manifest.write(manifest.folder / "manifest.jsonl")
    for read in (manifest, Manifest(manifest[:], tmp_path)):
        with pytest.raises(
            ConfigError, match=r"manifest.jsonl' is there already, and is (what is read|no manifest of)"
        ):
            augment.run(read, manifest.folder, QUICK, workers=1)
    for path in (manifest.folder / "u000.wav", manifest.folder / "u000.wav" / "below"):
        with pytest.raises(ConfigError, match=r"u000.wav' is a file, and OUT is a folder to write. Name one"):
            augment.run(manifest, path, QUICK, workers=1)


def test_a_list_of_copies_is_replaced_only_by_one_that_holds_all_of_it(tmp_path: Path, manifest: Manifest) -> None:
    out, late = tmp_path / "out", {"late": QUICK["late"]}
    augment.run(manifest, out, QUICK, workers=1)
    before = files(out)
    for call, words in (
        ({"manifest": manifest, "recipe": late}, "lists 3 copies, such as 'u000~noise-1', that this"),
        ({"manifest": manifest, "recipe": QUICK, "seed": 1}, "lists 6 copies, such as 'u000~noise-1'"),
        ({"manifest": manifest.select(["u001", "u002"]), "recipe": QUICK}, "lists 3 utterances, such as 'u000'"),
    ):
        with pytest.raises(ConfigError, match=rf"out.manifest.jsonl' {words}.* or replace the list with --overwrite"):
            augment.run(out=out, workers=1, **call)
        assert files(out) == before
    done = augment.run(manifest, out, late, workers=1, overwrite=True)
    assert (done.num_copies, done.num_made, done.num_strangers) == (3, 0, 3)
    assert (
        files(out / "audio").items()
        == {
            name.removeprefix("audio/"): content for name, content in before.items() if name.startswith("audio/")
        }.items()
    )
    # More kinds and more copies hold what is there.
    assert augment.run(manifest, out, QUICK, copies=2, workers=1).num_copies == 12


def test_overwrite_spares_manifests_that_are_not_of_copies(tmp_path: Path, manifest: Manifest) -> None:
    manifest.write(manifest.folder / "manifest.jsonl")
    with pytest.raises(ConfigError, match="is what is read"):
        augment.run(manifest, manifest.folder, QUICK, workers=1, overwrite=True)


def test_copies_are_extracted_like_any_utterance(tmp_path: Path, manifest: Manifest) -> None:
    from featcache.extract import extract
    from featcache.streams.log_mel import LogMel

    augment.run(manifest, tmp_path / "out", QUICK, workers=1)
    written = Manifest.read(tmp_path / "out" / "manifest.jsonl")
    extract(manifest, tmp_path / "cache", LogMel())
    done = extract(written, tmp_path / "cache", LogMel())
    assert (len(done.present), len(done.computed), done.failures) == (3, 6, {})
    cached = featcache.open(tmp_path / "cache")["log_mel"]
    assert not np.allclose(cached["u000"], cached["u000~noise-1"])


def test_the_command_says_what_it_did(tmp_path: Path, manifest: Manifest) -> None:
    manifest.write(tmp_path / "all.jsonl")
    arguments = [str(tmp_path / "all.jsonl"), str(tmp_path / "out"), "--recipe", "noise,shift", "--workers", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert "3 originals, 6 copies, 6 of them made now." in result.stdout
    result = CliRunner().invoke(app, [*arguments, "--seed", "1"])
    assert isinstance(result.exception, ConfigError)
    result = CliRunner().invoke(app, [*arguments, "--seed", "1", "--overwrite"])
    assert "holds 6 further FLAC files" in result.stdout
    (manifest.folder / "u001.wav").unlink()
    result = CliRunner().invoke(app, [*arguments, "--overwrite"])
    assert result.exit_code == 3
    assert "u001: no copies: " in result.stderr
    assert "3 originals, 4 copies, 0 of them made now." in result.stdout
    once, kinds = tmp_path / "out" / "manifest.jsonl", tmp_path / "kinds.yaml"
    kinds.write_text("soft: {noise: [40, 50]}\n")
    result = CliRunner().invoke(app, [str(once), str(tmp_path / "more"), "--recipe", str(kinds), "--workers", "1"])
    assert result.exit_code == 3
    assert f"3 originals, 6 copies, 4 of them in {once} already, 2 of them made now." in result.stdout
    for path in manifest.folder.glob("*.wav"):
        path.unlink()
    result = CliRunner().invoke(app, [arguments[0], str(tmp_path / "none"), *arguments[2:]])
    assert result.exit_code == 1
    assert "Nothing could be augmented" in result.stderr
    assert not (tmp_path / "none" / "manifest.jsonl").exists()


@pytest.mark.heavy
def test_a_killed_command_goes_on_where_it_was(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path / "corpus", [2.0] * 24)
    manifest.write(tmp_path / "all.jsonl")
    augment.run(manifest, tmp_path / "whole", read_recipe("pitch"), workers=1)
    script = (
        "from pathlib import Path; from featcache import Manifest; from featcache.augmentation import read_recipe\n"
        "from pipelines import augment; import sys\n"
        "augment.run(Manifest.read(sys.argv[1]), Path(sys.argv[2]), read_recipe('pitch'), workers=1)"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path / "all.jsonl"), str(tmp_path / "out")]
    process = subprocess.Popen(arguments, cwd=Path(__file__).parents[1])
    while len(list((tmp_path / "out").rglob("*.flac"))) < 3 and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "manifest.jsonl").exists()
    assert not list((tmp_path / "out" / "audio").glob(".*"))  # what is not whole lies aside
    left = tmp_path / "out" / ".tmp" / "0123456789abcdef@"  # as a kill within a write leaves it
    left.mkdir()
    (left / "lock").touch()
    (left / ".tmp-0123456789abcdef").write_bytes(b"fLaC")
    done = augment.run(manifest, tmp_path / "out", read_recipe("pitch"), workers=1)
    assert 0 < done.num_made < 24
    assert files(tmp_path / "out") == files(tmp_path / "whole")
