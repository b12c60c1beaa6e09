"""Whatever strikes, what was committed is whole, and a rerun ends at the bytes of an undisturbed run.

Damage to the files of a cache is in `test_damage.py`; kills of training are in `test_unfinished.py`.
"""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import soundfile
from faults import CHILD, Cost, check, computed, finish, start, tree
from makers import write_corpus

import featcache
from featcache import Manifest
from featcache.extract import Options, extract
from featcache.streams.log_mel import LogMel
from featcache.verify import verify

BACKENDS = ["zarr", "hdf5"]
KILLS = {signal.SIGKILL: 45, signal.SIGTERM: 12, signal.SIGINT: 12}
LARGEST_PART = 3  # utterances, of 2 s and more, in the 6 s of audio that the children put into a part
Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("corpus")
    made = write_corpus(folder, [2.0 + 0.05 * (number % 9) for number in range(90)])
    made.write(folder / "manifest.jsonl")
    return made


@pytest.fixture(scope="module", params=BACKENDS)
def undisturbed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, manifest: Manifest
) -> "Undisturbed":
    """A backend, a cache of it that nothing happened to, the bytes of every utterance, and the seconds it took."""
    cache = tmp_path_factory.mktemp("undisturbed") / "cache"
    finish(start(manifest, cache, request.param))
    stream = featcache.open(cache)["log_mel"]
    return request.param, cache, {name: stream[name].tobytes() for name in stream.ids}


Undisturbed = tuple[str, Path, dict[str, bytes]]


@pytest.mark.heavy
@pytest.mark.parametrize("how", list(KILLS))
def test_a_killed_extraction_loses_nothing_and_ends_at_the_same_bytes(
    tmp_path: Path, manifest: Manifest, undisturbed: Undisturbed, how: signal.Signals, record_property: Record
) -> None:
    backend, whole, truth = undisturbed
    cost = Cost(how.name, backend)
    instants = random.Random(how.value)
    total = rounds = 0
    while cost.injected < KILLS[how]:
        # One cache is killed again and again until it is done; then another begins.
        cache = tmp_path / f"cache-{rounds}"
        rounds += 1
        held: set[str] = set()
        while len(held) < len(manifest) and cost.injected < KILLS[how]:
            child = start(manifest, cache, backend)
            assert child.stdout is not None
            began = time.monotonic()
            child.stdout.readline()
            waited = time.monotonic() - began
            told = ""
            # Struck some milliseconds after some utterance: before the first, between two, or as parts are written.
            struck_at = instants.randrange(len(manifest) - len(held))
            while computed(told) < struck_at and (line := child.stdout.readline()):
                told += line
            try:
                child.wait(instants.uniform(0.0, 0.02))
            except subprocess.TimeoutExpired:
                child.send_signal(how)
                cost.injected += 1
                cost.committed += len(held)
            told += child.communicate(timeout=300)[0]
            total += computed(told)
            if held:
                cost.recover_s = max(cost.recover_s, waited)
            held = check(cache, truth, held, cost)
        count, waited = finish(start(manifest, cache, backend))
        total += count
        cost.recover_s = max(cost.recover_s, waited)
        assert tree(cache) == tree(whole)
    cost.recomputed = total - rounds * len(manifest)
    record_property(*cost.told())
    assert cost.lost == 0
    assert cost.committed > 0
    # A part that is computed, one that waits to be written and one that is written: no more is in flight.
    assert 0 <= cost.recomputed <= 3 * LARGEST_PART * cost.injected


@pytest.mark.heavy
@pytest.mark.parametrize("number", [2, 4])
def test_several_extractors_at_once_leave_one_whole_cache(
    tmp_path: Path, manifest: Manifest, undisturbed: Undisturbed, number: int, record_property: Record
) -> None:
    backend, whole, truth = undisturbed
    cost = Cost(f"{number} extractors at once", backend, injected=1)
    cache = tmp_path / "cache"
    began = time.monotonic()
    children = [start(manifest, cache, backend) for _ in range(number)]
    told = [child.communicate(timeout=300)[0] for child in children]
    assert [child.returncode for child in children] == [0] * number
    cost.recover_s = time.monotonic() - began
    cost.recomputed = sum(map(computed, told)) - len(manifest)
    assert len(check(cache, truth, set(), cost)) == len(manifest)
    assert not (cache / ".tmp").exists()
    assert tree(cache) == tree(whole)
    record_property(*cost.told())
    assert (cost.lost, cost.recomputed) == (0, 0)


@pytest.mark.heavy
@pytest.mark.parametrize("number", [2, 4])
def test_of_several_extractors_at_once_some_may_be_killed_and_the_others_do_their_parts(
    tmp_path: Path, manifest: Manifest, undisturbed: Undisturbed, number: int, record_property: Record
) -> None:
    backend, whole, truth = undisturbed
    cost = Cost(f"one of {number} extractors at once killed", backend)
    instants = random.Random(number)
    total = rounds = left = 0
    while cost.injected < 4:
        cache = tmp_path / f"cache-{rounds}"
        rounds += 1
        victim, *others = [start(manifest, cache, backend) for _ in range(number)]
        assert victim.stdout is not None
        first = [victim.stdout.readline() for _ in range(instants.randint(1, 20))]  # one for each utterance
        victim.kill()
        cost.injected += victim.wait() == -signal.SIGKILL
        began = time.monotonic()
        told = ["".join(first), *(child.communicate(timeout=300)[0] for child in (victim, *others))]
        cost.recover_s = max(cost.recover_s, time.monotonic() - began)
        assert [child.returncode for child in others] == [0] * (number - 1)
        assert len(check(cache, truth, set(), cost)) == len(manifest)
        total += sum(map(computed, told))
        if (cache / ".tmp").exists():  # the others had ended, or looked, before it was dead: the next one removes it
            left += 1
            assert finish(start(manifest, cache, backend))[0] == 0
        assert not (cache / ".tmp").exists()
        assert tree(cache) == tree(whole)
    cost.recomputed = total - rounds * len(manifest)
    record_property(*cost.told())
    assert cost.lost == 0
    assert left < rounds
    # What the killed ones computed, waited to write, or were writing.
    assert 0 <= cost.recomputed <= 3 * LARGEST_PART * cost.injected


def limit(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.heavy
def test_a_file_that_cannot_grow_is_a_sentence_and_loses_nothing(
    tmp_path: Path, manifest: Manifest, undisturbed: Undisturbed, record_property: Record
) -> None:
    backend, whole, truth = undisturbed
    cost = Cost("no more bytes to a file", backend)
    largest = max(len(content) for name, content in tree(whole).items() if "/part-" in name)
    total = 0
    for number, size in enumerate([*range(0, largest, largest // 4), largest - 1]):
        cache = tmp_path / f"cache-{number}"
        first = Manifest(list(manifest)[:30], manifest.folder)
        first.write(manifest.folder / "manifest.jsonl")
        total += finish(start(first, cache, backend))[0]
        held = check(cache, truth, set(), cost)
        manifest.write(manifest.folder / "manifest.jsonl")
        child = start(manifest, cache, backend, full=True, before=partial(limit, size))
        told, wrong = child.communicate(timeout=300)
        total += computed(told)
        assert child.returncode == 1, wrong
        assert "could not be written: File too large. Parts committed before are whole" in told, told
        assert "Traceback" not in wrong
        cost.injected += 1
        cost.committed += len(held)
        held = check(cache, truth, held, cost)
        count, waited = finish(start(manifest, cache, backend))
        total += count - len(manifest)
        cost.recover_s = max(cost.recover_s, waited)
        assert check(cache, truth, held, cost) == set(truth)
    cost.recomputed = total
    record_property(*cost.told())
    assert cost.committed > 0
    assert cost.lost == 0


def mounted(script: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run a script where it may mount; what it mounts is gone when it ends.

    Skips the test where the system lets nobody mount, not even in a name space of his own.
    """
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*command, "mount -t tmpfs none /mnt"]).returncode:
        pytest.skip("this system lets nobody mount a file system")
    return subprocess.run([*command, script, "sh", *map(str, arguments)], capture_output=True, text=True, timeout=300)


@pytest.mark.heavy
def test_a_full_disk_is_a_sentence_and_loses_nothing(
    tmp_path: Path, manifest: Manifest, undisturbed: Undisturbed, record_property: Record
) -> None:
    backend, whole, truth = undisturbed
    cost = Cost("disk full", backend)
    needed = sum(len(content) for content in tree(whole).values()) // 1024
    total = 0
    for number, size in enumerate(range(needed // 6, needed, needed // 6)):
        cache = tmp_path / f"cache-{number}"
        cache.mkdir()
        # All in one name space: what is on the small disk is copied out before it is gone.
        script = (
            'mount -t tmpfs -o size="$1"k none /mnt && "$2" "$3" "$4" /mnt/cache "$5"; code=$?; '
            'cp -a /mnt/cache/. "$6"; exit $code'
        )
        done = mounted(
            script, size, sys.executable, written(tmp_path), manifest.folder / "manifest.jsonl", backend, cache
        )
        total += computed(done.stdout)
        assert done.returncode == 1, done.stderr
        assert "No space left on device. Parts committed before are whole; make room" in done.stdout, done.stdout
        assert "Traceback" not in done.stderr
        cost.injected += 1
        held = check(cache, truth, set(), cost)
        cost.committed += len(held)
        count, waited = finish(start(manifest, cache, backend))
        total += count - len(manifest)
        cost.recover_s = max(cost.recover_s, waited)
        assert tree(cache) == tree(whole)
    cost.recomputed = total
    record_property(*cost.told())
    assert cost.committed > 0
    assert cost.lost == 0


@pytest.mark.heavy
def test_a_cache_that_is_read_only_is_read_and_not_written(
    tmp_path: Path, manifest: Manifest, undisturbed: Undisturbed, record_property: Record
) -> None:
    backend = undisturbed[0]
    cost = Cost("read-only cache", backend, injected=1, committed=len(manifest))
    fewer = tmp_path / "cache"
    part = Manifest(list(manifest)[:30], manifest.folder)
    part.write(manifest.folder / "part.jsonl")
    extract(part, fewer, LogMel(), Options(device="cpu", backend=backend))
    before = tree(fewer)
    script = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" "$1" && shift && "$@"'
    done = mounted(script, fewer, sys.executable, written(tmp_path), manifest.folder / "manifest.jsonl", fewer, backend)
    assert done.returncode == 1, done.stderr
    assert f"The cache '{fewer}' cannot be written to: Read-only file system. Nothing was computed." in done.stdout
    assert computed(done.stdout) == 0
    featcache_command = [sys.executable, "-m", "pipelines.cli"]
    for command in (["info", fewer], ["verify", fewer], ["coverage", fewer, manifest.folder / "part.jsonl"]):
        done = mounted(script, fewer, *featcache_command, *command)
        assert done.returncode == 0, done.stderr
    assert tree(fewer) == before
    record_property(*cost.told())


def written(folder: Path) -> Path:
    """Write the program of the children into a file, and return it."""
    path = folder / "child.py"
    room = "import featcache.extract; featcache.extract._check_room = lambda *_: None"  # the disk fills later
    path.write_text(
        CHILD.replace('sys.argv[4] == "full"', "False").replace("manifest, cache", f"{room}\nmanifest, cache")
    )
    return path


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_clock_that_goes_backwards_changes_nothing(
    tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    cost = Cost("clock backwards", backend, injected=1)
    corpus = write_corpus(tmp_path / "corpus", [0.4, 0.5, 0.6])
    options = Options(device="cpu", backend=backend)
    extract(corpus, tmp_path / "cache", LogMel(), options)
    cost.committed = 3
    expected = tree(tmp_path / "cache")
    now = iter(range(10**9, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    monkeypatch.setattr(time, "time_ns", lambda: next(now) * 10**9)
    for number, path in enumerate(sorted((tmp_path / "cache").rglob("*"))):
        os.utime(path, (4 * 10**9 - number, 4 * 10**9 - number))  # in the next century
    assert extract(corpus, tmp_path / "cache", LogMel(), options).computed == []
    samples, rate = soundfile.read(corpus.folder / "u001.wav", dtype="float32")
    soundfile.write(corpus.folder / "u001.wav", samples * 0.5, rate, subtype="FLOAT")
    os.utime(corpus.folder / "u001.wav", (0, 0))  # older than what was computed from it
    assert extract(corpus, tmp_path / "cache", LogMel(), options).computed == ["u001"]
    assert featcache.open(tmp_path / "cache")["log_mel"].locate("u001").entry.generation == 1
    soundfile.write(corpus.folder / "u001.wav", samples, rate, subtype="FLOAT")
    os.utime(corpus.folder / "u001.wav", (1, 1))
    summary = extract(corpus, tmp_path / "cache", LogMel(), options)
    assert summary.changed == {"u001": "its audio changed"}
    assert verify(tmp_path / "cache")[1] == []
    assert {
        name: content for name, content in tree(tmp_path / "cache").items() if name in expected and "part" in name
    } == {name: content for name, content in expected.items() if "part" in name}
    record_property(*cost.told())
