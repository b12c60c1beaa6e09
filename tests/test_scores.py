"""Score tables, score files and run folders."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache import Manifest, Utterance
from featcache.errors import ScoresError
from heads.metrics import evaluate
from heads.runs import UNFINISHED, read_run, write_run
from heads.scores import Scores, align

CLASSES = ("angry", "happy", "sad")


def table(rows=6, classes=CLASSES, seed=0, **changed):
    generator = np.random.default_rng(seed)
    values = {
        "ids": [f"u{index}" for index in range(rows)],
        "folds": [str(1 + index % 2) for index in range(rows)],
        "labels": [classes[index % len(classes)] for index in range(rows)],
        "classes": classes,
        "probabilities": generator.dirichlet(np.ones(len(classes)), rows),
    }
    return Scores(**{**values, **changed})


def same(one, other):
    return (
        (one.ids, one.folds, one.labels, one.classes) == (other.ids, other.folds, other.labels, other.classes)
    ) and np.array_equal(one.probabilities, other.probabilities)


def reordered(scores, rows, columns):
    return Scores(
        [scores.ids[row] for row in rows],
        [scores.folds[row] for row in rows],
        [scores.labels[row] for row in rows],
        [scores.classes[column] for column in columns],
        scores.probabilities[rows][:, columns],
    )


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@st.composite
def tables(draw):
    classes = draw(st.lists(NAMES, min_size=2, max_size=5, unique=True))
    keys = draw(st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=6, unique=True))
    labels = draw(st.lists(st.sampled_from(classes), min_size=len(keys), max_size=len(keys)))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    probabilities = generator.dirichlet(np.full(len(classes), 0.05), len(keys))
    return Scores([name for _, name in keys], [fold for fold, _ in keys], labels, classes, probabilities)


@settings(deadline=None)
@given(scores=tables())
def test_what_is_written_is_read_back_exactly(tmp_path_factory, scores):
    path = tmp_path_factory.mktemp("scores") / "scores.csv"
    scores.write(path)
    assert same(Scores.read(path), scores)


def test_names_with_commas_quotes_and_line_ends_survive(tmp_path):
    ids = ["a,b", 'say "hi"', "two\nlines", "old\rmac", "dos\r\nend", " spaced "]
    scores = table(ids=ids, classes=("p_x", "y,z", 'q"'), labels=["p_x"] * 6)
    scores.write(tmp_path / "s.csv")
    assert same(Scores.read(tmp_path / "s.csv"), scores)


def test_the_file_is_plain_csv(tmp_path):
    Scores(["u"], ["1"], ["sad"], ["sad", "glad"], [[0.1, 0.9]]).write(tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_bytes() == b"id,fold,label,p_sad,p_glad\r\nu,1,sad,0.1,0.9\r\n"


def test_a_file_of_another_program_is_read(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("\ufefflabel,p_b,seed,p_a,fold,id\n\nb,1.0,7,0,f,u1\na,2e-1,7, .8,f,u2\n", encoding="utf-8")
    scores = Scores.read(path)
    assert scores.classes == ("b", "a")
    assert scores.ids == ("u1", "u2")
    assert scores.labels == ("b", "a")
    assert scores.probabilities.tolist() == [[1.0, 0.0], [0.2, 0.8]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"Expected the columns id, fold, label and p_CLASS"),
        ("id,fold,label\n", r"found \['id', 'fold', 'label'\]"),
        ("id;fold;label;p_a;p_b\n", "separated by semicolons; commas are needed"),
        ("id\tfold\tlabel\tp_a\tp_b\n", "separated by tabs"),
        ("id,fold,label,p_a,p_a\n", "'p_a' occurs more than once"),
        ("id,fold,label,p_a,p_b\n", "not one utterance"),
        ("id,fold,label,p_a\nu,1,a,1\n", "two classes or more"),
        ("id,fold,label,p_a,p_b\nu,1,a,1\n", "Line 2 has 4 fields where the header has 5"),
        ("id,fold,label,p_a,p_b\nu,1,a,1,zero\n", "Line 2, 'u': the column 'p_b' holds 'zero', not a number"),
        ("id,fold,label,p_a,p_b\nu,1,a,1,\n", "the column 'p_b' holds '', not a number"),
        ("id,fold,label,p_a,p_b\nu,1,a,nan,1\n", "'u' in fold '1': nan for 'a'"),
        ('id,fold,label,p_a,p_b\n"u"x,1,a,1,0\n', "expected after"),
    ],
)
def test_a_malformed_file_is_named_with_its_fault(tmp_path, text, message):
    path = tmp_path / "s.csv"
    path.write_text(text)
    with pytest.raises(ScoresError, match=message) as caught:
        Scores.read(path)
    assert "s.csv" in str(caught.value)


def test_a_missing_or_unreadable_file_is_named(tmp_path):
    with pytest.raises(ScoresError, match="There is no score file"):
        Scores.read(tmp_path / "no.csv")
    with pytest.raises(ScoresError, match="directory"):
        Scores.read(tmp_path)
    (tmp_path / "s.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ScoresError, match="codec"):
        Scores.read(tmp_path / "s.csv")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_finite_name_the_utterance(value):
    probabilities = np.full((6, 3), 1 / 3)
    probabilities[4, 1:] = value
    with pytest.raises(ScoresError, match=r"1 of 6 utterances .* not finite, such as 'u4' in fold '1': .* for 'happy'"):
        table(probabilities=probabilities)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (np.log, "Log-probabilities? Write their exponentials"),
        (lambda p: np.log(p) + 3, "Logits? Write their softmax"),
        (lambda p: 100 * p, "Percentages? Divide them by 100"),
        (lambda p: 3 * p, "each row divided by its sum"),
        (lambda p: p - 0.1, "Logits"),
    ],
)
def test_scores_that_are_not_probabilities_are_refused_with_a_guess(change, hint):
    scores = table()
    with pytest.raises(ScoresError, match=r"6 of 6 utterances .* such as 'u0' in fold '1'") as caught:
        table(probabilities=change(scores.probabilities))
    assert hint in str(caught.value)


@settings(deadline=None)
@given(st.integers(2, 10), st.integers(0, 1000))
def test_probabilities_printed_with_three_decimals_are_accepted(num_classes, seed):
    exact = np.random.default_rng(seed).dirichlet(np.ones(num_classes), 6)
    names = tuple(f"c{index}" for index in range(num_classes))
    table(classes=names, probabilities=np.round(exact, 3))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": ["angry"] * 5 + ["bored"]}, r"'u5' has the label 'bored', which is none of the classes \['angry'"),
        ({"labels": ["angry"]}, "6 ids, 6 folds and 1 labels"),
        ({"ids": ["u"] * 6}, r"4 utterances|2 utterances are scored more than once in a fold, such as 'u' in fold '1'"),
        ({"classes": ("angry", "happy", "angry")}, "A class occurs twice"),
        ({"probabilities": np.ones((6, 1))}, r"shape \(6, 1\) where 6 utterances and 3 classes give \(6, 3\)"),
        ({"ids": [], "folds": [], "labels": [], "probabilities": np.ones((0, 3))}, "not one utterance"),
    ],
)
def test_a_table_that_does_not_fit_together_is_refused(changed, message):
    with pytest.raises(ScoresError, match=message):
        table(**changed)


def test_an_utterance_may_be_scored_in_several_folds():
    assert table(ids=["u", "u", "v", "v", "w", "w"]).ids[:2] == ("u", "u")


def test_ties_go_to_the_first_class():
    scores = table(rows=2, probabilities=[[0.4, 0.4, 0.2], [0.2, 0.4, 0.4]])
    assert scores.predicted.tolist() == [0, 1]
    assert scores.reference.tolist() == [0, 1]


def test_probabilities_are_a_copy_that_cannot_be_changed():
    mine = np.full((6, 3), 1 / 3)
    scores = table(probabilities=mine)
    mine[0] = 0
    assert scores.probabilities[0, 0] == 1 / 3
    with pytest.raises(ValueError, match="read-only"):
        scores.probabilities[0, 0] = 1


def test_alignment_undoes_any_order_of_rows_and_classes():
    scores = table()
    shuffled = reordered(scores, [3, 1, 5, 0, 2, 4], [2, 0, 1])
    first, second = align([scores, shuffled])
    assert same(first, scores)
    assert same(second, scores)


def test_folds_that_are_only_called_differently_are_aligned():
    scores = table()
    renamed = table(folds=[{"1": "Session1", "2": "Session2"}[fold] for fold in scores.folds])
    assert same(align([scores, renamed])[1], scores)
    swapped = table(folds=[{"1": "2", "2": "1"}[fold] for fold in scores.folds])
    assert same(align([scores, swapped])[1], scores)


def test_runs_over_other_utterances_say_how_many_and_which():
    with pytest.raises(ScoresError, match=r"B lacks 2 of the 6 utterances of A, such as 'u4' in fold '1'\."):
        align([table(rows=6), table(rows=4)], ["A", "B"])
    with pytest.raises(ScoresError, match=r"^A lacks 2 of the 6 utterances of B, such as 'u4' in fold '1'\."):
        align([table(rows=4), table(rows=6)], ["A", "B"])
    other = table(ids=["u0", "u1", "u2", "u3", "u4", "x"])
    with pytest.raises(ScoresError, match=r"run 2 lacks 1 of the 6 .*'u5' in fold '2'\. run 1 lacks 1 of the 6 .*'x'"):
        align([table(), other])


def test_runs_over_other_folds_classes_or_labels_are_refused():
    with pytest.raises(ScoresError, match="score the same 6 utterances but divide them into other folds"):
        align([table(), table(folds=["1", "1", "1", "2", "2", "2"])])
    with pytest.raises(ScoresError, match=r"A has the classes .*'sad'\] and B .*'tired'\]"):
        align([table(), table(classes=("angry", "happy", "tired"))], ["A", "B"])
    with pytest.raises(ScoresError, match="'u5' is labelled 'sad' in run 1 and 'angry' in run 2"):
        align([table(), table(labels=[*table().labels[:5], "angry"])])


def test_a_folder_with_scores_alone_is_a_run(tmp_path):
    table().write(tmp_path / "mine" / "scores.csv")
    run = read_run(tmp_path / "mine")
    assert run.name == "mine"
    assert same(run.scores, table())
    assert run.validation_scores is None
    assert run.config is None
    assert run.metrics == evaluate(table())


def test_a_written_run_is_read_back(tmp_path):
    config = {"head": "layer_mix", "folds": "session", "lr": 0.001}
    written = write_run(tmp_path / "run", table(), table(rows=3, seed=1), config)
    run = read_run(tmp_path / "run")
    assert same(run.scores, written.scores)
    assert run.validation_scores is not None
    assert same(run.validation_scores, table(rows=3, seed=1))
    assert run.config == config
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == run.metrics == written.metrics


def test_a_run_written_over_another_keeps_nothing_of_it(tmp_path):
    write_run(tmp_path, table(), table(seed=1), {"a": 1})
    (tmp_path / "weights.safetensors").write_bytes(b"")
    write_run(tmp_path, table(seed=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "scores.csv", "weights.safetensors"]


def test_metrics_come_from_the_scores_even_beside_an_old_file(tmp_path):
    write_run(tmp_path, table())
    (tmp_path / "metrics.json").write_text("{}")
    assert read_run(tmp_path).metrics == evaluate(table())


def test_what_is_not_a_run_is_named(tmp_path):
    with pytest.raises(ScoresError, match="is not a run: there is no such folder"):
        read_run(tmp_path / "nothing")
    with pytest.raises(ScoresError, match=r"is not a run: there is no 'scores\.csv' in it"):
        read_run(tmp_path)
    (tmp_path / "begun" / UNFINISHED).mkdir(parents=True)
    with pytest.raises(ScoresError, match=r"begun' is not a run yet.*interrupted.*The command that began it goes on"):
        read_run(tmp_path / "begun")
    write_run(tmp_path, table(), table(classes=("sad", "angry", "happy")))
    with pytest.raises(ScoresError, match=r"'scores\.csv' has the classes"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"), [("[1]", "must hold settings by name, got list"), ("a: [", "cannot be read")]
)
def test_a_malformed_configuration_is_named(tmp_path, text, message):
    write_run(tmp_path, table())
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ScoresError, match=message):
        read_run(tmp_path)


def test_a_run_knows_who_said_what_and_refuses_another_runs_manifest(tmp_path: Path) -> None:
    scores = Scores(["a", "b"], ["1", "1"], ["x", "y"], ("x", "y"), np.array([[0.5, 0.5], [0.2, 0.8]]))
    write_run(tmp_path / "run", scores)
    assert read_run(tmp_path / "run").manifest is None
    Manifest([Utterance("a", text="Oh.", speaker="s1"), Utterance("b")]).write(tmp_path / "run" / "manifest.jsonl")
    manifest = read_run(tmp_path / "run").manifest
    assert manifest is not None
    assert (manifest[0].text, manifest[0].speaker) == ("Oh.", "s1")
    Manifest([Utterance("a")]).write(tmp_path / "run" / "manifest.jsonl")
    with pytest.raises(ScoresError, match=r"manifest.jsonl' lacks 1 of the utterances that are scored, such as 'b'"):
        read_run(tmp_path / "run")
    (tmp_path / "run" / "manifest.jsonl").write_text("no manifest\n")
    with pytest.raises(ScoresError, match="Make the run again"):
        read_run(tmp_path / "run")
