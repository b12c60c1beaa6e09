"""The Montreal Forced Aligner, for any of its many languages: the program ``mfa`` of a conda environment.

The whole corpus goes through the program at once, since it adapts itself to each speaker: an utterance's times depend,
a little, on what else of its speaker is aligned in the same run. ``single_speaker`` switches that adaptation off.

What MFA reports of each utterance is kept as quality: ``overall_log_likelihood`` of the best path per frame, and
``speech_log_likelihood`` without its silence, which compare within a speaker rather than between them;
``phone_duration_deviation``, the largest absolute z-score of a phone's log duration in this corpus (large is suspect);
``max_running_short_interval``, the longest run of phones of 10 ms (many mean that text was squeezed in); ``snr``,
speech against silence; and ``intensity_deviation``, which is NaN without a PostgreSQL server. MFA before 3.3.5 computes
the second and third wrongly.

MFA exits with 0 although utterances are missing: each of them fails by name, with its likely reason. Known of version
3.4.3: from 4.0 on, the command used here is called ``align_legacy``, and 5.0 drops it.

Source: McAuliffe et al. 2017, "Montreal Forced Aligner: Trainable Text-Speech Alignment Using Kaldi", Interspeech;
https://montreal-forced-aligner.readthedocs.io
"""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import ClassVar, Literal

from featcache import mfa_program
from featcache.aligner import Aligner, Identity, Session, SymbolSet
from featcache.alignment import Alignment
from featcache.checkpoints import file_sha256
from featcache.errors import ConfigError, FeatcacheError, StreamError
from featcache.mfa_corpus import QUALITY, CorpusFolder, dictionary_words, english, transcript
from featcache.mfa_folder import RunFolder
from featcache.stream import Speech
from featcache.textgrids import SILENCE

_NAME = "montreal-forced-aligner"
_OWN_FILES = ("*.log", "*.csv", "output_errors.txt")
_TAIL = 12
# What MFA 3.4.3 raises when none of the utterances that it was given can be aligned; another one's run is not at fault.
_NONE_ALIGNED = ("NoAlignmentsError", "There were no successful alignments", "No utterances had features")


@dataclass(frozen=True)
class Mfa(Aligner):
    """Words and phones from the Montreal Forced Aligner.

    Attributes:
        acoustic_model: name of an installed model (``mfa model download acoustic NAME``), or path of a .zip file.
        dictionary: name of an installed dictionary, or path of a .dict or .txt file.
        g2p_model: name or path of a model that guesses how words outside the dictionary are said; None makes each of
            them one phone ``spn``.
        beam: width of the search; None is MFA's own, 10.
        retry_beam: width of the second attempt for utterances that failed; None is MFA's own, 40 or 4 times the beam.
        single_speaker: do not adapt to speakers.
        symbols: ``english`` for MFA's English models, with phones in ARPAbet or IPA and numbers to be spelt; ``other``
            for other languages, where phones and transcripts are taken as they are.
        program: path of ``mfa``; None looks on PATH.
    """

    title: ClassVar[str] = "Montreal Forced Aligner (the program mfa, from conda-forge): many languages, adapts itself"

    acoustic_model: str = "english_us_arpa"
    dictionary: str = "english_us_arpa"
    g2p_model: str | None = None
    beam: int | None = None
    retry_beam: int | None = None
    single_speaker: bool = False
    symbols: Literal["english", "other"] = "english"
    program: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("beam", self.beam), ("retry_beam", self.retry_beam)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}.")
        if self.retry_beam is not None and self.retry_beam <= (self.beam or 10):
            raise ConfigError(
                f"retry_beam must be larger than beam ({self.beam or 10}), got {self.retry_beam}; MFA would ignore it. "
                "Four times the beam is usual."
            )

    @property
    def symbol_set(self) -> SymbolSet:
        """The symbols that phones are written in, as set."""
        return self.symbols

    @property
    def quality_names(self) -> tuple[str, ...]:
        """Columns of MFA's alignment_analysis.csv."""
        return QUALITY

    def identity(self) -> Identity:
        """Return MFA's version, digests of the models, and what is silence.

        Raises:
            ConfigError: the program or a model is not there; says how to install it.
        """
        libraries = {_NAME: mfa_program.version(mfa_program.find(self.program))}
        if self.symbols == "english":
            libraries["num2words"] = metadata.version("num2words")
        # A model's name or path is not what decides the numbers: its bytes are.
        checkpoint = {f"{kind}_sha256": file_sha256(path) for kind, path in self.models().items()}
        left_out = ("program", "acoustic_model", "dictionary", "g2p_model", "symbols")
        return Identity(libraries, checkpoint, left_out, {"silent": sorted(SILENCE)})

    @property
    def given_models(self) -> dict[mfa_program.ModelKind, str]:
        """Name or path of each model, as set."""
        given: dict[mfa_program.ModelKind, str | None] = {
            "acoustic": self.acoustic_model, "dictionary": self.dictionary, "g2p": self.g2p_model,
        }  # fmt: skip
        return {kind: name for kind, name in given.items() if name is not None}

    def models(self) -> dict[mfa_program.ModelKind, Path]:
        """Return the file of each model.

        Raises:
            ConfigError: one is not there; says how to download it.
        """
        return {kind: mfa_program.find_model(kind, name) for kind, name in self.given_models.items()}

    def command(self, program: Path, folder: Path, num_jobs: int) -> list[str]:
        """Return the command that aligns a corpus.

        Args:
            program: path of ``mfa``.
            folder: the run's own folder, with the corpus in ``corpus``; MFA refuses a corpus in its temporary folder.
            num_jobs: processes to use.
        """
        models = self.models()
        verb = "align" if mfa_program.version(program).startswith("3.") else "align_legacy"
        places = [folder / "corpus", models["dictionary"], models["acoustic"], folder / "aligned"]
        options = ["--clean", "--final_clean", "-j", num_jobs, "--temporary_directory", folder / "root"]
        if "g2p" in models:
            options += ["--g2p_model_path", models["g2p"]]
        if self.single_speaker:
            options.append("--single_speaker")
        # Those that are settings of the aligner rather than options of the command have to come last.
        for name, value in (("beam", self.beam), ("retry_beam", self.retry_beam)):
            if value is not None:
                options += [f"--{name}", value]
        return [str(part) for part in (program, verb, *places, *options)]

    def session(self, workers: int, logs: Path) -> Session:
        """Return a session; the work is done by its `prepare`."""
        return _MfaSession(self, workers, logs)

    def seconds_per_second(self) -> float | None:
        """Return what MFA took for 535 s of speech, its start included."""
        return 0.05


class _MfaSession(Session):
    """One run of the program."""

    def __init__(self, aligner: Mfa, workers: int, logs: Path) -> None:
        self._aligner = aligner
        self._workers = workers
        self._logs = logs
        self._folder: RunFolder | None = None
        self._corpus: CorpusFolder | None = None
        self._guessed_beyond: frozenset[str] | None = None

    def prepare(self, speech: Iterable[Speech], on_message: Callable[[str], None]) -> None:
        """Write the corpus, and align it in one run of the program.

        Raises:
            ConfigError: the program or a model is not there or does not fit.
            FeatcacheError: the run failed, or there is no room for the corpus; says where its log is.
        """
        program = mfa_program.find(self._aligner.program)
        words = dictionary_words(self._aligner.models()["dictionary"])
        self._guessed_beyond = words if self._aligner.g2p_model is not None else None
        self._folder = held = RunFolder()
        folder = held.path
        command = self._aligner.command(program, folder, self._workers)
        reader = partial(english, dictionary=words) if self._aligner.symbols == "english" else transcript
        self._corpus = corpus = CorpusFolder(folder / "corpus", folder / "aligned", reader)
        (folder / "root").mkdir()
        try:
            for number, one in enumerate(speech, 1):
                corpus.add(one)
                if number % 100 == 0:
                    on_message(f"mfa: wrote {number} utterances")
        except OSError as error:
            raise FeatcacheError(
                f"The corpus for MFA cannot be written in {folder}: {error}. It takes 32 kB a second of audio; set the "
                "environment variable TMPDIR to a folder with room for it."
            ) from error
        if not len(corpus):
            return
        kept = self._log_folder()
        corpus.write_table(kept / "utterances.csv")
        try:
            code = mfa_program.run(
                command, mfa_program.environment(program, folder / "root"), kept / "output.txt",
                lambda line: on_message(f"mfa: {line}"), folder / "root" / "corpus" / "corpus.log",
                held.follow,
            )  # fmt: skip
        except OSError as error:
            raise ConfigError(f"{program} cannot be started: {error}. {mfa_program.INSTALL}") from error
        finally:
            _keep(folder, kept)
            shutil.rmtree(folder / "corpus", ignore_errors=True)
            shutil.rmtree(folder / "root", ignore_errors=True)
        self._judge(code, kept)
        corpus.read_analysis()
        missing = len(corpus.missing())
        on_message(f"mfa: {len(corpus) - missing} of {len(corpus)} aligned; its log is {kept}")

    def align(self, batch: Sequence[Speech]) -> Sequence[Alignment | StreamError]:
        """Return what MFA found, or why it found nothing."""
        return [self._align_one(speech) for speech in batch]

    def close(self) -> None:
        """Remove the run's folder; the log stays."""
        if self._folder is not None:
            self._folder.close()
            self._folder = None

    def _align_one(self, speech: Speech) -> Alignment | StreamError:
        if self._corpus is None:
            return StreamError("it was not given to MFA, which aligns a whole corpus at once.")
        try:
            return self._corpus.alignment(speech.id, self._guessed_beyond)
        except StreamError as error:
            return error

    def _log_folder(self) -> Path:
        name = f"mfa-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        for number in range(1, 1000):
            folder = self._logs / (name if number == 1 else f"{name}-{number}")
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                continue
            return folder
        raise FeatcacheError(f"{self._logs} holds 999 logs of this second. Remove some.")

    def _judge(self, code: int, kept: Path) -> None:
        """Raise unless the run went well, or failed only in that nothing fits."""
        if code == 0:
            return
        output = (kept / "output.txt").read_text(encoding="utf-8", errors="replace")
        if any(sign in output for sign in _NONE_ALIGNED):
            return
        said = mfa_program.last_lines(output.partition("\n")[2], _TAIL)
        if code == 2:
            names = {kind: name for kind, name in self._aligner.given_models.items() if mfa_program.is_name(kind, name)}
            download = " and ".join(f"'mfa model download {kind} {name}'" for kind, name in names.items())
            remedy = (
                f"A model that is missing is fetched by {download}."
                if names
                else "Are its models of the kind and version that it wants?"
            )
            raise ConfigError(f"MFA refused its arguments (exit code 2) and said: {said}. {remedy} The log is {kept}.")
        ended = f"was ended by signal {-code}; is there too little memory?" if code < 0 else f"failed with code {code}."
        raise FeatcacheError(f"MFA {ended} It said last: {said}. The log is {kept}.")


def _keep(folder: Path, kept: Path) -> None:
    """Copy MFA's own logs and tables, as far as it left any."""
    for place in (folder / "root" / "corpus", folder / "aligned"):
        for path in sorted(path for pattern in _OWN_FILES for path in place.rglob(pattern)):
            to = kept / path.relative_to(place)
            if not to.exists():
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, to)
