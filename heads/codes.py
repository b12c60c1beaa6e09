"""Codes: what a trained head makes of an utterance before it classifies, as a stream of the cache.

Makiuchi et al. 2021, section 6.2, train probes on such codes to see what they hold. Each fold has a model of its own,
so it has a stream of its own, of kind ``codes``: one layer, one frame a code, the windows of an utterance one after the
other, and in ``settings.blocks`` how many codes a window has. The last window of an utterance is zero-padded, so the
last codes may stand for silence after its end.

What decides the numbers is in the stream's settings: the head's settings, the digest of the fold's weights, and the
whole specs of the streams it reads. The digest of an utterance's input covers what these hold of it, and behind a
``+`` what the cache holds of its speaker, whose mean embedding is read.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch

from featcache.cache import CachedStream
from featcache.catalogue import renew_catalogue
from featcache.claims import workplace
from featcache.commit import Stored, StreamWriter, store
from featcache.errors import ConfigError, ScoresError
from featcache.files import canonical_json
from featcache.sources import sources_digest
from featcache.stream import Features, StreamSpec
from heads.head import GradientHead
from heads.inputs import Inputs
from heads.task import Task

KIND = "codes"
_GROUP = 512
"""Utterances in a part; parts are those of an undisturbed run wherever one is stopped."""


def codes_spec(
    head: GradientHead, task: Task, fold: str, weights: Mapping[str, np.ndarray], dtype: str = "float32"
) -> StreamSpec:
    """Return what decides the codes of one fold's model.

    Args:
        head: the head.
        task: what it was trained on.
        fold: the fold's name.
        weights: the fold's trained arrays by name.
        dtype: type the codes are stored in; codes are small, and a bottleneck may leave some of them very small.

    Raises:
        ConfigError: the head has no codes.
    """
    shape = head.code_shape(task)
    if shape is None:
        raise ConfigError(
            f"The head {head.kind()!r} has no codes: it classifies what it reads. A head that has: encoder_decoder."
        )
    return StreamSpec(
        kind=KIND,
        version=1,
        input="cache",
        settings={
            "head": head.kind(),
            "settings": asdict(head),  # type: ignore[call-overload]
            "fold": fold,
            "weights_sha256": _weights_sha256(weights),
            "blocks": shape.blocks,
            "sources": {stream.spec.kind: stream.spec.identity() for stream in task.streams.values()},
        },
        layers=("code",),
        dim=shape.dim,
        frame_shift_s=shape.shift_s or None,
        dtype=dtype,
        notes="a frame is a code; settings.blocks of them are a window, and the last window is zero-padded",
    )


def export_codes(
    head: GradientHead,
    task: Task,
    fold: str,
    weights: Mapping[str, np.ndarray],
    cache: Path,
    dtype: str = "float32",
    backend: str = "zarr",
    on_done: Callable[[int], None] = lambda _: None,
) -> str:
    """Compute the codes that a cache lacks of one fold's model, and commit them part by part.

    Args:
        head: the head.
        task: all that it was trained, validated and tested on; its labels have no part.
        fold: the fold's name.
        weights: the fold's trained arrays by name.
        cache: the cache's folder.
        dtype: type the codes are stored in.
        backend: plug-in that writes.
        on_done: called with a number of utterances, as they are there.

    Returns:
        The stream's full name.

    Raises:
        ConfigError: the head has no codes.
        ScoresError: the weights are not of this head and these streams.
        CacheError: the cache cannot be written.
    """
    spec = codes_spec(head, task, fold, weights, dtype)
    digests = _digests(task)
    folder = cache.absolute() / spec.name
    held = CachedStream(folder, spec) if any(folder.glob("part-*.json")) else None
    module = _module(head, task, weights)
    inputs = head.inputs(task)
    with StreamWriter(cache, spec, backend, "frames") as writer:
        writer.write_spec()
        for first in range(0, len(task.ids), _GROUP):
            group = range(first, min(first + _GROUP, len(task.ids)))
            wanted = [number for number in group if not _is_held(held, task.ids[number], digests[number])]
            stored: list[Stored] = []
            positions = torch.tensor(wanted, dtype=torch.int64)
            for chunk in inputs.chunks(positions) if wanted else ():
                for number, codes in zip(chunk.tolist(), _encode(head, module, inputs, positions[chunk]), strict=True):
                    name, digest = task.ids[wanted[number]], digests[wanted[number]]
                    generation = held.locate(name).entry.generation + 1 if held is not None and name in held else 0
                    stored.append(store(name, digest, generation, Features(codes[None]), spec, "frames"))
                on_done(len(chunk))
            if stored:
                writer.commit(sorted(stored, key=lambda one: one.id), {})
            on_done(len(group) - len(wanted))
        renew_catalogue(cache, spec.name, lambda: workplace(cache))
    return spec.name


def _encode(head: GradientHead, module: torch.nn.Module, inputs: Inputs, positions: torch.Tensor) -> list[np.ndarray]:
    """Return ``(windows * blocks, dim)`` float32 of each utterance."""
    batch, owners = inputs.scored(positions, None)
    with torch.no_grad():
        codes = head.codes(module, batch).float().cpu()
    return [codes[owners == number].flatten(0, 1).numpy() for number in range(len(positions))]


def _module(head: GradientHead, task: Task, weights: Mapping[str, np.ndarray]) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        module = head.module(**head.shapes(task))
    try:
        module.load_state_dict({name: torch.from_numpy(np.array(values)) for name, values in weights.items()})
    except RuntimeError as error:
        raise ScoresError(
            f"The weights are not of the head {head.kind()!r} with these settings and streams: {error}"
        ) from None
    return module.to(task.device).eval()


def _is_held(held: CachedStream | None, name: str, digest: str) -> bool:
    return held is not None and name in held and held.locate(name).entry.input == digest


def _digests(task: Task) -> list[str]:
    """Return the digest of each utterance's input: what the streams hold of it, and what of its speaker."""
    entries = {
        name: [(stream.spec.kind, stream.locate(name).entry) for stream in task.streams.values()] for name in task.ids
    }
    own = {name: sources_digest(found) for name, found in entries.items()}
    of_speaker: dict[str | None, list[list[str]]] = {}
    speakers: Sequence[str | None] = task.speakers or [None] * len(task.ids)
    for name, speaker in zip(task.ids, speakers, strict=True):
        if name not in task.copies:
            known = [pair for pair in entries[name] if pair[0] == "speaker"]
            of_speaker.setdefault(speaker, []).append([name, sources_digest(known)])
    told = {
        speaker: blake2b(canonical_json(sorted(found)), digest_size=16).hexdigest()
        for speaker, found in of_speaker.items()
    }
    return [f"{own[name]}+{told[speaker]}" for name, speaker in zip(task.ids, speakers, strict=True)]


def _weights_sha256(weights: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        values = np.ascontiguousarray(weights[name])
        digest.update(canonical_json([name, str(values.dtype), list(values.shape)]))
        digest.update(values.tobytes())
    return digest.hexdigest()
