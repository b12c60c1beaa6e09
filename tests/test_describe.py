"""What `featcache describe` says of every head, and of every preset."""

import re
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import yaml
from huggingface_hub import errors
from makers import speech_checkpoint
from test_cli import call, runner

import featcache
from featcache import registry
from featcache.commit import StreamWriter, store
from featcache.errors import ConfigError
from featcache.stream import Features, Stream
from featcache.streams.characters import Characters
from featcache.streams.conv_features import ConvFeatures
from featcache.streams.ge2e_mels import Ge2eMels
from featcache.streams.ge2e_states import Ge2eStates
from featcache.streams.log_mel import LogMel
from featcache.streams.token_states import TokenStates
from featcache.streams.tokens import TokenIds
from heads.head import GradientHead
from heads.task import Task
from pipelines import describe
from pipelines.cli import app
from pipelines.config import preset_names, read_preset, train_config
from pipelines.train_heads import load_head

MELS = LogMel(definition="mel80_20ms")
MINILM = TokenStates(checkpoint="minilm", layers="last", special_tokens=True)
UNKNOWN = r"^The sizes of .* are unknown"


class Hub:
    """Stands where ``snapshot_download`` does: a folder for one name, and nothing of any other on this machine."""

    def __init__(self, here: dict[str, Path] | None = None) -> None:
        self.here = here or {}
        self.asked_far_away: list[str] = []

    def __call__(self, name: str, *, local_files_only: bool = False, **_: Any) -> str:
        if not local_files_only:
            self.asked_far_away.append(name)
        if name not in self.here:
            raise errors.LocalEntryNotFoundError("not here")
        return str(self.here[name])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    return hub


def described(preset: str | Path, *options: object) -> str:
    return call("describe", "--preset", preset, *options)


def parameters(text: str) -> int:
    """Return what the last line of a description counts."""
    return int(text.split()[-1].replace(",", ""))


def trained_parameters(folder: Path, preset: str, streams: dict[str, Stream]) -> int:
    """Count what trains in a preset's module for a task of a cache that holds one utterance of each stream."""
    names = {}
    for name, stream in streams.items():
        spec = stream.spec(dtype="float32")
        frames = np.zeros((len(spec.layers), 30, spec.dim), spec.dtype)
        further = {key: np.zeros((30, *of["shape"]), of["dtype"]) for key, of in spec.frame_arrays.items()}
        values = {key: np.zeros(of["shape"], of["dtype"]) for key, of in spec.utterance_arrays.items()}
        with StreamWriter(folder, spec, "zarr", "frames") as writer:
            writer.commit([store("u", "0", 0, Features(frames, further, values), spec, "frames")], {})
        names[name] = spec.name
    cache = featcache.open(folder)
    head = load_head(train_config(read_preset(preset), {}, []))
    assert isinstance(head, GradientHead)
    task = Task({name: cache[full] for name, full in names.items()}, ["u"], np.zeros(1, np.int64), tuple("abcd"), ())
    return sum(one.numel() for one in head.module(**head.shapes(task)).parameters() if one.requires_grad)


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
    assert "text_cnn" in described("makiuchi-text-demo")


def test_a_missing_head_is_asked_for() -> None:
    assert isinstance(runner.invoke(app, ["describe"]).exception, ConfigError)


def test_sizes_are_those_of_the_presets_stream() -> None:
    padi = described("padi-finetuned")
    assert "sizes: 1 x 128 of log_mel, 4 classes; --layers and --dim say others" in padi
    assert padi.splitlines()[-1].endswith("22,104,198")
    told = described("padi-finetuned", "--dim", "64")
    assert "sizes: 1 x 64 of log_mel" in told


def test_a_head_of_several_streams_says_so() -> None:
    assert "of one stream, or of several with fusion=early or late" in call("describe", "ecapa", "--dim", "8")


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_described_without_a_download(name: str, hub: Hub) -> None:
    text = describe.run(None, read_preset(name), [], None, None, 4)
    assert hub.asked_far_away == []
    assert (re.search(r"^all .* 2 x 4 +[\d,]+$", text, re.M) is None) == bool(re.search(UNKNOWN, text, re.M))
    if name.endswith(("-demo", "-laptop")) or name in ("demo", "meld"):
        assert not re.search(UNKNOWN, text, re.M)


@pytest.mark.parametrize(
    ("preset", "streams", "count"),
    [
        ("morais-early-laptop", {"ge2e_states@w2v2-ft": Ge2eStates(), "log_mel": MELS}, 87_538),
        ("morais-late-laptop", {"ge2e_states@w2v2-ft": Ge2eStates(), "log_mel": MELS}, 121_310),
        ("morais-fbank-bert-laptop", {"log_mel": MELS, "token_states@bert-ft": MINILM}, 141_790),
        (
            "mmer-laptop",
            {"ge2e_states": Ge2eStates(), "token_states": MINILM, "characters": Characters()},
            232_737,
        ),
        ("morais-w2v2-ft-laptop", {"ge2e_mels": Ge2eMels()}, 1_358_852),
        (
            "mmer-demo",
            {
                "conv_features": ConvFeatures(checkpoint="demo:wav2vec2-base"),
                "token_states": TokenStates(checkpoint="demo:roberta", layers="last", special_tokens=True),
                "characters": Characters(),
            },
            163_841,
        ),
        ("mmer-text-demo", {"tokens": TokenIds(checkpoint="demo:roberta")}, 57_076),
    ],
)
def test_a_preset_is_counted_as_it_trains(
    preset: str, streams: dict[str, Stream], count: int, tmp_path: Path, hub: Hub
) -> None:
    told = describe.run(None, read_preset(preset), [], None, None, 4)
    assert parameters(told) == count == trained_parameters(tmp_path, preset, streams)


def test_each_stream_has_its_own_sizes() -> None:
    early = described("morais-early-laptop")
    assert (
        "sizes: 3 x 256 of ge2e_states@w2v2-ft, 1 x 80 of log_mel, 4 classes; --layers and --dim say others of "
        in early
    )
    assert "SeveralStreams" in early
    late = described("morais-fbank-bert-laptop")
    assert "1 x 80 of log_mel, 1 x 384 of token_states@bert-ft" in late  # MiniLM's, which its laptop form fine-tunes
    assert re.search(r"pools\.1 +EcapaTdnn", late)
    mmer = described("mmer-laptop")
    assert re.search(r"interaction\.text_map +Linear +2 x 20 x 64 +24,640", mmer)  # 384 x 64 + 64
    tuned = described("morais-w2v2-ft-laptop")
    assert re.search(r"encoder +Ge2eEncoder +2 x 100 x 256 +1,357,824", tuned)
    assert "--dim" not in tuned  # the encoder takes no other


def test_sizes_of_a_checkpoint_that_is_not_here_are_said_to_be_unknown(hub: Hub) -> None:
    mmer = described("mmer")
    assert "sizes: unknown of conv_features, unknown of token_states, 1 x 1 of characters, 4 classes\n" in mmer
    for name in ("facebook/wav2vec2-base", "roberta-base"):
        assert mmer.count(f"The sizes of {name} are unknown until it is here (hf download {name}).") == 1
    assert "--dim" not in mmer  # sizes alone make no encoder
    late = described("morais-late")
    assert "The sizes of facebook/hubert-large-ll60k are unknown until it is here" in late
    assert "The sizes of facebook/wav2vec2-large-robust are unknown until it is here" in late
    assert "1024" not in late
    assert "settings: fusion=late" in late


def test_sizes_that_are_unknown_can_be_said(hub: Hub) -> None:
    assert "Or say what they are with --layers and --dim." in described("superb", "--dim", "768")
    superb = described("superb", "--layers", "13", "--dim", "768")
    assert "sizes: 13 x 768 of hidden_states, 4 classes" in superb
    assert parameters(superb) == 13 + 768 * 256 + 256 + 256 * 4 + 4
    late = described("morais-fbank-bert", "--dim", "768")  # its one layer is stated
    assert "sizes: 1 x 128 of log_mel, 1 x 768 of token_states@bert-ft" in late
    assert "SeveralStreams" in late


def test_a_checkpoint_of_the_hub_that_is_here_is_described(hub: Hub, tmp_path: Path) -> None:
    hub.here = {"facebook/wav2vec2-base": speech_checkpoint(tmp_path / "0123abcd", norm="group")}
    speech = described("mmer-speech")
    assert re.search(r"speech +SpeechEncoder +2 x 100 x 32", speech)
    assert "sizes: 4 x 32 of hidden_states, 4 classes" in described("superb")
    mmer = described("mmer")
    assert "The sizes of roberta-base are unknown" in mmer
    assert "sizes of facebook" not in mmer
    assert hub.asked_far_away == []


def preset_file(folder: Path, streams: dict[str, Any], **train: Any) -> Path:
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump({"extract": {"streams": streams}, "train": {"streams": list(streams), **train}}))
    return path


def test_an_encoder_is_shown_from_samples_on(tmp_path: Path) -> None:
    settings = {"encoder": "demo:wav2vec2-base", "text": False, "alpha": 0.0}
    mmer = preset_file(tmp_path, {"waveform": {}}, head="mmer", settings=settings)
    assert re.search(r"given 2 x 1 x 4000 x 1 and 2:.*speech +SpeechEncoder +2 x 12 x 48", described(mmer), re.S)
    finetune = preset_file(tmp_path, {"waveform": {}}, head="finetune", settings={"checkpoint": "demo:wav2vec2-base"})
    assert re.search(r"given 2 x 1 x 4000 x 1 and 2:.*encoder +SpeechEncoder +2 x 12 x 48", described(finetune), re.S)


def test_what_a_preset_of_ones_own_leaves_open_is_said(tmp_path: Path, hub: Hub) -> None:
    family = preset_file(tmp_path, {"token_states@mine": {"layers": "last"}}, head="mean_pool")
    assert "are those of the encoder that 'mine' fine-tunes" in described(family)
    full = preset_file(tmp_path, {"log_mel-0123abcd": {}}, head="mean_pool")
    assert "The sizes of log_mel-0123abcd are unknown: it is a stream of some cache." in call(
        "describe", "--preset", full
    )
    gone = preset_file(tmp_path, {"hidden_states": {"checkpoint": "/not/there"}}, head="mean_pool")
    assert "The sizes of /not/there are unknown until it is here.\n" in described(gone)
    phones: dict[str, Any] = {name: {} for name in ("ge2e_states", "log_mel", "speaker")} | {
        "phones": {"inventory": "occurring"}
    }
    occurring = preset_file(tmp_path, phones, head="encoder_decoder")
    told = described(occurring, "--layers", 1, "--dim", 1)  # which would not say how many phones there are
    assert "phones are unknown: its inventory is made of the phones that occur in the corpus.\n" in told
    assert "--dim" not in told


def test_streams_that_a_head_cannot_take_are_refused_as_in_training(tmp_path: Path) -> None:
    several = preset_file(tmp_path, {"log_mel": {}, "ge2e_states": {}}, head="ecapa")
    result = runner.invoke(app, ["describe", "--preset", str(several)])
    assert "Say how they are joined" in str(result.exception)
    misspelt = preset_file(tmp_path, {"log_mel": {"definitoin": "mel80_20ms"}}, head="ecapa")
    result = runner.invoke(app, ["describe", "--preset", str(misspelt)])
    assert "stream log_mel has no setting definitoin" in str(result.exception)
