"""When each word and phone is spoken: exact times, from any aligner.

One "frame" is one interval: its start and end in seconds from the utterance's start, words first and phones after
them. :func:`featcache.alignment.read` gives it back as an :class:`featcache.alignment.Alignment`; the stream
``phones`` turns it into one id for each frame.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from featcache import registry
from featcache.aligner import Aligner, Session
from featcache.alignment import DURATION, FRAME_ARRAYS, Alignment, checked, to_arrays
from featcache.errors import ConfigError, StreamError
from featcache.files import canonical_json
from featcache.manifest import Utterance
from featcache.settings import build
from featcache.stream import Attachment, Context, Extractor, Features, InputKind, Speech, Stream, StreamSpec

_BATCH = 16


@dataclass(frozen=True)
class AlignmentStream(Stream):
    """Words and phones with their times.

    Attributes:
        aligner: plug-in of :mod:`featcache.aligners`.
        settings: its settings.
    """

    input: ClassVar[InputKind] = "speech"
    title: ClassVar[str] = "exact times of words and phones, from an aligner or imported"

    aligner: str = "pocketsphinx"
    settings: Mapping[str, Any] = field(default_factory=dict)
    _bound: ClassVar[tuple[Aligner, Context] | None] = None

    def bind(self, context: Context) -> "AlignmentStream":
        """Return this stream with its aligner looking for files where the corpus is.

        Raises:
            ConfigError: a folder or file that the aligner's settings name is missing.
        """
        bound = replace(self)
        object.__setattr__(bound, "_bound", (self._plugin().bind(context.manifest), context))
        return bound

    def attachment(self, utterance: Utterance, digest: str) -> Attachment | None:
        """Return the file that holds the utterance's alignment, where the aligner reads files."""
        return self._aligner.attachment(utterance)

    def spec(self, dtype: str = "float16", compute_dtype: str = "float32") -> StreamSpec:
        """Return what decides the intervals: aligner, settings, models. They are kept as they are."""
        identity = self._aligner.identity()
        settings = {name: value for name, value in vars(self._aligner).items() if not name.startswith("_")}
        for name in identity.left_out:
            settings.pop(name, None)
        return StreamSpec(
            kind=self.kind(),
            version=1,
            input=self.input,
            settings={
                "aligner": self.aligner,
                "symbols": self._aligner.symbol_set,
                "settings": json.loads(canonical_json({**settings, **identity.further})),
                # The first version is not named, so that alignments of earlier releases stay what they are.
                **({"version": self._aligner.version} if self._aligner.version > 1 else {}),
            },
            layers=("interval",),
            dim=2,
            axis="intervals",
            sample_rate_hz=self.sample_rate_hz,
            libraries=dict(identity.libraries),
            checkpoint=None if identity.checkpoint is None else dict(identity.checkpoint),
            compute_dtype="float64",
            dtype="float64",
            frame_arrays=dict(FRAME_ARRAYS),
            utterance_arrays={
                name: {"dtype": "float64", "shape": []} for name in (DURATION, *self._aligner.quality_names)
            },
            notes=(
                "frames: start and end of each interval in seconds; tier: 0 word, 1 phone; label: UTF-8, ended by "
                "zeros; word: number of the word that it is or belongs to, -1 for none; unknown: 1 for words without a "
                "pronunciation of their own; silence is no interval; duration_s: length of the audio"
            ),
        )

    def load(self, device: str, compute_dtype: str) -> "AlignmentExtractor":
        """Start the aligner."""
        if self._bound is None:
            raise ConfigError("The stream 'alignment' must be bound to a cache and a manifest before it is loaded.")
        aligner, context = self._bound
        session = aligner.session(context.workers, context.cache / "logs")
        return AlignmentExtractor(session, aligner.quality_names, aligner.needs_text)

    def batches(self, lengths: Sequence[int], batch_size: int) -> list[list[int]]:
        """Group utterances so that every process has some, and progress shows."""
        size = max(batch_size, _BATCH * (1 if self._bound is None else self._bound[1].workers))
        return [list(range(first, min(first + size, len(lengths)))) for first in range(0, len(lengths), size)]

    def seconds_per_second(self, device: str, compute_dtype: str) -> float | None:
        """Return a rough cost."""
        cost = self._aligner.seconds_per_second()
        return cost if cost is None or self._bound is None else cost / self._bound[1].workers

    @property
    def _aligner(self) -> Aligner:
        return self._plugin() if self._bound is None else self._bound[0]

    def _plugin(self) -> Aligner:
        plugin = registry.load("featcache.aligners", self.aligner, Aligner)
        return build(plugin, self.settings, f"aligner {self.aligner}")


class AlignmentExtractor(Extractor):
    """An aligner at work.

    Args:
        session: it.
        quality_names: numbers that it gives for every utterance.
        needs_text: whether an utterance without text fails.
    """

    def __init__(self, session: Session, quality_names: Sequence[str], needs_text: bool) -> None:
        self._session = session
        self._quality_names = tuple(quality_names)
        self._needs_text = needs_text

    def prepare(self, inputs: Iterable[Speech], on_message: Callable[[str], None]) -> None:
        """Let the aligner see the whole corpus; utterances without text are left out where it needs one."""
        self._session.prepare((speech for speech in inputs if not self._lacks_text(speech)), on_message)

    def extract(self, inputs: Sequence[Speech]) -> list[Features | StreamError]:
        """Align a batch; each utterance gives its intervals or why there are none."""
        usable = [speech for speech in inputs if not self._lacks_text(speech)]
        found = iter(self._session.align(usable) if usable else [])
        results: list[Features | StreamError] = []
        for speech in inputs:
            if self._lacks_text(speech):
                results.append(StreamError("it has no text. Fill the manifest's column 'text', or leave it out."))
                continue
            aligned = next(found)
            try:
                results.append(aligned if isinstance(aligned, StreamError) else self._features(aligned, speech))
            except StreamError as error:
                results.append(error)
        return results

    def close(self) -> None:
        """Stop the aligner."""
        self._session.close()

    def _lacks_text(self, speech: Speech) -> bool:
        return self._needs_text and not speech.text.strip()

    def _features(self, alignment: Alignment, speech: Speech) -> Features:
        times, arrays = to_arrays(checked(alignment, speech.duration_s))
        values = {DURATION: speech.duration_s} | {name: alignment.quality[name] for name in self._quality_names}
        return Features(times, arrays, {name: np.asarray(value, np.float64) for name, value in values.items()})
