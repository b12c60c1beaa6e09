"""`featcache compare`, as a user runs it, and the pairs behind it."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import test_cli

from featcache import Manifest, Utterance
from featcache.errors import ScoresError
from heads.runs import Run, read_run, write_run
from heads.scores import Scores
from heads.statistics import compare, holm, interval
from pipelines.compare import pairs, speakers_of

CLASSES = ("angry", "happy", "sad")


call, failure = partial(test_cli.call, "compare"), partial(test_cli.failure, "compare")


def scores(seed: int, accuracy: float, num: int = 120, num_folds: int = 4) -> Scores:
    generator = np.random.default_rng(seed)
    label = np.arange(num) % len(CLASSES)
    predicted = np.where(generator.random(num) < accuracy, label, (label + 1) % len(CLASSES))
    values = np.full((num, len(CLASSES)), 0.2)
    values[np.arange(num), predicted] = 0.6
    ids, folds = [f"u{n:03d}" for n in range(num)], [str(n % num_folds) for n in range(num)]
    return Scores(ids, folds, [CLASSES[one] for one in label], CLASSES, values)


def write(folder: Path, table: Scores, speakers: Mapping[str, str] | None = None, num_speakers: int = 8) -> Path:
    write_run(folder, table, None, {"head": "x"})
    known = {name: f"s{int(name[1:]) % num_speakers}" for name in table.ids} if speakers is None else speakers
    if known:
        ids = dict.fromkeys(table.ids)
        Manifest([Utterance(name, speaker=known.get(name)) for name in ids]).write(folder / "manifest.jsonl")
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Three runs over the same utterances of eight speakers."""
    accuracies = {"mel": 0.5, "wavlm": 0.8, "fused": 0.82}
    return [write(tmp_path / name, scores(seed, p)) for seed, (name, p) in enumerate(accuracies.items())]


def table_rows(output: str, heading: str) -> dict[tuple[str, ...], list[str]]:
    """Rows of the table with this heading, by their cells that are names."""
    lines = output.splitlines()
    first = next(number for number, line in enumerate(lines) if re.split(r"  +", line)[:2] == heading.split())
    rows = [re.split(r"  +", line) for line in lines[first + 2 : lines.index("", first)]]
    width = 2 if heading == "run less" else 1
    return {tuple(row[:width]): row[width:] for row in rows}


def test_every_run_and_every_pair_is_shown_with_the_numbers_of_the_statistics(folders: list[Path]) -> None:
    output = call(*folders)
    runs = {folder.name: read_run(folder) for folder in folders}
    speakers = speakers_of(runs["mel"])
    assert speakers is not None
    shown = table_rows(output, "run UA")
    for name, run in runs.items():
        one = interval(run.scores, speakers)
        assert shown[name,] == [f"{100 * one.value:.1f}", f"{100 * one.low:.1f} to {100 * one.high:.1f}"]
        assert shown[name,][0] == f"{100 * run.metrics['pooled']['ua']:.1f}"
    shown = table_rows(output, "run less")
    order = [("mel", "wavlm"), ("mel", "fused"), ("wavlm", "fused")]
    found = [compare(runs[first].scores, runs[other].scores, speakers) for first, other in order]
    corrected = holm([one.p_permutation for one in found])
    assert list(shown) == [(other, first) for first, other in order]
    for one, p, cells in zip(found, corrected, shown.values(), strict=True):
        assert cells[0] == f"{100 * one.difference:+.1f}"
        assert cells[1] == f"{100 * one.low:+.1f} to {100 * one.high:+.1f}"
        mcnemar = "< 0.0001" if one.p_mcnemar < 0.0001 else f"{one.p_mcnemar:.4f}"
        assert cells[2:] == [mcnemar, f"{one.p_permutation:.4f}", f"{p:.4f}"]
    assert "Intervals and permutations take each of 8 speakers as a whole." in output
    assert "by Holm's method over these 3 pairs" in output


def test_with_a_reference_there_are_fewer_pairs_and_less_to_correct_for(tmp_path: Path, folders: list[Path]) -> None:
    for reference in ("wavlm", folders[1], f"{folders[1]}/"):
        shown = table_rows(call(*folders, "--reference", reference), "run less")
        assert list(shown) == [("mel", "wavlm"), ("fused", "wavlm")]
    output = call(*folders[:1], "--reference", folders[2])
    assert list(table_rows(output, "run less")) == [("mel", "fused")]
    assert "Nothing was corrected for: there is one pair." in output
    assert "'gone' is none of the runs (mel, wavlm, fused), and no run folder" in failure(
        *folders, "--reference", "gone"
    )


def test_the_json_holds_everything_and_is_the_same_each_time(tmp_path: Path, folders: list[Path]) -> None:
    arguments = [*folders, "--metric", "wa", "--draws", 99, "--json", tmp_path / "a.json"]
    assert call(*arguments).endswith(f"Wrote {tmp_path / 'a.json'}.\n")
    first = (tmp_path / "a.json").read_bytes()
    call(*arguments)
    assert (tmp_path / "a.json").read_bytes() == first
    content = json.loads(first)
    assert content["metric"] == "wa"
    assert [one["run"] for one in content["runs"]] == ["mel", "wavlm", "fused"]
    runs = [read_run(folder) for folder in folders]
    expected = pairs(runs, ["mel", "wavlm", "fused"], metric="wa", draws=99)
    for pair, one in zip(content["pairs"], expected, strict=True):
        assert (pair["first"], pair["other"], pair["p_corrected"]) == (one.first, one.other, one.p_corrected)
        assert pair["difference"] == one.comparison.difference
        assert pair["p_mcnemar"] == one.comparison.p_mcnemar
        assert pair["clustered_by"] == "speaker"


def test_without_speakers_utterances_are_resampled_and_that_is_said(tmp_path: Path) -> None:
    folders = [write(tmp_path / name, scores(seed, 0.6), {}) for seed, name in enumerate("ab")]
    assert "take 120 utterances as if each were another person's" in call(*folders)
    # One run that knows who speaks is enough; one that knows it of some is none.
    write(folders[0], scores(0, 0.6), {"u000": "x"})
    assert "take 120 utterances" in call(*folders)
    write(folders[1], scores(1, 0.6))
    assert "each of 8 speakers" in call(*folders)


def test_few_speakers_are_told_what_they_cannot_show(tmp_path: Path) -> None:
    def folders(num_speakers: int, names: str) -> list[Path]:
        return [
            write(tmp_path / f"{name}{num_speakers}", scores(seed, 0.5 + 0.4 * seed), num_speakers=num_speakers)
            for seed, name in enumerate(names)
        ]

    assert "There is only one: nothing can be said of others." in call(*folders(1, "ab"))
    assert "no p of the permutation test can be below 0.12.\n" in call(*folders(4, "ab"), "--json", tmp_path / "x.json")
    (pair,) = json.loads((tmp_path / "x.json").read_text())["pairs"]
    assert pair["p_permutation"] == 0.125
    output = call(*folders(7, "abcd"))
    assert "can be below 0.016, and corrected for 6 pairs none below 0.094; name one run as --reference" in output
    assert "With so few" not in call(*folders(7, "abcd"), "--reference", "a7")
    output = call(*folders(7, "abcd"), "--draws", "99")
    assert "With 99 draws, no p of the permutation test can be below 0.01, and corrected for 6 pairs none" in output
    assert "give more --draws." in output


def test_one_speaker_gives_dashes_and_nulls(tmp_path: Path) -> None:
    folders = [write(tmp_path / name, scores(seed, 0.6), num_speakers=1) for seed, name in enumerate("ab")]
    output = call(*folders, "--json", tmp_path / "x.json")
    assert table_rows(output, "run UA")["a",][1] == "–"
    content = json.loads((tmp_path / "x.json").read_text())
    assert content["runs"][0]["low"] is None
    assert content["pairs"][0]["high"] is None


def test_utterances_scored_in_several_folds_get_no_mcnemar(tmp_path: Path) -> None:
    folders = []
    for seed, name in enumerate("ab"):
        one = scores(seed, 0.6)
        again = [f"again {fold}" for fold in one.folds]
        twice = Scores(one.ids * 2, [*one.folds, *again], one.labels * 2, CLASSES, np.tile(one.probabilities, (2, 1)))
        folders.append(write(tmp_path / name, twice))
    output = call(*folders, "--json", tmp_path / "x.json")
    assert "McNemar's test is left out" in output
    assert json.loads((tmp_path / "x.json").read_text())["pairs"][0]["p_mcnemar"] is None


def test_the_order_of_utterances_and_of_classes_is_no_difference(tmp_path: Path) -> None:
    one = scores(0, 0.7)
    rows, columns = list(reversed(range(120))), [2, 0, 1]
    ids, folds, labels = ([column[row] for row in rows] for column in (one.ids, one.folds, one.labels))
    shuffled = Scores(ids, folds, labels, [CLASSES[n] for n in columns], one.probabilities[rows][:, columns])
    folders = [write(tmp_path / "a", one), write(tmp_path / "b", shuffled)]
    (cells,) = table_rows(call(*folders), "run less").values()
    assert cells == ["+0.0", "+0.0 to +0.0", "1.0000", "1.0000", "1.0000"]


def take(table: Scores, rows: Sequence[int]) -> Scores:
    ids, folds, labels = ([column[row] for row in rows] for column in (table.ids, table.folds, table.labels))
    return Scores(ids, folds, labels, table.classes, table.probabilities[list(rows)])


def test_runs_that_cannot_be_compared_are_refused_by_name(tmp_path: Path, folders: list[Path]) -> None:
    one = scores(3, 0.6)
    fewer = write(tmp_path / "fewer", take(one, range(1, 120)))
    assert failure(folders[0], fewer) == (
        "fewer lacks 1 of the 120 utterances of mel, such as 'u000' in fold '0'. Runs are compared over the same "
        "utterances: make both from the same manifest."
    )
    refolded = write(tmp_path / "refolded", scores(3, 0.6, num_folds=5))
    assert "mel and refolded score the same 120 utterances but divide them into other folds" in failure(
        folders[0], refolded
    )
    labels = [*one.labels[1:], one.labels[0]]
    relabelled = write(tmp_path / "relabelled", replace(one, labels=labels))
    assert "'u000' is labelled 'angry' in mel and 'happy' in relabelled" in failure(folders[0], relabelled)
    renamed = replace(
        one, classes=("a", "b", "c"), labels=[name[0].replace("h", "b").replace("s", "c") for name in one.labels]
    )
    classes = write(tmp_path / "classes", renamed)
    assert "mel has the classes ['angry', 'happy', 'sad'] and classes ['a', 'b', 'c']" in failure(folders[0], classes)
    people = write(tmp_path / "people", one, dict.fromkeys(one.ids, "someone"))
    assert "'u000' is spoken by 's0' in mel and by 'someone' in people" in failure(folders[0], people)


def test_a_run_with_nan_scores_is_refused(tmp_path: Path, folders: list[Path]) -> None:
    path = folders[1] / "scores.csv"
    path.write_text(re.sub(r"^u003,3,angry,[^,]*", "u003,3,angry,nan", path.read_text(), flags=re.MULTILINE))
    said = failure(*folders)
    assert str(path) in said
    assert "scores that are not finite, such as 'u003' in fold '3': nan for 'angry'" in said


def test_a_mistake_is_answered_in_a_sentence(tmp_path: Path, folders: list[Path]) -> None:
    assert "two runs or more" in failure(folders[0])
    assert "is named twice" in failure(folders[0], f"{folders[0]}/../mel")
    assert "no metric 'f1'. Known: macro_f1, ua, wa, weighted_f1" in failure(*folders, "--metric", "f1")
    assert "is not a run: there is no such folder" in failure(folders[0], tmp_path / "gone")
    call(*folders, "--draws", "0", code=2)


def test_names_with_markup_commas_and_other_scripts_are_shown_as_they_are(tmp_path: Path) -> None:
    names = ["[red]a, <b>", "ラン"]
    folders = [write(tmp_path / name, scores(seed, 0.6)) for seed, name in enumerate(names)]
    output = call(*folders, "--json", tmp_path / "x.json")
    assert all(name in output for name in names)
    assert [one["run"] for one in json.loads((tmp_path / "x.json").read_text())["runs"]] == names


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [write(tmp_path / place / "run", scores(seed, 0.6)) for seed, place in enumerate("ab")]
    assert list(table_rows(call(*folders), "run less")) == [("b/run", "a/run")]


def test_pairs_of_few_runs_are_no_error(folders: list[Path]) -> None:
    run: Run = read_run(folders[0])
    assert pairs([run], ["mel"]) == []
    assert pairs([], []) == []
    (pair,) = pairs([run, run], ["a", "b"], reference=1)
    assert (pair.first, pair.other, pair.p_corrected) == ("b", "a", 1)
    with pytest.raises(ScoresError, match="b lacks 10"):
        pairs([run, replace(run, scores=take(run.scores, range(110)))], ["a", "b"])
    assert not math.isnan(pair.comparison.low)


def test_help_says_what_the_corrected_p_is_and_what_not_to_conclude() -> None:
    text = " ".join(call("--help").split())
    for sentence in ("and allows for how many pairs there are (Holm)", "What not to conclude"):
        assert sentence in text


def test_numbers_that_are_no_result_are_said_to_be_none(tmp_path: Path) -> None:
    plain, random = write(tmp_path / "plain", scores(1, 0.8)), tmp_path / "random"
    write_run(random, scores(2, 0.5), None, {"head": "x", "random_weights": True})
    told = call(plain, write(tmp_path / "other", scores(3, 0.7)))
    assert "no result" not in told
    out = tmp_path / "compared.json"
    told = call(plain, random, "--json", out)
    assert "these numbers are no result (of 1 of 2 runs)." in told
    assert len(json.loads(out.read_text())["provisos"]) == 1
