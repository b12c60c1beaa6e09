"""Codes in two dimensions: what is averaged, counted, coloured, and said of it."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

import featcache
from featcache import Manifest, Utterance
from featcache.commit import StreamWriter, store
from featcache.errors import CacheError, ConfigError, ProtocolError, StreamError, UnknownNameError
from featcache.stream import Features, StreamSpec
from heads.fold_files import save_folds
from heads.protocol import Fold
from pipelines import project
from pipelines.reporting import projection, svg

BLOCKS, DIM = 2, 3
Runs = dict[str, tuple[Path, Mapping[str, str]]]


@dataclass(frozen=True)
class Corpus:
    """Utterances ``u000`` and so on, and what each is: emotion, speaker (``sK``) and sex, in folds by session."""

    folder: Path
    manifest: Manifest
    folds: Sequence[Fold]

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def run(self, title: str, codes: Callable[[Utterance, int], np.ndarray], last: int = 1, **settings: Any) -> Runs:
        """Write codes ``(frames, DIM)`` of every utterance for the first folds, the same for each of them."""
        names = {}
        for fold in self.folds[:last]:
            declared: dict[str, Any] = {"blocks": BLOCKS, "fold": fold.name, "run": title} | settings
            spec = StreamSpec("codes", 1, "cache", declared, ("code",), DIM, dtype="float32")
            stored = [
                store(one.id, "0", 0, Features(codes(one, number)[None].astype(np.float32)), spec, "frames")
                for number, one in enumerate(self.manifest)
            ]
            with StreamWriter(self.cache, spec, "zarr", "frames") as writer:
                writer.commit(stored, {})
            names[fold.name] = spec.name
        (self.folder / title).mkdir()
        save_folds(self.folds, self.folder / title / "folds.json")
        return {title: (self.folder / title, names)}


def make_corpus(folder: Path, num_utterances: int = 120, **extra: Any) -> Corpus:
    sexes = ("female", "male")
    utterances = [
        Utterance(
            f"u{number:03d}", label=("angry", "happy", "sad")[number % 3], speaker=f"s{number // 3 % 8}",
            session=str(number // 3 % 8 // 2), extra={"gender": sexes[number // 3 % 2], **extra},
        )
        for number in range(num_utterances)
    ]  # fmt: skip
    folds = []
    for session in "0123":
        rest = [one.id for one in utterances if one.session != session]
        test = [one.id for one in utterances if one.session == session]
        folds.append(Fold(session, tuple(rest[1::2]), tuple(rest[::2]), tuple(test)))
    return Corpus(folder, Manifest(utterances), folds)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path)


def telling(column: str, strength: float = 6.0) -> Callable[[Utterance, int], np.ndarray]:
    """Return a maker of codes of one to three windows that tell a column, and nothing else."""

    def codes(utterance: Utterance, number: int) -> np.ndarray:
        of_class = np.random.default_rng([*str(utterance.column(column)).encode()]).standard_normal((BLOCKS, DIM))
        noise = np.random.default_rng([7, number]).standard_normal((1 + number % 3, BLOCKS, DIM))
        return (strength * of_class + noise).reshape(-1, DIM)

    return codes


def drawn(runs: Runs, corpus: Corpus, **options: Any) -> Figure:
    with svg.style():
        return project.figure(runs, corpus.manifest, corpus.cache, **{"method": "pca", **options})


def texts(figure: Figure) -> list[str]:
    return [found.get_text() for found in figure.findobj(Text) if found.get_text()]


def numbers(figure: Figure) -> list[int]:
    """Return what stands below each panel, in percent."""
    return [int(found[1]) for text in texts(figure) if (found := re.match(r"neighbours right: (\d+) %", text))]


def marks(figure: Figure, panel: int) -> dict[str, int]:
    """Return how many points of each colour a panel has, from back to front."""
    found: dict[str, int] = {}
    for points in figure.axes[panel].findobj(PathCollection):
        colour = to_hex(np.asarray(points.get_facecolor())[0])
        found[colour] = found.get(colour, 0) + len(np.asarray(points.get_offsets()))
    return found


def neighbours_by_hand(values: np.ndarray, labels: Sequence[str], num_neighbours: int) -> float:
    right: dict[str, list[bool]] = {}
    for place, label in enumerate(labels):
        distances = [(float(((values[place] - other) ** 2).sum()), at) for at, other in enumerate(values)]
        nearest = [labels[at] for _, at in sorted(distances) if at != place][:num_neighbours]
        most = max(map(nearest.count, nearest))
        right.setdefault(label, []).append(next(one for one in nearest if nearest.count(one) == most) == label)
    return float(np.mean([np.mean(found) for found in right.values()]))


@pytest.mark.parametrize("column", ["label", "speaker", "gender"])
@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_what_codes_tell_is_found_and_nothing_else(corpus: Corpus, column: str, method: str) -> None:
    emotion, speaker, sex = numbers(drawn(corpus.run("run", telling(column)), corpus, method=method))
    if column == "label":
        assert emotion == 100
        assert speaker < 30
        assert sex < 75
    else:  # a session has two speakers, one of each sex
        assert sex == 100
        assert emotion < 60
        assert speaker == 100 if column == "speaker" else speaker < 60


@pytest.mark.parametrize(("count", "dim", "classes", "num_neighbours"), [(2, 1, 2, 5), (9, 2, 3, 5), (700, 6, 9, 5)])
def test_neighbours_are_those_found_by_hand(count: int, dim: int, classes: int, num_neighbours: int) -> None:
    generator = np.random.default_rng(count)
    labels = [f"c{min(number % 17, classes - 1)}" for number in range(count)]
    values = generator.standard_normal((count, dim)).astype(np.float32)
    values[:, 0] += [int(label[1:]) for label in labels]
    found = project.neighbour_accuracy(values, labels, num_neighbours)
    assert found == pytest.approx(neighbours_by_hand(values, labels, num_neighbours), abs=1e-12)


def test_neighbours_are_counted_on_the_coloured_utterances_alone(corpus: Corpus) -> None:
    figure = drawn(runs := corpus.run("run", telling("label", 0.7), last=3), corpus, fold="2")
    [(_, names)] = runs.values()
    values = project.standardise(project.utterance_codes(featcache.open(corpus.cache)[names["2"]], corpus.manifest.ids))
    expected = []
    for column, tested in (("label", True), ("speaker", False), ("gender", True)):
        kept = [place for place, one in enumerate(corpus.manifest) if (one.session == "2") == tested]
        labels = [str(corpus.manifest[place].column(column)) for place in kept]
        expected.append(round(100 * neighbours_by_hand(values[kept], labels, 5)))
    assert numbers(figure) == expected


def test_one_class_has_no_accuracy() -> None:
    assert project.neighbour_accuracy(np.zeros((7, 2), np.float32), ["a"] * 7) is None
    assert project.neighbour_accuracy(np.zeros((0, 2), np.float32), []) is None


def test_names_that_differ_in_a_nul_are_two_classes() -> None:
    values = np.array([[0], [0.1], [5], [5.1]], np.float32)
    assert project.neighbour_accuracy(values, ["a", "a", "a\0", "a\0"], 1) == 1


def test_an_utterance_is_the_mean_of_its_windows(corpus: Corpus) -> None:
    runs = corpus.run("run", lambda _, number: np.arange((1 + number % 2) * BLOCKS * DIM).reshape(-1, DIM) + number)
    [(_, names)] = runs.values()
    found = project.utterance_codes(featcache.open(corpus.cache)[names["0"]], ["u003", "u000"])
    one = np.arange(BLOCKS * DIM)
    assert np.array_equal(found, [(3 + one + 3 + one + BLOCKS * DIM) / 2, one])
    assert found.dtype == np.float32


def test_values_are_standardised_and_constant_ones_are_nothing() -> None:
    generator = np.random.default_rng(0)
    values = (generator.standard_normal((50, 4)) * [1, 1e-3, 100, 0] + [0, 5, -7, 1 / 3]).astype(np.float32)
    values[:, 3] += np.spacing(values[:, 3]) * (np.arange(50) % 2)  # what rounding leaves is not information
    expected = (values - values.mean(axis=0, dtype=float)) / values.std(axis=0, dtype=float)
    found = project.standardise(values)
    assert found is values
    assert np.allclose(found[:, :3], expected[:, :3], atol=1e-3)
    assert not found[:, 3].any()


def test_principal_components_are_those_of_an_exact_decomposition() -> None:
    generator = np.random.default_rng(1)
    values = project.standardise(generator.standard_normal((40, 90)).astype(np.float32))
    left, scale, _ = np.linalg.svd(values.astype(float), full_matrices=False)
    found = project.embed(values, "pca", 0)
    assert np.allclose(np.abs(found), np.abs(left[:, :2] * scale[:2]), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("method", ["tsne", "pca"])
@pytest.mark.parametrize(("count", "dim"), [(5, 1), (5, 3), (6, 40), (60, 1)])
def test_few_utterances_and_few_values_can_be_drawn(method: str, count: int, dim: int) -> None:
    values = project.standardise(np.random.default_rng(0).standard_normal((count, dim)).astype(np.float32))
    points = project.embed(values, method, 0)
    assert points.shape == (count, 2)
    assert np.isfinite(points).all()
    assert np.ptp(points[:, 0]) > 0


def test_only_what_a_probe_is_tested_on_is_coloured(corpus: Corpus) -> None:
    figure = drawn(corpus.run("run", telling("label")), corpus)
    emotion, speaker, sex = (marks(figure, panel) for panel in range(3))
    session = sum(one.session == "0" for one in corpus.manifest)
    assert list(emotion) == [projection.GREY, *projection.COLOURS[:3]]  # grey lies behind
    assert emotion[projection.GREY] == sex[projection.GREY] == 120 - session
    assert speaker[projection.GREY] == session
    assert len(speaker) == 1 + 6
    assert len(sex) == 1 + 2
    assert all(sum(panel.values()) == 120 for panel in (emotion, speaker, sex))
    shown = texts(figure)
    assert f"coloured: {session} of test" in shown
    assert f"coloured: {session} of test, each class one speaker" in shown  # sex, in a session of two speakers
    assert f"coloured: {120 - session} of train and validation" in shown
    assert shown.count("others") == 3


def test_the_points_of_all_columns_are_the_same(corpus: Corpus) -> None:
    figure = drawn(corpus.run("run", telling("label")), corpus)

    def points(panel: int) -> np.ndarray:
        found = [one.get_offsets() for one in figure.axes[panel].findobj(PathCollection)]
        together = np.concatenate([np.asarray(one) for one in found])
        return together[np.lexsort(together.T)]

    assert np.array_equal(points(0), points(1))
    assert np.array_equal(points(0), points(2))
    assert len({ax.get_xlim() for ax in figure.axes}) == 1


def test_a_run_is_a_row_and_what_the_title_says_is_of_all(corpus: Corpus) -> None:
    runs = corpus.run("small", telling("label"), last=2) | corpus.run("large", telling("speaker"), last=2)
    figure = drawn(runs, corpus, fold="1")
    assert len(figure.axes) == 6
    shown = texts(figure)
    assert "Codes, PCA  ·  fold 1, 120 utterances" in shown
    assert {"small", "large", "emotion", "speaker", "sex", "6 numbers an utterance"} <= set(shown)
    assert shown.count("angry") == 1
    assert [numbers(figure)[0], numbers(figure)[4]] == [100, 100]
    assert not any(ax.get_xticks().size or ax.get_yticks().size for ax in figure.axes)


def test_runs_of_other_folds_are_told_apart_in_the_title(corpus: Corpus, tmp_path: Path) -> None:
    runs = corpus.run("one", telling("label"))
    others = replace(corpus, folds=[replace(corpus.folds[0], name="A", train=corpus.folds[0].train[5:])])
    runs |= others.run("two", telling("label"))
    title = next(text for text in texts(drawn(runs, corpus)) if text.startswith("Codes"))
    assert title == "Codes, PCA  ·  one: fold 0, 120 utterances; two: fold A, 115 utterances"


def test_synthetic_speech_is_said(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, synthetic=True)
    [title] = [one for one in texts(drawn(corpus.run("run", telling("label")), corpus)) if one.startswith("Codes")]
    assert title.endswith("synthetic speech")


def test_columns_without_two_classes_are_left_out(corpus: Corpus) -> None:
    runs = corpus.run("run", telling("label"))
    without = [replace(one, speaker=None, extra={"gender": "", "sex": None}) for one in corpus.manifest]
    assert len(drawn(runs, replace(corpus, manifest=Manifest(without))).axes) == 1
    some = [replace(one, label=None) if one.id < "u060" else one for one in corpus.manifest]
    figure = drawn(runs, replace(corpus, manifest=Manifest(some)))
    assert marks(figure, 0)[projection.GREY] == 120 - sum(one.session == "0" and one.id >= "u060" for one in some)
    nothing = [replace(one, label="x") for one in without]
    with pytest.raises(ConfigError, match="Neither emotion, speaker nor sex has two values"):
        drawn(runs, replace(corpus, manifest=Manifest(nothing)))


def test_two_runs_of_which_one_tests_one_class_are_both_drawn(corpus: Corpus) -> None:
    runs = corpus.run("one", telling("label"))
    single = tuple(one.id for one in corpus.manifest if one.label == "sad" and one.session == "0")
    runs |= replace(corpus, folds=[replace(corpus.folds[0], test=single)]).run("two", telling("label"))
    shown = texts(drawn(runs, corpus))
    assert shown.count("one class here: nothing to tell apart") == 1


def test_four_and_twenty_classes_have_a_look_each_and_more_are_grey(tmp_path: Path) -> None:
    looks = {
        (projection.COLOURS[number % len(projection.COLOURS)], list(projection.MARKERS)[number % 12])
        for number in range(projection.MOST_CLASSES)
    }
    assert len(looks) == projection.MOST_CLASSES
    corpus = make_corpus(tmp_path)
    runs = corpus.run("run", telling("label"))
    people = [
        replace(one, speaker=f"s{number % 30 if number % 2 else 3}") for number, one in enumerate(corpus.manifest)
    ]
    many = [replace(one, speaker=f"p{number // 2}") for number, one in enumerate(corpus.manifest)]
    assert not any("more" in text for text in texts(drawn(runs, replace(corpus, manifest=Manifest(people)))))
    figure = drawn(runs, replace(corpus, manifest=Manifest(many)))
    trained = {one.speaker for one in many if one.session != "0"}
    assert f"and {len(trained) - 24} more" in texts(figure)
    assert len(figure.axes[1].findobj(PathCollection)) == 2 + 24


def luminance(colour: str) -> float:
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
    return float(np.dot([0.2126, 0.7152, 0.0722], parts))


@pytest.mark.parametrize("page", ["#ffffff", "#14171c", "#1c2027"])
def test_colours_are_legible_on_light_and_dark_pages(page: str) -> None:
    for colour in projection.COLOURS:
        dark, light = sorted((luminance(colour), luminance(page)))
        assert (light + 0.05) / (dark + 0.05) > 2.4, colour
        assert colour not in svg.PALETTE


def test_names_of_any_kind_are_shown_as_they_are(corpus: Corpus) -> None:
    hostile = ["_under", "$x_{1$", '<b>&"', "a\nb\tc\0", "字" * 40, "\ud800", "", " "]
    runs = {"_$run_{ <i>": next(iter(corpus.run("run", telling("label"), last=2).values()))}
    people = [replace(one, label=hostile[int(one.id[1:]) % 3], speaker=hostile[int(str(one.speaker)[1:])])
              for one in corpus.manifest]  # fmt: skip
    shown = texts(drawn(runs, odd := replace(corpus, manifest=Manifest(people)), fold="1"))
    assert {"_under", "$x_{1$", '<b>&"', "_$run_{ <i>", "字" * 7 + "…" + "字" * 7, "\N{REPLACEMENT CHARACTER}"} <= set(
        shown
    )
    for form in ("png", "svg", "pdf"):
        project.run(runs, odd.manifest, odd.cache, corpus.folder / f"odd.{form}", method="pca")
    with svg.style():
        page = str(svg.inline(project.figure(runs, odd.manifest, odd.cache, method="pca"), "p", "codes"))
    assert "<i>" not in page
    assert "var(--ink)" in page
    assert projection.COLOURS[0] in page


@pytest.mark.parametrize("num_classes", [2, 24, 40])
def test_nothing_reaches_another_thing_or_the_edge(tmp_path: Path, num_classes: int) -> None:
    corpus = make_corpus(tmp_path)
    runs = corpus.run("small", telling("label")) | corpus.run("large" * 20, telling("label"))
    people = [replace(one, speaker=f"Wolfgang {number % num_classes}") for number, one in enumerate(corpus.manifest)]
    figure = drawn(runs, replace(corpus, manifest=Manifest(people)))
    width, height = figure.get_size_inches() * figure.dpi
    things = [*figure.legends, *figure.texts]
    boxes = [thing.get_window_extent() for thing in things] + [ax.get_tightbbox() for ax in figure.axes]
    for number, box in enumerate(boxes):
        assert box.x0 > 0
        assert box.y0 > 0
        assert box.x1 < width
        assert box.y1 < height
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])


@pytest.mark.parametrize("form", ["png", "svg", "pdf"])
@pytest.mark.parametrize("many", [False, True])
def test_the_same_codes_are_the_same_bytes(
    corpus: Corpus, form: str, many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection, "_MOST_MARKS", 10 if many else 1000)
    runs = corpus.run("run", telling("label"), last=2)
    turned = Manifest(list(corpus.manifest)[::-1])
    first = project.run(runs, corpus.manifest, corpus.cache, corpus.folder / f"1.{form}").read_bytes()
    second = project.run(runs, turned, corpus.cache, corpus.folder / f"2.{form.upper()}").read_bytes()
    assert first == second
    if form == "svg":
        assert (b"<image" in first) == many
        assert b">angry<" in first
    if form == "png":
        assert np.median(imread(corpus.folder / "1.png")[..., :3]) == 1  # on white
        other = project.run(runs, corpus.manifest, corpus.cache, corpus.folder / "3.png", seed=1, fold="1")
        assert other.read_bytes() != first


def test_nothing_is_computed_by_more_than_one_thread(corpus: Corpus) -> None:
    runs = corpus.run("run", telling("label"))
    [(folder, names)] = runs.values()
    corpus.manifest.write(corpus.folder / "m.jsonl")
    # In a fresh program, where the libraries to be limited are not loaded yet.
    program = f"""
from pathlib import Path
import threadpoolctl
from featcache import Manifest
from pipelines import project

def spied(*arguments, embed=project.embed):
    found = embed(*arguments)
    print(*{{pool["num_threads"] for pool in threadpoolctl.threadpool_info()}})
    return found

project.embed = spied
runs = {{"run": (Path({str(folder)!r}), {dict(names)!r})}}
project.run(runs, Manifest.read("m.jsonl"), Path("cache"), Path("x.png"), method="pca")
"""
    environment = os.environ | {"OMP_NUM_THREADS": "3", "PYTHONPATH": str(Path(project.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, cwd=corpus.folder, env=environment, stdout=subprocess.PIPE
    )
    assert done.stdout.split() == [b"1"]


def test_pictures_of_any_other_form_are_refused_before_anything_is_read(corpus: Corpus) -> None:
    for out in ("x.gif", "x", "."):
        with pytest.raises(ConfigError, match=r"\.png, \.svg, \.pdf"):
            project.run({}, corpus.manifest, corpus.cache, corpus.folder / out)


def test_what_cannot_be_drawn_is_told(corpus: Corpus) -> None:
    runs = corpus.run("run", telling("label"), last=2)
    [(folder, names)] = runs.values()
    with pytest.raises(ConfigError, match="There is no run"):
        drawn({}, corpus)
    with pytest.raises(ConfigError, match="no method 'lda'.*Known: tsne, pca"):
        drawn(runs, corpus, method="lda")
    with pytest.raises(UnknownNameError, match=r"There is no fold of '.*run' '9'\. Known: 0, 1, 2, 3"):
        drawn(runs, corpus, fold="9")
    with pytest.raises(ProtocolError, match="There is no folds file"):
        drawn({"run": (corpus.folder, names)}, corpus)
    with pytest.raises(UnknownNameError, match=r"no stream of codes of '.*run' for the fold '1'\. Known: 0\."):
        drawn({"run": (folder, {"0": names["0"]})}, corpus, fold="1")
    with pytest.raises(UnknownNameError, match="There is no stream in the cache .* 'codes-00000000'"):
        drawn({"run": (folder, {"0": "codes-00000000"})}, corpus)
    with pytest.raises(ConfigError, match="of the encoder of fold '1', which may have been trained on what fold '0'"):
        drawn({"run": (folder, {"0": names["1"]})}, corpus)
    with pytest.raises(CacheError, match="no cache"):
        drawn(runs, replace(corpus, folder=corpus.folder / "nowhere"))
    with pytest.raises(ProtocolError, match="lacks 2 of the 120 utterances of fold '0' of .*'u000', 'u001'"):
        drawn(runs, replace(corpus, manifest=Manifest(list(corpus.manifest)[2:])))


def test_utterances_that_the_stream_lacks_are_told(corpus: Corpus) -> None:
    fewer = replace(corpus, manifest=Manifest(list(corpus.manifest)[1:]))
    with pytest.raises(CacheError, match=r"codes-\w+ lacks 1 of the 120 utterances of fold '0' \('u000'\)\. Run 'feat"):
        drawn(fewer.run("run", telling("label")), corpus)


def test_too_few_utterances_and_codes_that_tell_nothing_are_refused(tmp_path: Path) -> None:
    few = Fold("0", ("u000", "u001"), (), ("u002", "u003"))
    corpus = replace(make_corpus(tmp_path), folds=[few])
    with pytest.raises(ProtocolError, match="has 4 utterances; a picture of codes needs 5 or more"):
        drawn(corpus.run("few", telling("label")), corpus)
    five = replace(corpus, folds=[replace(few, validation=("u004",))])
    assert len(drawn(five.run("five", telling("label")), five, method="tsne").axes) == 3
    with pytest.raises(StreamError, match="all 5 utterances have the same codes"):
        drawn(five.run("dead", lambda *_: np.full((BLOCKS, DIM), 1 / 3)), five)


@pytest.mark.parametrize("blocks", [None, 0, 4])
def test_streams_of_something_else_are_refused(corpus: Corpus, blocks: int | None) -> None:
    runs = corpus.run("run", lambda *_: np.ones((6, DIM)), blocks=blocks)
    with pytest.raises(StreamError, match="'u000' has 6 codes where a window has 4" if blocks else "'featcache codes'"):
        drawn(runs, corpus)
