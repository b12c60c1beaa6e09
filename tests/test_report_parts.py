"""What the report is made of: calibration, speakers, hardest utterances, fusion curves, seeds, settings, folders."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from makers import write_corpus
from markupsafe import Markup
from test_report import make_scores, write_csv, write_small_run

from featcache import Manifest, Utterance
from featcache.errors import ConfigError, ScoresError
from heads import metrics
from heads.runs import Run, read_run, write_run
from heads.scores import Scores, align
from pipelines import fuse
from pipelines.reporting import wording
from pipelines.reporting.calibration import NUM_BINS, calibration
from pipelines.reporting.folders import find_runs
from pipelines.reporting.fusions import read_coefficients, read_fusion_curve
from pipelines.reporting.groups import comparable, with_manifests
from pipelines.reporting.hardest import LONGEST_S, SAMPLE_RATE_HZ, hardest, lost
from pipelines.reporting.speakers import by_speaker
from pipelines.reporting.varied import by_seed, varied
from pipelines.run_folders import UNFINISHED


def table(rows: Sequence[tuple[str, str, Sequence[float]]], fold: str = "1") -> Scores:
    """Return scores of two classes from ids, labels and probabilities."""
    ids, labels, values = zip(*rows, strict=True)
    return Scores(ids, (fold,) * len(ids), labels, ("a", "b"), np.array(values))


def run_of(scores: Scores, manifest: Manifest | None = None) -> Run:
    return Run(Path("run"), scores, None, metrics.evaluate(scores), None, manifest)


def test_calibration_is_what_its_definition_gives() -> None:
    scores = make_scores(num=300, seed=3)
    found = calibration(scores)
    confidence, right = scores.probabilities.max(axis=1), scores.predicted == scores.reference
    # Guo et al. 2017, equation 3, bin by bin.
    error = 0.0
    for number in range(NUM_BINS):
        inside = (confidence > number / NUM_BINS) & (confidence <= (number + 1) / NUM_BINS)
        assert found.counts[number] == inside.sum()
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
            assert found.accuracy[number] == pytest.approx(right[inside].mean(), abs=1e-12)
            assert found.confidence[number] == pytest.approx(confidence[inside].mean(), abs=1e-12)
        else:
            assert np.isnan(found.accuracy[number])
    assert found.ece == pytest.approx(error, abs=1e-12)
    truth = np.eye(3)[scores.reference]
    assert found.brier == pytest.approx(np.mean(np.sum((scores.probabilities - truth) ** 2, axis=1)), abs=1e-12)


def test_the_brier_score_is_scikit_learns_twice_for_two_classes() -> None:
    from sklearn.metrics import brier_score_loss

    scores = make_scores(classes=("a", "b"), num=200)
    halved = brier_score_loss(scores.reference, scores.probabilities[:, 1])
    assert calibration(scores).brier == pytest.approx(2 * halved, abs=1e-12)


def test_certain_and_right_is_perfectly_calibrated_and_certain_and_wrong_is_not() -> None:
    right = calibration(table([("u", "a", (1, 0)), ("v", "b", (0, 1))]))
    wrong = calibration(table([("u", "b", (1, 0)), ("v", "a", (0, 1))]))
    assert (right.ece, right.brier) == (0, 0)
    assert (wrong.ece, wrong.brier) == (1, 2)
    assert right.counts[-1] == 2


def test_a_confidence_on_an_edge_belongs_to_the_bin_below() -> None:
    found = calibration(table([("u", "a", (9 / 15, 6 / 15))]))
    assert found.counts[8] == 1


def test_each_speaker_is_measured_alone() -> None:
    scores = make_scores(num=60)
    speakers = {name: f"s{number % 10}" for number, name in enumerate(scores.ids)}
    rows = by_speaker(run_of(scores), speakers)
    assert [row.name for row in rows] == [f"s{number}" for number in range(10)]
    for row in rows:
        own = [place for place, name in enumerate(scores.ids) if speakers[name] == row.name]
        assert row.num_utterances == len(own) == 6
        assert row.ua == metrics.ua(scores.reference[own], scores.predicted[own])
        assert row.wa == metrics.wa(scores.reference[own], scores.predicted[own])


def test_speakers_that_are_the_folds_are_not_shown_twice() -> None:
    scores = make_scores(num=60)
    assert by_speaker(run_of(scores), dict(zip(scores.ids, scores.folds, strict=True))) == []
    assert by_speaker(run_of(scores), None) == []
    # As many speakers as folds, and yet not the same.
    other = {name: f"s{number % 3}" for number, name in enumerate(scores.ids)}
    assert len(by_speaker(run_of(scores), other)) == 3


HARD = [("u1", "a", (0.2, 0.8)), ("u10", "a", (0.1, 0.9)), ("u9", "a", (0.1, 0.9)), ("u2", "b", (0.1, 0.9))]


def test_the_hardest_are_the_mistakes_of_greatest_confidence() -> None:
    found = hardest(run_of(table(HARD)))
    assert [one.id for one in found] == ["u9", "u10", "u1"]
    assert (found[0].label, found[0].taken_for, found[0].confidence, found[0].true_probability) == ("a", "b", 0.9, 0.1)
    assert (found[0].text, found[0].speaker, found[0].audio) == ("", "", "")
    assert [one.id for one in hardest(run_of(table(HARD)), most=1)] == ["u9"]
    assert hardest(run_of(table([("u", "a", (1, 0)), ("v", "b", (0, 1))]))) == []


def test_an_utterance_that_is_scored_several_times_is_named_once_by_its_worst() -> None:
    scores = Scores(("u", "u", "v"), ("1", "2", "1"), ("a", "a", "b"), ("a", "b"), [[0.3, 0.7], [0.1, 0.9], [0, 1]])
    assert [(one.id, one.confidence) for one in hardest(run_of(scores))] == [("u", 0.9)]


def test_what_no_run_recognises_is_what_every_run_mistakes() -> None:
    first = table([("u", "a", (0.4, 0.6)), ("v", "a", (0.1, 0.9)), ("w", "b", (0.1, 0.9))])
    other = table([("w", "b", (0.9, 0.1)), ("v", "a", (0.3, 0.7)), ("u", "a", (0.45, 0.55))])
    manifest = Manifest([Utterance(name, text=f"say {name}", speaker="anna") for name in "uvw"])
    found, count = lost(align([first, other]), manifest)
    assert count == 2
    assert [(one.id, one.text, one.speaker) for one in found] == [("v", "say v", "anna"), ("u", "say u", "anna")]
    assert found[0].true_probability == pytest.approx(0.2)


def test_recordings_are_put_in_where_they_are_wanted_and_found(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, [0.5, LONGEST_S + 2, 0.5])
    (tmp_path / "u002.wav").unlink()
    scores = table([(name, "a", (0.1, 0.9)) for name in manifest.ids])
    run = run_of(scores, manifest)
    assert not any(one.audio for one in hardest(run))
    first, second, third = hardest(run, with_audio=True)
    assert first == hardest(run, with_audio=True)[0]  # the same bytes
    assert third.audio == ""
    for one, seconds in ((first, 0.5), (second, LONGEST_S)):
        kind, _, content = one.audio.partition(";base64,")
        assert kind in ("data:audio/mpeg", "data:audio/flac")
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(content)))
        assert rate == SAMPLE_RATE_HZ
        assert len(samples) == pytest.approx(seconds * rate, abs=rate / 10)
        assert np.abs(samples).max() > 0.01
    assert len(second.audio) < 100_000


def write_two(folder: Path) -> list[Path]:
    """Write two runs that can be fused by search."""
    runs = []
    for seed, name in enumerate(("speech", "text")):
        test, validation = make_scores(seed=seed), make_scores(seed=seed + 7)
        other = {"1": "2", "2": "3", "3": "1"}
        moved = [other[fold] for fold in validation.folds]
        validation = Scores(validation.ids, moved, validation.labels, validation.classes, validation.probabilities)
        write_run(folder / name, test, validation, {"head": "linear_probe"})
        runs.append(folder / name)
    return runs


@pytest.mark.parametrize("by", ["ua", "wa"])
def test_the_curve_of_a_fusion_is_what_its_search_tried(tmp_path: Path, by: str) -> None:
    fused = fuse.run(write_two(tmp_path), "search", tmp_path / "fused", select_by=by)
    found = read_fusion_curve(fused.folder, ["1", "2", "3"], by)
    assert found is not None
    assert (found.names, found.metric, found.folds) == (("speech", "text"), by, ("1", "2", "3"))
    assert fused.config is not None
    for row, fold in enumerate(found.folds):
        assert found.weights[found.chosen[row]] == pytest.approx(fused.config["weights"][fold][1])
        assert found.searched[row, found.chosen[row]] == found.searched[row].max()
        assert found.searched[row, found.chosen[row]] == pytest.approx(fused.config["on_search"][fold][by])
        measured = next(one for one in fused.metrics["folds"] if one["fold"] == fold)
        assert found.test[row, found.chosen[row]] == pytest.approx(measured[by])  # type: ignore[literal-required]


def test_other_fusions_have_no_curve_and_a_broken_one_is_named(tmp_path: Path) -> None:
    runs = write_two(tmp_path)
    given = fuse.run(runs, "0.5,0.5", tmp_path / "given")
    assert read_fusion_curve(given.folder, ["1", "2", "3"], "ua") is None
    folder = fuse.run(runs, "search", tmp_path / "searched").folder
    lines = (folder / "fusion_curve.csv").read_text().splitlines()
    (folder / "fusion_curve.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(ScoresError, match=r"fusion_curve.csv.*same weights for every fold"):
        read_fusion_curve(folder, ["1", "2", "3"], "ua")
    (folder / "fusion_curve.csv").write_text("\n".join(lines) + "\n")
    weights = (folder / "fusion_weights.csv").read_text().splitlines()
    (folder / "fusion_weights.csv").write_text("\n".join(weights[:-1]) + "\n")
    with pytest.raises(ScoresError, match=r"fusion_weights.csv.*lacks fold '3'"):
        read_fusion_curve(folder, ["1", "2", "3"], "ua")


def test_the_coefficients_of_a_stacking_are_means_over_folds(tmp_path: Path) -> None:
    header = ("fold", "class", "run", "score_of", "coefficient")
    rows = [(fold, "a", run, of, value) for fold, value in (("1", 1), ("2", 2)) for run, of in (("", ""), ("x", "a"))]
    write_csv(tmp_path / "fusion_coefficients.csv", header, [*rows, ("1", "a", "x", "b", 9), ("1", "b", "x", "b", 4)])
    found = read_coefficients(tmp_path, ["1", "2"])
    assert found is not None
    assert list(found.header) == ["class", "intercept", "x"]
    assert found.rows == [["a", "1.50", "1.50"], ["b", "–", "4.00"]]
    assert read_coefficients(tmp_path / "none", ["1"]) is None


def seeded(folder: Path, name: str, seed: int, **config: object) -> Run:
    fit = {"steps": 20, "select_by": "ua", "seed": seed}
    return read_run(write_small_run(folder / name, seed=seed, fit=fit, digest=name, **config))


def test_runs_that_differ_in_the_seed_alone_are_summed_up(tmp_path: Path) -> None:
    runs = [seeded(tmp_path, f"layer=1,seed={seed}", seed, seconds=float(seed)) for seed in (10, 9, 0)]
    runs.append(seeded(tmp_path, "layer=2,seed=0", 0, settings={"layer": 2}))
    [found] = by_seed(runs, [run.name for run in runs])
    assert (found.name, list(found.seeds), list(found.places)) == ("layer=1", ["0", "9", "10"], [2, 1, 0])
    values = [fold["ua"] for run in runs[:3] for fold in run.metrics["folds"]]
    assert found.mean["ua"] == pytest.approx(np.mean(values))
    assert found.std["ua"] == pytest.approx(np.std(values, ddof=1))
    means = [run.metrics["mean"]["ua"] for run in runs[:3]]
    assert found.std_of_means["ua"] == pytest.approx(np.std(means, ddof=1))


def test_the_same_seed_twice_and_runs_that_do_not_say_it_are_no_seeds(tmp_path: Path) -> None:
    runs = [seeded(tmp_path, name, 0) for name in ("a", "b")]
    assert by_seed(runs, ["a", "b"]) == []
    silent = [read_run(write_small_run(tmp_path / name)) for name in ("c", "d")]
    assert by_seed(silent, ["c", "d"]) == []


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("head=svm,seed=0", "head=svm"),
        ("seed=0,head=svm", "head=svm"),
        ("a,seed=12,b", "a,b"),
        ("seed-0/run", "run"),
        ("out/seed-0", "out"),
        ("seed-0", "seed-0"),
        ("reseed1", "reseed1"),
    ],
)
def test_a_name_without_its_seed(tmp_path: Path, name: str, told: str) -> None:
    runs = [seeded(tmp_path, str(seed), seed) for seed in (0, 1)]
    assert by_seed(runs, [name, "other"])[0].name == told


def test_settings_that_differ_are_found_within_a_head(tmp_path: Path) -> None:
    runs = [
        seeded(tmp_path, "a", 0, settings={"layer": 1, "size": [1, 2]}),
        seeded(tmp_path, "b", 0, settings={"size": [1, 2]}),
        seeded(tmp_path, "c", 0, settings={"size": [1, 3]}),
        seeded(tmp_path, "d", 1, head="svm", settings={"cost": 1}),
    ]
    layer, size = varied(runs)
    assert (layer.name, list(layer.values)) == ("settings.layer", ["1", "", "", ""])
    assert layer.numbers is not None
    assert layer.numbers[0] == 1
    assert np.isnan(layer.numbers[1:]).all()
    assert (size.name, size.numbers) == ("settings.size", None)
    assert varied(runs[:1]) == []


def test_a_folder_stands_for_the_runs_in_it_in_natural_order(tmp_path: Path) -> None:
    for name in ("layer=10", "layer=9", "seed-0/x", "seed-1/x", ".hidden", "deep/er/down"):
        write_small_run(tmp_path / "out" / name)
    (tmp_path / "out" / "begun" / UNFINISHED).mkdir(parents=True)
    (tmp_path / "out" / "notes").mkdir()
    found = find_runs([tmp_path / "out", write_small_run(tmp_path / "single")])
    assert list(found.names) == ["layer=9", "layer=10", "seed-0/x", "seed-1/x", "single"]
    assert list(found.unfinished) == ["begun"]
    found = find_runs([tmp_path / "out" / "begun", tmp_path / "single"])  # as runs/* names them
    assert (list(found.names), list(found.unfinished)) == (["single"], ["begun"])
    with pytest.raises(ScoresError, match=r"no scores yet: training was interrupted.*in begun\. The command"):
        find_runs([tmp_path / "out" / "begun"])


def test_a_run_is_a_run_whatever_lies_in_it(tmp_path: Path) -> None:
    write_small_run(tmp_path / "run")
    write_small_run(tmp_path / "run" / "inner")
    (tmp_path / "run" / UNFINISHED).mkdir()
    assert [path.name for path in find_runs([tmp_path / "run"]).runs] == ["run"]


def test_folders_that_hold_no_run_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty" / "below").mkdir(parents=True)
    with pytest.raises(ScoresError, match="empty' is not a run: there is no 'scores.csv' in it, nor"):
        find_runs([tmp_path / "empty"])
    write_small_run(tmp_path / "out" / "a")
    with pytest.raises(ConfigError, match="Name each run once"):
        find_runs([tmp_path / "out", tmp_path / "out" / "a"])


def test_a_run_without_a_manifest_borrows_that_of_a_run_over_the_same_utterances() -> None:
    scores = make_scores()
    manifest = Manifest([Utterance(name, speaker="anna") for name in scores.ids])
    runs = [run_of(scores), run_of(make_scores(seed=1), manifest), run_of(make_scores(num=57))]
    groups = comparable(runs, ["a", "b", "c"])
    assert [list(group.places) for group in groups] == [[0, 1], [2]]
    assert "c lacks 3 of the 60 utterances of a" in groups[1].reason
    assert [run.manifest for run in with_manifests(runs, groups)] == [manifest, manifest, None]


def test_numbers_are_put_into_words() -> None:
    assert [wording.p_value(value) for value in (0.0004, 0.0444, 1.0, float("nan"))] == [
        "< 0.001",
        "0.044",
        "1.000",
        "–",
    ]
    assert [wording.points(value) for value in (0.051, -0.051, 0.0)] == ["+5.1", "−5.1", "+0.0"]
    assert wording.between(0.1, 0.2) == "[10.0, 20.0]"
    assert wording.between(-0.1, 0.2, signed=True) == "[−10.0, +20.0]"
    assert wording.between(float("nan"), 0.2) == "–"
    names = [str(number) for number in range(20)]
    assert wording.some(names[:3]) == "0, 1, 2"
    assert wording.some(names) == "0, 1, 2 and 17 more"
    assert wording.some(names, 20) == "all 20 runs"
    assert wording.breakable("a,b/<c>") == Markup("a,<wbr>b/<wbr>&lt;c&gt;")
