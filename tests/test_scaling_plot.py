"""The plot of the scaling figures: the same bytes for the same figures, and readable on a light and a dark page."""

import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import plot
from pipelines.reporting.svg import PALETTE

ROWS = [
    {
        "part": part,
        "what": what,
        "corpus": f"{size}x",
        "units": 20 * size,
        "unit": "utterance",
        "ms a unit": cost / size,
    }
    for part, what, cost in (("extracting", "log_mel", 3.0), ("reading", "a <b> & c", 0.5), ("reading", "scan", 0.02))
    for size in (1, 10, 100)
]


def test_the_same_figures_give_the_same_bytes_and_no_date() -> None:
    picture = plot.draw(ROWS)
    assert picture == plot.draw(ROWS)
    assert not re.search(r"20\d\d-\d\d|matplotlib", picture.lower())


def test_every_line_is_named_and_told_in_words() -> None:
    root = ElementTree.fromstring(plot.draw(ROWS))  # noqa: S314  drawn here
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"log_mel", "a <b> & c", "scan", "1x", "10x", "100x"} <= texts
    assert "log_mel: 3.0 at 1x, 0.3 at 10x, 0.03 at 100x" in root.attrib["aria-label"]


def test_it_has_the_reports_colours_on_light_and_on_dark_pages() -> None:
    page = (Path(__file__).resolve().parents[1] / "pipelines" / "templates" / "report.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", page, flags=re.DOTALL)[:2]
    picture = plot.draw(ROWS)
    assert not set(PALETTE) & set(re.findall(r"#[0-9a-f]{6}", picture.partition("</style>")[2]))
    plain, _, further = picture.partition("prefers-color-scheme:dark")
    for colours, sheet in ((light, plain), (dark, further)):
        for name in PALETTE.values():
            [value] = re.findall(rf"--{name}: (#[0-9a-f]{{6}})", colours)
            assert f"--{name}:{value};" in sheet


def test_the_command_writes_it_or_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, out = tmp_path / "bench.json", tmp_path / "docs" / "scaling.svg"
    monkeypatch.setattr(sys, "argv", ["plot", str(bench), str(out)])
    bench.write_text(json.dumps({"results": {}}))
    with pytest.raises(SystemExit, match="run python -m benchmarks scaling"):
        plot.main()
    bench.write_text(json.dumps({"results": {"scaling": ROWS}}))
    plot.main()
    assert out.read_text() == plot.draw(ROWS)
