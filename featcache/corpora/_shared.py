"""What several corpora share: class names, the choice of classes, and files as releases really ship them."""

import logging
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from featcache.corpus import EMOTIONS
from featcache.errors import ConfigError, CorpusError
from featcache.files import read_plain
from featcache.manifest import Utterance

logger = logging.getLogger(__name__)

CLASS_OF = {
    **{name: name for name in EMOTIONS},
    "anger": "angry",
    "bored": "boredom",
    "boredem": "boredom",  # EmoBox's spelling for EMO-DB
    "disgusted": "disgust",
    "excitement": "excited",
    "fearful": "fear",
    "frustration": "frustrated",
    "happiness": "happy",
    "joy": "happy",
    "neutral state": "neutral",
    "sadness": "sad",
    "surprised": "surprise",
}
"""English emotion words, lower case, to the classes of :data:`featcache.corpus.EMOTIONS`."""

_UNLABELLED = frozenset({"no-agreement", "unknown"})


def class_in_emobox(target: str) -> str | None:
    """Return the class that a label of EmoBox's means; None where it is no label."""
    target = target.strip()
    return None if target.lower() in _UNLABELLED else CLASS_OF.get(target.lower(), target)


def choose(classes: str, known: Collection[str]) -> frozenset[str]:
    """Return the classes that an option asks for.

    Args:
        classes: ``"all"``, or class names with commas between them, such as ``"angry,happy"``.
        known: the classes that the corpus has.

    Raises:
        ConfigError: a class that the corpus does not have, or none at all.
    """
    if classes.strip() == "all":
        return frozenset(known)
    wanted = frozenset(name.strip() for name in classes.split(",") if name.strip())
    strangers = sorted(wanted - set(known))
    if strangers or not wanted:
        raise ConfigError(
            f"classes={classes!r} names {', '.join(strangers) or 'no class'}. Give 'all', or some of "
            f"{', '.join(sorted(known))}, with commas between."
        )
    return wanted


def select(title: str, utterances: Iterable[Utterance], wanted: frozenset[str]) -> list[Utterance]:
    """Return the utterances of the wanted classes, and log how many of each class were left out."""
    every = list(utterances)
    kept = [utterance for utterance in every if utterance.label in wanted]
    report(title, len(kept), Counter(str(utterance.label) for utterance in every if utterance.label not in wanted))
    return kept


def report(title: str, num_kept: int, left_out: Counter[str]) -> None:
    """Log how many utterances a protocol keeps and, by reason, how many it leaves out."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common()) or "none"
    logger.info("%s: kept %d of %d utterances; left out: %s", title, num_kept, num_kept + left_out.total(), reasons)


def files(folder: Path, suffix: str) -> list[Path]:
    """Return the files of a folder that end in `suffix`, sorted, without the hidden ``._*`` that macOS adds.

    Raises:
        CorpusError: there is no such folder.
    """
    if not folder.is_dir():
        raise CorpusError(f"There is no folder {str(folder)!r}, which the release has. Copy the corpus again.")
    return sorted(path for path in folder.iterdir() if _is_wanted(path, suffix))


def files_below(folder: Path, suffix: str) -> list[Path]:
    """Return the files at any depth below a folder that end in `suffix`, as :func:`files` does.

    Raises:
        CorpusError: two files in different folders have the same name, so that the corpus is there twice.
    """
    found: dict[str, Path] = {}
    for path in sorted(path for path in folder.rglob("*") if _is_wanted(path, suffix)):
        if path.name in found:
            raise CorpusError(
                f"{path.name!r} is there twice: {str(found[path.name])!r} and {str(path)!r}. "
                "Remove one copy, or give the folder that holds only one."
            )
        found[path.name] = path
    return list(found.values())


def _is_wanted(path: Path, suffix: str) -> bool:
    return path.suffix.lower() == suffix and not path.name.startswith(".")


def read_text(path: Path) -> str:
    """Return the text of a release's file: UTF-8, or cp1252 where it is not that; lines end in a line feed.

    Raises:
        CorpusError: the file is missing or cannot be read.
    """
    try:
        content = read_plain(path)
    except OSError as error:
        raise CorpusError(
            f"{str(path)!r} cannot be read: {error.strerror}. The release has it; copy it again."
        ) from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
    return text.replace("\r\n", "\n")
