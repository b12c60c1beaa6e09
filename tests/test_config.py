"""Presets, options and overrides become one configuration; later ones win, and nothing is guessed wrongly."""

from pathlib import Path
from typing import Any

import pytest

from featcache.errors import ConfigError
from heads.fit_settings import FitSettings
from pipelines.config import TrainConfig, extract_config, merge, parse_overrides, read_preset, train_config


def test_later_sources_win_and_options_that_were_not_given_change_nothing() -> None:
    preset = {"train": {"head": "svm", "folds": "speaker", "validation": 0.1}}
    config = train_config(preset, {"head": None, "streams": (), "folds": "split"}, ["validation=0.3"])
    assert (config.head, config.folds, config.validation) == ("svm", "split", 0.3)


def test_an_explicit_null_replaces_a_presets_value() -> None:
    preset = {"train": {"fit": {"gradient_clip": 5.0, "patience": 3}}}
    assert train_config(preset, {}, []).fit.gradient_clip == 5.0
    fit = train_config(preset, {}, ["fit.gradient_clip=null"]).fit
    assert (fit.gradient_clip, fit.patience) == (None, 3)
    assert train_config({"train": {"fit": {"gradient_clip": None}}}, {}, []).fit.gradient_clip is None
    extract = {"extract": {"streams": {"hidden_states": {"checkpoint": "a/b", "revision": "main"}}}}
    config = extract_config(extract, [], {}, ["hidden_states.revision=null"])
    assert config.streams["hidden_states"] == {"checkpoint": "a/b", "revision": None}


def test_a_section_left_empty_in_yaml_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("extract:\n  streams:\n    log_mel:\n  tier: stats\ntrain:\n  fit:\n  settings:\n")
    preset = read_preset(str(path))
    config = extract_config(preset, [], {"tier": None, "dtype": "float32"}, ["log_mel.definition=mel80_20ms"])
    assert config.streams == {"log_mel": {"definition": "mel80_20ms"}}
    assert (config.tier, config.dtype) == ("stats", "float32")
    assert train_config(preset, {}, ["fit.steps=7"]).fit.steps == 7
    assert merge({"fit": {"steps": 7}}, {"fit": None}) == {"fit": {"steps": 7}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("-2E3", -2000.0), (".5e1", 5.0), ("[1e-3, 1e-4]", [1e-3, 1e-4]), ("12e45678", "12e45678"),
        ("1e999", "1e999"), ("each", "each"), ("3e5f7a1", "3e5f7a1"), ("5", 5), ("null", None),
    ],
)  # fmt: skip
def test_numbers_are_read_as_numbers_and_revisions_as_text(text: str, value: Any) -> None:
    assert parse_overrides([f"name={text}"]) == {"name": value}


@pytest.mark.parametrize(
    "override",
    [
        "fit.learning_rate=.nan", "fit.learning_rate=[1e-3,.inf]", "fit.learning_rate=1e999", "fit.weight_decay=.inf",
        "fit.gradient_clip=.nan", "settings.C=.nan", "settings.C=[1, .inf]",
    ],
)  # fmt: skip
def test_a_number_that_is_not_finite_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match="finite"):
        train_config({}, {}, [override])


@pytest.mark.parametrize("name", ["fit", "settings"])
def test_a_section_given_as_one_value_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} takes values by name, such as {name}\.NAME=VALUE, got 3"):
        train_config({}, {}, [f"{name}=3"])


def test_the_digest_names_the_configuration_but_not_the_device() -> None:
    plain = train_config({}, {}, [])
    assert plain.digest() == train_config({}, {"device": "cuda"}, []).digest()
    assert plain.digest() != train_config({}, {"drop_unlabelled": True}, []).digest()
    assert plain.digest("one") != plain.digest("other")


def test_a_run_trained_before_newer_settings_came_keeps_its_digest() -> None:
    """Digests that featcache gave when averages, schedules, votes and a start were no settings yet."""
    assert TrainConfig().digest("x") == "4379d452ead2a7c6"
    newer = FitSettings(average=2)
    assert TrainConfig(fit=newer).digest("x") != TrainConfig().digest("x")
    assert TrainConfig(votes="votes").digest("x") != TrainConfig().digest("x")
