"""The contract of an aligner: a program or a folder of files that says when each phone is spoken.

An aligner is a frozen dataclass; its fields are its settings. The stream ``alignment`` runs it through the same
engine as every other stream: planned, resumable, committed part by part, one bad utterance failing alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from featcache.alignment import Alignment
from featcache.errors import StreamError
from featcache.manifest import Manifest, Utterance
from featcache.stream import Attachment, Speech

SymbolSet = Literal["english", "espeak", "other"]
"""``english``: ARPAbet (stress, position and TIMIT's variants allowed) or IPA as MFA's English models write it;
``espeak``: espeak-ng's mnemonics; ``other``: anything else, taken as it is."""


@dataclass(frozen=True)
class Identity:
    """What decides an aligner's intervals, besides its settings.

    Attributes:
        libraries: versions of programs and libraries that the numbers depend on.
        checkpoint: digest of acoustic model and dictionary; None where there are none. No names of files: the same
            content is the same model.
        left_out: settings that do not decide a number, such as where a program or a folder lies.
        further: more that decides it, as plain JSON values, such as the names of quality columns found.
    """

    libraries: Mapping[str, str] = field(default_factory=dict)
    checkpoint: Mapping[str, str] | None = None
    left_out: tuple[str, ...] = ()
    further: Mapping[str, Any] = field(default_factory=dict)


class Session(ABC):
    """An aligner at work. Closed when the work ends, however it ends."""

    def prepare(self, speech: Iterable[Speech], on_message: Callable[[str], None]) -> None:
        """Do what needs the whole corpus at once; the default does nothing.

        Args:
            speech: every utterance that is going to be aligned, read one by one as it is drawn; those that cannot be
                read are left out and fail later by name.
            on_message: called with lines of progress for people.

        Raises:
            FeatcacheError: nothing at all can be aligned.
        """

    @abstractmethod
    def align(self, batch: Sequence[Speech]) -> Sequence[Alignment | StreamError]:
        """Return an alignment for each utterance, in order, or why there is none.

        An error's message continues the sentence "'<id>' failed: ..." and need not repeat the id.
        """

    def close(self) -> None:
        """Stop processes and remove temporary files; the default does nothing."""


class Aligner(ABC):
    """A source of alignments. Subclasses are frozen dataclasses whose fields are the settings.

    Attributes:
        title: one line for listings.
        needs_text: whether an utterance without text fails.
        version: raised by its author whenever the same settings and files give other intervals.
    """

    title: ClassVar[str]
    needs_text: ClassVar[bool] = True
    version: ClassVar[int] = 1

    @classmethod
    def name(cls) -> str:
        """Return the public name: the stem of the plug-in's file."""
        return cls.__module__.rpartition(".")[2]

    @property
    def symbol_set(self) -> SymbolSet:
        """The symbols that phones are written in."""
        return "english"

    @property
    def quality_names(self) -> tuple[str, ...]:
        """Names of the numbers in :attr:`Alignment.quality`; the same for every utterance (NaN is unknown)."""
        return ()

    def bind(self, manifest: Manifest) -> "Aligner":
        """Return this aligner, knowing the corpus; the place to look for files. The default is itself.

        Raises:
            ConfigError: a folder or file that settings name is missing; says which and what was expected.
        """
        return self

    @abstractmethod
    def identity(self) -> Identity:
        """Return what decides the intervals. Called after :meth:`bind`; loads no model.

        Raises:
            ConfigError: settings that do not fit together, or a model or program that is not there.
        """

    def attachment(self, utterance: Utterance) -> Attachment | None:
        """Return the file that holds an utterance's alignment; None, the default, where there are no such files.

        Raises:
            StreamError: there is none for this utterance, or more than one.
        """
        return None

    @abstractmethod
    def session(self, workers: int, logs: Path) -> Session:
        """Start working.

        Args:
            workers: processes to use.
            logs: folder to keep logs in; made when something is written.
        """

    def seconds_per_second(self) -> float | None:
        """Return a rough cost on one core, in seconds a second of audio; None is unknown."""
        return None
