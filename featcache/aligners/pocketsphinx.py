"""pocketsphinx's forced alignment of English, with the acoustic model and dictionary of its own wheel.

Text is normalised by :mod:`featcache.transcript`. A word that the dictionary lacks is said as espeak-ng would
(:mod:`featcache.g2p`, extra ``demo``), or is one phone ``spn`` where espeak-ng is not installed or not wanted; either
way it is listed in ``unknown_words``. An event such as ``[LAUGHTER]`` is aligned with the model's noise. Phones are
the CMU dictionary's, in upper case, on a grid of 10 ms.

pocketsphinx aligns a wrong text without complaint, so three numbers judge each alignment (:mod:`featcache.sphinx`):

- ``phone_fit_nats``: how well the phones fit the sound, 0 is best: mean over their frames of the log of the likelihood
  under the aligned phone, over that under the model's best sound. Below -9 an utterance is refused.
- ``silence_fit_nats``: the same for what was taken as silence (NaN under 0.5 s of it): a text that is shorter than
  what is said leaves speech there. Below -8 an utterance is refused.
- ``rushed_share``: share of phones at the shortest length possible, 30 ms (NaN under 8 phones). It refuses nothing.

Measured once, when the limits were set, on RAVDESS (360 utterances, acted shouting among them; the sentences have 17
phones) and on 240 synthetic sentences; a wrong text is another with 0.8 to 1.25 times the phones, twice for each
utterance. ``benchmarks/wrong_texts.py`` repeats right texts, wrong ones and white noise with a draw of its own, and
refuses none of the right ones, 410 of 720, 458 of 480, and 115 of 120:

==============================  ============  ==========  ============  ==========
..                              RAVDESS                   synthetic
------------------------------  ------------------------  ------------------------
text                            median fit    refused     median fit    refused
==============================  ============  ==========  ============  ==========
right                           -4.5          0 of 360    -6.0          0 of 240
right, white noise 10 dB below  -5.8          0 of 180    -5.6          0 of 240
right, noise as loud as speech  -7.3          16 of 180   -7.3          11 of 240
wrong                           -9.1          385 of 720  -10.6         454 of 480
wrong, half as long             -8.8          77 of 180   -9.5          111 of 120
==============================  ============  ==========  ============  ==========

The worst right texts are at -8.97, -8.62 and -8.42 in RAVDESS, -7.73 in synthetic speech; 5 of LibriVox and 3 of 4 of
LibriSpeech are at -3, and the fourth, refused at -12, has in truth another sentence's text.

So nearly half of the wrong texts pass where utterances are short and shouted, and one in twenty elsewhere. Of white
noise 116 of 120 pieces were refused, of German (EMO-DB) with an English text of its length 101 of 113. Of the words of
the 27 right texts refused for noise, 92 to 97 % lay elsewhere than without it, but so did 60 to 64 % of those that
passed. A few wrong words among right ones stay below what these can see; so does a sentence that differs in one word.

A joint limit on ``rushed_share`` is left to whoever can afford it: ``featcache keep --where "phone_fit_nats>=-8.5"
--where "rushed_share<=0.3"`` leaves 72 of the 720 wrong texts and 2 of the 480, no white noise, 355 of the 360 right
ones and all 240. The 5 are one actor at the top of the voice, and at least 3 had their words in the wrong place. Noise
rushes phones too: 10 dB below the speech it costs 13 % of RAVDESS and 5 % of the synthetic sentences.

A fourth number, ``unknown_share``, is the share of words that the dictionary lacks (NaN where there is no word): many
tell of another language. German with its own text passes (53 of 57 of EMO-DB, guessed words and all), at 0.25 to 0.67.

Memory grows with the phones times the length: 0.16 GB at 30 s, 0.42 GB at 65 s, 1.2 GB at 120 s (10 MB a second) and
about 7 GB at 375 s (19 MB a second), for each worker.
"""

import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from featcache import espeak, sphinx, sphinx_dictionary
from featcache.aligner import Aligner, Identity, Session
from featcache.alignment import Alignment
from featcache.checkpoints import file_sha256
from featcache.errors import ConfigError, MissingExtraError, StreamError
from featcache.files import canonical_json
from featcache.stream import Speech
from featcache.workers import Died, Workers


@dataclass(frozen=True)
class Pocketsphinx(Aligner):
    """Forced alignment by pocketsphinx.

    Attributes:
        unknown_word: what to do with a word that the dictionary lacks: ``guess`` how it is said by espeak-ng, or
            ``mark`` it as one phone ``spn``, which fits its neighbours' times less well.
        dictionary: file of further words, or of other pronunciations of the wheel's: a word and its phones a line, as
            in the CMU dictionary.
        model: folder of another acoustic model of English for pocketsphinx, for 16 kHz; None is the wheel's.
        worst_phone_fit_nats: an utterance below it is refused as a wrong text.
        worst_silence_fit_nats: an utterance below it is refused as a text that lacks what is said.
        longest_s: longest utterance, in seconds: memory grows with its square, to 1.2 GB for each worker at 120 s.
            Another limit aligns nothing again but what failed by it.
    """

    title: ClassVar[str] = "pocketsphinx, English, model and dictionary in its wheel"

    unknown_word: Literal["guess", "mark"] = "guess"
    dictionary: str | None = None
    model: str | None = None
    worst_phone_fit_nats: float = -9.0
    worst_silence_fit_nats: float = -8.0
    longest_s: float = 120.0

    @property
    def quality_names(self) -> tuple[str, ...]:
        """Return the names of the four numbers."""
        return sphinx.QUALITY_NAMES

    def identity(self) -> Identity:
        """Return versions, and digests of the model and the dictionaries: not where they lie.

        Raises:
            ConfigError: the model or the dictionary is not there, or a line of the dictionary cannot be understood.
        """
        model = sphinx.model_folder(self.model)
        if not (model / "mdef").is_file():
            raise ConfigError(f"The acoustic model {str(model)!r} has no file 'mdef'. Give the folder that holds it.")
        files = _files(model)
        name = "en-us" if self.model is None or files == _files(sphinx.model_folder(None)) else "another"
        files["dictionary"] = file_sha256(sphinx.wheel_folder() / "cmudict-en-us.dict")
        if self.dictionary:
            sphinx_dictionary.read(self.dictionary)
            files["own dictionary"] = file_sha256(Path(self.dictionary))
        versions = {name: importlib.metadata.version(name) for name in ("pocketsphinx", "num2words")}
        if self.unknown_word == "guess":
            versions["espeak-ng"] = _espeak_version()
        left_out = ("dictionary", "model", "longest_s")
        return Identity(versions, {"name": name, "sha256": _digest(files)}, left_out=left_out)

    def session(self, workers: int, logs: Path) -> "PocketsphinxSession":
        """Start working, in processes of their own: lack of memory inside the C library ends a process.

        Raises:
            ConfigError: the model cannot be loaded, or does not know phones of the dictionary.
        """
        settings = sphinx.Settings(
            self.unknown_word == "guess",
            self.dictionary,
            self.model,
            self.worst_phone_fit_nats,
            self.worst_silence_fit_nats,
        )
        return PocketsphinxSession(settings, workers, self.longest_s)

    def seconds_per_second(self) -> float:
        """Return what it took on one core of a shared virtual machine."""
        return 0.065


class PocketsphinxSession(Session):
    """Decoders at work.

    Args:
        settings: what they need to know.
        workers: processes.
        longest_s: longest utterance, in seconds.

    Raises:
        ConfigError: the model cannot be loaded, or does not know phones of the dictionary.
    """

    def __init__(self, settings: sphinx.Settings, workers: int, longest_s: float) -> None:
        self._longest_s = longest_s
        self._workers: Workers[_Request, Alignment | StreamError] = Workers(workers, sphinx.start, settings)

    def align(self, batch: Sequence[Speech]) -> Sequence[Alignment | StreamError]:
        """Align utterances; a process that dies costs only the utterance that it dies of."""
        requests = [self._request(speech) for speech in batch]
        replies = iter(self._workers.map([item for item in requests if not isinstance(item, StreamError)]))
        return [item if isinstance(item, StreamError) else _outcome(next(replies)) for item in requests]

    def close(self) -> None:
        """Stop the processes."""
        self._workers.close()

    def _request(self, speech: Speech) -> "_Request | StreamError":
        if speech.sample_rate_hz != sphinx.SAMPLE_RATE_HZ:
            return StreamError(
                f"its audio is at {speech.sample_rate_hz} Hz where {sphinx.SAMPLE_RATE_HZ} was expected."
            )
        if speech.duration_s > self._longest_s:
            return StreamError(
                f"its audio lasts {speech.duration_s:.1f} s, and the longest allowed is {self._longest_s:g} s, because "
                "memory and time grow with it. Cut it into utterances by start_s and end_s in the manifest, or set "
                "longest_s higher."
            )
        if not np.isfinite(speech.samples).all():
            return StreamError("its audio holds numbers that are not finite. Write the file again.")
        return _pcm(speech.samples), speech.text


_Request = tuple[np.ndarray, str]


def _outcome(reply: Alignment | StreamError | Died) -> Alignment | StreamError:
    if isinstance(reply, Died):
        return StreamError(
            f"the process that aligned it {reply}, twice. Is there enough memory for each worker? Check its audio, or "
            "leave it out."
        )
    return reply


def _pcm(samples: np.ndarray) -> np.ndarray:
    """Return ``(samples,)`` int16, the nearest to each sample."""
    return np.clip(np.rint(samples * np.float32(32768)), -32768, 32767).astype("<i2")


def _files(model: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in sorted(model.iterdir()) if path.is_file()}


def _espeak_version() -> str:
    try:
        return espeak.engine_version()
    except MissingExtraError:
        return "not installed"


def _digest(values: Mapping[str, str]) -> str:
    return hashlib.sha256(canonical_json(values)).hexdigest()
