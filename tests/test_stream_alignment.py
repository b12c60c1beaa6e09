"""Alignments in the cache, and the phones of each frame that follow from them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import write_corpus

from featcache import Manifest
from featcache import open as open_cache
from featcache.aligner import Aligner, Identity, Session
from featcache.alignment import Alignment, Interval, read
from featcache.errors import CacheError, ConfigError, StreamError
from featcache.extract import Options, Summary, extract
from featcache.stream import Speech
from featcache.streams.alignment import AlignmentStream
from featcache.streams.phones import Phones
from featcache.verify import coverage, verify


@dataclass(frozen=True)
class Even(Aligner):
    """Shares the audio evenly among the letters of the text; the letter q has no pronunciation."""

    title = "even"
    beam: int = 10
    folder: str = ""

    @property
    def quality_names(self) -> tuple[str, ...]:
        return ("letters_per_s",)

    def identity(self) -> Identity:
        return Identity(libraries={"even": "1"}, left_out=("folder",))

    def session(self, workers: int, logs: Path) -> Session:
        return EvenSession()


class EvenSession(Session):
    closed = 0

    def align(self, batch: Sequence[Speech]) -> Sequence[Alignment | StreamError]:
        return [self._one(speech) for speech in batch]

    def _one(self, speech: Speech) -> Alignment | StreamError:
        words = speech.text.split()
        if "wrong" in words:
            return StreamError("its text is not what is said")
        letters = [(number, letter) for number, word in enumerate(words) for letter in word]
        step = speech.duration_s / len(letters)
        if "late" in words:
            step *= 2
        phones = tuple(Interval(i * step, (i + 1) * step, LETTERS[letter]) for i, (_, letter) in enumerate(letters))
        spans = []
        for number, word in enumerate(words):
            own = [phone for phone, (owner, _) in zip(phones, letters, strict=True) if owner == number]
            spans.append(Interval(own[0].start_s, own[-1].end_s, word))
        unknown = tuple(word for word in words if "q" in word)
        return Alignment(tuple(spans), phones, {"letters_per_s": 1 / step}, unknown)

    def close(self) -> None:
        EvenSession.closed += 1


LETTERS = dict.fromkeys("abcdefghijklmnopqrstuvwxyz0123456789", "AH0") | {"s": "S", "t": "T", "q": "spn"}


@pytest.fixture(autouse=True)
def _even(monkeypatch: pytest.MonkeyPatch) -> None:
    def plugin(stream: AlignmentStream) -> Aligner:
        return Even(**stream.settings)

    monkeypatch.setattr(AlignmentStream, "_plugin", plugin)


def with_texts(manifest: Manifest, texts: dict[str, str | None]) -> Manifest:
    rows = [replace(one, text=texts.get(one.id, one.text)) for one in manifest]
    return Manifest(rows, folder=manifest.folder)


def align(manifest: Manifest, cache: Path, backend: str = "zarr", **settings: Any) -> tuple[Summary, Summary]:
    options = Options(device="cpu", backend=backend, workers=1)
    first = extract(manifest, cache, AlignmentStream("even", settings), options)
    second = extract(manifest, cache, Phones(), options, made={"alignment": first.stream})
    return first, second


@pytest.mark.parametrize("backend", ["zarr", "hdf5"])
def test_what_was_aligned_is_read_back_exactly(tmp_path: Path, backend: str) -> None:
    durations_s = [1.0, 0.5, 2.3]
    manifest = write_corpus(tmp_path, durations_s)
    aligned, framed = align(manifest, tmp_path / "cache", backend)
    assert not aligned.failures
    assert not framed.failures
    cache = open_cache(tmp_path / "cache")
    for number, (name, duration_s) in enumerate(zip(manifest.ids, durations_s, strict=True)):
        alignment = read(cache["alignment"], name)
        assert [word.label for word in alignment.words] == f"this is sentence number {number}".split()
        assert len(alignment.phones) == 21
        assert alignment.phones[-1].end_s == pytest.approx(duration_s)
        assert alignment.quality["letters_per_s"] == pytest.approx(21 / duration_s)
        ids = cache["phones"][name]
        assert ids.dtype == np.int16
        assert ids.shape == (1, 1 + round(duration_s * 16000) // 320, 1)
    assert verify(tmp_path / "cache")[1] == []
    assert all(len(one.present) == 3 for one in coverage(cache, manifest))


def test_each_frame_has_the_phone_of_its_time(tmp_path: Path) -> None:
    manifest = with_texts(write_corpus(tmp_path, [0.4]), {"u000": "st s"})  # 133 ms each
    align(manifest, tmp_path / "cache")
    stream = open_cache(tmp_path / "cache")["phones"]
    inventory = stream.spec.settings["inventory"]
    spoken = [inventory[number] for number in stream["u000"][0, :, 0]]
    # Frame 6, from 120 to 140 ms, is 13 ms of s and 7 of t; the last frame lies behind the audio; a word of one s
    # never occurred in the published inventory.
    assert spoken == ["s_B"] * 7 + ["t_E"] * 6 + ["s_I"] * 7 + ["SIL"]


def test_nothing_is_computed_twice(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, [1.0, 0.5])
    align(manifest, tmp_path / "cache")
    aligned, framed = align(manifest, tmp_path / "cache")
    assert (aligned.computed, framed.computed) == ([], [])
    assert len(aligned.present) == len(framed.present) == 2


def test_another_text_is_aligned_again_and_its_phones_follow(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, [1.0, 0.5])
    align(manifest, tmp_path / "cache")
    aligned, framed = align(with_texts(manifest, {"u001": "stsq"}), tmp_path / "cache")
    assert aligned.changed == {"u001": "its text changed"}
    assert framed.changed == {"u001": "its text and alignment changed"}
    stream = open_cache(tmp_path / "cache")["phones"]
    assert [stream.spec.settings["inventory"][number] for number in stream["u001"][0, [0, -2], 0]] == ["s_B", "UNK"]


def test_phones_of_a_stale_alignment_are_refused(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, [1.0, 0.5])
    align(manifest, tmp_path / "cache")
    summary = extract(with_texts(manifest, {"u001": "other"}), tmp_path / "cache", Phones(), Options(device="cpu"))
    assert summary.failures == {
        "u001": "its alignment is of other audio or text than it has now. Run 'featcache align' again."
    }


def test_what_breaks_after_it_was_aligned_is_not_served_as_if_it_had_not(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, [1.0, 0.5])
    cache = tmp_path / "cache"
    align(manifest, cache)
    broken = with_texts(manifest, {"u001": "wrong text"})
    aligned, framed = align(broken, cache)
    assert aligned.changed == framed.changed == {}
    assert framed.failures == {"u001": "it has no alignment: its text is not what is said"}
    again, _ = align(broken, cache)
    assert list(again.failures) == ["u001"]
    for one in coverage(open_cache(cache), broken):
        assert list(one.present) == ["u000"]
        assert list(one.failed) == ["u001"]
    # As it was before: aligned once more, since what failed last is all that is known of it.
    repaired, framed = align(manifest, cache)
    assert repaired.changed == {"u001": "its input changed and failed, and is as before"}
    assert framed.failures == {}
    assert all(list(one.present) == ["u000", "u001"] for one in coverage(open_cache(cache), manifest))
    settled, _ = align(manifest, cache)
    assert settled.computed == []


def test_phones_of_a_renewed_alignment_are_seen_to_be_stale(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, [1.0, 0.5])
    cache = tmp_path / "cache"
    align(manifest, cache)
    changed = with_texts(manifest, {"u001": "other words"})
    extract(changed, cache, AlignmentStream("even"), Options(device="cpu", workers=1))
    held = {one.stream.partition("-")[0]: one for one in coverage(open_cache(cache), changed, inputs=False)}
    assert held["alignment"].changed == {}
    assert held["phones"].changed == {"u001": "its alignment changed"}


def test_settings_make_another_alignment_and_places_do_not(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, [1.0])
    first, _ = align(manifest, tmp_path / "cache")
    wider, phones = align(manifest, tmp_path / "cache", beam=20)
    assert wider.others == {first.stream: ["settings.settings.beam: 10 -> 20"]}
    assert len(phones.computed) == 1
    assert "settings.alignment.settings.settings.beam: 10 -> 20" in next(iter(phones.others.values()))
    moved, _ = align(manifest, tmp_path / "cache", folder="elsewhere")
    assert moved.stream == first.stream
    assert moved.computed == []


def test_one_utterance_fails_alone_and_says_why(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, [1.0, 0.5, 0.7, 0.4])
    texts = {"u000": "", "u001": "wrong text", "u002": "too late"}
    aligned, framed = align(with_texts(manifest, texts), tmp_path / "cache")
    assert aligned.computed == framed.computed == ["u003"]
    assert "it has no text" in aligned.failures["u000"]
    assert aligned.failures["u001"] == "its text is not what is said"
    assert "ends after its audio, which lasts 0.700 s" in aligned.failures["u002"]
    assert framed.failures == {name: f"it has no alignment: {why}" for name, why in aligned.failures.items()}
    repaired, framed = align(manifest, tmp_path / "cache")
    assert sorted(repaired.computed) == sorted(framed.computed) == ["u000", "u001", "u002"]


def test_the_session_is_closed_even_when_it_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(session: EvenSession, batch: Sequence[Speech]) -> Sequence[Alignment]:
        raise OSError("gone")

    monkeypatch.setattr(EvenSession, "align", broken)
    monkeypatch.setattr(EvenSession, "closed", 0)
    with pytest.raises(OSError, match="gone"):
        extract(write_corpus(tmp_path, [1.0]), tmp_path / "cache", AlignmentStream("even"), Options(device="cpu"))
    assert EvenSession.closed == 1


def test_the_whole_corpus_is_offered_before_the_first_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def prepare(session: EvenSession, speech: Sequence[Speech], on_message: Callable[[str], None]) -> None:
        seen.extend(one.id for one in speech)
        on_message("half way")

    monkeypatch.setattr(EvenSession, "prepare", prepare)
    messages: list[str] = []
    manifest = with_texts(write_corpus(tmp_path, [1.0, 0.5, 0.4]), {"u001": " "})
    extract(
        manifest, tmp_path / "cache", AlignmentStream("even"), Options(device="cpu"), on_message=messages.append
    )  # fmt: skip
    assert seen == ["u000", "u002"]
    assert messages == ["half way"]


def test_without_an_alignment_phones_say_how_to_make_one(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, [1.0])
    with pytest.raises(CacheError, match="holds no alignment .* featcache align MANIFEST --cache"):
        extract(manifest, tmp_path / "cache", Phones(), Options(device="cpu"))


def test_of_several_alignments_one_must_be_named(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, [1.0])
    cache = tmp_path / "cache"
    first, _ = align(manifest, cache)
    align(manifest, cache, beam=20)
    with pytest.raises(CacheError, match="could be any of several alignments.*Name one in full"):
        extract(manifest, cache, Phones(), Options(device="cpu"))
    assert extract(manifest, cache, Phones(alignment=first.stream), Options(device="cpu")).present == ["u000"]


def test_symbols_of_its_own_do_not_fit_the_english_inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Even, "symbol_set", "other")
    manifest = write_corpus(tmp_path, [1.0])
    with pytest.raises(ConfigError, match=r"(?s)arpabet128: SIL UNK .* uw_B\. .*inventory=occurring"):
        align(manifest, tmp_path / "cache")
    summary = extract(manifest, tmp_path / "cache", Phones(inventory="occurring"), Options(device="cpu"))
    inventory = open_cache(tmp_path / "cache")[summary.stream].spec.settings["inventory"]
    assert inventory == ["SIL", "UNK", "AH0", "S", "T"]


def test_an_inventory_of_what_occurs_is_part_of_the_identity(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, [1.0, 0.4])
    cache = tmp_path / "cache"
    align(manifest, cache)
    summary = extract(manifest, cache, Phones(inventory="occurring"), Options(device="cpu"))
    stream = open_cache(cache)[summary.stream]
    assert stream.spec.settings["inventory"] == ["SIL", "UNK", "ah", "s", "t"]
    assert set(np.unique(stream["u000"])) == {0, 2, 3, 4}


def test_phones_have_as_many_frames_as_log_mel_at_any_shift(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, [1.0])
    cache = tmp_path / "cache"
    align(manifest, cache)
    summary = extract(manifest, cache, Phones(frame_shift_ms=10), Options(device="cpu"))
    assert open_cache(cache)[summary.stream]["u000"].shape == (1, 101, 1)


def test_ids_have_no_stats(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, [1.0])
    extract(manifest, tmp_path / "cache", AlignmentStream("even"), Options(device="cpu", tier="stats"))
    stream = open_cache(tmp_path / "cache")["alignment"]
    assert read(stream, "u000").words
    with pytest.raises(LookupError, match="no array .*'mean'"):
        stream.stats()
