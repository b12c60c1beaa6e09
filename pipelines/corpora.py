"""Corpora to manifests, and manifests to other programs' forms."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from featcache import exchange, registry
from featcache.corpus import Corpus
from featcache.errors import UnknownNameError
from featcache.manifest import Manifest
from featcache.settings import build
from pipelines.config import parse_overrides


def run(name: str, root: Path, out: Path, overrides: Sequence[str] = ()) -> Manifest:
    """Read a corpus and write its manifest.

    Args:
        name: corpus plug-in.
        root: folder of its release.
        out: manifest to write.
        overrides: ``KEY=VALUE`` texts, options of the corpus.

    Raises:
        UnknownNameError: no such corpus.
        ConfigError: options that it does not have.
        CorpusError: a file of the release is missing or malformed.
    """
    corpus = build(registry.load("featcache.corpora", name, Corpus), parse_overrides(overrides), f"corpus {name}")
    manifest = corpus.manifest(root)
    manifest.write(out)
    return Manifest.read(out)


def describe(manifest: Manifest) -> str:
    """Return counts of utterances by class, session and speaker, as text."""
    lines = [f"{len(manifest)} utterances"]
    for column in ("label", "session", "speaker"):
        counts = Counter(
            str(utterance.column(column)) for utterance in manifest if utterance.column(column) is not None
        )
        if counts:
            shown = ", ".join(f"{value} {count}" for value, count in sorted(counts.items())[:12])
            more = f", and {len(counts) - 12} more" if len(counts) > 12 else ""
            lines.append(f"  {column}: {shown}{more}")
    if any(utterance.extra.get("synthetic") for utterance in manifest):
        lines.append("  synthetic speech: results on it say nothing of human speech")
    return "\n".join(lines)


def export(manifest: Path, out: Path, form: str) -> None:
    """Write a manifest as ``csv`` or as ``emobox``.

    Raises:
        UnknownNameError: no such form.
    """
    writers = {"csv": exchange.write_csv, "emobox": exchange.write_emobox}
    if form not in writers:
        raise UnknownNameError("form", form, writers)
    writers[form](Manifest.read(manifest), out)
