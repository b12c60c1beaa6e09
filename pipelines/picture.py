"""Draw one utterance: waveform, mel spectrogram, and the words and phones of its cached alignments."""

import hashlib
import io
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from featcache import alignment, audio
from featcache.cache import Cache, CachedStream
from featcache.cache import open as open_cache
from featcache.errors import ConfigError
from featcache.files import write_atomically
from featcache.manifest import Manifest, Utterance
from featcache.streams.phones import find_alignment
from pipelines.reporting.svg import DPI, METADATA, style
from pipelines.reporting.utterance import SAMPLE_RATE_HZ, Track, draw

_LONGEST, _SHORTENED = 120, 80
"""Bytes of a name that is taken as it is, and of what is left of a longer one; file systems take 143 to 255."""


def run(manifest: Path, name: str, cache: Path | None, streams: Sequence[str] = (), out: Path | None = None) -> Path:
    """Draw an utterance.

    Args:
        manifest: manifest that has it.
        name: its id.
        cache: cache with its alignments; None or a folder that is not there has none.
        streams: alignments to draw, from top to bottom, by full name or aligner; empty draws all that have it.
        out: picture to write; its ending decides the form. None is the id with ``.png``, here; a very long id is
            shortened, and a digest tells it from others that begin alike.

    Returns:
        The picture's path.

    Raises:
        UnknownNameError: the manifest, or an alignment that was asked for, does not have the utterance.
        CacheError: no such alignment, or several of that name.
        ConfigError: the picture's ending is none of ``.png``, ``.svg`` and ``.pdf``.
        AudioError: the recording cannot be used.
    """
    out = Path(f"{_stem(name)}.png") if out is None else out
    form = out.suffix.lower()
    if form not in METADATA or out.is_dir():
        raise ConfigError(f"A picture cannot be written to {str(out)!r}. Name a file ending in {', '.join(METADATA)}.")
    utterances = Manifest.read(manifest)
    utterance = utterances.utterance(name)
    recording = audio.decode(utterances.audio_path(utterance), utterance.start_s, utterance.end_s)
    tracks = _tracks(_wanted(cache, name, streams), name)
    note = "" if tracks else _note(cache, name)
    with style():
        figure = draw(recording.at_rate(SAMPLE_RATE_HZ), _title(utterance), utterance.text or "", tracks, note)
        picture = io.BytesIO()
        figure.savefig(picture, format=form[1:], dpi=DPI, metadata=METADATA[form])
    write_atomically(out, picture.getvalue())
    return out


def _stem(name: str) -> str:
    stem = re.sub(r"[^\w.-]+", "_", name)
    encoded = stem.encode()
    if len(encoded) <= _LONGEST:
        return stem
    digest = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).hexdigest()
    return f"{encoded[:_SHORTENED].decode(errors='ignore')}-{digest}"


def _wanted(cache: Path | None, name: str, streams: Sequence[str]) -> list[CachedStream]:
    if streams:
        if cache is None:
            raise ConfigError(f"There is no cache to find the alignment {streams[0]!r} in. Give one.")
        return [find_alignment(open_cache(cache), stream) for stream in streams]
    if cache is None or not cache.is_dir():
        return []
    held = open_cache(cache)
    return [held[full] for full in _alignments(held) if name in held[full]]


def _alignments(held: Cache) -> list[str]:
    return [full for full in held if full.startswith("alignment-")]


def _note(cache: Path | None, name: str) -> str:
    """Return why there is no alignment."""
    if cache is None or not cache.is_dir():
        return "no alignment: there is no cache"
    held = open_cache(cache)
    reasons = [held[full].failures[name] for full in _alignments(held) if name in held[full].failures]
    return f"no alignment: {reasons[0]}" if reasons else "no alignment in the cache; 'featcache align' makes one"


def _tracks(streams: Sequence[CachedStream], name: str) -> list[Track]:
    """Read alignments; they are called by their aligners, or in full where two are of one aligner."""
    times = Counter(stream.spec.settings["aligner"] for stream in streams)
    tracks = []
    for stream in streams:
        aligner = stream.spec.settings["aligner"]
        called = aligner if times[aligner] == 1 else f"{aligner} {stream.name.rpartition('-')[2]}"
        tracks.append(Track(called, alignment.read(stream, name), stream.spec.settings["symbols"]))
    return tracks


def _title(utterance: Utterance) -> str:
    about = [f"{what} {value}" for what, value in (("speaker", utterance.speaker), ("label", utterance.label)) if value]
    return "  ·  ".join([utterance.id, *about])
