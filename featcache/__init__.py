"""featcache: run the big frozen models once, keep all that they give, train heads from what was kept.

``featcache.open(path)`` opens a cache; :class:`featcache.Manifest` lists utterances. Neither
imports torch, transformers or librosa, and importing the package alone, as `featcache --help` does, not even NumPy.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from featcache.errors import FeatcacheError

if TYPE_CHECKING:
    from featcache.cache import Cache, CachedStream, open  # noqa: A004
    from featcache.manifest import Manifest, Utterance

__version__ = "0.1.0"

__all__ = ["Cache", "CachedStream", "FeatcacheError", "Manifest", "Utterance", "__version__", "open"]

_MODULES = dict.fromkeys(("Cache", "CachedStream", "open"), "cache") | dict.fromkeys(
    ("Manifest", "Utterance"), "manifest"
)


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"featcache.{_MODULES[name]}"), name)
    return value
