"""The paper's seven text encoders are presets that build; the one for a laptop says that it is another thing."""

import re

import pytest

from featcache import registry
from featcache.settings import build
from featcache.stream import Stream
from featcache.streams.token_states import TokenStates
from heads.fit_settings import FitSettings
from heads.head import Head
from heads.models.text_cnn import TextCnn
from pipelines.config import extract_config, preset_names, read_preset, train_config

PRESETS = [name for name in preset_names() if name.startswith("makiuchi-text-")]
ENCODERS = {
    "albert": "albert-large-v2",
    "bert-cased": "bert-large-cased",
    "bert-uncased": "bert-large-uncased",
    "bert-uwm": "bert-large-uncased-whole-word-masking",
    "demo": "minilm",
    "electra": "google/electra-large-discriminator",
    "roberta": "roberta-large",
    "xlnet": "xlnet-large-cased",
}


def test_there_is_a_preset_for_each_of_the_papers_encoders() -> None:
    found = {}
    for name in PRESETS:
        config = extract_config(read_preset(name), [], {}, [])
        assert list(config.streams) == ["token_states"]
        cls = registry.load("featcache.streams", "token_states", Stream)
        stream = build(cls, config.streams["token_states"], "stream token_states")
        assert isinstance(stream, TokenStates)
        assert stream.layers == "last"
        found[name.removeprefix("makiuchi-text-")] = stream.checkpoint
    assert found == ENCODERS


@pytest.mark.parametrize("name", PRESETS)
def test_presets_train_as_the_paper_except_where_they_say_demo(name: str) -> None:
    preset = read_preset(name)
    config = train_config(preset, {}, [])
    assert (config.head, config.streams, config.folds) == ("text_cnn", ("token_states",), "session")
    head = build(registry.load("heads.models", config.head, Head), config.settings, "head text_cnn")
    if name.endswith("-demo"):
        assert head == TextCnn()
        assert re.search(r"laptop.*not the paper's numbers", preset["about"])
        assert f"{config.fit.steps:,} steps" in preset["about"]
    else:
        assert head == TextCnn(fixed_length="longest")
        assert config.fit == FitSettings(
            steps=412_800, batch_size=4, learning_rate=(1e-4,), weight_decay=(0.0,), gradient_clip=None,
            eval_every=41_280, select_by="wa",
        )  # fmt: skip
        assert re.search(r"Table 4.*\d\d\.\d ± \d\.\d there; 412,800 steps", preset["about"])
