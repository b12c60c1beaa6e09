"""Speech from espeak-ng: bytes that repeat, times that are right, and errors that say what to do."""

import locale
import sys
import threading
from itertools import pairwise

import numpy as np
import pytest

from featcache import espeak
from featcache.errors import ConfigError, FeatcacheError, MissingExtraError, UnknownNameError

pytest.importorskip("espeakng_loader")

VOICE = "gmw/en-US+m1"
TEXT = "Rapid paper boats stop so much, and the big dog keeps talking about it."


def _is_pause(interval: espeak.Interval) -> bool:
    return interval.label.startswith(espeak.PAUSE)


def test_speech_does_not_depend_on_what_was_spoken_before():
    first = espeak.speak(TEXT, VOICE)
    espeak.speak("Something else, much louder!", "gmw/en+linda", rate_wpm=240, pitch=80, volume=150)
    again = espeak.speak(TEXT, VOICE)
    np.testing.assert_array_equal(first.samples, again.samples)
    assert (first.phones, first.words) == (again.phones, again.words)


def test_threads_speak_one_after_the_other():
    alone = espeak.speak(TEXT, VOICE).samples
    spoken: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: spoken.append(espeak.speak(TEXT, VOICE).samples)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(spoken) == 4
    assert all(np.array_equal(alone, samples) for samples in spoken)


def test_phones_tile_the_samples():
    speech = espeak.speak(TEXT, VOICE)
    assert speech.samples.dtype == np.int16
    assert speech.phones[0].start_s == 0.0
    assert speech.phones[-1].end_s == len(speech.samples) / espeak.SAMPLE_RATE_HZ
    assert all(left.end_s == right.start_s for left, right in pairwise(speech.phones))
    assert all(phone.start_s < phone.end_s for phone in speech.phones)


def test_pauses_are_exact_zeros_and_phones_sound():
    speech = espeak.speak(TEXT, VOICE)
    for phone in speech.phones:
        span = speech.samples[round(phone.start_s * espeak.SAMPLE_RATE_HZ) : round(phone.end_s * espeak.SAMPLE_RATE_HZ)]
        assert span.any() != _is_pause(phone)


def test_the_closure_of_a_stop_belongs_to_the_stop():
    speech = espeak.speak("apple", VOICE)
    vowel, stop = speech.phones[:2]
    assert stop.label == "p"
    start = round(stop.start_s * espeak.SAMPLE_RATE_HZ)
    assert not speech.samples[start : start + 400].any()
    assert speech.samples[start - 1] != 0
    assert vowel.end_s == stop.start_s


def test_words_spell_the_text_and_group_as_the_engine_speaks_them():
    speech = espeak.speak(TEXT, VOICE)
    assert " ".join(word.label for word in speech.words) == TEXT.replace(",", "").replace(".", "")
    assert "so" in [word.label for word in speech.words]
    grouped = espeak.speak("It is out of the box.", VOICE)
    assert [word.label for word in grouped.words] == ["It", "is", "out of", "the", "box"]


def test_words_start_and_end_with_their_phones():
    speech = espeak.speak(TEXT, VOICE)
    spoken = [phone for phone in speech.phones if not _is_pause(phone)]
    assert {word.start_s for word in speech.words} <= {phone.start_s for phone in spoken}
    assert {word.end_s for word in speech.words} <= {phone.end_s for phone in spoken}
    assert speech.words[0].start_s == spoken[0].start_s
    assert speech.words[-1].end_s == spoken[-1].end_s


def test_a_faster_rate_is_shorter_and_a_larger_volume_is_louder():
    calm = espeak.speak(TEXT, VOICE, volume=40).samples
    assert len(espeak.speak(TEXT, VOICE, rate_wpm=260).samples) < 0.8 * len(calm)
    loud = espeak.speak(TEXT, VOICE, volume=80).samples
    assert np.sqrt(np.mean(loud.astype(float) ** 2)) == pytest.approx(
        2 * np.sqrt(np.mean(calm.astype(float) ** 2)), rel=0.05
    )


def test_the_locale_of_the_process_stays_as_it_was():
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, "C")
        espeak.speak("one", VOICE)
        assert locale.setlocale(locale.LC_CTYPE) == "C"
    finally:
        locale.setlocale(locale.LC_CTYPE, before)


def test_unknown_voices_list_what_exists():
    with pytest.raises(UnknownNameError, match="voice variant 'nobody'.*Alex"):
        espeak.speak("one", "gmw/en-US+nobody")
    with pytest.raises(UnknownNameError, match="language 'en-UK'"):
        espeak.speak("one", "en-UK")


@pytest.mark.parametrize(
    ("name", "value"), [("rate_wpm", 20), ("rate_wpm", 500), ("pitch", 100), ("pitch_range", -1), ("volume", 201)]
)
def test_a_setting_out_of_range_is_refused_by_name(name: str, value: int):
    with pytest.raises(ConfigError, match=rf"{name} must be \d+ to \d+, got {value}"):
        espeak.speak("one", VOICE, **{name: value})


@pytest.mark.parametrize("text", ["", "  \n", "one\0two"])
def test_a_text_that_cannot_be_spoken_is_refused(text: str):
    with pytest.raises(ConfigError, match="not blank"):
        espeak.speak(text, VOICE)


def test_an_exception_while_the_engine_speaks_reaches_the_caller(monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np.ctypeslib, "as_array", interrupt)
        with pytest.raises(KeyboardInterrupt):
            espeak.speak("one", VOICE)
    assert len(espeak.speak("one", VOICE).samples)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(MissingExtraError, match=r"featcache\[demo\]"):
        espeak.speak("one", VOICE)


def test_an_engine_that_others_hold_is_refused():
    import ctypes

    import espeakng_loader

    held = ctypes.CDLL(espeakng_loader.get_library_path())
    data = str(espeakng_loader.get_data_path()).encode()
    assert held.espeak_Initialize(2, 0, data, 0x8000) == espeak.SAMPLE_RATE_HZ
    try:
        with pytest.raises(FeatcacheError, match="in use by another part of this program"):
            espeak.speak("one", VOICE)
    finally:
        held.espeak_Terminate()
        espeak._unload(held)
    assert len(espeak.speak("one", VOICE).samples)
