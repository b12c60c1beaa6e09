"""Keep the utterances of a manifest whose alignment is good enough, by the aligner's own judgement."""

import operator
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from featcache.cache import open as open_cache
from featcache.errors import ConfigError, UnknownNameError
from featcache.manifest import Manifest
from featcache.streams.phones import find_alignment

_COMPARISONS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
_CONDITION = re.compile(r"\s*([\w.-]+?)\s*(>=|<=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")


def run(manifest: Path, cache: Path, conditions: Sequence[str], out: Path, stream: str = "alignment") -> str:
    """Write a manifest of the utterances that meet every condition.

    Args:
        manifest: the utterances.
        cache: folder of the cache that holds their alignment.
        conditions: such as ``speech_log_likelihood>=-60``; a number that is not known meets none.
        out: manifest to write.
        stream: which alignment: full name or aligner, where the cache holds several.

    Returns:
        What was kept, and how many each condition and the lack of an alignment cost.

    Raises:
        ConfigError: a condition of another form, or nothing is left.
        UnknownNameError: the alignment has no such quality column; the message lists those it has.
    """
    utterances = Manifest.read(manifest)
    held = find_alignment(open_cache(cache), stream)
    ids = [name for name in utterances.ids if name in held]
    lines = [f"{len(utterances.ids) - len(ids)} of {len(utterances.ids)} have no alignment in {held.name}"]
    kept = np.ones(len(ids), bool)
    for text in conditions:
        match = _CONDITION.fullmatch(text)
        if match is None:
            raise ConfigError(f"--where takes NAME>=NUMBER (or <=, >, <), such as snr>=5, got {text!r}.")
        name, comparison, number = match.groups()
        if name not in held.spec.utterance_arrays:
            raise UnknownNameError(f"quality column in {held.name}", name, held.spec.utterance_arrays)
        values = held.array(name, ids) if ids else np.empty(0)
        meets = _COMPARISONS[comparison](values, float(number)) & np.isfinite(values)
        lines.append(f"{int((~meets).sum())} do not meet {name}{comparison}{number} ({_unknown(values)})")
        kept &= meets
    chosen = [name for name, keep in zip(ids, kept, strict=True) if keep]
    if not chosen:
        raise ConfigError(f"No utterance is left: {'; '.join(lines)}. Nothing was written.")
    utterances.select(chosen).write(out)
    return "\n".join([f"{len(chosen)} of {len(utterances.ids)} utterances kept", *(f"  {line}" for line in lines)])


def _unknown(values: np.ndarray) -> str:
    return f"not known for {int((~np.isfinite(values)).sum())}"
