"""One utterance as a figure: waveform, mel spectrogram, and what is said when, on one axis of time.

Each alignment has a row of words and a row of phones. Phones are coloured by class, in light tints of the palette of
Okabe and Ito (https://jfly.uni-koeln.de/color/), which colour-blind readers can tell apart; silence is a gap. A label
that does not fit its box is made smaller, then turned upright, then left out. The figure grows with the utterance to a
limit; what is longer goes on below, as music does.
"""

import textwrap
from collections.abc import Collection, Mapping, Sequence
from math import ceil
from typing import Literal, NamedTuple

import librosa
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Patch, Rectangle

from featcache.aligner import SymbolSet
from featcache.alignment import Alignment, Interval
from featcache.errors import StreamError
from featcache.symbols import base_phone, phone_class
from pipelines.reporting.svg import FIRST, INK, MUTED, plain

SAMPLE_RATE_HZ = 16000

COLOURS: Mapping[str, str] = {
    "vowel": "#f7cf80",
    "approximant": "#f7f0a0",
    "nasal": "#7fceb8",
    "fricative": "#aadaf4",
    "affricate": "#7fb8d8",
    "stop": "#e5bbd3",
    "unknown": "#ea9e80",
    "event": "#b9c0ca",
    "other": "#dde3ea",
}
"""Class of phone to the colour of its box."""

_WORD = "#eef1f5"
_MEL_COLOURS = LinearSegmentedColormap.from_list("mel", ["#ffffff", "#c9d9f0", FIRST, "#0b1f45"])

# Sizes in inches. A phone of 40 ms has room for two upright letters.
_INCHES_PER_S, _NARROWEST, _WIDEST, _MOST_PANELS = 2.2, 9.0, 20.0, 12
_LEFT, _RIGHT, _GAP = 1.25, 0.2, 0.08
_HEIGHTS = {"wave": 0.75, "mel": 1.7, "note": 0.4, "words": 0.3, "phones": 0.42}
_TITLE, _LINE, _AXIS, _BETWEEN, _LEGEND = 0.5, 0.21, 0.5, 0.15, 0.3
_MOST_LINES, _MOST_NOTE_LINES, _LETTERS_PER_INCH = 4, 8, 13

_FFT, _WINDOW, _HOP, _MELS, _DECIBELS = 1024, 400, 80, 80, 70.0
_TICKS_HZ = (250, 500, 1000, 2000, 4000, 8000)
_SMALLEST_PT = 4.5


class Track(NamedTuple):
    """One alignment to draw.

    Attributes:
        name: what made it.
        alignment: its words and phones.
        symbols: what the phones are written in.
    """

    name: str
    alignment: Alignment
    symbols: SymbolSet

    def kind(self, phone: Interval) -> str:
        """Return a phone's class; ``other`` for symbols that stand for nothing known."""
        try:
            return phone_class(base_phone(phone.label, self.symbols), self.symbols)
        except StreamError:
            return "other"


class _Row(NamedTuple):
    """One strip of a panel, and the track or the lines that it shows."""

    kind: Literal["wave", "mel", "note", "words", "phones"]
    track: Track | None = None
    lines: tuple[str, ...] = ()

    @property
    def height(self) -> float:
        """Its height in inches."""
        return _HEIGHTS[self.kind] + _LINE * max(0, len(self.lines) - 1)

    @property
    def gap(self) -> float:
        """Room above it: a track stands a little apart from what is above."""
        begins = self.track is not None and (self.kind == "words" or not self.track.alignment.words)
        return 2 * _GAP if begins else _GAP


class _Page(NamedTuple):
    """The figure under way."""

    figure: Figure
    canvas: FigureCanvasAgg
    width: float
    height: float

    def text(self, x: float, y: float, text: str, **style: object) -> None:
        """Write at a place in inches from the lower left."""
        self.figure.text(x / self.width, y / self.height, text, **style)  # type: ignore[arg-type]

    def add(self, bottom: float, row: _Row, span: tuple[float, float]) -> Axes:
        """Return axes for a row, between two times in seconds."""
        inside = self.width - _LEFT - _RIGHT
        place = (_LEFT / self.width, bottom / self.height, inside / self.width, row.height / self.height)
        ax = self.figure.add_axes(place)
        ax.grid(visible=False)
        ax.set_xlim(*span)
        ax.tick_params(labelbottom=False, bottom=False)
        return ax


def draw(samples: np.ndarray, title: str, text: str, tracks: Sequence[Track], note: str = "") -> Figure:
    """Draw an utterance; call it inside :func:`pipelines.reporting.svg.style`.

    Args:
        samples: ``(samples,)`` at 16 kHz.
        title: what the utterance is.
        text: what is said; empty where it is not known.
        tracks: alignments, from top to bottom.
        note: what to say in the place of alignments, in as many lines as it takes; empty is none.
    """
    duration_s = len(samples) / SAMPLE_RATE_HZ
    num_panels = min(ceil(_INCHES_PER_S * duration_s / (_WIDEST - _LEFT - _RIGHT)), _MOST_PANELS)
    width = min(max(_LEFT + _RIGHT + _INCHES_PER_S * duration_s, _NARROWEST), _WIDEST)
    letters = int((width - _LEFT - _RIGHT) * _LETTERS_PER_INCH)
    rows = [_Row("wave"), _Row("mel")]
    if note:
        rows.append(_Row("note", lines=_wrapped(note, letters, _MOST_NOTE_LINES)))
    for track in tracks:
        rows += [_Row("words", track), _Row("phones", track)] if track.alignment.words else [_Row("phones", track)]
    lines = _wrapped(text, letters, _MOST_LINES)
    panel = sum(row.height + row.gap for row in rows) + _AXIS
    height = _TITLE + _LINE * len(lines) + num_panels * panel + (num_panels - 1) * _BETWEEN + _LEGEND * bool(tracks)

    figure = Figure(figsize=(width, height), facecolor="white")
    figure.set_layout_engine("none")
    page = _Page(figure, FigureCanvasAgg(figure), width, height)
    page.text(_LEFT, height - 0.32, plain(title, 100), fontweight="bold")
    for number, line in enumerate(lines):
        page.text(_LEFT, height - 0.55 - _LINE * number, line, color=MUTED)
    levels = _levels(samples)
    edge = height - _TITLE - _LINE * len(lines)
    for number in range(num_panels):
        span = duration_s * number / num_panels, duration_s * (number + 1) / num_panels
        top = edge
        for row in rows:
            edge -= row.gap + row.height
            ax = page.add(edge, row, span)
            _fill(page, ax, row, samples, levels)
        if len(tracks) == 1:
            # With several alignments, lines from one would suggest that it is right.
            _mark(figure.axes[-len(rows) :][:2], tracks[0].alignment.words)
        _draw_time_axis(figure.axes[-1], width, last=number == num_panels - 1)
        edge = top - panel - _BETWEEN
    _draw_legend(page, tracks)
    return figure


def _wrapped(text: str, letters: int, most: int) -> tuple[str, ...]:
    return tuple(textwrap.wrap(plain(text, 10000), letters, max_lines=most, placeholder=" …"))


def _fill(page: _Page, ax: Axes, row: _Row, samples: np.ndarray, levels: np.ndarray) -> None:
    """Draw what a row shows, and its name at the left edge."""
    track = row.track
    if row.kind == "wave":
        _draw_wave(ax, samples, page.width)
        name, colour = "amplitude", MUTED
    elif row.kind == "mel":
        _draw_mel(ax, levels)
        name, colour = "mel", MUTED
    else:
        ax.set_ylim(0, 1)
        ax.set_yticks([])
        for side in ("left", "bottom"):
            ax.spines[side].set_visible(False)
        name, colour = "", INK
    if row.kind == "note":
        ax.text(0.5, 0.5, "\n".join(row.lines), transform=ax.transAxes, ha="center", va="center", color=MUTED)
    if track is not None and row.kind == "words":
        words = track.alignment.words
        _draw_boxes(page, ax, words, [_WORD] * len(words), 9.0, track.alignment.unknown_words)
    if track is not None and row.kind == "phones":
        phones = track.alignment.phones
        _draw_boxes(page, ax, phones, [COLOURS[track.kind(phone)] for phone in phones], 8.5)
    if track is not None and row.gap > _GAP:
        name = textwrap.fill(plain(track.name, 30), 15)
    place = ax.get_position()
    page.text(0.1, page.height * (place.y0 + place.y1) / 2, name, color=colour, va="center", fontsize=9)


def _draw_wave(ax: Axes, samples: np.ndarray, width: float) -> None:
    """Draw lowest and highest sample of each column of pixels."""
    first, last = (round(time_s * SAMPLE_RATE_HZ) for time_s in ax.get_xlim())
    within = samples[first:last]
    columns = min(int((width - _LEFT - _RIGHT) * 150), len(within))
    cuts = np.linspace(0, len(within), columns, endpoint=False).astype(int)
    low, high = np.minimum.reduceat(within, cuts), np.maximum.reduceat(within, cuts)
    # A column begins where the one before ended, or slow waves would fall apart into dashes.
    low[1:], high[1:] = np.minimum(low[1:], high[:-1]), np.maximum(high[1:], low[:-1])
    ax.fill_between((first + cuts) / SAMPLE_RATE_HZ, low, high, color=FIRST, linewidth=0.3)
    largest = float(np.abs(samples).max()) or 1.0
    ax.set_ylim(-1.05 * largest, 1.05 * largest)
    ax.set_yticks([0], ["0"], fontsize=8)
    ax.spines["bottom"].set_visible(False)


def _levels(samples: np.ndarray) -> np.ndarray:
    """Return ``(mels, frames)`` in decibels below the loudest, every 5 ms."""
    padded = np.pad(samples, (0, max(0, _FFT - len(samples)))).astype(np.float32)
    mel = librosa.feature.melspectrogram(
        y=padded, sr=SAMPLE_RATE_HZ, n_fft=_FFT, win_length=_WINDOW, hop_length=_HOP, n_mels=_MELS
    )
    levels: np.ndarray = librosa.power_to_db(mel, ref=float(mel.max()) or 1.0, top_db=_DECIBELS)
    return levels


def _draw_mel(ax: Axes, levels: np.ndarray) -> None:
    span, hop_s = ax.get_xlim(), _HOP / SAMPLE_RATE_HZ
    first, last = max(0, int(span[0] / hop_s) - 1), int(span[1] / hop_s) + 2
    within = levels[:, first:last]
    sides = (first - 0.5) * hop_s, (first + within.shape[1] - 0.5) * hop_s
    ax.imshow(
        within, origin="lower", aspect="auto", cmap=_MEL_COLOURS, vmin=-_DECIBELS, vmax=0,
        extent=(*sides, -0.5, _MELS - 0.5), interpolation="nearest",
    )  # fmt: skip
    ax.set_xlim(*span)
    centres = librosa.mel_frequencies(_MELS + 2, fmax=SAMPLE_RATE_HZ / 2)[1:-1]
    places = np.interp(_TICKS_HZ, centres, np.arange(_MELS))
    ax.set_yticks(places, [f"{hz / 1000:g} kHz" if hz >= 1000 else f"{hz} Hz" for hz in _TICKS_HZ], fontsize=8)


def _mark(axes: Sequence[Axes], words: Sequence[Interval]) -> None:
    """Draw thin lines where words start."""
    for ax in axes:
        left, right = ax.get_xlim()
        starts = [word.start_s for word in words if left < word.start_s < right]
        ax.vlines(starts, 0, 1, transform=ax.get_xaxis_transform(), color=INK, linewidth=0.5, alpha=0.45)


def _draw_boxes(
    page: _Page,
    ax: Axes,
    intervals: Sequence[Interval],
    colours: Sequence[str],
    size: float,
    slanted: Collection[str] = (),
) -> None:
    """Draw boxes with their labels; labels among `slanted` are in italics."""
    left, right = ax.get_xlim()
    shown = [
        (max(start_s, left), min(end_s, right), label, colour)
        for (start_s, end_s, label), colour in zip(intervals, colours, strict=True)
        if start_s < right and end_s > left
    ]
    shapes = [Rectangle((start_s, 0), end_s - start_s, 1) for start_s, end_s, *_ in shown]
    ax.add_collection(PatchCollection(shapes, facecolor=[colour for *_, colour in shown], edgecolor="none"))
    edges = [time_s for start_s, end_s, *_ in shown for time_s in (start_s, end_s)]
    ax.add_collection(LineCollection([[(x, 0), (x, 1)] for x in edges], colors="white", linewidths=0.8))
    place = ax.get_position()
    points_per_s, height = 72 * page.width * place.width / (right - left), 72 * page.height * place.height
    for start_s, end_s, label, _ in shown:
        font = FontProperties(size=size, style="italic" if label in slanted else "normal")
        label = plain(label, 30)
        fit = _fit(page.canvas, label, font, points_per_s * (end_s - start_s) - 1, height - 1.5)
        if fit is not None:
            font.set_size(fit[0])
            ax.text(
                (start_s + end_s) / 2, 0.48, label, fontproperties=font, rotation=fit[1], ha="center", va="center",
                color=INK, clip_on=True,
            )  # fmt: skip


def _fit(
    canvas: FigureCanvasAgg, label: str, font: FontProperties, width: float, height: float
) -> tuple[float, int] | None:
    """Return a font size and an angle at which a label fits a box of `width` by `height` points; None where none is."""
    renderer, size = canvas.get_renderer(), font.get_size_in_points()
    pixels, *_ = renderer.get_text_width_height_descent(label or " ", font, ismath=False)
    length = pixels / renderer.points_to_pixels(1.0)
    level, upright = min(size, size * width / length), min(size, size * height / length, width)
    if level >= 0.75 * size or (level >= upright and level >= _SMALLEST_PT):
        return level, 0
    return (upright, 90) if upright >= _SMALLEST_PT else None


def _draw_time_axis(ax: Axes, width: float, last: bool) -> None:
    ax.tick_params(labelbottom=True, bottom=True)
    ax.spines["bottom"].set_visible(True)
    ax.locator_params(axis="x", nbins=int(width))
    if last:
        ax.set_xlabel("seconds")


def _draw_legend(page: _Page, tracks: Sequence[Track]) -> None:
    found = {track.kind(phone) for track in tracks for phone in track.alignment.phones}
    handles = [Patch(facecolor=colour, label=kind) for kind, colour in COLOURS.items() if kind in found]
    if handles:
        page.figure.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(_LEFT / page.width, 0.08 / page.height),
            ncols=len(handles), fontsize=9, borderaxespad=0.0, borderpad=0.0, handlelength=1.2, columnspacing=1.4,
        )  # fmt: skip
