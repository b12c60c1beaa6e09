"""Align a corpus: intervals of words and phones into the cache, and a phone id for each frame."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featcache import alignment
from featcache.cache import Cache, CachedStream
from featcache.extract import Summary
from featcache.manifest import Manifest
from pipelines import extract
from pipelines.config import extract_config, merge, parse_overrides

_SHOWN = 12
_FOREIGN = (
    0.2  # English transcripts lack a few names; German ones have 0.25 to 0.67 of their words outside the dictionary
)


def run(
    manifest: Manifest,
    cache: Path,
    aligner: str,
    settings: Sequence[str],
    phones: Mapping[str, Any] | None,
    options: Mapping[str, Any],
    on_summary: Callable[[Summary], None] = lambda _: None,
) -> list[Summary]:
    """Align what the cache lacks, then derive the phones of each frame.

    Args:
        manifest: the utterances wanted.
        cache: the cache's folder; made when missing.
        aligner: plug-in.
        settings: its settings, as ``KEY=VALUE`` texts.
        phones: settings of the stream ``phones``; None derives none.
        options: fields of :class:`featcache.extract.Options`; None is not given.
        on_summary: called after each stream.

    Raises:
        UnknownNameError: no such aligner.
        ConfigError: settings that do not fit, or a program or file that is not there.
    """
    streams: dict[str, Any] = {"alignment": {"aligner": aligner, "settings": parse_overrides(settings)}}
    if phones is not None:
        streams["phones"] = dict(phones)
    config = extract_config({"extract": merge({"streams": streams})}, [], options, [])
    return extract.run(config, manifest, cache, on_summary)


def describe(cache: Path, stream: str, ids: Sequence[str]) -> str:
    """Return what there is to know of an alignment: words without a pronunciation of their own, and its quality.

    Of other streams, there is nothing; nor of an alignment that is not there, because nothing was aligned.

    Args:
        cache: the cache's folder.
        stream: full name of the alignment.
        ids: utterances to describe; those that it lacks are left out.
    """
    if not stream.startswith("alignment-") or stream not in Cache(cache):
        return ""
    held = Cache(cache)[stream]
    ids = [name for name in ids if name in held]
    return "\n".join([*_quality(held, ids), *_unknown(held, ids)])


def _quality(held: CachedStream, ids: Sequence[str]) -> list[str]:
    lines = []
    for name in [name for name in held.spec.utterance_arrays if name != alignment.DURATION] if ids else ():
        values = held.array(name, ids)
        values = values[np.isfinite(values)]
        if len(values):
            low, middle, high = np.percentile(values, (5, 50, 95))
            if name == "unknown_share" and middle > _FOREIGN:
                lines.append(
                    f"  WARNING: in half of the utterances {100 * middle:.0f} % of the words or more are not in the "
                    "dictionary. Is this another language than the aligner's? Then its phones mean nothing."
                )
            lines.append(f"  {name}: median {middle:.4g}, 5 % below {low:.4g}, 5 % above {high:.4g}")
    return lines


def _unknown(held: CachedStream, ids: Sequence[str]) -> list[str]:
    counts = Counter(word for name in ids for word in alignment.read(held, name).unknown_words)
    if not counts:
        return []
    shown = ", ".join(f"{word} ({count})" if count > 1 else word for word, count in counts.most_common(_SHOWN))
    more = f" and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else ""
    return [f"  {len(counts)} words were not in the dictionary (utterances): {shown}{more}"]
