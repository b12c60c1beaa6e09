"""MMER's table is the one that the paper's text prints, and its presets are the settings that text and code state."""

import re
from pathlib import Path

import pytest

from featcache import registry
from featcache.settings import build
from featcache.stream import Stream
from heads.fit_settings import FitSettings
from heads.head import Head
from heads.models.mmer import Mmer
from pipelines.config import extract_config, preset_names, read_preset, train_config
from pipelines.paper import Paper, read_paper

PRESETS = [name for name in preset_names() if name.partition("-")[0] == "mmer"]
TOLD = {"alpha-0": 0.0, "alpha-0001": 0.001, "alpha-001": 0.01, "alpha-01": 0.1}


@pytest.fixture(scope="module")
def paper() -> Paper:
    return read_paper("ghosh2023")


def head_of(paper: Paper, key: str, form: str = "preset") -> Head:
    of = paper.runs[key]
    config = train_config(read_preset(getattr(of, form)), dict(of.train), [])
    return build(registry.load("heads.models", config.head, Head), config.settings, key)


def test_the_rows_are_those_that_the_papers_text_prints(paper: Paper) -> None:
    folder = Path(__file__).resolve().parents[2] / "shared" / "seeds"
    texts = [path.read_text(encoding="utf-8") for path in folder.glob("002*.txt")]
    if not texts:
        pytest.skip("the papers' texts are not at hand")
    lines = [line for line in texts[0].splitlines() if line.startswith("|")]
    printed = [float(number) for line in lines for number in re.findall(r"(\d\d\.\d\d) ?%", line)]
    table = paper.tables[0]
    assert [row.paper["ua"].mean for row in table.rows] == printed
    assert len(printed) == 19
    for line, row in zip([line for line in lines if "%" in line], table.rows, strict=True):
        number = re.search(r"\[\d+\]", line)
        assert number is None or number[0] in row.label
        assert row.cited == (number is not None)
        assert ("10-fold" in line) == ("10-fold" in row.label)
        assert not row.cited or re.search(r"\{a(,t)?\}", line.replace("$", "").replace("\\", ""))[0] in row.label  # type: ignore[index]


def test_what_the_code_calls_wa_is_the_mean_of_recalls(paper: Paper) -> None:
    assert paper.metrics == {"ua": "WA"}
    assert "mean of the classes' recalls" in paper.notes["metric"]
    # Under UA stand two cited numbers that their own papers call plain accuracy.
    for name, label, row in (
        ("morais2022", "7:", "Morais et al. [30]"),
        ("padi2022", "w1 = 0.94)", "Padi et al. [39]"),
    ):
        [cited] = [one for one in paper.tables[0].rows if one.label.startswith(row)]
        printed = {
            one.paper["wa"].mean for table in read_paper(name).tables for one in table.rows if label in one.label
        }
        assert printed == {cited.paper["ua"].mean}
        assert f"{cited.paper['ua'].mean:.2f}" in paper.notes["cited"]
    assert train_config(read_preset("mmer"), {}, []).fit.select_by == "ua"


def test_the_runs_are_the_ablations(paper: Paper) -> None:
    published = Mmer(alpha=0.1, ctc_reduction="sum", encoder="facebook/wav2vec2-base")
    for key, alpha in TOLD.items():
        head = head_of(paper, key)
        assert isinstance(head, Mmer)
        assert (head.alpha, head.gate, head.reads[:2]) == (alpha, True, ("speech", "text"))
        assert ("characters" in head.reads) == (alpha > 0)
    assert head_of(paper, "alpha-01") == published
    expected = {"speech": ("speech",), "cai": ("speech", "characters"), "no-speech": ("text",)}
    for key, reads in expected.items():
        for form in ("preset", "demo", "laptop"):
            head = head_of(paper, key, form)
            assert isinstance(head, Mmer)
            assert head.reads == reads
            config = read_preset(getattr(paper.runs[key], form))
            needed = {"token_states": "text" in reads, "characters": "characters" in reads}
            assert key == "no-speech" or all(
                (kind in config["train"]["streams"]) == need for kind, need in needed.items()
            )
    no_gate, code = head_of(paper, "no-gate"), head_of(paper, "code-layers")
    assert isinstance(no_gate, Mmer)
    assert isinstance(code, Mmer)
    assert not no_gate.gate
    assert code.code_layers


def test_the_presets_train_as_the_paper_says(paper: Paper) -> None:
    fit = FitSettings(
        unit="epoch", steps=100, eval_every=1, batch_size=2, accumulate=4, learning_rate=(1e-5,), weight_decay=(0.01,),
        gradient_clip=None,
    )  # fmt: skip
    # Section 4.3: "which worked well for all our setups".
    assert {of.preset for of in paper.runs.values()} == {"mmer", "mmer-cai", "mmer-speech", "mmer-text"}
    for preset in ("mmer", "mmer-cai", "mmer-speech", "mmer-text"):
        config = train_config(read_preset(preset), {}, [])
        assert (config.fit, config.folds, config.validation) == (fit, "session", 0.2), preset


def test_every_row_that_may_have_the_codes_layers_says_whether_it_has(paper: Paper) -> None:
    for key, of in paper.runs.items():
        head = head_of(paper, key)
        both = isinstance(head, Mmer) and {"speech", "text"} <= set(head.reads)
        assert ("layers" in of.notes) == both, key


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_and_read_what_they_extract(name: str) -> None:
    preset = read_preset(name)
    config, extraction = train_config(preset, {}, []), extract_config(preset, [], {}, [])
    assert set(config.streams) == set(extraction.streams)
    for kind, settings in extraction.streams.items():
        build(registry.load("featcache.streams", kind, Stream), settings, kind)
    build(registry.load("heads.models", config.head, Head), config.settings, config.head)
    encoder = config.settings.get("encoder")
    if encoder is not None:
        assert extraction.streams["conv_features"] == {"checkpoint": encoder}
        assert extraction.dtype == "float32"
    if "token_states" in extraction.streams:
        assert extraction.streams["token_states"]["special_tokens"]
    assert ("RANDOM" in preset["about"]) == name.endswith("-demo")
    assert ("not the paper's numbers" in preset["about"]) == name.endswith("-laptop")


def test_every_row_has_a_form_for_the_demo_and_the_laptop(paper: Paper) -> None:
    assert all(of.demo and of.laptop for of in paper.runs.values())
    # A rate of the paper's own form would hardly move a small one.
    assert all("fit" not in of.train for of in paper.runs.values())
