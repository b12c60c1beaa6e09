"""Several extractions into one cache do each part once; what one of them leaves undone, another does."""

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
import soundfile
from makers import write_corpus
from test_cache import Ramp, RampExtractor, tree

import featcache
from featcache import Manifest, Utterance, claims
from featcache.claims import remove_abandoned, workplace
from featcache.commit import StreamWriter
from featcache.errors import StreamError
from featcache.extract import Options, Summary, extract
from featcache.plan import Input, stream_input
from featcache.stream import Features

ALL = [f"u{number:03d}" for number in range(12)]


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_corpus(tmp_path / "corpus", [0.4 + 0.05 * (number % 3) for number in range(12)])


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two utterances a part."""
    monkeypatch.setattr("featcache.plan.PART_SECONDS", 1.0)


class Watched(Ramp):
    """A stream that tells what it computes before it does, from any thread."""

    told: list[int]
    hook: Callable[[int], None]

    def load(self, device: str, compute_dtype: str) -> "WatchedExtractor":
        return WatchedExtractor(self)


class WatchedExtractor(RampExtractor):
    def __init__(self, stream: Watched) -> None:
        super().__init__(stream.gain)
        self._stream = stream

    def extract(self, inputs: Any) -> list[Features]:
        self._stream.hook(len(inputs))
        return super().extract(inputs)


def watched(hook: Callable[[int], None] = lambda _: None) -> Watched:
    stream = Watched()
    object.__setattr__(stream, "hook", hook)
    return stream


def run(manifest: Manifest, cache: Path, stream: Ramp | None = None, **arguments: Any) -> Summary:
    return extract(manifest, cache, stream or Ramp(), Options(device="cpu"), **arguments)


def test_a_claim_is_had_by_one_at_a_time_and_leaves_nothing(tmp_path: Path) -> None:
    first = claims.take(tmp_path / "aside", "x")
    assert first is not None
    assert claims.take(tmp_path / "aside", "x") is None
    other = claims.take(tmp_path / "aside", "y")
    assert other is not None
    first.release()
    first.release()
    again = claims.take(tmp_path / "aside", "x")
    assert again is not None
    for claim in (again, other):
        claim.release()
    assert list((tmp_path / "aside").iterdir()) == []


def test_claims_taken_from_many_threads_are_never_shared(tmp_path: Path) -> None:
    held, most = 0, 0
    lock = threading.Lock()

    def work(_: int) -> int:
        nonlocal held, most
        claim = claims.take(tmp_path, "x")
        if claim is None:
            return 0
        with lock:
            held += 1
            most = max(most, held)
        with lock:
            held -= 1
        claim.release()
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(2000))) > 0
    assert most == 1
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_had_claimed_is_free_and_is_cleaned_up(tmp_path: Path) -> None:
    (tmp_path / ".tmp").mkdir()
    (tmp_path / ".tmp" / "x.claim").touch()  # its lock went with its process
    claim = claims.take(tmp_path / ".tmp", "x")
    assert claim is not None
    remove_abandoned(tmp_path)
    assert claims.take(tmp_path / ".tmp", "x") is None
    claim.release()
    (tmp_path / ".tmp").mkdir(exist_ok=True)
    (tmp_path / ".tmp" / "y.claim").touch()
    remove_abandoned(tmp_path)
    assert not (tmp_path / ".tmp").exists()


def when_waiting(event: threading.Event) -> Callable[[int, float], None]:
    """Return a callback `on_done` that sets an event when others have all that is left."""
    nothing: list[int] = []

    def done(count: int, _: float) -> None:
        if count == 0:
            nothing.append(0)
        if len(nothing) > 1:  # the first was the loading of the model
            event.set()

    return done


def test_cleaning_up_leaves_a_claim_that_changed_hands_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside, opened = tmp_path / ".tmp", os.open
    first = claims.take(aside, "x")
    assert first is not None
    second: list[claims.Claim | None] = []

    def change_hands(path: Any, *arguments: Any) -> int:
        lock = opened(path, *arguments)
        if not second:
            second.append(None)
            first.release()  # between the opening and the locking of who cleans up
            second[0] = claims.take(aside, "x")
        return lock

    monkeypatch.setattr(os, "open", change_hands)
    remove_abandoned(tmp_path)
    monkeypatch.undo()
    assert second[0] is not None
    assert claims.take(aside, "x") is None
    second[0].release()


def test_what_another_host_works_in_is_left_for_a_week(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where locks are kept to one host: nobody holds any that this process could see."""
    monkeypatch.setattr("socket.gethostname", lambda: "node-2")
    with workplace(tmp_path) as other:
        (other / "part").touch()
        monkeypatch.undo()
        with workplace(tmp_path) as own:
            own_name = own.name
        for name in (own_name, other.name):
            (tmp_path / ".tmp" / name).mkdir(exist_ok=True)
            (tmp_path / ".tmp" / name / "lock").unlink(missing_ok=True)
            (tmp_path / ".tmp" / name / "lock").touch()
        remove_abandoned(tmp_path)
        assert list((tmp_path / ".tmp").iterdir()) == [other]
        assert (other / "part").exists()
        os.utime(other, (time.time() - 8 * 24 * 3600,) * 2)
        remove_abandoned(tmp_path)
    assert not (tmp_path / ".tmp").exists()


def no_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.mark.parametrize("number", [2, 4])
def test_extractions_at_once_compute_every_utterance_once(tmp_path: Path, manifest: Manifest, number: int) -> None:
    run(manifest, tmp_path / "whole")
    together = threading.Barrier(number)
    with ThreadPoolExecutor(number) as pool:
        summaries = list(
            pool.map(lambda _: run(manifest, tmp_path / "cache", on_planned=lambda _: together.wait(60)), range(number))
        )
    assert sorted(name for one in summaries for name in one.computed) == ALL
    assert all(sorted([*one.computed, *one.elsewhere]) == ALL for one in summaries)
    assert tree(tmp_path / "cache") == tree(tmp_path / "whole")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [Ramp().spec().name]


def test_without_locks_the_result_is_the_same(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(manifest, tmp_path / "whole")
    monkeypatch.setattr(fcntl, "flock", no_locks)
    together = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        summaries = list(
            pool.map(lambda _: run(manifest, tmp_path / "cache", on_planned=lambda _: together.wait(60)), range(2))
        )
    for one in summaries:
        assert sorted([*one.computed, *one.elsewhere]) == ALL
    left = {name: content for name, content in tree(tmp_path / "cache").items() if not name.startswith(".tmp/")}
    assert left == tree(tmp_path / "whole")


def test_without_locks_what_was_committed_meanwhile_is_not_computed(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", no_locks)
    summary = run(manifest, tmp_path / "cache", on_planned=lambda _: run(manifest, tmp_path / "cache"))
    assert (summary.computed, sorted(summary.elsewhere)) == ([], ALL)


def test_what_another_began_and_gave_up_is_computed_after_all(tmp_path: Path, manifest: Manifest) -> None:
    """One stops in the middle of its second part while another waits for it."""
    run(manifest, tmp_path / "whole")
    began, others = threading.Event(), threading.Event()
    counted = 0

    def stop(_: int) -> None:
        nonlocal counted
        counted += 1
        if counted == 3:
            began.set()
            others.wait(60)
            raise KeyboardInterrupt

    def first() -> None:
        with pytest.raises(KeyboardInterrupt):
            run(manifest, tmp_path / "cache", watched(stop))

    with ThreadPoolExecutor(1) as pool:
        stopped = pool.submit(first)
        assert began.wait(60)
        summary = run(manifest, tmp_path / "cache", watched(), on_done=when_waiting(others))
        stopped.result()
    assert others.is_set()
    assert (len(summary.elsewhere), len(summary.present)) in {(2, 0), (0, 2)}
    assert len(summary.computed) == 10
    assert tree(tmp_path / "cache") == tree(tmp_path / "whole")


def test_what_failed_elsewhere_is_told_and_not_tried_again(tmp_path: Path, manifest: Manifest) -> None:
    (manifest.folder / "u003.wav").write_bytes(b"not audio")  # known when planning
    soundfile.write(manifest.folder / "u006.wav", [0.0] * 8000, 16000)  # known when decoding
    run(manifest, tmp_path / "whole")
    done: list[int] = []
    elsewhere: list[int] = []
    summary = run(
        manifest, tmp_path / "cache",
        on_planned=lambda _: run(manifest, tmp_path / "cache"),
        on_done=lambda count, _: done.append(count),
        on_elsewhere=lambda count, _: elsewhere.append(count),
    )  # fmt: skip
    assert (sum(done), sum(elsewhere), len(summary.elsewhere)) == (0, 11, 10)
    assert sorted(summary.failures) == ["u003", "u006"]
    assert "digital silence" in summary.failures["u006"]
    assert tree(tmp_path / "cache") == tree(tmp_path / "whole")


def test_other_audio_under_the_same_id_is_computed_and_not_taken_from_another(
    tmp_path: Path, manifest: Manifest
) -> None:
    other = write_corpus(tmp_path / "other", [0.7] * 12)
    summary = run(manifest, tmp_path / "cache", on_planned=lambda _: run(other, tmp_path / "cache"))
    assert (sorted(summary.computed), summary.elsewhere) == (ALL, [])
    again = run(manifest, tmp_path / "cache")
    assert (again.computed, sorted(again.present)) == ([], ALL)
    stream = featcache.open(tmp_path / "cache")["ramp"]
    assert {stream.locate(name).entry.generation for name in stream.ids} == {1}


def test_stats_kept_elsewhere_do_not_stand_for_frames(tmp_path: Path, manifest: Manifest) -> None:
    stats = Options(device="cpu", tier="stats")
    summary = run(manifest, tmp_path / "a", on_planned=lambda _: extract(manifest, tmp_path / "a", Ramp(), stats))
    assert (summary.computed, summary.elsewhere) == (ALL, [])
    done = extract(manifest, tmp_path / "b", Ramp(), stats, on_planned=lambda _: run(manifest, tmp_path / "b"))
    assert (done.computed, sorted(done.elsewhere)) == ([], ALL)


class Whole(Ramp):
    """A stream whose program wants the whole corpus at once."""

    def load(self, device: str, compute_dtype: str) -> "WholeExtractor":
        return WholeExtractor(self.gain)


class WholeExtractor(RampExtractor):
    prepared: ClassVar[list[int]] = []

    def prepare(self, inputs: Iterable[Any], on_message: Callable[[str], None]) -> None:
        self.prepared.append(sum(1 for _ in inputs))


def test_what_prepares_the_whole_corpus_does_it_in_one_process(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WholeExtractor, "prepared", [])
    together = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        summaries = list(
            pool.map(
                lambda _: run(manifest, tmp_path / "cache", Whole(), on_planned=lambda _: together.wait(60)), range(2)
            )
        )
    assert WholeExtractor.prepared == [12]
    assert sorted(name for one in summaries for name in one.computed) == ALL


def test_who_comes_after_the_first_commit_waits_for_what_was_prepared(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, waited = threading.Event(), threading.Event()

    def hold(count: int, _: float) -> None:
        if count and list((tmp_path / "cache").glob("*/part-*.json")):
            began.set()
            assert waited.wait(60)

    monkeypatch.setattr(WholeExtractor, "prepared", [])
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(run, manifest, tmp_path / "cache", Whole(), on_done=hold)
        assert began.wait(60)
        second = run(manifest, tmp_path / "cache", Whole(), on_done=when_waiting(waited))
        assert first.result().computed == ALL
    assert WholeExtractor.prepared == [12]
    assert second.computed == []
    assert sorted([*second.present, *second.elsewhere]) == ALL


def test_what_others_computed_is_compared_aside_and_two_at_a_time(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(manifest, tmp_path / "whole")
    earlier = Manifest(list(manifest)[:4], manifest.folder)
    both, computed = threading.Barrier(2), threading.Event()
    names: list[str] = []
    every: list[str] = []
    counted = 0

    def read(stream: Any, manifest: Manifest, utterance: Utterance) -> Input:
        every.append(utterance.id)
        if utterance.id in earlier.ids:
            names.append(threading.current_thread().name)
            both.wait(60)
            assert computed.wait(60)  # all the rest, while this is compared
        return stream_input(stream, manifest, utterance)

    def count(number: int) -> None:
        nonlocal counted
        counted += number
        if counted == 8:
            computed.set()

    def planned(_: object) -> None:
        run(earlier, tmp_path / "cache")
        monkeypatch.setattr("featcache.stages.stream_input", read)

    summary = run(manifest, tmp_path / "cache", watched(count), on_planned=planned)
    assert (summary.computed, sorted(summary.elsewhere)) == (ALL[4:], ALL[:4])
    assert sorted(every) == ALL  # once, to compute or to compare
    assert len(names) == 4
    assert threading.current_thread().name not in names
    assert tree(tmp_path / "cache") == tree(tmp_path / "whole")


class Hopeless(Watched):
    """A stream that fails, one utterance at a time."""

    def load(self, device: str, compute_dtype: str) -> "HopelessExtractor":
        return HopelessExtractor(self)


class HopelessExtractor(WatchedExtractor):
    def extract(self, inputs: Any) -> list[Features]:
        self._stream.hook(len(inputs))
        raise StreamError("there is no hope")


def hopeless(hook: Callable[[int], None] = lambda _: None) -> Hopeless:
    stream = Hopeless()
    object.__setattr__(stream, "hook", hook)
    return stream


def rerun(manifest: Manifest, cache: Path, hook: Callable[[int], None], **arguments: Any) -> Summary:
    return extract(manifest, cache, hopeless(hook), Options(device="cpu", batch_size=1), **arguments)


def test_failures_told_before_are_tried_again_by_one_of_several(tmp_path: Path, manifest: Manifest) -> None:
    """One does the first two parts, of six, while the other tries all that is left."""
    run(manifest, tmp_path / "cache", hopeless())
    before = tree(tmp_path / "cache")
    began, waits = threading.Event(), threading.Event()
    tries: dict[str, int] = {"slow": 0, "fast": 0}
    done: list[int] = []

    def slow(_: int) -> None:
        tries["slow"] += 1
        began.set()
        assert waits.wait(60)

    def fast(_: int) -> None:
        tries["fast"] += 1

    waiting = when_waiting(waits)

    def count(number: int, audio_s: float) -> None:
        done.append(number)
        waiting(number, audio_s)

    with ThreadPoolExecutor(1) as pool:
        elsewhere: list[int] = []
        first = pool.submit(
            rerun, manifest, tmp_path / "cache", slow,
            on_done=lambda number, _: done.append(number), on_elsewhere=lambda number, _: elsewhere.append(number),
        )  # fmt: skip
        assert began.wait(60)
        second = rerun(manifest, tmp_path / "cache", fast, on_done=count)
        assert first.result().failures == second.failures == dict.fromkeys(ALL, "there is no hope")
    assert tries["slow"] in (2, 4)  # with the part that was read ahead or without
    assert sum(tries.values()) == sum(done) == 12
    assert sum(elsewhere) == tries["fast"]
    assert tree(tmp_path / "cache") == before


def test_failures_are_tried_again_by_who_comes_later(tmp_path: Path, manifest: Manifest) -> None:
    run(manifest, tmp_path / "cache", hopeless())
    last, waits = threading.Event(), threading.Event()
    tries = {"first": 0, "later": 0}

    def first(_: int) -> None:
        tries["first"] += 1
        if tries["first"] == 12:
            last.set()
            assert waits.wait(60)

    def later(_: int) -> None:
        tries["later"] += 1

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(rerun, manifest, tmp_path / "cache", first)
        assert last.wait(60)
        while len(claims.tried(tmp_path / "cache" / ".tmp")) < 5:  # a thread commits what was computed
            assert not running.done()
            time.sleep(0.01)
        rerun(manifest, tmp_path / "cache", later, on_done=when_waiting(waits))
        running.result()
    # But not what the other had in hand.
    assert tries == {"first": 12, "later": 10}
    assert not (tmp_path / "cache" / ".tmp").exists()


def test_a_part_is_committed_with_what_is_known_of_it_alone(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = StreamWriter.commit
    sizes: list[tuple[int, int]] = []

    def counted(self: StreamWriter, stored: Any, failures: Any, generations: Any) -> str:
        sizes.append((len(stored), len(generations)))
        return commit(self, stored, failures, generations)

    monkeypatch.setattr(StreamWriter, "commit", counted)
    run(manifest, tmp_path / "cache")
    assert sizes == [(2, 2)] * 6


def test_an_error_leaves_no_claim_behind(tmp_path: Path, manifest: Manifest) -> None:
    def fail(_: int) -> None:
        raise ValueError("a fault of a stream")

    with pytest.raises(ValueError, match="a fault"):
        run(manifest, tmp_path / "cache", watched(fail))
    assert not (tmp_path / "cache" / ".tmp").exists()
    assert run(manifest, tmp_path / "cache").computed == ALL


def test_failures_of_single_utterances_are_those_of_one_process(tmp_path: Path, manifest: Manifest) -> None:
    class Picky(Ramp):
        def load(self, device: str, compute_dtype: str) -> "PickyExtractor":
            return PickyExtractor(self.gain)

    class PickyExtractor(RampExtractor):
        def extract(self, inputs: Any) -> list[Features]:
            if any(len(samples) == 8000 for samples in inputs):
                raise StreamError("it is of half a second")
            return super().extract(inputs)

    together = threading.Barrier(2)
    run(manifest, tmp_path / "whole", Picky())
    with ThreadPoolExecutor(2) as pool:
        summaries = list(
            pool.map(
                lambda _: run(manifest, tmp_path / "cache", Picky(), on_planned=lambda _: together.wait(60)), range(2)
            )
        )
    failed = [name for name in ALL if int(name[1:]) % 3 == 2]
    assert all(sorted(one.failures) == failed for one in summaries)
    assert tree(tmp_path / "cache") == tree(tmp_path / "whole")
