"""What an extraction will do, known before any model loads: which parts, how large, how long.

Parts are planned over the whole manifest and then narrowed to what is missing, so that a run that was killed
and started again makes exactly the parts that it would have made undisturbed.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from hashlib import blake2b

import numpy as np

from featcache import audio, claims
from featcache.cache import CachedStream
from featcache.errors import FeatcacheError, StreamError
from featcache.manifest import Manifest, Utterance
from featcache.stream import EXACT_DTYPES, InputKind, Speech, Stream, StreamSpec

PART_BYTES = 256 * 2**20
PART_SECONDS = 600.0
PART_TEXTS = 1024
_INTERVALS_PER_SECOND = 18  # RAVDESS has 5 to 9 phones and words a second, LibriVox 16
_TOKENS_PER_CHARACTER = 0.35  # MELD in MiniLM's vocabulary has 0.29; a little more for room


@dataclass(frozen=True)
class Item:
    """One utterance to compute.

    Attributes:
        utterance: it.
        length: samples at the stream's rate, or characters.
        num_bytes: about how much its arrays take.
        generation: see :class:`featcache.index.Entry`.
    """

    utterance: Utterance
    length: int
    num_bytes: int
    generation: int = 0


@dataclass
class Plan:
    """What to compute, and why.

    Attributes:
        parts: utterances of each part to be made, in order.
        present: ids that are in the cache already.
        changed: id to what changed, of utterances that are in the cache for another input.
        failures: id to reason, of utterances that cannot even be planned.
        generations: generation that those failures are of, where the cache holds the utterance for another input.
        sample_rate_hz: rate of the audio; None for text.
        seen: names of the parts in the cache that it was made from.
        recorded: id to reason, of failures that these tell.
        tried: claims that live processes had tried by then, see :func:`featcache.claims.tried`.
    """

    parts: list[list[Item]] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    changed: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    generations: dict[str, int] = field(default_factory=dict)
    sample_rate_hz: int | None = None
    seen: frozenset[str] = frozenset()
    recorded: dict[str, str] = field(default_factory=dict)
    tried: frozenset[str] = frozenset()

    @property
    def items(self) -> list[Item]:
        """Every utterance to compute."""
        return [item for part in self.parts for item in part]

    @property
    def num_bytes(self) -> int:
        """About how much will be written."""
        return sum(item.num_bytes for item in self.items)

    @property
    def audio_s(self) -> float:
        """Audio to compute, in seconds; 0 for text."""
        if self.sample_rate_hz is None:
            return 0.0
        return sum(item.length for item in self.items) / self.sample_rate_hz


@dataclass(frozen=True)
class Input:
    """What is fed to a stream for one utterance.

    Attributes:
        value: samples at its rate, text or speech.
        digest: what identifies it. The digest of an attachment follows behind a ``+``, so that what the manifest gives
            can be compared without it.
        resampler: what brought the samples to the stream's rate; empty where they are at it. It decides numbers too.
    """

    value: np.ndarray | str | Speech
    digest: str
    resampler: str = ""


def read_input(kind: InputKind, sample_rate_hz: int | None, manifest: Manifest, utterance: Utterance) -> Input:
    """Read what a manifest gives a stream for an utterance.

    Args:
        kind: whether the stream reads audio, text, or both as speech.
        sample_rate_hz: rate of the audio wanted; of no meaning for text.
        manifest: where the utterance is from.
        utterance: the utterance.

    Raises:
        AudioError: the recording cannot be used.
        StreamError: a stream of text, and the utterance has none.
    """
    text = utterance.text or ""
    if kind == "text" or sample_rate_hz is None:
        if not text.strip():
            raise StreamError("it has no text. Fill the manifest's column 'text', or leave the utterance out.")
        return Input(text, _text_digest(text))
    recording = audio.decode(manifest.audio_path(utterance), utterance.start_s, utterance.end_s)
    samples, digest = recording.at_rate(sample_rate_hz), recording.digest(sample_rate_hz)
    resampler = "" if recording.sample_rate_hz == sample_rate_hz else audio.RESAMPLER
    if kind == "audio":
        return Input(samples, digest, resampler)
    speech = Speech(utterance.id, utterance.speaker, samples, sample_rate_hz, text)
    return Input(speech, digest + _text_digest(text), resampler)


def stream_input(stream: Stream, manifest: Manifest, utterance: Utterance) -> Input:
    """Read everything that a stream is fed for an utterance: what :func:`read_input` gives, and its attachment.

    Raises:
        AudioError: the recording cannot be used.
        StreamError: the utterance lacks what the stream reads.
    """
    read = read_input(stream.input, stream.sample_rate_hz, manifest, utterance)
    attachment = stream.attachment(utterance, read.digest)
    if attachment is None or not isinstance(read.value, Speech):
        return read
    value = replace(read.value, attachment=attachment.value)
    return replace(read, value=value, digest=f"{read.digest}+{attachment.digest}")


def make_plan(
    manifest: Manifest,
    stream: Stream,
    spec: StreamSpec,
    cached: CachedStream | None,
    tier: str,
    on_checked: Callable[[int], None] = lambda _: None,
    part_bytes: int = PART_BYTES,
) -> Plan:
    """Plan an extraction.

    Args:
        manifest: the utterances wanted.
        stream: the stream wanted.
        spec: its spec.
        cached: what the cache holds of it; None is nothing.
        tier: ``"frames"`` or ``"stats"``.
        on_checked: called with 1 for each utterance whose input was compared with the cache.
        part_bytes: most bytes in a part.
    """
    plan = Plan(sample_rate_hz=None if stream.input == "text" else stream.sample_rate_hz)
    everything: list[Item] = []
    for utterance in manifest:
        try:
            everything.append(_measure(stream, spec, manifest, utterance, tier))
        except FeatcacheError as error:
            plan.failures[utterance.id] = str(error)
    wanted = {item.utterance.id: item for item in everything}
    if cached is not None:
        plan.seen, plan.recorded = frozenset(cached.indices), cached.failures
        plan.tried = claims.tried(cached.path.parent / claims.ASIDE)
        known = [item for item in everything if item.utterance.id in cached]
        for item, state in zip(known, _compare(stream, manifest, cached, known, tier, on_checked), strict=True):
            name = item.utterance.id
            if state.failure is not None:
                plan.failures[name] = state.failure
                plan.generations[name] = state.generation
                del wanted[name]
            elif state.present:
                plan.present.append(name)
                del wanted[name]
            else:
                wanted[name] = replace(item, generation=state.generation)
                if state.changed:
                    plan.changed[name] = state.changed
    plan.parts = _narrow(_pack(everything, part_bytes, plan.sample_rate_hz), wanted, part_bytes, plan.sample_rate_hz)
    return plan


@dataclass(frozen=True)
class _State:
    present: bool = False
    changed: str = ""
    generation: int = 0
    failure: str | None = None


def _compare(
    stream: Stream,
    manifest: Manifest,
    cached: CachedStream,
    items: Sequence[Item],
    tier: str,
    on_checked: Callable[[int], None],
) -> Iterator[_State]:
    """Say for each utterance that the cache holds whether it holds it for the same input."""
    failures = cached.failures

    def compare(item: Item) -> _State:
        located = cached.locate(item.utterance.id)
        following = located.entry.generation + 1
        try:
            read = stream_input(stream, manifest, item.utterance)
        except FeatcacheError as error:
            return _State(failure=str(error), generation=following)
        if read.digest != located.entry.input:
            what = changed_input(stream.input, located.entry.input, read.digest, read.resampler)
            return _State(changed=what, generation=following)
        if item.utterance.id in failures:
            return _State(changed="its input changed and failed, and is as before", generation=following)
        if tier == "frames" and located.index.tier == "stats":
            return _State(changed="only its stats were kept", generation=located.entry.generation)
        return _State(present=True)

    with ThreadPoolExecutor() as pool:
        for state in pool.map(compare, items):
            on_checked(1)
            yield state


def _measure(stream: Stream, spec: StreamSpec, manifest: Manifest, utterance: Utterance, tier: str) -> Item:
    layers, dim = len(spec.layers), spec.dim
    arrays = (np.dtype(one["dtype"]).itemsize * math.prod(one["shape"]) for one in spec.frame_arrays.values())
    bytes_a_frame = np.dtype(spec.dtype).itemsize * layers * dim + sum(arrays)
    stats_bytes = 0 if spec.dtype in EXACT_DTYPES else 2 * 4 * layers * dim
    if stream.input == "text":
        length = len(utterance.text or "")
        num_frames: int = math.ceil(length * _TOKENS_PER_CHARACTER)
    else:
        path = manifest.audio_path(utterance)
        length = audio.num_samples(path, stream.sample_rate_hz, utterance.start_s, utterance.end_s)
        num_frames = stream.num_frames(length) or 0
        if spec.axis == "intervals":
            num_frames = math.ceil(_INTERVALS_PER_SECOND * length / stream.sample_rate_hz)
    frame_bytes = 0 if tier == "stats" else bytes_a_frame * num_frames
    return Item(utterance, length, stats_bytes + frame_bytes)


def _pack(items: Iterable[Item], part_bytes: int, rate: int | None) -> list[list[Item]]:
    """Fill parts in order, each up to its limit of bytes and of audio or texts."""
    parts: list[list[Item]] = []
    num_bytes, length = 0, 0.0
    for item in items:
        weight = item.length / rate / PART_SECONDS if rate else 1.0 / PART_TEXTS
        if not parts or num_bytes + item.num_bytes > part_bytes or length + weight > 1.0:
            parts.append([])
            num_bytes, length = 0, 0.0
        parts[-1].append(item)
        num_bytes += item.num_bytes
        length += weight
    return parts


def _narrow(parts: list[list[Item]], wanted: dict[str, Item], part_bytes: int, rate: int | None) -> list[list[Item]]:
    """Keep what is wanted; parts of which only some is wanted are joined to fuller ones, behind the whole ones."""
    whole: list[list[Item]] = []
    loose: list[Item] = []
    for part in parts:
        kept = [wanted[item.utterance.id] for item in part if item.utterance.id in wanted]
        if len(kept) == len(part):
            whole.append(kept)
        else:
            loose += kept
    return whole + _pack(loose, part_bytes, rate)


def changed_input(kind: InputKind, before: str, now: str, resampler: str = "") -> str:
    """Return what of an utterance's input changed.

    Args:
        kind: whether it is audio, text, or both as speech.
        before: its digest then.
        now: its digest now.
        resampler: :attr:`Input.resampler`, now. One digest covers audio and resampler, so that either may be another.
    """
    audio_changed = f"audio, or what resamples it (now {resampler})," if resampler else "audio"
    if kind != "speech":
        return f"its {audio_changed if kind == 'audio' else kind} changed"
    width = 32  # hexadecimal digits of one digest: of the audio, then of the text, then the attachment's
    (said, _, attached), (says, _, attaches) = before.partition("+"), now.partition("+")
    differing = [
        what
        for what, differs in (
            (audio_changed, said[:width] != says[:width]),
            ("text", said[width:] != says[width:]),
            ("alignment", attached != attaches),
        )
        if differs
    ]
    return f"its {' and '.join(differing) or 'input'} changed"


def _text_digest(text: str) -> str:
    return blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()
