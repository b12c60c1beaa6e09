"""featcache: run the big frozen models once, keep all that they give, train heads from what was kept.

``featcache.open(path)`` opens a cache; :class:`featcache.Manifest` lists utterances. Neither
imports torch, transformers or librosa.
"""

from featcache.cache import Cache, CachedStream, open  # noqa: A004
from featcache.errors import FeatcacheError
from featcache.manifest import Manifest, Utterance

__version__ = "0.1.0"

__all__ = ["Cache", "CachedStream", "FeatcacheError", "Manifest", "Utterance", "__version__", "open"]
