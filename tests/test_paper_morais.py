"""Morais et al. 2022: what the paper prints, and that each of its experiments is built as the paper says."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import pytest

from heads.head import GradientHead
from heads.models.ecapa import Ecapa
from heads.models.finetune import Finetune
from heads.models.linear_probe import LinearProbe
from heads.streams import StreamShape
from pipelines.config import read_preset, train_config
from pipelines.paper import Paper, read_paper
from pipelines.train_heads import load_head

PRINTED = {  # Table 1: WACC and UACC of each experiment
    1: (74.09, 74.56), 2: (72.99, 73.45), 3: (76.47, 76.86), 4: (75.20, 75.80), 5: (76.58, 77.07), 6: (75.56, 76.78),
    7: (77.36, 77.76), 8: (77.04, 77.52), 9: (56.52, 57.60), 10: (69.34, 70.07), 11: (70.56, 71.46),
}  # fmt: skip
W2V2, HUBERT, BERT = "hidden_states@w2v2-ft", "hidden_states@hubert-ft", "token_states@bert-ft"
READ = {
    1: {"conv_features"}, 2: {"conv_features"}, 3: {W2V2}, 4: {HUBERT}, 5: {W2V2}, 6: {HUBERT}, 7: {W2V2, HUBERT},
    8: {W2V2, HUBERT}, 9: {"log_mel"}, 10: {BERT}, 11: {"log_mel", BERT},
}  # fmt: skip
FORMS = ("preset", "demo", "laptop")


@pytest.fixture(scope="module")
def paper() -> Paper:
    return read_paper("morais2022")


def experiments(paper: Paper) -> dict[int, str]:
    """Return the key of each experiment's run."""
    [table] = [table for table in paper.tables if table.name == "Table 1"]
    return {int(row.label.partition(":")[0]): str(row.run) for row in table.rows}


def preset_of(paper: Paper, key: str, form: str = "preset") -> Mapping[str, Any]:
    """Return the preset of a run, with what differs in that run."""
    preset = read_preset(getattr(paper.runs[key], form))
    train, differing = preset["train"], paper.runs[key].train
    return {**preset, "train": {**train, "fit": {**train["fit"], **differing.get("fit", {})}}}


def test_all_eleven_experiments_have_the_printed_numbers(paper: Paper) -> None:
    [table] = [table for table in paper.tables if table.name == "Table 1"]
    found = {
        int(row.label.partition(":")[0]): (row.paper["wa"].mean, row.paper["ua"].mean) for row in table.rows
    }  # fmt: skip
    assert found == PRINTED


def test_experiments_are_trained_on_what_the_paper_says(paper: Paper) -> None:
    for number, key in experiments(paper).items():
        config = train_config(preset_of(paper, key), {}, [])
        head = load_head(config)
        assert set(config.streams) == READ[number], key
        assert isinstance(head, Finetune if number < 3 else LinearProbe if number < 5 else Ecapa), key
        assert config.fit.average == (1 if number < 3 else 5), key
        assert (config.folds, config.validation, config.fit.select_by) == ("session", 0.2, "wa"), key
        if isinstance(head, Ecapa):
            assert head.fusion == {7: "early", 8: "late", 11: "late"}.get(number), key


def test_fine_tuned_encoders_are_averages_of_five(paper: Paper) -> None:
    for key in ("w2v2-ft", "hubert-ft", "bert-ft"):
        config = train_config(preset_of(paper, key), {}, [])
        assert (config.head, config.fit.average, config.fit.select_by) == ("finetune", 5, "wa")


def test_rows_on_fine_tuned_speech_say_which_encoders_and_recipe_these_are(paper: Paper) -> None:
    for number, key in experiments(paper).items():
        assert ({"encoders", "recipe"} <= set(paper.runs[key].notes)) == (number < 9), key
    config = train_config(preset_of(paper, "bert-ft"), {}, [])
    assert (config.fit.steps, config.fit.average) == (10, 5)
    assert "the five best of ten epochs, averaged" in paper.notes["bert"]


def test_one_family_is_extracted_in_one_way_and_its_run_has_the_same_form(paper: Paper) -> None:
    for form in FORMS:
        stated: dict[str, Any] = {}
        for key, run in paper.runs.items():
            if getattr(run, form) is None:
                continue
            for stream, settings in preset_of(paper, key, form)["extract"]["streams"].items():
                _, _, encoder = stream.partition("@")
                if encoder:
                    assert getattr(paper.runs[encoder], form) is not None, (key, form)
                    assert stated.setdefault(stream, settings) == settings, (key, form)


def test_laptop_forms_read_nothing_that_is_downloaded_and_nothing_random(paper: Paper) -> None:
    for key, run in paper.runs.items():
        if run.laptop is None:
            assert "hubert" in key, key
            continue
        for stream, settings in preset_of(paper, key, "laptop")["extract"]["streams"].items():
            kind = stream.partition("@")[0]
            assert kind in ("log_mel", "ge2e_mels", "ge2e_states", "token_states", "tokens"), key
            assert settings.get("checkpoint", "minilm") == "minilm", key


@pytest.mark.parametrize("form", FORMS)
def test_every_head_of_every_form_is_built_and_scores(paper: Paper, form: str) -> None:
    """Of fine-tuning that is what stands behind the encoder, whose checkpoint is not on this machine."""
    built = set()
    for key, run in paper.runs.items():
        if getattr(run, form) is None:
            continue
        config = train_config(preset_of(paper, key, form), {}, [])
        head = load_head(config)
        assert isinstance(head, GradientHead)
        shapes: dict[str, Any] = {"num_layers": 1, "dim": 8, "num_classes": 4}
        if isinstance(head, Ecapa):
            shapes["streams"] = tuple(StreamShape(1, 8 + at, Fraction(1, 100)) for at in range(len(config.streams)))
        assert head.module(**shapes).eval()(*head.example(shapes)).shape == (2, 4), key
        built.add(type(head))
    assert built == {Ecapa, Finetune, LinearProbe}
