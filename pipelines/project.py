"""Draw the codes of runs in two dimensions, by emotion, speaker and sex: what a bottleneck keeps apart, and what not.

An utterance's point is the mean over its windows of the window's codes, all of them in one row: what the probes of
Makiuchi, Uto and Shinoda 2021, section 6.2 (https://doi.org/10.1109/ASRU51503.2021.9688036), read of each window. Each
value is standardised over all utterances of the fold; one picture of them serves all columns. Coloured in a column is
what a probe of that name is tested on: the speakers that the encoder was trained on, as in the paper's Table 3, and for
everything else the utterances that neither has heard.

There is no linear discriminant analysis here: a projection that is told the classes shows them apart in any codes.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from featcache.cache import Cache, CachedStream
from featcache.cache import open as open_cache
from featcache.errors import CacheError, ConfigError, ProtocolError, StreamError, UnknownNameError
from featcache.files import write_atomically
from featcache.manifest import Manifest, Utterance
from heads.fold_files import read_folds
from heads.protocol import Fold, shown
from pipelines.probe import COLUMNS_OF, SPEAKER
from pipelines.reporting.projection import Panel, Row, draw
from pipelines.reporting.svg import DPI, METADATA, style

METHODS: Mapping[str, str] = {"tsne": "t-SNE", "pca": "PCA"}
COLUMNS = ("emotion", SPEAKER, "sex")
NEIGHBOURS = 5

_FEWEST = 5
_COMPONENTS, _PERPLEXITY = 50, 30.0
_BLOCK = 512
_CONSTANT = 1e-6
"""Spread, beside the mean, below which a value counts as the same everywhere: what rounding leaves."""


class _Codes(NamedTuple):
    """A run's codes of one fold, ready to be drawn."""

    title: str
    fold: Fold
    utterances: Sequence[Utterance]
    values: NDArray[np.float32]


def run(
    runs: Mapping[str, tuple[Path, Mapping[str, str]]],
    manifest: Manifest,
    cache: Path,
    out: Path,
    fold: str | None = None,
    method: str = "tsne",
    seed: int = 0,
) -> Path:
    """Draw codes and write the picture; the same codes give the same bytes.

    Args:
        runs: title to run folder and, fold by fold, the full name of its codes' stream.
        manifest: the utterances that the runs were trained on.
        cache: the cache's folder.
        out: picture to write; its ending decides the form.
        fold: whose model is shown; None is each run's first.
        method: ``tsne`` or ``pca``.
        seed: of t-SNE and of the randomised PCA before it.

    Returns:
        The picture's path.

    Raises:
        ConfigError: the picture's ending is none of ``.png``, ``.svg`` and ``.pdf``, or what :func:`figure` raises.
        FeatcacheError: see :func:`figure`.
    """
    out = Path(out)
    form = out.suffix.lower()
    if form not in METADATA or out.is_dir():
        raise ConfigError(f"A picture cannot be written to {str(out)!r}. Name a file ending in {', '.join(METADATA)}.")
    with style():
        drawn = figure(runs, manifest, cache, fold, method, seed)
        picture = io.BytesIO()
        dpi: Any = DPI if form == ".png" else "figure"
        drawn.savefig(picture, format=form[1:], dpi=dpi, facecolor="white", metadata=METADATA[form])
    write_atomically(out, picture.getvalue())
    return out


def figure(
    runs: Mapping[str, tuple[Path, Mapping[str, str]]],
    manifest: Manifest,
    cache: Path,
    fold: str | None = None,
    method: str = "tsne",
    seed: int = 0,
) -> Figure:
    """Draw codes as a figure; call it inside :func:`pipelines.reporting.svg.style`. For arguments see :func:`run`.

    Raises:
        ConfigError: no run, an unknown method, a stream of another fold's model, or no column with two classes.
        UnknownNameError: a run has no such fold, or the cache no such stream.
        CacheError: there is no cache, or a stream lacks utterances of the fold.
        ProtocolError: a run has no folds, the manifest is another one, or there are fewer than 5 utterances.
        StreamError: a stream does not hold codes, or they are the same for all utterances.
    """
    if not runs:
        raise ConfigError("There is no run to draw the codes of. Name one or more run folders.")
    if method not in METHODS:
        raise ConfigError(f"There is no method {method!r} to draw codes with. Known: {', '.join(METHODS)}.")
    opened = open_cache(cache)
    chosen = [
        (title, folder, _fold(folder, fold), names) for title, (folder, names) in runs.items()
    ]  # what is wrong with the last run is told before the first is read
    tested = [(one, _utterances(one, folder, manifest)) for _, folder, one, _ in chosen]
    columns = _columns(tested)
    rows = []
    for (title, folder, one, names), (_, utterances) in zip(chosen, tested, strict=True):
        stream = _stream(opened, folder, one, names)
        values = standardise(utterance_codes(stream, [utterance.id for utterance in utterances]))
        if not values.any():
            raise StreamError(
                f"{stream.name}: all {len(values)} utterances have the same codes, so there is nothing to draw. Look "
                f"at the training curves of {str(folder)!r}."
            )
        rows.append(_row(_Codes(title, one, utterances, values), columns, method, seed))
    everyone = [utterance for _, utterances in tested for utterance in utterances]
    synthetic = any(utterance.extra.get("synthetic") for utterance in everyone)
    return draw(rows, METHODS[method], _note(columns), synthetic)


def utterance_codes(stream: CachedStream, ids: Sequence[str]) -> NDArray[np.float32]:
    """Return the mean over each utterance's windows of a window's codes, ``(utterances, blocks * dim)``.

    Args:
        stream: codes, ``settings["blocks"]`` of them a window.
        ids: the utterances, in order; at least one.

    Raises:
        StreamError: the stream does not hold codes of whole windows.
    """
    blocks = stream.spec.settings.get("blocks")
    if not isinstance(blocks, int) or blocks < 1 or len(stream.spec.layers) != 1:
        raise StreamError(f"{stream.name} does not hold codes. Name a stream that 'featcache codes' made.")
    values = np.empty((len(ids), blocks * stream.spec.dim), np.float32)
    for place, name in enumerate(ids):
        codes = stream[name][0]
        if len(codes) % blocks:
            raise StreamError(f"{stream.name}: {name!r} has {len(codes)} codes where a window has {blocks}.")
        values[place] = codes.reshape(-1, values.shape[1]).mean(axis=0, dtype=np.float64)
    return values


def standardise(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give each column of ``(utterances, dim)`` the mean 0 and the standard deviation 1, in place, and return it.

    Columns that are the same for all utterances become 0.
    """
    mean = values.mean(axis=0, dtype=np.float64)
    values -= mean.astype(np.float32)
    # einsum casts as it goes; np.std would hold all of it again in float64.
    std = np.sqrt(np.einsum("ud,ud->d", values, values, dtype=np.float64) / len(values))
    alive = std > _CONSTANT * np.abs(mean)
    values *= np.divide(1, std, out=np.zeros_like(std), where=alive).astype(np.float32)
    return values


def neighbour_accuracy(
    values: NDArray[np.float32], labels: Sequence[str], num_neighbours: int = NEIGHBOURS
) -> float | None:
    """Return the balanced accuracy of nearest neighbours, each utterance left out of its own.

    The neighbours vote; of classes with equally many votes, that of the nearest wins. Guessing gives 1 / classes, and a
    little less where a class has few utterances, since one's own is not among the neighbours.

    Args:
        values: ``(utterances, dim)``; distances are Euclidean.
        labels: class of each utterance.
        num_neighbours: how many vote, or all others where there are fewer.

    Returns:
        The mean recall of the classes; None where there are no two classes.
    """
    numbers = {name: number for number, name in enumerate(dict.fromkeys(labels))}
    if len(numbers) < 2:
        return None
    classes = np.array([numbers[name] for name in labels])
    num_neighbours = min(num_neighbours, len(values) - 1)
    squares = np.einsum("ud,ud->u", values, values)
    right = np.empty(len(values), bool)
    for start in range(0, len(values), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(values)))
        # The square of the utterance itself is the same for all of its neighbours, and left out.
        distances = squares - 2 * (values[block] @ values.T)
        distances[block - start, block] = np.inf
        nearest = np.argpartition(distances, num_neighbours - 1, axis=1)[:, :num_neighbours]
        order = np.take_along_axis(distances, nearest, axis=1).argsort(axis=1, kind="stable")
        votes = classes[np.take_along_axis(nearest, order, axis=1)]
        counts = (votes[:, :, None] == votes[:, None, :]).sum(axis=2)
        right[block] = votes[block - start, counts.argmax(axis=1)] == classes[block]
    return float(np.mean([right[classes == number].mean() for number in range(len(numbers))]))


def embed(values: NDArray[np.float32], method: str, seed: int) -> NDArray[np.float32]:
    """Return ``(utterances, 2)``: the first principal components, or t-SNE of up to 50 of them, which starts there.

    Args:
        values: ``(utterances, dim)``, standardised, not all 0; 5 utterances or more.
        method: ``tsne`` or ``pca``.
        seed: of everything random.
    """
    from sklearn.manifold import TSNE
    from sklearn.utils.extmath import randomized_svd

    num_components = min(_COMPONENTS, len(values) - 1, values.shape[1])
    left, scale, _ = randomized_svd(values, num_components, random_state=seed)
    components = np.zeros((len(values), max(2, num_components)), np.float32)
    components[:, :num_components] = left * scale
    if method == "pca":
        return components[:, :2]
    perplexity = min(_PERPLEXITY, (len(values) - 1) / 3)
    # What init="pca" does: https://scikit-learn.org/stable/modules/generated/sklearn.manifold.TSNE.html
    start = components[:, :2] / components[:, 0].std() * 1e-4
    found: NDArray[np.float32] = TSNE(2, perplexity=perplexity, init=start, random_state=seed).fit_transform(components)
    return found


def _fold(folder: Path, name: str | None) -> Fold:
    folds = read_folds(Path(folder) / "folds.json")
    if name is None:
        return folds[0]
    found = [one for one in folds if one.name == name]
    if not found:
        raise UnknownNameError(f"fold of {str(folder)!r}", name, [one.name for one in folds])
    return found[0]


def _utterances(fold: Fold, folder: Path, manifest: Manifest) -> list[Utterance]:
    ids = sorted({name for part in fold.parts.values() for name in part})
    known = set(manifest.ids)
    lacking = [name for name in ids if name not in known]
    if lacking:
        raise ProtocolError(
            f"The manifest lacks {len(lacking)} of the {len(ids)} utterances of fold {fold.name!r} of {str(folder)!r} "
            f"({shown(lacking)}). Give the manifest that the run was trained with."
        )
    if len(ids) < _FEWEST:
        raise ProtocolError(
            f"fold {fold.name!r} of {str(folder)!r} has {len(ids)} utterances; a picture of codes needs {_FEWEST} or "
            "more."
        )
    return [manifest.utterance(name) for name in ids]


def _stream(cache: Cache, folder: Path, fold: Fold, names: Mapping[str, str]) -> CachedStream:
    if fold.name not in names:
        raise UnknownNameError(f"stream of codes of {str(folder)!r} for the fold", fold.name, names)
    stream = cache[names[fold.name]]
    made_by = stream.spec.settings.get("fold", fold.name)
    if made_by != fold.name:
        raise ConfigError(
            f"{stream.name} holds codes of the encoder of fold {made_by!r}, which may have been trained on what fold "
            f"{fold.name!r} tests. Give fold {fold.name!r} its own."
        )
    ids = sorted({name for part in fold.parts.values() for name in part})
    lacking = [name for name in ids if name not in stream]
    if lacking:
        raise CacheError(
            f"{stream.name} lacks {len(lacking)} of the {len(ids)} utterances of fold {fold.name!r} "
            f"({shown(lacking)}). Run 'featcache codes' on {str(folder)!r} again."
        )
    return stream


def _coloured(fold: Fold, column: str) -> frozenset[str]:
    """Return the ids of what a probe of that name is tested on."""
    return frozenset((*fold.train, *fold.validation) if column == SPEAKER else fold.test)


def _classes(fold: Fold, utterances: Sequence[Utterance], column: str) -> list[str | None]:
    """Return the class of each utterance; None where it is not coloured, or has none."""
    options = COLUMNS_OF.get(column, (column,))
    used = next((name for name in options if any(one.column(name) is not None for one in utterances)), options[0])
    coloured = _coloured(fold, column)
    values = [one.column(used) if one.id in coloured else None for one in utterances]
    return [None if value is None or value == "" else str(value) for value in values]


def _columns(tested: Sequence[tuple[Fold, Sequence[Utterance]]]) -> list[str]:
    """Return the columns that have two classes or more in a run.

    Raises:
        ConfigError: there is none.
    """
    columns = [
        column
        for column in COLUMNS
        if any(len({*_classes(fold, utterances, column)} - {None}) > 1 for fold, utterances in tested)
    ]
    if not columns:
        raise ConfigError(
            f"Neither {', '.join(COLUMNS[:-1])} nor {COLUMNS[-1]} has two values among the utterances to be coloured: "
            "there is nothing to tell apart. Fill the manifest's columns 'label', 'speaker' or 'gender'."
        )
    return columns


def _row(codes: _Codes, columns: Sequence[str], method: str, seed: int) -> Row:
    import sklearn.manifold  # noqa: F401  only libraries that are loaded are limited
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    # How threads share a sum depends on their number, and t-SNE makes a difference in the last bit large.
    with threadpool_limits(1):
        points = embed(codes.values, method, seed)
        panels = [_panel(codes, column) for column in columns]
    return Row(codes.title, codes.fold.name, codes.values.shape[1], points, panels)


def _panel(codes: _Codes, column: str) -> Panel:
    classes = _classes(codes.fold, codes.utterances, column)
    places = [place for place, name in enumerate(classes) if name is not None]
    accuracy = neighbour_accuracy(codes.values[places], [str(classes[place]) for place in places])
    parts = [part for part in (("train", "validation") if column == SPEAKER else ("test",)) if codes.fold.parts[part]]
    return Panel(column, classes, " and ".join(parts) or "none", accuracy, _is_of_speakers(codes, column, classes))


def _is_of_speakers(codes: _Codes, column: str, classes: Sequence[str | None]) -> bool:
    """Say whether each class has one speaker, so that who tells the speakers apart tells the classes apart."""
    pairs = {(name, one.speaker) for name, one in zip(classes, codes.utterances, strict=True) if name is not None}
    return column != SPEAKER and len(pairs) == len({name for name, _ in pairs})


def _note(columns: Sequence[str]) -> str:
    others = " and ".join(column for column in columns if column != SPEAKER)
    told = [f"in {others} the utterances that the encoder was not trained on"] if others else []
    told += [f"in {SPEAKER} those that it was trained on"] if SPEAKER in columns else []
    return (
        f"Coloured: {'; '.join(told)}. Below each panel: how often the {NEIGHBOURS} nearest neighbours of an utterance "
        "in the codes themselves, not in this picture, tell its class (balanced accuracy over the coloured ones)."
    )
