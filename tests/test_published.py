"""Published numbers: complete, with their sources, and never beside runs without what differs."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from test_report import make_scores

from featcache import Manifest, Utterance
from featcache.errors import ConfigError
from heads.metrics import METRICS, evaluate
from heads.runs import Run
from heads.scores import Scores
from pipelines.paper import read_paper
from pipelines.reporting import published
from pipelines.reporting.published import beside, corpus_of, load, rows

SESSIONS = (1085, 1023, 1151, 1031, 1241)
FOUR = ("angry", "happy", "neutral", "sad")
SOURCES = {"makiuchi2021", "morais2022", "ghosh2023", "padi2022", "zhou", "superb", "emobox"}


def make_run(scores: Scores, manifest: Manifest | None = None, **config: Any) -> Run:
    return Run(Path("nowhere"), scores, None, evaluate(scores), config, manifest)


def iemocap(sizes: tuple[int, ...] = SESSIONS, classes: tuple[str, ...] = FOUR) -> Scores:
    """Return scores with IEMOCAP's names and sizes of sessions, all right."""
    names, folds = [], []
    for session, size in enumerate(sizes, start=1):
        for number in range(size):
            dialogue, turn = divmod(number, 1000)
            names.append(f"Ses0{session}F_impro0{1 + dialogue}_F{turn:03d}")
            folds.append(str(session))
    labels = [classes[number % len(classes)] for number in range(len(names))]
    values = [[float(label == name) for name in classes] for label in labels]
    return Scores(tuple(names), tuple(folds), tuple(labels), classes, values)  # type: ignore[arg-type]


def column(found: published.Beside, name: str) -> list[str]:
    place = list(found.grid.header).index(name)
    return [row[place] for row in found.grid.rows]


def test_the_file_is_complete() -> None:
    found = load()
    assert set(found.sources) == {row.source for row in found.rows} == SOURCES
    for row in found.rows:
        assert set(row.values) <= set(METRICS)
        assert row.selection
        assert not row.test_sizes or row.protocol
    assert len({(row.system, row.corpus) for row in found.rows}) == len(found.rows)


def test_makiuchis_numbers_are_those_of_the_reproduction() -> None:
    """Both files are transcribed from one paper: under this project's names they must say the same."""
    paper = read_paper("makiuchi2021")
    printed = {
        (metric, numbers.mean, numbers.std)
        for table in paper.tables
        for row in table.rows
        for metric, numbers in row.paper.items()
    }
    ours = [row for row in rows("IEMOCAP") if row.source == "makiuchi2021"]
    assert len(ours) == 11
    for row in ours:
        for metric, number in row.values.items():
            assert (metric, number.value, number.std) in printed, row.key


@pytest.mark.parametrize(
    ("key", "metric", "value", "name"),
    [
        ("makiuchi-speech-small", "wa", 70.1, "UA"), ("makiuchi-speech-small", "ua", 70.7, "WA"),
        ("morais-7", "ua", 77.76, "UACC"), ("mmer-0.1", "ua", 77.64, "WA"), ("padi-text", "ua", 70.33, ""),
        ("zhou-joint", "wa", 76.9, "accuracy"), ("emobox-ravdess-hubert-base", "ua", 65.4, ""),
    ],
)  # fmt: skip
def test_numbers_stand_under_this_projects_names(key: str, metric: str, value: float, name: str) -> None:
    [row] = [row for row in load().rows if row.key == key]
    assert (row.values[metric].value, row.values[metric].printed_as) == (value, name)


def test_rows_are_chosen_by_corpus_classes_and_modality() -> None:
    assert {row.corpus for row in rows()} == {"IEMOCAP", "RAVDESS"}
    assert {row.source for row in rows("IEMOCAP", 5)} == {"zhou"}
    assert {row.modality for row in rows(modality="text")} == {"text"}
    assert {row.key for row in rows("RAVDESS", 8, "speech")} == {row.key for row in rows("RAVDESS")}
    assert rows("EMO-DB") == []


def test_runs_of_the_same_protocol_differ_from_papers_in_their_selection_alone() -> None:
    found = beside([make_run(iemocap(), speaker_independent=True)])
    assert found.title == "Published on IEMOCAP"
    told = dict(zip(column(found, "system"), column(found, "differs in"), strict=True))
    assert told["Padi, ResNet34 fine-tuned"] == "nothing that can be checked"
    assert told["MMER, alpha 0.1"] == "was selected on test"
    assert told["Zhou, speech and text joint"] == "classes; folds; speaker independence"


def test_what_differs_is_told_for_the_runs_it_holds_for() -> None:
    same, fewer = make_run(iemocap(), speaker_independent=True), make_run(iemocap((1085, 1023)))
    told = dict(zip(*(column(beside([same, fewer]), name) for name in ("system", "differs in")), strict=True))
    assert told["Padi, ResNet34 fine-tuned"] == (
        "utterances and folds (1 of 2 runs); speaker independence (not stated here) (1 of 2 runs)"
    )
    other = make_run(iemocap(tuple(reversed(SESSIONS))), speaker_independent=False)
    told = dict(zip(*(column(beside([other]), name) for name in ("system", "differs in")), strict=True))
    assert told["Padi, ResNet34 fine-tuned"] == "speaker independence"
    joined = make_run(iemocap((1085 + 1023, 1151, 1031, 1241)), speaker_independent=True)
    told = dict(zip(*(column(beside([joined]), name) for name in ("system", "differs in")), strict=True))
    assert told["Padi, ResNet34 fine-tuned"] == "folds"


def test_another_corpus_has_iemocap_for_orientation() -> None:
    found = beside([make_run(make_scores())])
    assert found.title == published.ORIENTATION
    assert {corpus.split(",")[0] for corpus in column(found, "corpus")} == {"IEMOCAP"}
    assert all(words.startswith("corpus (not known here)") for words in column(found, "differs in"))


def test_every_row_has_its_source_and_its_notes() -> None:
    for run in (make_run(make_scores()), ravdess()):
        found = beside([run])
        told = dict(note.split(": ", 1) for note in found.notes)
        for letters in column(found, "notes"):
            assert set(letters.split()) <= set(told)
        assert all(source.split(",")[0] in told for source in column(found, "source"))
        assert {len(row) for row in found.grid.rows} == {len(found.grid.header)} == {len(found.grid.numeric)}


def ravdess() -> Run:
    ids = tuple(f"03-01-0{emotion}-01-01-01-{actor:02d}" for emotion in range(1, 9) for actor in range(1, 25))
    return make_run(Scores(ids, ("1",) * len(ids), ("a", "b") * 96, ("a", "b"), [[0.5, 0.5]] * len(ids)))  # type: ignore[arg-type]


def named(ids: list[str], **extra: Any) -> Run:
    scores = Scores(tuple(ids), ("1",) * len(ids), ("a",) * len(ids), ("a", "b"), [[1.0, 0.0]] * len(ids))  # type: ignore[arg-type]
    return make_run(scores, Manifest([Utterance(name, label="a", extra=extra) for name in ids]) if extra else None)


def test_a_corpus_is_known_by_what_the_manifest_says_or_by_the_releases_names() -> None:
    assert corpus_of(ravdess()) == "RAVDESS"
    assert corpus_of(named(["Ses01F_impro01_F000", "Ses05M_script03_2b_M012"])) == "IEMOCAP"
    assert corpus_of(named(["03a01Wa", "16b10Tb"])) == "EMO-DB"
    assert corpus_of(named(["1001_DFA_ANG_XX"])) == "CREMA-D"
    assert corpus_of(named(["x"], dataset="iemocap")) == "IEMOCAP"
    assert corpus_of(named(["x"], corpus="CREMA_D", dataset="iemocap")) == "CREMA-D"
    assert corpus_of(named(["x"], corpus="My own")) == "My own"
    assert corpus_of(named(["03a01Wa"], corpus=["of", "many"])) == "EMO-DB"


def test_a_corpus_that_nothing_says_is_not_guessed() -> None:
    assert corpus_of(named(["Ses01F_impro01_F000", "u1"])) is None
    assert corpus_of(named(["Ses01F_impro01_F000"], synthetic=True)) is None
    assert corpus_of(make_run(iemocap(), synthetic=True)) is None
    both = [Utterance("u1", extra={"dataset": "iemocap"}), Utterance("u2", extra={"dataset": "emodb"})]
    scores = named(["u1", "u2"]).scores
    assert corpus_of(make_run(scores, Manifest(both))) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corpus": ""}, "row 'one': corpus is empty"),
        ({"values": {"acc": {"value": 1}}}, "row 'one': values.acc: the metrics are wa"),
        ({"values": {"ua": {"value": 170}}}, "row 'one'.*percentage"),
        ({"modality": "video"}, "row 'one': modality"),
        ({"selected_on_test": "perhaps"}, "row 'one': selected_on_test"),
        ({"classes": ["b", "a"]}, "row 'one': classes"),
        ({"source": "nobody"}, "row 'one': there is no source 'nobody'"),
        ({"colour": "red"}, "row 'one' has no setting colour"),
        ({"table": None}, "row 'one': table"),
    ],
)
def test_a_row_that_is_not_complete_is_refused_by_name(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = {
        "system": "s", "corpus": "c", "classes": ["a", "b"], "values": {"ua": {"value": 50}}, "protocol": "p",
        "speaker_independent": True, "selected_on_test": False, "selection": "they", "modality": "text",
        "source": "src", "table": "Table 1",
    }  # fmt: skip
    path = tmp_path / "published.yaml"
    path.write_text(yaml.safe_dump({"sources": {"src": {"citation": "c"}}, "rows": {"one": row}}), encoding="utf-8")
    assert load(path).rows[0].speaker_independent == "yes"
    path.write_text(yaml.safe_dump({"sources": {"src": {"citation": "c"}}, "rows": {"one": {**row, **change}}}))
    with pytest.raises(ConfigError, match=message):
        load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("[]", "section 'sources'"), ("a: [", "cannot be read"), ("sources: {a: 1}", "sources: 'a'")],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "p.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "p.yaml")
