"""One hierarchy of errors, so that a caller can catch what this project raises and nothing else.

Every class also inherits the built-in a reader would expect::

    FeatcacheError(Exception)
    ├── UnknownNameError(LookupError)     a plug-in, stream, utterance or column that does not exist
    ├── MissingExtraError(ImportError)    an optional package is needed and not installed
    ├── ConfigError(ValueError)           a setting, option or preset does not fit
    ├── ManifestError(ValueError)         a manifest, or a row of it, is not usable
    ├── CorpusError(ValueError)           a corpus tree is not in the form its release has
    ├── AudioError(ValueError)            one recording cannot be used
    ├── CheckpointError(ValueError)       model weights are missing, unsafe or of another kind
    ├── StreamError(ValueError)           a stream cannot compute an utterance
    ├── CacheError(RuntimeError)          a cache is missing, damaged or of another format
    ├── ProtocolError(ValueError)         folds or labels would make a result meaningless
    └── ScoresError(ValueError)           a run folder or score file is not usable

A message says what happened, to which utterance or file, what was expected and what to do next.
"""


class FeatcacheError(Exception):
    """Base of every error this project raises on purpose."""


class UnknownNameError(FeatcacheError, LookupError):
    """A name that nothing answers to; the message lists what exists."""

    def __init__(self, what: str, name: object, known: object) -> None:
        options = sorted(str(item) for item in known) if known else []  # type: ignore[attr-defined]
        shown = ", ".join(options[:20]) + (f" and {len(options) - 20} more" if len(options) > 20 else "")
        super().__init__(f"There is no {what} {str(name)!r}. Known: {shown or 'none'}.")


class MissingExtraError(FeatcacheError, ImportError):
    """An optional dependency is not installed; the message names the extra."""

    def __init__(self, purpose: str, package: str, extra: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed. "
            f"Install it with: pip install 'featcache[{extra}]'"
        )


class ConfigError(FeatcacheError, ValueError):
    """A setting, command-line option or preset does not fit."""


class ManifestError(FeatcacheError, ValueError):
    """A manifest, or a row of it, is not usable."""


class CorpusError(FeatcacheError, ValueError):
    """A corpus tree is not in the form that its release has."""


class AudioError(FeatcacheError, ValueError):
    """One recording cannot be used."""


class CheckpointError(FeatcacheError, ValueError):
    """Model weights are missing, unsafe or of another kind."""


class StreamError(FeatcacheError, ValueError):
    """A stream cannot compute an utterance, or its values cannot be stored as asked."""


class CacheError(FeatcacheError, RuntimeError):
    """A cache is missing, damaged or of another format."""


class ProtocolError(FeatcacheError, ValueError):
    """Folds or labels would make a result meaningless."""


class ScoresError(FeatcacheError, ValueError):
    """A run folder or a score file is not usable."""
