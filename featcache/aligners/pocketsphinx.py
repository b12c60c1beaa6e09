"""pocketsphinx's forced alignment of English, with the acoustic model and dictionary of its own wheel.

Text is normalised by :mod:`featcache.transcript`. A word that the dictionary lacks is said as espeak-ng would
(:mod:`featcache.g2p`, extra ``demo``), or is one phone ``spn`` where espeak-ng is not installed or not wanted; either
way it is listed in ``unknown_words``. An event such as ``[LAUGHTER]`` is aligned with the model's noise. Phones are
the CMU dictionary's, in upper case, on a grid of 10 ms.

pocketsphinx aligns a wrong text without complaint, so three numbers judge each alignment (:mod:`featcache.sphinx`):

- ``phone_fit_nats``: how well the phones fit the sound, 0 is best: mean over phones of the log of the likelihood of
  a frame under the aligned phone, over that under the model's best sound. Right texts: median -4.7 in RAVDESS and
  none of 360 below -10.7, acted shouting among them; -3 to -4 for readers, -6 for synthetic speech; 28 utterances
  stayed above -10.3 in noise as loud as the speech. Another text of that length: median -11.0 in RAVDESS, -12.3 to
  -12.9 elsewhere; one three times too long: -13 to -16.
- ``silence_fit_nats``: the same for what was taken as silence (NaN under 0.5 s of it): a text that is shorter than
  what is said leaves speech there. Right texts: none below -5.8. Half a text: medians -8.6 to -11.6 in read and
  synthetic speech; in RAVDESS, which has more true silence than speech, -3.9, so that it goes unseen.
- ``rushed_share``: share of phones at the shortest length possible, 30 ms (NaN under 8 phones). Right texts: median
  0.06 in RAVDESS, up to 0.6; a text three times too long: 0.8. It refuses nothing, because noise raises it too.

A few wrong words among right ones stay below what these can see; so does a sentence that differs in one word.
"""

import importlib.metadata
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from featcache import espeak, sphinx, sphinx_dictionary
from featcache.aligner import Aligner, Identity, Session
from featcache.alignment import Alignment
from featcache.checkpoints import file_sha256
from featcache.errors import ConfigError, MissingExtraError, StreamError
from featcache.files import canonical_json
from featcache.stream import Speech


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
    """

    title: ClassVar[str] = "pocketsphinx, English, model and dictionary in its wheel"

    unknown_word: Literal["guess", "mark"] = "guess"
    dictionary: str | None = None
    model: str | None = None
    worst_phone_fit_nats: float = -11.0
    worst_silence_fit_nats: float = -8.0

    @property
    def quality_names(self) -> tuple[str, ...]:
        """Return the names of the three numbers."""
        return sphinx.QUALITY_NAMES

    def identity(self) -> Identity:
        """Return versions, and digests of the model and the dictionaries: not where they lie.

        Raises:
            ConfigError: the model or the dictionary is not there, or a line of the dictionary cannot be understood.
        """
        model = sphinx.model_folder(self.model)
        if not (model / "mdef").is_file():
            raise ConfigError(f"The acoustic model {str(model)!r} has no file 'mdef'. Give the folder that holds it.")
        files = {path.name: file_sha256(path) for path in sorted(model.iterdir()) if path.is_file()}
        files["dictionary"] = file_sha256(sphinx.wheel_folder() / "cmudict-en-us.dict")
        if self.dictionary:
            sphinx_dictionary.read(self.dictionary)
            files["own dictionary"] = file_sha256(Path(self.dictionary))
        versions = {name: importlib.metadata.version(name) for name in ("pocketsphinx", "num2words")}
        if self.unknown_word == "guess":
            versions["espeak-ng"] = _espeak_version()
        name = "en-us" if self.model is None else "another"
        return Identity(versions, {"name": name, "sha256": _digest(files)}, left_out=("dictionary", "model"))

    def session(self, workers: int, logs: Path) -> "PocketsphinxSession":
        """Start working; with one worker in this process.

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
        return PocketsphinxSession(settings, workers)

    def seconds_per_second(self) -> float:
        """Return what it took on one core of a shared virtual machine."""
        return 0.065


class PocketsphinxSession(Session):
    """Decoders at work.

    Args:
        settings: what they need to know.
        workers: processes; 1 is this one.
    """

    def __init__(self, settings: sphinx.Settings, workers: int) -> None:
        self._settings = settings
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None
        # Loaded here in any case (0.15 s), so that a model that cannot be loaded is told before the work begins.
        self._recogniser = sphinx.Recogniser(settings)

    def align(self, batch: Sequence[Speech]) -> Sequence[Alignment | StreamError]:
        """Align utterances; a process that dies costs only the utterance that it dies of."""
        inputs = [(_pcm(speech), speech.text) for speech in batch]
        if self._workers == 1:
            return [
                samples if isinstance(samples, StreamError) else sphinx.outcome(self._recogniser, samples, text)
                for samples, text in inputs
            ]
        try:
            return list(self._processes().map(_align, inputs))
        except BrokenProcessPool:
            self.close()
            return [self._alone(task) for task in inputs]

    def _alone(self, task: "_Task") -> Alignment | StreamError:
        try:
            return self._processes().submit(_align, task).result()
        except BrokenProcessPool:
            self.close()
            return StreamError(
                "the process that aligned it died. Is there enough memory for each worker? Check its audio, or leave "
                "it out."
            )

    def _processes(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # spawn: a fork would copy the locks of this process's threads in whatever state they are.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._workers, context, _start, (self._settings,))
        return self._pool

    def close(self) -> None:
        """Stop the processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


_Task = tuple[np.ndarray | StreamError, str]
_worker: list[sphinx.Recogniser] = []


def _start(settings: sphinx.Settings) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent shuts its workers down
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _worker[:] = [sphinx.Recogniser(settings)]


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _align(task: _Task) -> Alignment | StreamError:
    samples, text = task
    return samples if isinstance(samples, StreamError) else sphinx.outcome(_worker[0], samples, text)


def _pcm(speech: Speech) -> np.ndarray | StreamError:
    """Return ``(samples,)`` int16, the nearest to each sample."""
    if speech.sample_rate_hz != sphinx.SAMPLE_RATE_HZ:
        return StreamError(f"its audio is at {speech.sample_rate_hz} Hz where {sphinx.SAMPLE_RATE_HZ} was expected.")
    if not np.isfinite(speech.samples).all():
        return StreamError("its audio holds numbers that are not finite. Write the file again.")
    return np.clip(np.rint(speech.samples * np.float32(32768)), -32768, 32767).astype("<i2")


def _espeak_version() -> str:
    try:
        return espeak.engine_version()
    except MissingExtraError:
        return "not installed"


def _digest(values: Any) -> str:
    import hashlib

    return hashlib.sha256(canonical_json(values)).hexdigest()
