"""The report of a run whose every name and text is markup, or whose files are spoilt: nothing on the page can run."""

import re
from pathlib import Path
from typing import Any

import pytest
from fuzzing import check_named, quick, spoilt, thorough
from hypothesis import given
from hypothesis import strategies as st
from test_report import Page, make_scores, write_csv, write_full_run

from featcache.errors import FeatcacheError
from heads.runs import write_run
from heads.scores import Scores
from pipelines import report

PAYLOADS = [
    "</script><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    '" onmouseover="alert(1)',
    "' onfocus='alert(1)' autofocus='",
    "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "<a href=javascript:alert(1)>x</a>",
    "<!--",
    "-->",
    "<![CDATA[",
    "]]><script>alert(1)</script>",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<math><mtext></p><style><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "${alert(1)}",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "\u202e<script>",
    "\0<script>\0",
    "<\0script>",
    "\ufeff<script>",
    "＜script＞",
    "url(javascript:alert(1))",
    "expression(alert(1))",
    "</text><script>alert(1)</script><text>",
    "</svg><script>alert(1)</script>",
    "<use href='data:,x#y'>",
    "x" * 10_000,
    "<base href=//evil>",
    "<meta http-equiv=refresh content=0>",
]
OURS = {
    "html",
    "head",
    "meta",
    "title",
    "link",
    "style",
    "body",
    "header",
    "h1",
    "h2",
    "h3",
    "p",
    "main",
    "div",
    "strong",
    "section",
    "ul",
    "li",
    "span",
    "table",
    "thead",
    "tbody",
    "tfoot",
    "tr",
    "th",
    "td",
    "a",
    "details",
    "summary",
    "small",
    "figure",
    "figcaption",
    "dl",
    "dt",
    "dd",
    "pre",
    "script",
    "wbr",
    "svg",
    "g",
    "path",
    "text",
    "tspan",
    "use",
    "defs",
    "clippath",
    "rect",
    "image",
    "br",
}
"""Every element that the template and matplotlib write."""


def check_page(page: Page, title: str) -> None:
    """Assert that a page has the elements of its template, and one script, its own."""
    assert {tag for tag, _ in page.elements} <= OURS
    assert len(page.tags("script")) == 1
    assert len(page.tags("title")) == 1
    assert len(page.tags("meta")) == 4
    assert len(page.tags("style")) == 1
    for _, values in page.elements:
        assert not [
            name
            for name in values
            if name.startswith("on") or name in ("src", "srcdoc", "action", "formaction", "autofocus")
        ]
        assert values.get("href", "#").startswith(("#", "data:,")), values
        assert values.get("xlink:href", "#").startswith("#")
        assert not re.search(r"url\((?!#)|expression|javascript", values.get("style", "")), values
    [script] = re.findall(r"<script>(.*?)</script>", page.html, re.DOTALL)
    assert "alert" not in script
    assert "49" not in page.text("h1")
    assert "\0" not in page.html or "\0" in title


def hostile_run(folder: Path, text: str) -> Path:
    """Write a run in which everything that is a name or a text is this one."""
    folds, classes = (text, "2"), (text, "b")
    config: dict[str, Any] = {
        "head": text,
        "streams": {text: text},
        "folds": text,
        "fit": {text: text, "select_by": text},
        "speaker_independent": text,
        "synthetic": True,
        "problems": [text, {text: text}],
        "allowed_leaks": [text],
        "seconds": text,
        "versions": {text: text},
        "chosen": {text: {text: text}, "2": {text: [text]}},
        "fused": [text],
        "weights": [text],
        "space": text,
        "method": text,
        "searched_on": text,
        "settings": {text: {text: text}},
        text: text,
        "classes": [text],
        "cache": text,
        "manifest": text,
    }
    scores = make_scores(folds, classes)
    ids = [f"{name}{text}" for name in scores.ids]
    write_run(folder, Scores(ids, scores.folds, scores.labels, scores.classes, scores.probabilities), None, config)
    write_csv(folder / "curves.csv", ("fold", "step", "loss", "ua"), [(text, 1, 1, 1), ("2", 1, 2, 0.5)])
    write_csv(
        folder / "layer_weights.csv", ("fold", "layer", "layer_name", "weight"), [(fold, 0, text, 1) for fold in folds]
    )
    header = ("fold", f"{text} ", "layer", "layer_name", "validation", "test", "chosen")
    rows = [(fold, f"{text}{layer}", layer, text, 0.5, 0.5, "True") for fold in folds for layer in (0, 1)]
    write_csv(folder / "candidates.csv", header, rows)
    return folder


@pytest.mark.parametrize("text", PAYLOADS, ids=range(len(PAYLOADS)))
def test_no_name_becomes_markup(tmp_path: Path, text: str) -> None:
    if "\0" in text:  # YAML has no NUL, and neither has a path
        text = text.replace("\0", "\x01")
    name = text.replace("/", "\N{FRACTION SLASH}")[:60]
    report.run([hostile_run(tmp_path / name, text)], tmp_path / "report.html", text)
    check_page(Page(tmp_path / "report.html"), text)


def test_the_check_can_fail(tmp_path: Path) -> None:
    folder = hostile_run(tmp_path / "run", PAYLOADS[0])
    report.run([folder], tmp_path / "report.html", "x")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    for bad in ("<script>alert(1)</script>", "<img src=x>", "<p onclick=x></p>", "<a href='javascript:x'></a>"):
        (tmp_path / "bad.html").write_text(html.replace("<main>", f"<main>{bad}"), encoding="utf-8")
        with pytest.raises(AssertionError):
            check_page(Page(tmp_path / "bad.html"), "x")


FILES = ["config.yaml", "scores.csv", "curves.csv", "layer_weights.csv", "candidates.csv"]


def spoil(folder: Path, file: str, data: st.DataObject) -> None:
    run = folder / "run"
    if not run.exists():
        write_full_run(run)
    good = (run / file).read_bytes()
    (run / file).write_bytes(data.draw(spoilt(good)))
    try:
        report.run([run], folder / "report.html", "report")
    except FeatcacheError as error:
        check_named(error, str(run))
    else:
        check_page(Page(folder / "report.html"), "")
    finally:
        (run / file).write_bytes(good)


@pytest.mark.heavy
@pytest.mark.parametrize("file", FILES)
@thorough(15)
@given(data=st.data())
def test_any_spoilt_file_of_a_run_is_reported_or_named(tmp_path: Path, file: str, data: st.DataObject) -> None:
    spoil(tmp_path, file, data)


@pytest.mark.parametrize("file", FILES)
@quick(2)
@given(data=st.data())
def test_a_spoilt_file_of_a_run_is_reported_or_named(tmp_path: Path, file: str, data: st.DataObject) -> None:
    spoil(tmp_path, file, data)
