"""Recordings as an enemy makes them: headers that lie, paths that lead elsewhere, files that never end."""

import os
import re
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fuzzing import Subject, check_sentence, law, quick, spoilt, thorough
from hypothesis import given
from hypothesis import strategies as st
from makers import tone
from test_cli import call

from featcache import Manifest, Utterance, audio
from featcache.corpora._shared import read_text
from featcache.corpora.table import Table
from featcache.errors import AudioError, FeatcacheError, ManifestError
from featcache.exchange import write_emobox
from featcache.textgrids import read_textgrid
from heads.fold_files import read_folds
from heads.scores import Scores

RATE = 16000
BYTES = 2**26 + 2**20
"""What any file may take: 2**24 samples are read whatever its size is, since they cost little."""


def wav(
    data: bytes = b"\1\0" * 1600,
    *,
    channels: int = 1,
    rate: int = RATE,
    bits: int = 16,
    form: int = 1,
    declared: int | None = None,
    riff: int | None = None,
    fmt: int = 16,
) -> bytes:
    """Return a WAV whose header says what it is told to."""
    align, size = channels * bits // 8, len(data) if declared is None else declared
    header = struct.pack("<IHHIIHH", fmt, form, channels, rate, rate * align % 2**32, align % 2**16, bits)
    body = b"WAVEfmt " + header + b"data" + struct.pack("<I", size) + data
    return b"RIFF" + struct.pack("<I", len(body) if riff is None else riff) + body


def flac(folder: Path, *, total: int | None = None, rate: int | None = None) -> bytes:
    """Return a FLAC of half a second whose header says what it is told to."""
    soundfile.write(folder / "whole.flac", tone(0.5), RATE)
    content = bytearray((folder / "whole.flac").read_bytes())
    facts = int.from_bytes(content[18:26], "big")  # 20 bits of rate, 3 of channels, 5 of width, 36 of samples
    facts = facts if total is None else facts >> 36 << 36 | total
    facts = facts if rate is None else facts & (1 << 44) - 1 | rate << 44
    content[18:26] = facts.to_bytes(8, "big")
    return bytes(content)


def everything(path: Path) -> tuple[int, audio.Recording, np.ndarray]:
    """Read a recording in every way there is."""
    header = audio.info(path)
    length = audio.num_samples(path, header.sample_rate_hz)
    recording = audio.decode(path)
    return length, recording, recording.at_rate(RATE)


def is_sound(result: tuple[int, audio.Recording, np.ndarray], folder: Path) -> None:
    length, recording, resampled = result
    assert len(recording.samples) == length > 0
    assert recording.samples.dtype == np.float32
    assert np.isfinite(recording.samples).all()
    assert len(resampled) <= 16 * length + 1


HEADERS: dict[str, Callable[[Path], bytes]] = {
    **{f"{n} channels": lambda _, n=n: wav(channels=n) for n in (0, 1, 2, 1024, 1025, 65535)},
    **{f"{n} Hz": lambda _, n=n: wav(rate=n) for n in (0, 1, 7, 999, 8000, 10**6 + 1, 2**31 - 1, 2**31, 2**32 - 1)},
    **{f"{n} bits": lambda _, n=n: wav(bits=n) for n in (0, 1, 3, 7, 8, 24, 32, 64, 65535)},
    **{f"form {n}": lambda _, n=n: wav(form=n) for n in (0, 2, 3, 6, 7, 17, 49, 85, 0xFFFE, 65535)},
    **{f"data {n}": lambda _, n=n: wav(declared=n) for n in (0, 1, 10**6, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)},
    **{f"riff {n}": lambda _, n=n: wav(riff=n) for n in (0, 1, 2**31, 2**32 - 1)},
    **{f"fmt {n}": lambda _, n=n: wav(fmt=n) for n in (0, 1, 14, 18, 2**31, 2**32 - 1)},
    **{f"cut at {n}": lambda _, n=n: wav()[:n] for n in (0, 4, 12, 20, 40, 43, 44, 45)},
    "no data": lambda _: wav(b""),
    "a thousand chunks of nothing": lambda _: wav()[:36] + b"junk\0\0\0\0" * 1000 + wav()[36:],
    "a chunk inside itself": lambda _: wav()[:36] + b"LIST\xff\xff\xff\xffINFO" + wav()[36:],
    **{f"flac {n}": lambda folder, n=n: flac(folder, total=n) for n in (0, 1, 10**6, 2**31, 10**10, 2**36 - 1)},
    **{f"flac {n} Hz": lambda folder, n=n: flac(folder, rate=n) for n in (0, 1, 2**20 - 1)},
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_costs_what_the_file_holds(tmp_path: Path, name: str) -> None:
    content = HEADERS[name](tmp_path)
    subject = Subject(content, everything, is_sound, "x.flac" if name.startswith("flac") else "x.wav")
    law(subject, tmp_path, content)  # what is imported on first use is not the file's cost
    tracemalloc.start()
    started = time.process_time()
    try:
        law(subject, tmp_path, content)
        assert tracemalloc.get_traced_memory()[1] < BYTES + 64 * len(content)
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("7 Hz", "declares a sample rate of 7 Hz; 1000 to 1000000 Hz were expected"),
        ("flac 10000000000", "declares 10000000000 samples in 1 channels, more than its 1.... bytes can hold"),
        ("flac 0", "or does not say how many. Convert it to WAV"),
        ("data 2147483648", "is truncated: its header declares 2147483648 bytes of samples, the file holds 3200"),
        ("65535 channels", "Too many channels specified. Convert it"),
    ],
)
def test_a_lie_is_told(tmp_path: Path, name: str, message: str) -> None:
    path = tmp_path / ("x.flac" if name.startswith("flac") else "x.wav")
    path.write_bytes(HEADERS[name](tmp_path))
    with pytest.raises(AudioError, match=message):
        audio.decode(path)


def test_long_silence_that_is_coded_in_little_is_no_bomb(tmp_path: Path) -> None:
    samples = np.zeros(2**24 + RATE, np.int16)
    samples[5] = 1
    soundfile.write(tmp_path / "x.flac", samples, RATE)
    size = (tmp_path / "x.flac").stat().st_size
    assert len(samples) > 256 * size  # or this test shows nothing
    with pytest.raises(AudioError, match=rf"declares {len(samples)} samples in 1 channels, more than its {size} bytes"):
        audio.decode(tmp_path / "x.flac")
    soundfile.write(tmp_path / "x.flac", samples[: 2**24], RATE)
    assert len(audio.decode(tmp_path / "x.flac").samples) == 2**24


def test_a_name_that_ends_in_raw_is_no_error_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "x.raw").write_bytes(wav())
    for reader in (audio.decode, audio.info):
        with pytest.raises(AudioError, match=r"x\.raw' cannot be decoded as audio: samplerate must be specified\."):
            reader(tmp_path / "x.raw")
    one = Utterance("u1", "x.raw", label="sad")
    with pytest.raises(AudioError, match=r"x\.raw"):
        write_emobox(Manifest([one], tmp_path), tmp_path / "own.jsonl")


@pytest.mark.parametrize("times_s", [(1e308, None), (0.0, 1e308), (1e308, 1.7e308)])
def test_times_beyond_all_samples_lie_outside(tmp_path: Path, times_s: tuple[float, float | None]) -> None:
    (tmp_path / "x.wav").write_bytes(wav())
    with pytest.raises(AudioError, match="is not inside it"):
        audio.decode(tmp_path / "x.wav", *times_s)


VALID = {"x.wav": lambda _: wav(), "x.flac": flac, "x.ogg": None, "x.mp3": None, "x.aiff": None}


def recording(folder: Path, name: str) -> bytes:
    make = VALID[name]
    if make is not None:
        return make(folder)
    soundfile.write(folder / name, tone(0.2), RATE)
    return (folder / name).read_bytes()


def spoil(folder: Path, name: str, data: st.DataObject) -> None:
    valid = recording(folder, name)
    content = data.draw(spoilt(valid) | spoilt(valid[:64]).map(lambda head: head + valid[64:]))
    law(Subject(valid, everything, is_sound, name), folder, content)


@pytest.mark.parametrize("name", VALID)
@quick()
@given(data=st.data())
def test_a_spoilt_recording_is_decoded_or_named(tmp_path: Path, name: str, data: st.DataObject) -> None:
    spoil(tmp_path, name, data)


@pytest.mark.heavy
@pytest.mark.parametrize("name", VALID)
@thorough()
@given(data=st.data())
def test_any_spoilt_recording_is_decoded_or_named(tmp_path: Path, name: str, data: st.DataObject) -> None:
    spoil(tmp_path, name, data)


# Paths.


def odd_places(folder: Path) -> dict[str, str]:
    """Make what a path may lead to that is no recording, and return the paths."""
    (folder / "corpus").mkdir()
    (folder / "outside.wav").write_bytes(wav())
    os.mkfifo(folder / "corpus" / "pipe.wav")
    links = {
        "loop.wav": "loop.wav",
        "dangling.wav": "nothing.wav",
        "to_pipe.wav": "pipe.wav",
        "zero.wav": "/dev/zero",
        "folder.wav": "/etc",
        "memory.wav": "/proc/self/mem",
        "full.wav": "/dev/full",
        "out.wav": "../outside.wav",
    }
    for name, target in links.items():
        (folder / "corpus" / name).symlink_to(target)
    return {
        "pipe": "pipe.wav",
        **{name.split(".")[0]: name for name in links},
        "up": "../outside.wav",
        "absolute": str(folder / "outside.wav"),
        "long": "x" * 5000,
        "deep": "x/" * 3000,
        "nul": "a\0.wav",
        "spaces": "   ",
        "slash": "/",
    }


@pytest.mark.parametrize(
    "name",
    [
        "pipe",
        "loop",
        "dangling",
        "to_pipe",
        "zero",
        "folder",
        "memory",
        "full",
        "long",
        "deep",
        "nul",
        "spaces",
        "slash",
    ],
)
def test_what_is_no_recording_is_refused_at_once(tmp_path: Path, name: str) -> None:
    path = tmp_path / "corpus" / odd_places(tmp_path)[name]
    started = time.process_time()
    for reader in (audio.decode, audio.info, lambda path: audio.num_samples(path, RATE)):
        with pytest.raises(AudioError) as caught:
            reader(path)
        check_sentence(caught.value, str(path)[:40].replace("\0", "\\x00"))
    assert time.process_time() - started < 1


@pytest.mark.parametrize("name", ["up", "absolute", "out"])
def test_a_path_may_lead_elsewhere_unless_a_root_forbids_it(tmp_path: Path, name: str) -> None:
    path = odd_places(tmp_path)[name]
    manifest = tmp_path / "corpus" / "m.jsonl"
    Manifest([Utterance("u1", path)], tmp_path / "corpus").write(manifest)
    assert len(audio.decode(Manifest.read(manifest).audio_path(Manifest.read(manifest)[0])).samples) == 1600
    assert "No problems." in call("check", manifest)
    with pytest.raises(ManifestError, match=r"m\.jsonl' cannot be used\. 'u1': .* leads outside the root") as caught:
        Manifest.read(manifest, root=tmp_path / "corpus")
    check_sentence(caught.value)


@pytest.mark.parametrize("name", ["loop", "zero", "memory", "nul", "slash", "up", "out", "absolute", "deep"])
def test_no_odd_path_gets_past_a_root(tmp_path: Path, name: str) -> None:
    path = odd_places(tmp_path)[name]
    try:
        manifest = Manifest([Utterance("u1", path)], tmp_path / "corpus", root=tmp_path / "corpus")
    except ManifestError as error:
        check_sentence(error, "'u1'")
    else:
        assert name in ("loop", "deep")  # which are inside, and nothing
        with pytest.raises(AudioError):
            audio.decode(manifest.audio_path(manifest[0]))


def test_check_goes_through_every_odd_path_and_ends(tmp_path: Path) -> None:
    paths = odd_places(tmp_path)
    manifest = tmp_path / "corpus" / "m.jsonl"
    Manifest([Utterance(name, path) for name, path in paths.items()], tmp_path / "corpus").write(manifest)
    output = call("check", manifest, code=3)
    good = {"up", "absolute", "out"}
    assert {name for name in paths if re.search(rf"^  '{name}': ", output, re.MULTILINE)} == paths.keys() - good
    assert f"{len(paths) - len(good)} problems." in output


def test_a_path_behind_a_link_still_leads_to_its_file_in_a_manifest_written_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "far" / "inner").mkdir(parents=True)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "far" / "a.wav").write_bytes(wav())
    (tmp_path / "corpus" / "a.wav").write_bytes(wav(b"\2\0" * 800))
    (tmp_path / "corpus" / "link").symlink_to(tmp_path / "far" / "inner", target_is_directory=True)
    manifest = Manifest([Utterance("u1", "link/../a.wav")], tmp_path / "corpus")
    assert len(audio.decode(manifest.audio_path(manifest[0])).samples) == 1600
    manifest.write(tmp_path / "corpus" / "m.jsonl")
    again = Manifest.read(tmp_path / "corpus" / "m.jsonl")
    assert len(audio.decode(again.audio_path(again[0])).samples) == 1600


@pytest.mark.parametrize("name", ["pipe.wav", "to_pipe.wav", "zero.wav", "loop.wav", "folder.wav"])
def test_no_reader_waits_for_a_pipe_or_reads_a_device(tmp_path: Path, name: str) -> None:
    odd_places(tmp_path)
    path = tmp_path / "corpus" / name
    for reader in (Manifest.read, Table(delimiter=",").manifest, read_text, read_textgrid, Scores.read, read_folds):
        with pytest.raises(FeatcacheError) as caught:
            reader(path)
        check_sentence(caught.value, str(path))
