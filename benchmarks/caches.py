"""Caches of many parts in seconds, for what depends on their number and not on their bytes."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from featcache.commit import StreamWriter, store
from featcache.index import Index
from featcache.stream import Features, StreamSpec

UTTERANCES = 60
"""In each part. Of IEMOCAP's, of 4.5 s, 256 MiB hold about 23 at 25 x 1024 float16, and 10 minutes 133."""

SPEC = StreamSpec(
    "hidden_states", 1, "audio", {"checkpoint": "random"}, tuple(f"layer_{number}" for number in range(25)), 16,
    frame_shift_s=0.02, sample_rate_hz=16000,
)  # fmt: skip


def many_parts(cache: Path, backend: str, parts: int) -> None:
    """Write a cache whose parts differ in ids and inputs alone; the files of all arrays are links to one part's."""
    generator = np.random.default_rng(0)

    def digest() -> str:
        return generator.bytes(16).hex()

    frames = generator.standard_normal((25, 96, SPEC.dim), np.float32)
    stored = [store(f"Ses01F_{n:06d}", digest(), 0, Features(frames), SPEC, "frames") for n in range(UTTERANCES)]
    with StreamWriter(cache, SPEC, backend, "frames") as writer:
        first = Index.read(writer.folder / f"{writer.commit(stored, {})}.json")
        suffix = "" if backend == "zarr" else ".h5"
        source = writer.folder / f"{first.name}{suffix}"
        for part in range(1, parts):
            entries = (
                entry._replace(id=f"Ses01F_{UTTERANCES * part + n:06d}", input=digest())
                for n, entry in enumerate(first.entries)
            )
            index = replace(first, entries=tuple(entries))
            target = writer.folder / f"{index.name}{suffix}"
            if source.is_dir():
                shutil.copytree(source, target, copy_function=os.link)
            else:
                os.link(source, target)
            index.write(writer.folder, writer.workplace)
