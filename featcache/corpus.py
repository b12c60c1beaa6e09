"""The contract of a corpus: what its release is, and how its own tree becomes utterances."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from featcache.errors import CorpusError
from featcache.manifest import Manifest, Utterance

EMOTIONS = (
    "angry", "happy", "sad", "neutral", "excited", "frustrated", "fear", "disgust", "surprise",
    "boredom", "calm", "contempt", "other",
)  # fmt: skip
"""Class names used for every corpus, so that heads and reports compare."""


class Corpus(ABC):
    """A corpus. Subclasses are frozen dataclasses: their fields are the options of the corpus.

    Attributes:
        title: full name.
        licence: terms of use, in a sentence.
        citation: BibTeX.
        url: where a user gets it.
        layout: the tree that `utterances` expects, in a few lines.
    """

    title: ClassVar[str]
    licence: ClassVar[str]
    citation: ClassVar[str]
    url: ClassVar[str]
    layout: ClassVar[str]

    @abstractmethod
    def utterances(self, root: Path) -> Iterable[Utterance]:
        """Return every utterance of the corpus below `root`, audio paths absolute or relative to `root`.

        Raises:
            CorpusError: a file is missing or malformed; the message names it.
        """

    def manifest(self, root: str | Path) -> Manifest:
        """Return the manifest of the corpus at `root`.

        Raises:
            CorpusError: the folder is missing or holds none of this corpus, or a file of it is bad.
        """
        root = Path(root)
        if not root.exists():
            raise CorpusError(f"There is no folder {str(root)!r}. Get {self.title} from {self.url}")
        manifest = Manifest(self.utterances(root), folder=root if root.is_dir() else root.parent)
        if not len(manifest):
            raise CorpusError(f"{str(root)!r} holds no utterance of {self.title}. Expected:\n{self.layout}")
        return manifest
