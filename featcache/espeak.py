"""Speech made by espeak-ng, with the exact time of every phone and word.

The engine is the shared library inside the package ``espeakng-loader`` (extra ``demo``), called
through ctypes: ``speak_lib.h`` of espeak-ng 1.52 is the source of every constant and structure here.

Three habits of the engine decide how this module is written.

- Its state is global to the process and outlives an utterance: the phase of its oscillators, of its
  flutter and of its random generator carry over, so that the same text gives other samples, and even
  another number of them, the second time. ``espeak_Terminate`` does not reset them. Here the library
  is loaded for each utterance and unloaded after it (3 ms), which makes an utterance depend on its
  arguments alone.
- A voice with the attribute ``breath`` (the variants f2 and f3 among others) reads memory that was
  never written; its samples can differ between runs. Choose voices without it where bytes must repeat.
- A phone is reported at its first sound. The silence just before it, such as the closure of a
  stop, is exact zeros in the output; it is given to the phone that it belongs to. In the same way a
  word starts with its first phone, because the engine reports some words while the phone before
  still sounds.
"""

import ctypes
import locale
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from featcache.alignment import Interval
from featcache.errors import ConfigError, FeatcacheError, MissingExtraError, UnknownNameError

SAMPLE_RATE_HZ = 22050
PAUSE = "_"
"""First letter of the mnemonics that stand for silence, such as ``_`` and ``_:``."""

_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: hand samples to the callback, return when all is spoken
_PHONEME_EVENTS, _DONT_EXIT = 0x0001, 0x8000
_UTF8, _END_PAUSE = 1, 0x1000
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_LIST_TERMINATED, _WORD, _PHONEME = 0, 1, 7
_PUNCTUATION = ' \t\n.,;:!?"()-'

_lock = threading.Lock()


@dataclass(frozen=True)
class Speech:
    """One spoken text.

    Attributes:
        samples: ``(samples,)`` int16 at 22,050 Hz, mono, with the pause that ends the sentence.
        phones: contiguous intervals from 0 to the end of the samples, pauses included; labels are espeak's mnemonics,
            stress marks ``'`` and ``,`` included.
        words: the words' intervals, in order, pauses left out. Words that the engine speaks as
            one, such as "of the", share an interval and a label.
    """

    samples: np.ndarray
    phones: tuple[Interval, ...]
    words: tuple[Interval, ...]


class _EventId(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class _Mark(NamedTuple):
    """A word or phone event: the sample it is reported at, and the text position or mnemonic."""

    sample: int
    position: int
    mnemonic: str | None


class _Recorder:
    """Gathers what the engine hands to its callback during one utterance."""

    def __init__(self) -> None:
        self.blocks: list[np.ndarray] = []
        self.marks: list[_Mark] = []
        self.error: BaseException | None = None
        self.callback = _Callback(self._receive)

    def _receive(self, wave: Any, num_samples: int, events: Any) -> int:
        # ctypes prints and drops what a callback raises, a Ctrl-C too: keep it and stop the engine.
        try:
            if wave and num_samples > 0:
                self.blocks.append(np.ctypeslib.as_array(wave, (num_samples,)).astype(np.int16))
            index = 0
            while (event := events[index]).type != _LIST_TERMINATED:
                if event.type == _WORD:
                    self.marks.append(_Mark(event.sample, event.text_position - 1, None))
                elif event.type == _PHONEME:
                    self.marks.append(_Mark(event.sample, -1, event.id.string.decode("utf-8")))
                index += 1
        except BaseException as error:
            self.error = error
            return 1
        return 0


def engine_version() -> str:
    """Return the engine's name and version, such as ``"espeak-ng 1.52.0"``.

    Raises:
        MissingExtraError: the package espeakng-loader is not installed.
    """
    with _lock, _fresh_library() as library:
        library.espeak_Info.restype = ctypes.c_char_p
        version: bytes = library.espeak_Info(None)
    return f"espeak-ng {version.decode('ascii').split()[0]}"


def speak(
    text: str, voice: str, *, rate_wpm: int = 175, pitch: int = 50, pitch_range: int = 50, volume: int = 100
) -> Speech:
    """Speak a text; the same arguments give the same samples, whatever was spoken before.

    Args:
        text: what to say: plain text, no markup.
        voice: a language of espeak-ng's ``lang`` folder, optionally with a variant of its
            ``voices/!v`` folder, such as ``"gmw/en-US+f1"``.
        rate_wpm: speed in words per minute, 80 to 450.
        pitch: 0 to 99; 50 is the voice's own, the ends are about an octave from it.
        pitch_range: 0, monotone, to 99, twice the voice's own movement at 50.
        volume: 0 to 200; 100 is the engine's own, and near clipping for some voices.

    Raises:
        MissingExtraError: the package espeakng-loader is not installed.
        UnknownNameError: no such language or variant; the engine itself would ignore a wrong variant.
        ConfigError: a setting is out of its range, or the text is blank.
        FeatcacheError: the engine failed.
    """
    _check(text, rate_wpm=(rate_wpm, 80, 450), pitch=(pitch, 0, 99), pitch_range=(pitch_range, 0, 99),
           volume=(volume, 0, 200))  # fmt: skip
    recorder = _Recorder()
    settings = {_RATE: rate_wpm, _VOLUME: volume, _PITCH: pitch, _RANGE: pitch_range}
    with opened(voice) as library:
        library.espeak_SetSynthCallback(recorder.callback)
        for parameter, value in settings.items():
            _expect(library.espeak_SetParameter(parameter, value, 0), f"refused parameter {parameter} = {value}")
        encoded = text.encode("utf-8")
        status = library.espeak_Synth(
            encoded, ctypes.c_size_t(len(encoded) + 1), 0, 1, 0, _UTF8 | _END_PAUSE, None, None
        )
    if recorder.error is not None:
        raise recorder.error
    _expect(status, f"could not speak {text!r}")
    if not recorder.blocks:
        raise FeatcacheError(f"espeak-ng made no sound for {text!r}. Give it words to say.")
    samples = np.concatenate(recorder.blocks)
    phones, words = _intervals(samples, recorder.marks, text)
    return Speech(samples, phones, words)


@contextmanager
def opened(voice: str) -> Iterator[ctypes.CDLL]:
    """Lend the library, fresh and with a voice chosen; it is unloaded at the end.

    Raises:
        MissingExtraError: the package espeakng-loader is not installed.
        UnknownNameError: no such language or variant.
        FeatcacheError: the engine failed.
    """
    data = Path(_loader().get_data_path())
    _check_voice(data, voice)
    with _lock, _initialised_library(data) as library:
        _expect(library.espeak_SetVoiceByName(voice.encode()), f"could not load the voice {voice!r}")
        yield library


def _check(text: str, **settings: tuple[int, int, int]) -> None:
    if not text.strip() or "\0" in text:
        raise ConfigError(f"espeak-ng cannot speak {text!r}. Give it a text that is not blank and holds no NUL.")
    for name, (value, low, high) in settings.items():
        if not low <= value <= high:
            raise ConfigError(f"espeak-ng's {name} must be {low} to {high}, got {value}.")


def _check_voice(data: Path, voice: str) -> None:
    language, _, variant = voice.partition("+")
    languages = {path.relative_to(data / "lang").as_posix() for path in (data / "lang").glob("*/*")}
    if language not in languages:
        raise UnknownNameError("espeak-ng language", language, languages)
    variants = {path.name for path in (data / "voices" / "!v").iterdir()}
    if variant and variant not in variants:
        raise UnknownNameError("espeak-ng voice variant", variant, variants)


def _expect(status: int, failure: str) -> None:
    if status != 0:
        raise FeatcacheError(f"espeak-ng {failure} (status {status}). Install the package espeakng-loader again.")


def _loader() -> Any:
    try:
        import espeakng_loader
    except ImportError:
        raise MissingExtraError("Synthetic speech", "espeakng-loader", "demo") from None
    return espeakng_loader


@contextmanager
def _fresh_library() -> Iterator[ctypes.CDLL]:
    """Load the library with all of its variables at their first values; unload it at the end."""
    path = _loader().get_library_path()
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise FeatcacheError(
            f"The library of espeak-ng cannot be loaded: {error}. Install the package espeakng-loader again."
        ) from None
    try:
        if library.espeak_ng_GetSampleRate() != 0:
            raise FeatcacheError(
                "espeak-ng is in use by another part of this program, so its output would depend on what that has "
                "spoken. Speak from a process of its own."
            )
        yield library
    finally:
        _unload(library)


@contextmanager
def _initialised_library(data: Path) -> Iterator[ctypes.CDLL]:
    with _fresh_library() as library:
        # espeak_Initialize sets the locale of the whole process.
        before = locale.setlocale(locale.LC_CTYPE)
        try:
            rate_hz = library.espeak_Initialize(_SYNCHRONOUS, 0, str(data).encode(), _PHONEME_EVENTS | _DONT_EXIT)
            if rate_hz != SAMPLE_RATE_HZ:
                raise FeatcacheError(
                    f"espeak-ng started with {rate_hz} where {SAMPLE_RATE_HZ} Hz was expected. "
                    "Install the package espeakng-loader again."
                )
            try:
                # The generator of noise otherwise starts from the clock.
                library.espeak_ng_SetRandSeed(ctypes.c_long(1))
                yield library
            finally:
                library.espeak_Terminate()
        finally:
            locale.setlocale(locale.LC_CTYPE, before)


def _unload(library: ctypes.CDLL) -> None:
    import _ctypes

    if sys.platform == "win32":
        _ctypes.FreeLibrary(library._handle)
    else:
        _ctypes.dlclose(library._handle)


def _intervals(samples: np.ndarray, marks: list[_Mark], text: str) -> tuple[tuple[Interval, ...], tuple[Interval, ...]]:
    """Return the phones, which tile the samples, and the words."""
    starts = _phone_starts(samples, [mark for mark in marks if mark.mnemonic is not None])
    ends = [*starts[1:], len(samples)]
    phones: list[Interval] = []
    words: list[Interval] = []
    bounds: list[tuple[int, list[Interval]]] = []  # text position of a word, its phones
    spans = iter(zip(starts, ends, strict=True))
    for mark in marks:
        if mark.mnemonic is None:
            bounds.append((_word_position(text, mark.position), []))
            continue
        start, end = next(spans)
        if end == start:
            continue
        phone = Interval(start / SAMPLE_RATE_HZ, end / SAMPLE_RATE_HZ, mark.mnemonic)
        phones.append(phone)
        if bounds and not mark.mnemonic.startswith(PAUSE):
            bounds[-1][1].append(phone)
    positions = [position for position, _ in bounds] + [len(text)]
    for (position, spoken), following in zip(bounds, positions[1:], strict=True):
        if spoken:
            label = text[position:following].strip(_PUNCTUATION)
            words.append(Interval(spoken[0].start_s, spoken[-1].end_s, label))
    return tuple(phones), tuple(words)


def _word_position(text: str, position: int) -> int:
    """Return where a reported word starts in the text.

    The second of two words that the engine's dictionary lists as a group ("so much") is reported
    one letter into the first.
    """
    if 0 < position < len(text) and text[position - 1].isalnum():
        return text.find(" ", position) + 1 or position
    return position


def _phone_starts(samples: np.ndarray, marks: list[_Mark]) -> list[int]:
    """Return the first sample of each phone; the exact zeros before its first sound are its own."""
    sounding = np.flatnonzero(samples)
    starts: list[int] = []
    for number, mark in enumerate(marks):
        start = mark.sample if number else 0
        before = marks[number - 1] if number else None
        pauses = str(mark.mnemonic).startswith(PAUSE) or (before and str(before.mnemonic).startswith(PAUSE))
        if before is not None and not pauses:
            last = int(np.searchsorted(sounding, start)) - 1
            silent_from = int(sounding[last]) + 1 if last >= 0 else 0
            # A phone before it that never sounds keeps its time.
            start = silent_from if silent_from > before.sample else start
        starts.append(start)
    return starts
