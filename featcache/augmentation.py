"""Augmented copies of recordings: noise, pitch, stretch and shift, by recipes.

Source: Zhou et al., section 4, "adding noise, pitch, stretch, and shift to the original signal", which states no
amounts. Pitch and stretch are librosa's (phase vocoder, https://librosa.org/doc/0.11.0/effects.html), which the paper
names for its audio; noise is white and Gaussian at a signal-to-noise ratio; a shift moves the audio in time, and what
leaves at one end comes in at the other. audiomentations has them as well, but wants an older soxr, with which every
recording that is resampled would count as changed.

A recipe says which effects a copy goes through, one after the other, and in which range their amounts are drawn. What
is drawn depends on the seed, the utterance's id and the copy's name and number alone: not on other utterances, nor on
their order, nor on which process makes it.
"""

import hashlib
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

from featcache.audio import Recording, decode
from featcache.errors import AudioError, ConfigError, FeatcacheError, UnknownNameError
from featcache.files import canonical_json, write_atomically

Recipe = Mapping[str, Mapping[str, tuple[float, float]]]
"""Name of a kind of copy to its effects, in order, and each one's range."""

_SHORTEST = 2048
_LOUDEST = 32767 / 32768
_QUIETEST = 1 / 32768


@dataclass(frozen=True)
class Effect:
    """One thing that can be done to audio.

    Attributes:
        amount: what its amount is called, with the unit.
        usual: range that is drawn from where none is given.
        allowed: least and most.
        apply: takes samples, their rate, the amount, and a generator for what is random beside it.
    """

    amount: str
    usual: tuple[float, float]
    allowed: tuple[float, float]
    apply: Callable[[np.ndarray, int, float, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Copy:
    """One copy that is to be made.

    Attributes:
        source: id of the original.
        name: which of the recipe's.
        number: from 1.
        seed: of all copies.
        effects: effect to its amount, in order.
    """

    source: str
    name: str
    number: int
    seed: int
    effects: Mapping[str, float] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The copy's own id, such as ``Ses01F_impro01_F000~noise-1``."""
        return f"{self.source}~{self.name}-{self.number}"

    @property
    def drawn(self) -> dict[str, float]:
        """Amounts by their names with units, such as ``{"snr_db": 17.25}``."""
        return {EFFECTS[effect].amount: amount for effect, amount in self.effects.items()}

    def generator(self, purpose: str) -> np.random.Generator:
        """Return the generator of its amounts, or of what is random in an effect."""
        key = canonical_json([self.seed, self.source, self.name, self.number, purpose])
        return np.random.default_rng(int.from_bytes(hashlib.sha256(key).digest(), "big"))

    def file_name(self, recording: Recording) -> str:
        """Return a name that changes with whatever decides the samples, and begins like the id."""
        made_by = [version("librosa"), version("soxr"), soundfile.__libsndfile_version__]
        original = [recording.digest(recording.sample_rate_hz), recording.sample_rate_hz]
        key = canonical_json(
            [original, self.seed, self.source, self.name, self.number, [*self.effects.items()], made_by]
        )
        plain = re.sub(r"[^A-Za-z0-9_-]+", "-", self.source).strip("-")[:60]
        return f"{plain}-{self.name}-{self.number}-{hashlib.sha256(key).hexdigest()[:16]}.flac"


@dataclass(frozen=True)
class Request:
    """An original, and the copies wanted of it.

    Attributes:
        audio: its recording.
        start_s: where it starts there, in seconds; None is the beginning.
        end_s: where it ends; None is the end.
        copies: what is to be made.
    """

    audio: Path
    start_s: float | None
    end_s: float | None
    copies: Sequence[Copy]


@dataclass(frozen=True)
class Reply:
    """What became of a request.

    Attributes:
        files: id of a copy to its file's name, of those that are there now.
        num_made: how many of them were made; the others were there.
        failures: id of a copy that cannot be made to why.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    num_made: int = 0
    failures: Mapping[str, str] = field(default_factory=dict)


def read_recipe(text: str) -> Recipe:
    """Return a recipe.

    Args:
        text: effects with commas between, such as ``noise,pitch``, for a kind of copy each, in their usual ranges; or
            the path of a YAML file, whose keys are names of kinds of copies, and each holds effects with their
            ranges: ``far: {pitch: [-4, 4], noise: [0, 10]}``; an effect without a range has its usual one.

    Raises:
        UnknownNameError: no such effect.
        ConfigError: a name, or a range, that cannot be.
    """
    path = Path(text)
    if path.suffix not in (".yaml", ".yml"):
        names = [name.strip() for name in text.split(",")]
        if len(set(names)) < len(names):
            raise ConfigError(f"An effect occurs twice in {text!r}. Name each once; --copies makes several of each.")
        return {name: {name: _range(name, None, "--recipe")} for name in names}
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no recipe {text!r}.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"The recipe {text!r} cannot be read: {error}") from None
    if not isinstance(values, dict) or not values:
        raise ConfigError(
            f"The recipe {text!r} must hold kinds of copies by name, such as 'noise: {{noise: [10, 30]}}'."
        )
    return {name: _effects(name, effects, text) for name, effects in values.items()}


def draw(recipe: Recipe, source: str, copies: int, seed: int) -> list[Copy]:
    """Return the copies of one utterance, of each kind so many, with what was drawn for them."""
    return [
        _drawn(Copy(source, name, number, seed), ranges)
        for name, ranges in recipe.items()
        for number in range(1, copies + 1)
    ]


def augmented(recording: Recording, copy: Copy) -> bytes:
    """Return a copy of a recording as a FLAC file of 16 bits, at its own rate.

    What would exceed full scale is made quieter as a whole.

    Raises:
        AudioError: it is too short for an effect, or too quiet for 16 bits.
    """
    samples, generator = recording.samples.astype(np.float64), copy.generator("samples")
    for effect, amount in copy.effects.items():
        samples = EFFECTS[effect].apply(samples, recording.sample_rate_hz, amount, generator)
    peak = np.abs(samples).max()
    if peak < _QUIETEST:
        raise AudioError(f"it is too quiet to be written with 16 bits: its peak is {peak:.1e} of full scale.")
    file = io.BytesIO()
    scale = min(1.0, _LOUDEST / peak)
    soundfile.write(file, samples * scale, recording.sample_rate_hz, format="FLAC", subtype="PCM_16")
    return file.getvalue()


class Maker:
    """Writes the copies of one original after the other: what a process of :class:`featcache.workers.Workers` does.

    Args:
        folders: where files are written, and where while they are not whole.
    """

    def __init__(self, folders: tuple[Path, Path]) -> None:
        self._folder, self._aside = folders

    def __call__(self, request: Request) -> Reply:
        """Write the copies that are not there yet; one that cannot be made leaves the others."""
        try:
            recording = decode(request.audio, request.start_s, request.end_s)
        except FeatcacheError as error:
            return without_any(request.copies, str(error))
        files, failures, made = {}, {}, 0
        for copy in request.copies:
            path = self._folder / copy.file_name(recording)
            try:
                if not path.exists():
                    write_atomically(path, augmented(recording, copy), self._aside)
                    made += 1
                files[copy.id] = path.name
            except FeatcacheError as error:
                failures[copy.id] = str(error)
        return Reply(files, made, failures)


def without_any(copies: Sequence[Copy], reason: str) -> Reply:
    """Return the reply where one reason keeps all copies of an original from being made."""
    return Reply(failures={copy.id: reason for copy in copies})


def _effects(name: Any, effects: Any, text: str) -> dict[str, tuple[float, float]]:
    where = f"The recipe {text!r}, {name}"
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
        raise ConfigError(
            f"{where}: a kind of copy is named with a to z, 0 to 9 and hyphens, since ids are made of it."
        )
    if not isinstance(effects, dict) or not effects:
        raise ConfigError(f"{where}: give its effects with their ranges, such as {{noise: [10, 30]}}, got {effects!r}.")
    return {effect: _range(effect, given, where) for effect, given in effects.items()}


def _range(effect: Any, given: Any, where: str) -> tuple[float, float]:
    if effect not in EFFECTS:
        raise UnknownNameError("effect", effect, EFFECTS)
    one = EFFECTS[effect]
    if given is None:
        return one.usual
    numbers = given if isinstance(given, list) else [given, given]
    fine = len(numbers) == 2 and all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers)
    if not fine or not one.allowed[0] <= numbers[0] <= numbers[1] <= one.allowed[1]:
        raise ConfigError(
            f"{where}: {effect} takes {one.amount} as two numbers, least and most, of {one.allowed[0]:g} to "
            f"{one.allowed[1]:g}, such as {list(one.usual)}; got {given!r}."
        )
    return float(numbers[0]), float(numbers[1])


def _drawn(copy: Copy, ranges: Mapping[str, tuple[float, float]]) -> Copy:
    generator = copy.generator("amounts")
    # Rounded, so that a manifest says all of it.
    effects = {effect: round(float(generator.uniform(*limits)), 4) for effect, limits in ranges.items()}
    return Copy(copy.source, copy.name, copy.number, copy.seed, effects)


def _noise(samples: np.ndarray, rate: int, snr_db: float, generator: np.random.Generator) -> np.ndarray:
    rms = math.sqrt(float(np.mean(samples**2)))
    return samples + rms * 10 ** (-snr_db / 20) * generator.standard_normal(len(samples))


def _pitch(samples: np.ndarray, rate: int, semitones: float, generator: np.random.Generator) -> np.ndarray:
    from librosa.effects import pitch_shift

    return np.asarray(pitch_shift(_long_enough(samples), sr=rate, n_steps=semitones))


def _stretch(samples: np.ndarray, rate: int, speed: float, generator: np.random.Generator) -> np.ndarray:
    from librosa.effects import time_stretch

    return np.asarray(time_stretch(_long_enough(samples), rate=speed))


def _shift(samples: np.ndarray, rate: int, shift_s: float, generator: np.random.Generator) -> np.ndarray:
    return np.roll(samples, round(shift_s * rate))


def _long_enough(samples: np.ndarray) -> np.ndarray:
    if len(samples) < _SHORTEST:
        raise AudioError(f"it has {len(samples)} samples; pitch and stretch need {_SHORTEST} or more. Leave it out.")
    return samples


EFFECTS: Mapping[str, Effect] = {
    "noise": Effect("snr_db", (10.0, 30.0), (-20.0, 100.0), _noise),
    "pitch": Effect("semitones", (-2.0, 2.0), (-24.0, 24.0), _pitch),
    "stretch": Effect("speed", (0.8, 1.25), (0.25, 4.0), _stretch),
    "shift": Effect("shift_s", (-0.25, 0.25), (-10.0, 10.0), _shift),
}
"""Effects by name; positive shifts are later, speeds above 1 shorter."""
