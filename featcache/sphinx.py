"""One pocketsphinx decoder that aligns one utterance after the other, each as if it were the first.

Two passes, as the library's own aligner does: words, then phones inside them. With its default beams 40 of 120 clean
utterances failed, so nothing is pruned; without ``reinit_feat`` an utterance would depend on the one before.

How well a text fits comes from the same passes: with ``compallsen`` the score of a frame is how much less likely
its aligned sound is than the likeliest of all sounds of the model, in nats: 0 is best. Times stay the same; it costs
as much again as the two passes. A free phone loop as a reference added nothing: its own score is always near 0.
"""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from featcache import g2p, sphinx_dictionary
from featcache.alignment import UNKNOWN, Alignment, Interval
from featcache.errors import ConfigError, FeatcacheError, MissingExtraError, StreamError
from featcache.sphinx_dictionary import VARIANT
from featcache.transcript import Token, tokens

SAMPLE_RATE_HZ = 16000
QUALITY_NAMES = ("phone_fit_nats", "silence_fit_nats", "rushed_share", "unknown_share")

_FRAME_S = 0.01
_SHORTEST = 3  # frames of a phone: its model has three states
_FEWEST_PHONES, _LEAST_SILENCE_S = 8, 0.5
_NATS = 1024 * math.log(1.0001)  # of a score of one frame: SENSCR_SHIFT and logbase of the library
_SPOKEN_NOISE, _NOISE = "~spn", "~nsn"
_GUESSED = "~"  # guessed words carry it inside the decoder, so that they never shadow the dictionary's
_NO_SPEECH = {"SIL", "+SPN+", "+NSN+"}


@dataclass(frozen=True)
class Settings:
    """What a recogniser needs to know; see :class:`featcache.aligners.pocketsphinx.Pocketsphinx`."""

    guess: bool
    dictionary: str | None
    model: str | None
    worst_phone_fit_nats: float
    worst_silence_fit_nats: float


def model_folder(model: str | None) -> Path:
    """Return the folder of the acoustic model; None is the wheel's."""
    return Path(model) if model else wheel_folder() / "en-us"


def wheel_folder() -> Path:
    """Return the wheel's folder of English models."""
    import pocketsphinx

    return Path(pocketsphinx.get_model_path()) / "en-us"


class _Phone(NamedTuple):
    """A phone as the decoder found it: in frames, with the sum of their scores."""

    name: str
    start: int
    num_frames: int
    score: int


class Recogniser:
    """A decoder at work.

    Args:
        settings: what it needs to know.

    Raises:
        ConfigError: the model cannot be loaded, or the dictionary has phones that the model does not know.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._decoder = _decoder(settings)
        self._guesses: dict[str, str] = {}  # word outside the dictionary -> its name in the decoder

    def known(self, word: str) -> bool:
        """Return whether the dictionary has a word."""
        return self._decoder.lookup_word(word) is not None

    def align(self, samples: np.ndarray, text: str) -> Alignment:
        """Align one utterance.

        Args:
            samples: ``(samples,)`` int16 at 16 kHz.
            text: its transcript.

        Raises:
            StreamError: no word, too little audio, no path through it, or a text that does not fit.
        """
        found = tokens(text, self.known)
        names = self._names(found)
        self._check_length(names, len(samples))
        entries = self._entries(samples.tobytes(), names)
        collected = _Collected(len(samples) / SAMPLE_RATE_HZ)
        rest = list(zip(found, names, strict=True))[::-1]
        for name, phones in entries:
            if name[:1] in "<[":  # silence and noise that the decoder put between the words
                collected.add_gap(phones)
            elif rest and VARIANT.sub("", name) == rest[-1][1]:
                collected.add(rest.pop()[0], phones)
            else:
                break
        else:
            if not rest:
                return self._judged(collected, [token.spelling for token in found if token.kind == "word"])
        raise StreamError("pocketsphinx lost words of its text on the way. Check its text and its audio.")

    def _names(self, found: Sequence[Token]) -> list[str]:
        words = dict.fromkeys(token.spelling for token in found if token.kind == "word")
        missing = [word for word in words if word not in self._guesses and not self.known(word)]
        if missing:
            self._guess(missing)
        return [_NOISE if token.kind == "event" else self._guesses.get(token.spelling, token.spelling)
                for token in found]  # fmt: skip

    def _guess(self, words: Sequence[str]) -> None:
        guesses: Mapping[str, tuple[str, ...] | None] = {}
        if self._settings.guess:
            try:
                guesses = g2p.pronunciations(words)
            except MissingExtraError:  # the aligner's identity says so
                guesses = {}
        for word in words:
            self._guesses[word] = _SPOKEN_NOISE
            if phones := guesses.get(word):
                try:
                    self._decoder.add_word(_GUESSED + word, " ".join(phones), True)
                except RuntimeError:  # another model may lack a phone
                    continue
                self._guesses[word] = _GUESSED + word

    def _check_length(self, names: Sequence[str], num_samples: int) -> None:
        num_phones = sum(self._fewest_phones(name) for name in names)
        if num_samples * 100 < num_phones * _SHORTEST * SAMPLE_RATE_HZ:
            raise StreamError(
                f"its audio is too short for its text: {num_phones} phones of at least {_SHORTEST * 10} ms each take "
                f"{num_phones * _SHORTEST / 100:.2f} s, and it lasts {num_samples / SAMPLE_RATE_HZ:.2f} s. Check that "
                "text and audio belong together."
            )

    def _fewest_phones(self, name: str) -> int:
        counts = []
        variant = name
        while (phones := self._decoder.lookup_word(variant)) is not None:
            counts.append(len(phones.split()))
            variant = f"{name}({len(counts) + 1})"
        return min(counts)

    def _entries(self, pcm: bytes, names: Sequence[str]) -> list[tuple[str, list[_Phone]]]:
        """Return the words that both passes found, each with its phones."""
        try:
            self._decoder.set_align_text(" ".join(names))
            self._process(pcm)
            if self._decoder.hyp() is not None:
                self._decoder.set_alignment()
                self._process(pcm)
                return [
                    # Read while the library walks: an entry that outlives its turn points to freed memory.
                    (word.name, [_Phone(phone.name, phone.start, phone.duration, phone.score) for phone in word])
                    for word in self._decoder.get_alignment()
                ]
            reason = "no path through the audio"
        except RuntimeError as error:
            reason = str(error)
        raise StreamError(f"pocketsphinx cannot align its text: {reason}. Check that text and audio belong together.")

    def _process(self, pcm: bytes) -> None:
        self._decoder.reinit_feat()
        self._decoder.start_utt()
        try:
            self._decoder.process_raw(pcm, no_search=False, full_utt=True)
        finally:
            self._decoder.end_utt()

    def _judged(self, collected: "_Collected", spoken: Sequence[str]) -> Alignment:
        unknown = [word for word in spoken if word in self._guesses]
        unknown_share = len(unknown) / len(spoken) if spoken else math.nan
        quality = dict(zip(QUALITY_NAMES, (*collected.quality(), unknown_share), strict=True))
        for name, threshold, told in (
            ("phone_fit_nats", self._settings.worst_phone_fit_nats, "its text does not fit its audio"),
            ("silence_fit_nats", self._settings.worst_silence_fit_nats, "its audio has speech that its text lacks"),
        ):
            if quality[name] < threshold:
                raise StreamError(
                    f"{told}: {name} is {quality[name]:.2f}, and the least allowed is {threshold:g} (0 is best); "
                    f"{_told(quality, name)}. Check its text; if it is right, set worst_{name} lower."
                )
        return Alignment(tuple(collected.words), tuple(collected.phones), quality, tuple(dict.fromkeys(unknown)))


@dataclass
class _Collected:
    """Intervals and scores of one utterance."""

    duration_s: float
    words: list[Interval] = field(default_factory=list)
    phones: list[Interval] = field(default_factory=list)
    speech: list[_Phone] = field(default_factory=list)
    silence: list[_Phone] = field(default_factory=list)

    def add_gap(self, phones: Sequence[_Phone]) -> None:
        self.silence += [phone for phone in phones if phone.name == "SIL"]

    def add(self, token: Token, phones: Sequence[_Phone]) -> None:
        labels = {"+SPN+": UNKNOWN, "+NSN+": token.spelling}
        intervals = [self._interval(phone, labels.get(phone.name, phone.name)) for phone in phones]
        self.words.append(Interval(intervals[0].start_s, intervals[-1].end_s, token.spelling))
        self.phones += intervals
        self.speech += [phone for phone in phones if phone.name not in _NO_SPEECH]

    def _interval(self, phone: _Phone, label: str) -> Interval:
        end_s = round((phone.start + phone.num_frames) * _FRAME_S, 2)
        return Interval(round(phone.start * _FRAME_S, 2), min(end_s, self.duration_s), label)

    def quality(self) -> tuple[float, float, float]:
        """Return the first three numbers of :data:`QUALITY_NAMES`; NaN where there is too little to tell."""
        rushed = [phone.num_frames <= _SHORTEST for phone in self.speech]
        return (
            _fit(self.speech, _FRAME_S),
            _fit(self.silence, _LEAST_SILENCE_S),
            float(np.mean(rushed)) if len(rushed) >= _FEWEST_PHONES else math.nan,
        )


def _fit(phones: Sequence[_Phone], least_s: float) -> float:
    """Return the mean over frames, not over phones: right texts lie further apart from others by it."""
    num_frames = sum(phone.num_frames for phone in phones)
    if not phones or num_frames * _FRAME_S < least_s:
        return math.nan
    return sum(phone.score for phone in phones) / num_frames * _NATS


def _told(quality: Mapping[str, float], but: str) -> str:
    return ", ".join(f"{name} is {quality[name]:.2f}" for name in quality if name != but)


def _decoder(settings: Settings) -> Any:
    import pocketsphinx

    own = sphinx_dictionary.read(settings.dictionary) if settings.dictionary else {}
    with tempfile.TemporaryDirectory(prefix="featcache-") as folder:
        path = wheel_folder() / "cmudict-en-us.dict"
        if own:
            path = sphinx_dictionary.merged(path, own, Path(folder) / "merged.dict")
        try:
            decoder = pocketsphinx.Decoder(
                hmm=str(model_folder(settings.model)), dict=str(path), lm=None, samprate=SAMPLE_RATE_HZ,
                bestpath=False, beam=0.0, pbeam=0.0, wbeam=0.0, compallsen=True, loglevel="FATAL",
            )  # fmt: skip
            decoder.add_word(_SPOKEN_NOISE, "+SPN+", False)
            decoder.add_word(_NOISE, "+NSN+", True)
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"pocketsphinx cannot load the acoustic model {str(model_folder(settings.model))!r}: {error}. It must "
                "be a folder with mdef, means, variances and so on, for 16 kHz, whose phones include +SPN+ and +NSN+."
            ) from None
    refused = [word for word in own if decoder.lookup_word(word) is None]
    if refused:
        raise ConfigError(
            f"The dictionary {settings.dictionary!r} says {refused[0]!r} as {own[refused[0]][0]!r}, and the acoustic "
            "model lacks one of these phones. Write it in the model's phones."
        )
    return decoder


def start(settings: Settings) -> Callable[[tuple[np.ndarray, str]], Alignment | StreamError]:
    """Return what aligns samples and a text, or returns the error that it failed with.

    Raises:
        ConfigError: as :class:`Recogniser`.
    """
    recogniser = Recogniser(settings)

    def align(request: tuple[np.ndarray, str]) -> Alignment | StreamError:
        try:
            return recogniser.align(*request)
        except StreamError as error:
            return error
        except FeatcacheError as error:
            return StreamError(str(error))

    return align
