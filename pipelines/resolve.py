"""Which streams of a cache a preset means: those whose settings are the ones that its section ``extract`` states."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from featcache.cache import Cache
from featcache.errors import CacheError
from featcache.stream import StreamSpec
from featcache.tuned import SHA256
from pipelines.config import TrainConfig


def resolve_streams(cache: Cache, preset: Mapping[str, Any], prefer: Sequence[str] = ()) -> dict[str, str]:
    """Return the streams that a preset trains on.

    A stream fits where every setting that the preset states for its kind is the stream's; a checkpoint by the last part
    of its name, so that a folder ``wav2vec2-large-lv60`` is ``facebook/wav2vec2-large-lv60``. Token states of all
    layers fit where the last is wanted.

    Args:
        cache: the cache.
        preset: as `pipelines.config.read_preset` returns it.
        prefer: full names that are taken where several streams fit, or none does.

    Returns:
        Kind to full name, in the preset's order.

    Raises:
        CacheError: a stream is missing, or several fit.
    """
    wanted = (preset.get("train") or {}).get("streams") or ()
    stated = (preset.get("extract") or {}).get("streams") or {}
    return {kind: _resolve(cache, kind, stated, prefer) for kind in wanted}


def meant(config: TrainConfig, preset: Mapping[str, Any], cache: Path) -> dict[str, str]:
    """Return the full names of streams that a preset means, of kinds that the cache has several of.

    Args:
        config: what is trained.
        preset: what it was made of.
        cache: the cache's folder; where there is none, that is told later.

    Raises:
        CacheError: none of several is the preset's, or more than one.
    """
    stated = (preset.get("extract") or {}).get("streams") or {}
    if not cache.is_dir():
        return {}
    opened = Cache(cache)
    kinds = [name.rpartition("-")[0] for name in opened]
    several = [name for name in config.streams if name in stated and kinds.count(name) > 1]
    return {name: _resolve(opened, name, stated, ()) for name in several}


def _resolve(cache: Cache, kind: str, stated: Mapping[str, Any], prefer: Sequence[str]) -> str:
    settings = stated.get(kind) or {}
    specs = [cache[name].spec for name in cache if name.rpartition("-")[0] == kind]
    fitting = [spec for spec in specs if _fits(spec, settings)]
    preferred = [spec for spec in fitting or specs if spec.name in prefer]
    if len(fitting) != 1 and len(preferred) == 1:
        return preferred[0].name
    if len(fitting) > 1:  # phones say nothing of their own: those of the alignment that the preset names
        aligner = (stated.get("alignment") or {}).get("aligner")
        fitting = [spec for spec in fitting if _is_aligned_by(spec, aligner)] or fitting
    if len(fitting) == 1:
        return fitting[0].name
    told = ", ".join(f"{key}={value}" for key, value in settings.items()) or "any settings"
    if fitting:
        raise CacheError(
            f"{kind} ({told}) could be any of {', '.join(spec.name for spec in fitting)} in {str(cache.path)!r}. Name "
            "one with --stream."
        )
    options = "".join(f" --set {kind}.{key}={value}" for key, value in settings.items())
    raise CacheError(
        f"The cache {str(cache.path)!r} has no {kind} with {told}; it has: "
        f"{', '.join(spec.name for spec in specs) or 'none of that kind'}. Make it with: featcache extract MANIFEST "
        f"--cache {cache.path} --stream {kind}{options}"
    )


def _fits(spec: StreamSpec, settings: Mapping[str, Any]) -> bool:
    if "checkpoint" not in settings and SHA256 in (spec.checkpoint or {}):
        return False  # of an encoder that was fine-tuned here, which a preset names by its run
    return all(_is_set(spec, key, value) for key, value in settings.items())


def _is_set(spec: StreamSpec, key: str, value: Any) -> bool:
    if key == "checkpoint":
        return spec.checkpoint is not None and PurePath(spec.checkpoint["name"]).name == PurePath(str(value)).name
    if key == "layers" and value == "last":
        return spec.settings.get(key, "all") in ("last", "all")
    return bool(spec.settings.get(key) == value)


def _is_aligned_by(spec: StreamSpec, aligner: str | None) -> bool:
    alignment = spec.settings.get("alignment")
    return isinstance(alignment, Mapping) and alignment["settings"].get("aligner") == aligner
