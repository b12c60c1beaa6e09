"""What a paper takes from a report: names stay names, numbers are the metrics', and others can read the files."""

import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_report import HOSTILE, LEAK, make_scores, write_csv, write_full_run, write_small_run

from featcache import Manifest, Utterance
from featcache.errors import ConfigError, ScoresError, UnknownNameError
from heads.runs import Run, read_run, write_run
from heads.scores import Scores
from pipelines import report_files
from pipelines.compare import pairs
from pipelines.reporting import figure_files, latex, markdown
from pipelines.reporting.groups import comparable, make_groups
from pipelines.reporting.section import make_section
from pipelines.reporting.svg import style
from pipelines.reporting.tables import Grid
from pipelines.reporting.wording import percent, spread

NASTY = "_&%#${}~^\\`\"'<>|*[]-+=.:!?,@()0159 aé愤\u0301\u200f\x00\t\n😀–±−"
MARKUP = (
    "`x`", "~~x~~", "[a](b)", "![a](b)", "[a]: b", "&lt;", "<b>", "<!-- x -->", "**x**", "__x__", "- ", "1. ", "2) ",
    "# ", "---", "===", "> ", "\\section{x}", "$x$", "%x", "--", "''",
)  # fmt: skip
nasty = st.lists(
    st.one_of(st.sampled_from(MARKUP), st.sampled_from(NASTY), st.text(st.characters(), max_size=5)), max_size=12
).map("".join)
cells = nasty.filter(lambda text: bool(markdown.one_line(text)))


def write_all(out: Path, *runs: Path, forms: Sequence[str] = tuple(report_files.FORMS), **options: Any) -> list[Path]:
    return report_files.write(runs, out, "a report", forms, **options)


def with_validation(folder: Path, seed: int = 0) -> Run:
    """Add validation scores to a run."""
    run = read_run(folder)
    folds = [fold["fold"] for fold in run.metrics["folds"]]
    return write_run(folder, run.scores, make_scores(folds, seed=seed), run.config)


def with_another_class(scores: Scores) -> Scores:
    """Return scores with one class more, which does not occur."""
    values = np.pad(scores.probabilities, ((0, 0), (0, 1)))
    return Scores(scores.ids, scores.folds, scores.labels, (*scores.classes, "never"), values)


# Escaping


def untex(source: str) -> str:
    """Return the text that escaped LaTeX stands for; what is left of TeX's own characters is an error."""
    commands = {
        r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"\textless{}": "<",
        r"\textgreater{}": ">", r"\textbar{}": "|", r"\textasciigrave{}": "`", r"\ldots{}": "…",
        r"\textbullet{}": "•", r"$\pm$": "±", r"$\times$": "×", "$-$": "−", "{''}": '"', "{*}": "*", "{[}": "[",
        "{]}": "]", "{-}": "-", "{'}": "'", "{,}": ",", "{---}": "—", "{--}": "–", "{``}": "“", "{`}": "‘",
        **{f"\\{mark}": mark for mark in "{}$&#%_"},
    }  # fmt: skip
    token = re.compile("|".join([r"\\featcacheunicode\{[0-9A-F]{4,6}\}", *map(re.escape, commands), "."]), re.DOTALL)
    words = []
    for found in token.findall(source):
        if found.startswith(r"\featcacheunicode"):
            words.append(chr(int(found[18:-1], 16)))
        else:
            assert found in commands or found not in '\\{}$&#%_^~[]*|<>"`', (found, source)
            words.append(commands.get(found, found))
    return "".join(words)


@given(nasty)
@settings(max_examples=300, deadline=None)
def test_latex_says_what_the_text_says_and_nothing_of_it_is_a_command(text: str) -> None:
    source = latex.escape(text)
    wanted = unicodedata.normalize("NFC", markdown.one_line(text)).translate({ord("’"): "'", ord("”"): '"'})
    assert untex(source) == wanted
    assert all(mark.isascii() or mark in latex._LATIN for mark in source)


def test_latex_breaks_what_would_be_typeset_as_another_mark() -> None:
    assert latex.escape("a--b") == "a-{-}b"
    assert latex.escape("don''t") == "don'{'}t"
    assert latex.escape("50 % of a_b & c") == r"50 \% of a\_b \& c"
    assert latex.escape("70.1 ± 2.3") == r"70.1 $\pm$ 2.3"
    assert latex.escape("Ångström, 愤") == r"Ångström, \featcacheunicode{6124}"
    assert latex.DEFINITION not in latex.table(Grid(["é"], [["a"]], [False]), "", "t")
    assert latex.DEFINITION in latex.table(Grid(["愤"], [["a"]], [False]), "", "t")


@given(nasty)
@settings(max_examples=300, deadline=None)
def test_markdown_shows_a_text_as_it_is(text: str) -> None:
    rendered = render(f"{markdown.escape(text)}\n\n- {markdown.escape(text)}\n")
    wanted = markdown.one_line(text)
    assert rendered.count("<p>") == bool(wanted)
    [item] = re.findall(r"<li>(.*?)</li>", rendered, re.DOTALL)
    assert plain(item) == wanted


def test_markdown_of_github_has_no_mathematics_and_no_headings_from_names() -> None:
    assert markdown.escape("# $x$ #") == r"\# \$x\$ \#"


@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=3), st.booleans())
@settings(max_examples=150, deadline=None)
def test_markdown_tables_have_a_cell_for_a_cell(rows: list[tuple[str, str]], strong: bool) -> None:
    rendered = render(markdown.table(Grid(["name", "n"], rows, [False, True]), 0 if strong else None))
    found = [plain(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", rendered, re.DOTALL)]
    assert found == [markdown.one_line(cell) for row in rows for cell in row]


def render(source: str) -> str:
    markdown_it = pytest.importorskip("markdown_it")
    return str(markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(source))


def plain(html: str) -> str:
    text = re.sub(r"</?(strong|p)>", "", html).strip("\n")
    assert "<" not in text
    for entity, mark in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        text = text.replace(entity, mark)
    return text


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["a/run", "b/run"], ["a-run", "b-run"]),
        (["a b", "a_b", "a.b"], ["a-b", "a_b", "a-b-2"]),
        (["愤怒", "..", "run"], ["run", "run-2", "run-3"]),
        (["Run", "run"], ["Run", "run-2"]),
    ],
)
def test_files_are_named_after_runs_and_never_alike(names: list[str], files: list[str]) -> None:
    assert figure_files.file_names(names) == files


@given(st.lists(nasty, max_size=6))
def test_file_names_are_plain_short_and_different(names: list[str]) -> None:
    found = figure_files.file_names([*names, "x" * 500, "x" * 501])
    assert len({name.lower() for name in found}) == len(found) == len(names) + 2
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,90}", name) for name in found)


# Numbers


def tables(text: str) -> dict[str, list[list[str]]]:
    """Return the rows of each table of a Markdown text, with its header, by the heading above it."""
    found = {}
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        lines = [line for line in part.splitlines() if line.startswith("|")]
        rows = [[cell.strip().strip("*") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
        found[part.split("\n", 1)[0]] = [rows[0], *rows[2:]] if rows else []
    return found


def test_the_numbers_are_those_of_the_metrics(tmp_path: Path) -> None:
    folders = [write_full_run(tmp_path / "one"), write_full_run(tmp_path / "two", seed=1)]
    runs = [with_validation(folder, seed=5 + number) for number, folder in enumerate(folders)]
    write_all(tmp_path / "out", *folders, forms=["md", "latex"])
    found = tables((tmp_path / "out" / "report.md").read_text(encoding="utf-8"))
    for row, run in zip(found["Results"][1:], runs, strict=True):
        mean, std = run.metrics["mean"], run.metrics["std"]
        assert row[1:5] == [spread(mean[name], std[name]) for name in ("wa", "ua", "macro_f1", "weighted_f1")]
        assert row[5].startswith(percent(run.metrics["pooled"]["ua"]) + " ")
    for row, run in zip(found["UA of each fold"][1:], runs, strict=True):
        assert row[1:4] == [percent(fold["ua"]) for fold in run.metrics["folds"]]
    [difference] = found["Differences between runs"][1:]
    [pair] = pairs(runs, ["one", "two"])
    assert difference[:2] == ["two", "one"]
    assert float(difference[2].replace("−", "-")) == pytest.approx(100 * pair.comparison.difference, abs=0.051)
    assert difference[6] == f"{pair.p_corrected:.3f}"
    for run, name in zip(runs, ("one", "two"), strict=True):
        confusion = np.array(run.metrics["pooled"]["confusion"])
        rows = found[f"Confusion: {name}"][1:]
        assert [[int(cell.split()[0]) for cell in row[1:-1]] for row in rows] == confusion.tolist()
        recalls = dict(
            zip(found["Recall of each class"][0], found["Recall of each class"][1 + runs.index(run)], strict=True)
        )
        for place, one in enumerate(run.scores.classes):
            assert recalls[one] == percent(confusion[place, place] / confusion[place].sum())
    source = (tmp_path / "out" / "tables" / "results.tex").read_text(encoding="utf-8")
    metrics = runs[0].metrics
    assert rf"{percent(metrics['mean']['ua'])} $\pm$ {percent(metrics['std']['ua'])}" in source


def test_bold_is_the_run_that_validation_chooses_and_not_the_best_on_test(tmp_path: Path) -> None:
    folders = [write_small_run(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 1))]
    test = [read_run(folder).metrics["mean"]["ua"] for folder in folders]
    worse = int(np.argmin(test))
    assert test[0] != test[1]
    for place, folder in enumerate(folders):
        run = read_run(folder)
        perfect = np.eye(3)[run.scores.reference]
        validation = Scores(run.scores.ids, run.scores.folds, run.scores.labels, run.scores.classes, perfect)
        write_run(folder, run.scores, validation if place == worse else run.scores, run.config)
    write_all(tmp_path / "out", *folders, forms=["md", "latex"])
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \*\*(\w)\*\*", text, re.MULTILINE) == ["ab"[worse]]
    source = (tmp_path / "out" / "tables" / "results.tex").read_text(encoding="utf-8")
    assert [line.strip()[:10] for line in source.splitlines() if r"\textbf" in line] == [rf"\textbf{{{'ab'[worse]}}}"]
    assert report_files.BOLD in text


def test_without_validation_nothing_is_bold(tmp_path: Path) -> None:
    folders = [write_small_run(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 1))]
    write_all(tmp_path / "out", *folders, forms=["md", "latex"])
    assert r"\textbf" not in (tmp_path / "out" / "tables" / "results.tex").read_text(encoding="utf-8")
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert report_files.BOLD not in text
    assert "nothing can choose among these 2 runs" in text


def test_leaks_and_synthetic_speech_come_first_in_bold(tmp_path: Path) -> None:
    leaky = write_small_run(tmp_path / "leaky", problems=[LEAK, "a warning"], allowed_leaks=[LEAK], synthetic=True)
    write_all(tmp_path / "out", leaky, write_small_run(tmp_path / "clean"), forms=["md", "latex"])
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    banners = [line for line in text.split("## Results")[0].splitlines() if line.startswith("> ")]
    assert banners == [
        "> **Synthetic speech, not a result on human speech: leaky**", f"> **Allowed leak: {LEAK} (leaky)**",
    ]  # fmt: skip
    assert tables(text)["Results"][1][-1] == "LEAK, synthetic"
    assert "- a warning (leaky)" in text
    assert "LEAK: fold '1'" in (tmp_path / "out" / "tables" / "results.tex").read_text(encoding="utf-8")


def test_runs_over_other_utterances_are_apart(tmp_path: Path) -> None:
    first = write_small_run(tmp_path / "first")
    (tmp_path / "fewer").mkdir()
    make_scores(num=57).write(tmp_path / "fewer" / "scores.csv")
    write_all(tmp_path / "out", first, tmp_path / "fewer", write_small_run(tmp_path / "more", seed=1), forms=["md"])
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert [row[-1] for row in tables(text)["Results"][1:]] == ["group 1", "group 2", "group 1"]
    assert "- Group 2: fewer lacks 3 of the 60 utterances of first" in text
    assert [row[:2] for row in tables(text)["Differences between runs, group 1"][1:]] == [["more", "first"]]
    assert "Differences between runs, group 2" not in text


def test_varied_settings_have_columns_and_seeds_a_table(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_small_run(tmp_path / "all" / f"seed-{seed}", seed=seed, fit={"steps": 20, "seed": seed})
    write_all(tmp_path / "out", tmp_path / "all", forms=["md"])
    found = tables((tmp_path / "out" / "report.md").read_text(encoding="utf-8"))
    place = found["Results"][0].index("fit.seed")
    assert [row[place] for row in found["Results"][1:]] == ["0", "1"]
    both = [read_run(tmp_path / "all" / f"seed-{seed}").metrics for seed in (0, 1)]
    values = [fold["ua"] for one in both for fold in one["folds"]]
    assert found["Over seeds"][1][1:4:2] == ["2", spread(float(np.mean(values)), float(np.std(values, ddof=1)))]


def test_a_class_that_does_not_occur_and_a_single_fold_are_dashes(tmp_path: Path) -> None:
    write_run(tmp_path / "run", with_another_class(make_scores(("1",), ("a", "b"))))
    write_all(tmp_path / "out", tmp_path / "run", forms=["md", "latex", "pdf"])
    found = tables((tmp_path / "out" / "report.md").read_text(encoding="utf-8"))
    assert found["Recall of each class"][1][3] == "–"
    assert found["Confusion: run"][3][1:] == ["–", "–", "–", "0"]
    assert "±" not in found["Results"][1][1]
    assert "Choosing a run" not in found
    assert "UA of each fold" not in found


# Files


def test_every_figure_of_the_page_is_a_file_of_both_forms(tmp_path: Path) -> None:
    folders = [write_full_run(tmp_path / "one", layers=2), write_small_run(tmp_path / "two", ("1",), seed=1)]
    paths = write_all(tmp_path / "out", *folders, forms=["svg", "pdf"])
    runs, names = [read_run(folder) for folder in folders], ["one", "two"]
    with style():
        sections = [make_section(run, f"run-{n}", name) for n, (run, name) in enumerate(zip(runs, names, strict=True))]
        groups = make_groups(sections, comparable(runs, names))
    on_page = sum(len(section.plots) for section in sections) + sum(1 + len(group.settings) for group in groups)
    stems = {path.stem for path in paths}
    assert len(stems) == on_page + len(runs)  # and the confusion matrices, which the page has as tables
    assert {path.name for path in paths} == {f"{stem}.{form}" for stem in stems for form in ("svg", "pdf")}
    assert {"comparison-group-1", "one-confusion", "two-recall", "one-curves", "one-weights", "one-layers"} <= stems
    for path in paths:
        content = path.read_bytes()
        if path.suffix == ".svg":
            root = ElementTree.fromstring(content)  # noqa: S314  ours
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            assert not list(root.iter("{http://www.w3.org/2000/svg}text"))  # letters are outlines
        else:
            assert content.startswith(b"%PDF")
            assert len(re.findall(rb"/Type /Page\b", content)) == 1
            assert b"/Type3" not in content
            assert b"CreationDate" not in content


def test_the_confusion_figure_has_the_matrix(tmp_path: Path) -> None:
    run = read_run(write_small_run(tmp_path / "run"))
    with style():
        figure = figure_files.confusion(run)
        figure.canvas.draw()
    counts = np.array(run.metrics["pooled"]["confusion"])
    shares = 100 * counts / counts.sum(axis=1, keepdims=True)
    wanted = [f"{share:.0f}\n({count})" for share, count in zip(shares.ravel(), counts.ravel(), strict=True)]
    [axes] = figure.axes
    assert [text.get_text() for text in axes.texts] == wanted
    assert [label.get_text() for label in axes.get_yticklabels()] == ["angry", "happy", "sad"]


def test_many_classes_and_a_class_without_utterances_can_be_drawn(tmp_path: Path) -> None:
    scores = with_another_class(make_scores(classes=tuple(f"class {n}" for n in range(12))))
    write_run(tmp_path / "run", scores)
    with style():
        figure = figure_files.confusion(read_run(tmp_path / "run"))
    assert figure.axes[0].texts[-1].get_text() == "–"
    assert "\n" not in figure.axes[0].texts[0].get_text()


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    folder = write_full_run(tmp_path / "run", ("1",), layers=2)
    with_validation(folder)
    paths = write_all(tmp_path / "out", folder)
    again = (
        "import sys; from pathlib import Path; from pipelines import report_files; "
        "report_files.write([Path(sys.argv[1])], Path(sys.argv[2]), 'a report', tuple(report_files.FORMS))"
    )
    environment = {"PYTHONHASHSEED": "7", "PATH": "", "SOURCE_DATE_EPOCH": "1", "OMP_NUM_THREADS": "1"}
    root = Path(report_files.__file__).parents[1]
    subprocess.run([sys.executable, "-c", again, folder, tmp_path / "again"], check=True, env=environment, cwd=root)
    assert len(paths) > 12
    for path in paths:
        other = tmp_path / "again" / path.relative_to(tmp_path / "out")
        assert path.read_bytes() == other.read_bytes(), path.name


def test_images_of_the_markdown_exist(tmp_path: Path) -> None:
    folder = write_small_run(tmp_path / "a run", ("1",))
    write_all(tmp_path / "out", folder, forms=["md", "svg"])
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    images = re.findall(r"^!\[.*\]\((.*)\)$", text, re.MULTILINE)
    assert len(images) == len(list((tmp_path / "out" / "figures").iterdir())) > 3
    assert all((tmp_path / "out" / image).is_file() for image in images)
    write_all(tmp_path / "plain", folder, forms=["md"])
    assert "![" not in (tmp_path / "plain" / "report.md").read_text(encoding="utf-8")
    assert [path.name for path in (tmp_path / "plain").iterdir()] == ["report.md"]


def hostile_run(folder: Path) -> Path:
    hostile = HOSTILE.replace("/", "\N{FRACTION SLASH}")
    config = {"head": HOSTILE, "problems": [HOSTILE], "allowed_leaks": [f"1{HOSTILE}"], "fit": {"select_by": "ua"}}
    path = folder / f"{hostile}_&%#{{}}~^\\[u]愤"
    write_run(path, make_scores((HOSTILE, "2"), (HOSTILE, "_b&%#$^~\\")), None, config)
    header = ("fold", HOSTILE, "validation", "test", "chosen")
    rows = [(fold, f"{HOSTILE}{n}", 0.5, 0.5, n == 0) for fold in (HOSTILE, "2") for n in (0, 1)]
    write_csv(path / "candidates.csv", header, rows)
    return path


def test_hostile_names_stay_names_in_markdown(tmp_path: Path) -> None:
    write_all(tmp_path / "out", hostile_run(tmp_path), forms=["md"])
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "<" not in text
    rendered = render(text)
    assert set(re.findall(r"<(\w+)", rendered)) <= {
        "h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td", "strong", "blockquote", "ul", "li",
    }  # fmt: skip
    assert rendered.count("<table>") == len([part for part in tables(text).values() if part])


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_hostile_names_compile_with_pdflatex(tmp_path: Path) -> None:
    plain = [write_full_run(tmp_path / "runs" / f"run_{n}", seed=n) for n in range(2)]
    write_all(tmp_path / "out", *plain, hostile_run(tmp_path), forms=["latex"])
    every = Grid([NASTY, "b"], [[NASTY, "*"], ["[x]", NASTY], *([["many", "rows"]] * 40)], [False, False])
    (tmp_path / "out" / "tables" / "nasty.tex").write_text(
        latex.table(every, NASTY, "nasty", 1, [NASTY, "".join(sorted(latex._LATIN))]), encoding="utf-8"
    )
    names = [f"tables/{path.stem}" for path in sorted((tmp_path / "out" / "tables").iterdir())]
    (tmp_path / "out" / "report.tex").write_text(latex.document(NASTY, names), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
    done = subprocess.run(command, cwd=tmp_path / "out", capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode("latin-1")[-2000:]
    assert (tmp_path / "out" / "report.pdf").read_bytes().startswith(b"%PDF")


# What is refused


def test_what_cannot_be_written_is_refused_with_a_remedy(tmp_path: Path) -> None:
    folder = write_small_run(tmp_path / "run")
    with pytest.raises(UnknownNameError, match=r"no form 'docx'. Known: latex, md, pdf, svg"):
        write_all(tmp_path / "out", folder, forms=["md", "docx"])
    with pytest.raises(ConfigError, match="No form was asked for"):
        write_all(tmp_path / "out", folder, forms=[])
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--details takes 0 or more, got -1"):
        write_all(tmp_path / "out", folder, details=-1)
    with pytest.raises(ConfigError, match="is a file"):
        write_all(tmp_path / "file", folder)
    with pytest.raises(ScoresError, match="nowhere"):
        write_all(tmp_path / "out", tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()


def test_only_some_runs_are_shown_in_full_and_all_are_in_the_table(tmp_path: Path) -> None:
    for number in range(3):
        with_validation(write_small_run(tmp_path / "all" / f"r{number}", seed=number), seed=number)
    done: list[tuple[int, int]] = []
    write_all(tmp_path / "out", tmp_path / "all", forms=["md"], details=1, on_progress=lambda *at: done.append(at))
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    validation = [float(row[-4]) for row in tables(text)["Results"][1:]]
    assert len(validation) == 3
    [shown] = [title for title in tables(text) if title.startswith("Confusion")]
    assert shown == f"Confusion: r{int(np.argmax(validation))}"
    assert done == [(1, 3), (2, 3), (3, 3)]


def test_speakers_of_the_manifest_are_resampled(tmp_path: Path) -> None:
    folder = write_small_run(tmp_path / "run")
    run = read_run(folder)
    Manifest([Utterance(name, speaker=f"s{n % 5}", label="x") for n, name in enumerate(run.scores.ids)]).write(
        folder / "manifest.jsonl"
    )
    write_all(tmp_path / "out", folder, forms=["md"])
    assert "Intervals resample whole speakers" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
