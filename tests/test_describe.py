"""What `featcache describe` says of every head."""

import re

import pytest
from test_cli import call, runner

from featcache import registry
from featcache.errors import ConfigError
from pipelines.cli import app


@pytest.mark.parametrize("name", registry.names("heads.models"))
def test_every_head_is_described(name: str) -> None:
    output = call("describe", name, "--layers", "3", "--dim", "16", "--classes", "5")
    assert output.startswith(f"{name}: ")
    assert "reads: " in output
    if name != "svm":
        last = output.splitlines()[-1]
        assert re.match(r"all .* 2 x 5 +[\d,]+$", last)


def test_the_papers_speech_model_is_counted_and_names_its_streams() -> None:
    output = call("describe", "encoder_decoder")
    assert "84,427,101" in output
    assert "log_mel, speaker, phones" in output
    assert "2 x 25 x 96 x 1024" in output


def test_settings_and_presets_decide_the_blocks() -> None:
    probe = call(
        "describe", "layer_mix", "--layers", "2", "--dim", "8", "--set", "std=true", "--set", "projector_dim=4"
    )
    # 2 layer weights; 16 x 4 + 4; 4 x 4 + 4
    assert probe.splitlines()[-1].endswith("90")
    assert "text_cnn" in call("describe", "--preset", "makiuchi-text-demo")


def test_a_missing_head_is_asked_for() -> None:
    assert isinstance(runner.invoke(app, ["describe"]).exception, ConfigError)


def test_sizes_are_those_of_the_presets_stream() -> None:
    padi = call("describe", "--preset", "padi-finetuned")
    assert "sizes: 1 x 128, 4 classes, of log_mel" in padi
    assert padi.splitlines()[-1].endswith("22,104,198")
    told = call("describe", "--preset", "padi-finetuned", "--dim", "64")
    assert "sizes: 1 x 64" in told
    assert "sizes: 25 x 1024" in call("describe", "--preset", "superb")  # its checkpoint is not looked for


def test_a_head_of_several_streams_says_so() -> None:
    assert "of one stream, or of several with fusion=early or late" in call("describe", "ecapa", "--dim", "8")
