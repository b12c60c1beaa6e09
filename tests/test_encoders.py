"""Fine-tuning from a freeze boundary is fine-tuning from the raw input: states, gradients, trained parameters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers import speech_checkpoint, tone
from text_makers import text_checkpoint

from featcache import checkpoints, ge2e, text_encoders
from featcache.errors import CheckpointError, ConfigError, StreamError
from featcache.settings import build
from featcache.stream import Stream, StreamSpec
from featcache.streams.conv_features import ConvFeatures
from featcache.streams.ge2e_mels import Ge2eMels
from featcache.streams.ge2e_states import Ge2eStates
from featcache.streams.hidden_states import HiddenStates
from featcache.streams.token_states import TokenStates
from featcache.streams.tokens import TokenIds
from featcache.streams.waveform import Waveform
from heads.encoder import EncoderModule, least_frames, load_encoder, start_of
from heads.models.finetune import Finetune
from heads.models.mmer import Mmer

SPEECH = [tone(seconds, seed=number) for number, seconds in enumerate((0.31, 0.5, 0.5, 0.42))]
TEXTS = ["the weather is lovely today", "so sad.", "it's the sun, love", "happy"]
Found = Callable[..., Path]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Return small random checkpoints by family and further settings, each made once."""
    made: dict[tuple[object, ...], Path] = {}

    def get(family: str, *settings: Any) -> Path:
        if (family, *settings) not in made:
            make = speech_checkpoint if family in ("wav2vec2", "hubert", "wavlm", "data2vec-audio") else text_checkpoint
            made[family, *settings] = make(tmp_path_factory.mktemp(family), family, *settings)
        return made[family, *settings]

    return get


@dataclass
class Read:
    """A stream of all utterances, as a head reads it: one layer, in float32."""

    spec: StreamSpec
    utterances: Sequence[torch.Tensor]

    def batch(self, numbers: Sequence[int] = (0, 1, 2, 3), behind: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Return frames ``(batch, 1, frames, dim)`` with junk behind the shorter ones, and lengths."""
        chosen = [self.utterances[number] for number in numbers]
        lengths = torch.tensor([len(frames) for frames in chosen])
        batch = torch.full((len(chosen), 1, int(lengths.max()) + behind, chosen[0].shape[1]), 7.0 if behind else 0.0)
        for row, frames in zip(batch, chosen, strict=True):
            row[0, : len(frames)] = frames
        return batch, lengths


def read(stream: Stream, inputs: Sequence[Any], layer: int = 0, dtype: str = "float32") -> Read:
    """Extract one layer of a stream, one input at a time."""
    spec = stream.spec(dtype)
    extractor = stream.load("cpu", "float32")
    frames = [extractor.extract([one])[0].frames[layer] for one in inputs]  # type: ignore[union-attr]
    return Read(spec, [torch.from_numpy(np.array(one, np.float32)) for one in frames])


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the norm of a difference over the norm."""
    ours, theirs = ours.detach(), theirs.detach()
    return float(torch.linalg.vector_norm(ours - theirs) / torch.linalg.vector_norm(theirs))


def agree(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Check that all tensors agree to 1e-5; those that are zero but for rounding, to that of all together."""
    assert set(ours) == set(theirs)
    overall = max(float(torch.linalg.vector_norm(value)) for value in theirs.values())
    for name, value in theirs.items():
        apart = float(torch.linalg.vector_norm(ours[name] - value))
        assert apart <= 1e-5 * float(torch.linalg.vector_norm(value)) + 1e-8 * overall, name


def loss_of(encoder: EncoderModule, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return a loss that every state of an utterance's own has a part in."""
    states, lengths = encoder(*batch)
    own = torch.arange(states.shape[1]) < lengths[:, None]
    goal = torch.sin(torch.arange(states[own].numel())).view_as(states[own])
    return ((states[own] - goal) ** 2).mean()


def gradients(encoder: EncoderModule, batch: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the gradient of every parameter that has one."""
    encoder.zero_grad()
    loss_of(encoder, batch).backward()
    return {name: value.grad.clone() for name, value in encoder.named_parameters() if value.grad is not None}


def trained(encoder: EncoderModule, batches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the trainable parameters after a step on each batch."""
    parameters = {name: value for name, value in encoder.named_parameters() if value.requires_grad}
    # By Adam, what has no gradient but for rounding, as the bias of keys, would move by the rate all the same.
    optimiser = torch.optim.SGD(parameters.values(), 0.02, momentum=0.9, weight_decay=1e-3)
    for batch in batches:
        optimiser.zero_grad()
        loss_of(encoder, batch).backward()
        optimiser.step()
    return {name: value.detach().clone() for name, value in parameters.items()}


def obeys_the_law(
    raw: Read, cached: Read, checkpoint: str, freeze: Any, start_layer: int | None = None
) -> tuple[EncoderModule, EncoderModule]:
    """Check that training from two streams is the same; return both encoders as they then are."""
    whole = load_encoder(raw.spec, checkpoint, freeze=freeze).train()
    above = load_encoder(cached.spec, checkpoint, freeze=freeze, start_layer=start_layer).train()
    states, lengths = whole(*raw.batch())
    ours, our_lengths = above(*cached.batch())
    assert torch.equal(lengths, our_lengths)
    assert distance(ours, states) < 1e-5
    trainable = {name for name, value in whole.named_parameters() if value.requires_grad}
    wanted = gradients(whole, raw.batch())
    assert set(wanted) == trainable
    agree(gradients(above, cached.batch()), wanted)
    groups = [(0, 1), (2, 3), (1, 0, 3), (0, 1, 2, 3)]
    before = {name: value.detach().clone() for name, value in whole.named_parameters()}
    after = trained(whole, [raw.batch(group) for group in groups])
    assert all(distance(after[name], before[name]) > 0 for name in trainable)
    agree(trained(above, [cached.batch(group) for group in groups]), after)
    assert all(torch.equal(before[name], value) for name, value in whole.named_parameters() if name not in trainable)
    return whole, above


SPEECH_BOUNDARIES = [
    ("wav2vec2", "layer", None), ("wav2vec2", "layer", 0), ("wav2vec2", "layer", 2), ("wav2vec2", "group", None),
    ("wav2vec2", "group", 1), ("hubert", "group", None), ("hubert", "layer", 1), ("wavlm", "layer", None),
    ("wavlm", "layer", 1), ("wavlm", "layer", 2), ("wavlm", "group", 0), ("wavlm", "group", 2),
    ("data2vec-audio", "layer", None), ("data2vec-audio", "layer", 1),
]  # fmt: skip


@pytest.mark.parametrize(("family", "norm", "layer"), SPEECH_BOUNDARIES)
def test_speech_from_a_boundary_is_speech_from_the_waveform(
    found: Found, family: str, norm: str, layer: int | None
) -> None:
    checkpoint = str(found(family, norm))
    raw = read(Waveform(), SPEECH)
    stream = ConvFeatures(checkpoint) if layer is None else HiddenStates(checkpoint)
    cached = read(stream, SPEECH, layer or 0)
    whole, above = obeys_the_law(raw, cached, checkpoint, "front_end" if layer is None else layer, layer)
    states, _ = above(*cached.batch())
    full, _ = whole(*raw.batch())
    assert distance(states, full) < 1e-5


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert"])
@pytest.mark.parametrize("layer", [0, 2])
def test_text_from_a_boundary_is_text_from_the_tokens(found: Found, family: str, layer: int) -> None:
    checkpoint = str(found(family))
    raw = read(TokenIds(checkpoint), TEXTS)
    cached = read(TokenStates(checkpoint, special_tokens=True), TEXTS, layer)
    obeys_the_law(raw, cached, checkpoint, layer, layer)


@pytest.mark.parametrize("layer", [1, 2])
def test_the_speaker_encoder_from_a_layer_is_that_from_its_mels(layer: int) -> None:
    obeys_the_law(read(Ge2eMels(), SPEECH), read(Ge2eStates(), SPEECH, layer - 1), "resemblyzer", layer, layer - 1)


@pytest.mark.parametrize(("family", "norm"), [("wav2vec2", "layer"), ("wav2vec2", "group"), ("wavlm", "layer")])
def test_states_are_those_of_extraction_with_the_final_norm(found: Found, family: str, norm: str) -> None:
    checkpoint = str(found(family, norm))
    states, lengths = load_encoder(Waveform().spec(), checkpoint)(*read(Waveform(), SPEECH).batch())
    for row, frames in enumerate(read(HiddenStates(checkpoint, tap="final_norm"), SPEECH, -1).utterances):
        assert lengths[row] == len(frames)
        assert distance(states[row, : lengths[row]].detach(), frames) < 1e-5


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert", "albert"])
def test_states_are_those_of_extraction_of_texts(found: Found, family: str) -> None:
    checkpoint = str(found(family))
    raw = read(TokenIds(checkpoint), TEXTS)
    states, lengths = load_encoder(raw.spec, None if family == "none" else checkpoint)(*raw.batch(behind=3))
    for row, frames in enumerate(read(TokenStates(checkpoint, special_tokens=True), TEXTS, -1).utterances):
        assert distance(states[row, : lengths[row]].detach(), frames) < 1e-5


Starts = list[tuple[str, Read, int | None]]


@pytest.fixture(scope="module")
def every_start(found: Found) -> Starts:
    """Return checkpoints, streams and layers of all kinds that encoders start from."""
    starts: Starts = []
    for family, norm in (("wav2vec2", "layer"), ("hubert", "group"), ("wavlm", "layer"), ("data2vec-audio", "layer")):
        checkpoint = str(found(family, norm))
        starts += [
            (checkpoint, read(Waveform(), SPEECH), None),
            (checkpoint, read(ConvFeatures(checkpoint), SPEECH), None),
            (checkpoint, read(HiddenStates(checkpoint), SPEECH, 1), 1),
        ]
    checkpoint = str(found("roberta"))
    starts += [
        (checkpoint, read(TokenIds(checkpoint), TEXTS), None),
        (checkpoint, read(TokenStates(checkpoint, special_tokens=True), TEXTS, 1), 1),
    ]
    return [*starts, ("resemblyzer", read(Ge2eMels(), SPEECH), None), ("resemblyzer", read(Ge2eStates(), SPEECH, 1), 1)]


def test_padding_and_company_change_no_state(every_start: Starts) -> None:
    for checkpoint, stream, layer in every_start:
        encoder = load_encoder(stream.spec, checkpoint, start_layer=layer).eval()
        with torch.no_grad():
            together, lengths = encoder(*stream.batch(behind=9))
            assert not together[0, lengths[0] :].any()
            for number, length in enumerate(lengths.tolist()):
                alone, _ = encoder(*stream.batch([number]))
                assert alone.shape[1] == length
                assert distance(together[number, :length], alone[0]) < 1e-5, stream.spec.name


def test_what_is_given_stays_as_it_was(every_start: Starts) -> None:
    for checkpoint, stream, layer in every_start:
        frames, lengths = stream.batch(behind=4)
        kept = frames.clone()
        load_encoder(stream.spec, checkpoint, start_layer=layer)(frames, lengths)
        assert torch.equal(frames, kept)


def test_what_lies_below_the_boundary_is_not_even_held(found: Found) -> None:
    checkpoint = str(found("wav2vec2", "layer"))
    names = [name for name, _ in checkpoints.load_model(checkpoints.resolve(checkpoint), "cpu").named_parameters()]
    conv = load_encoder(ConvFeatures(checkpoint).spec(), checkpoint)
    held = {name.removeprefix("model.") for name, _ in conv.named_parameters()}
    assert held == {name for name in names if not name.startswith("feature_extractor.")}
    above = load_encoder(HiddenStates(checkpoint).spec(), checkpoint, start_layer=2)
    held = {name.removeprefix("model.") for name, _ in above.named_parameters()}
    assert held == {name for name in names if name.startswith(("encoder.layers.2.", "encoder.layer_norm."))}
    wavlm = str(found("wavlm", "layer"))
    above = load_encoder(HiddenStates(wavlm).spec(), wavlm, start_layer=2)
    held = {name for name, _ in above.named_parameters() if ".layers.2." not in name}
    assert held == {
        "model.encoder.layers.0.attention.rel_attn_embed.weight",
        "model.encoder.layer_norm.weight",
        "model.encoder.layer_norm.bias",
    }
    text = str(found("bert"))
    above = load_encoder(TokenStates(text, special_tokens=True).spec(), text, start_layer=2)
    assert {name.split(".")[3] for name, _ in above.named_parameters()} == {"2"}
    assert list(load_encoder(Ge2eStates().spec(), None, start_layer=1).model) == ["lstm_3"]  # type: ignore[arg-type]


def num_trained(encoder: EncoderModule) -> int:
    return sum(value.numel() for value in encoder.parameters() if value.requires_grad)


def test_what_trains_is_counted_by_hand(found: Found) -> None:
    layer = 4 * (32 * 32 + 32) + (32 * 48 + 48) + (48 * 32 + 32) + 4 * 32  # attention, feed-forward, two norms
    position = 16 + 32 * (32 // 4) * 16 + 32  # a length for each tap, the filters of 4 groups, a bias
    projection = 2 * 16 + 16 * 32 + 32
    convolutions = (16 * 10 + 3 * 16) + 4 * (16 * 16 * 3 + 3 * 16) + 2 * (16 * 16 * 2 + 3 * 16)
    checkpoint = str(found("wav2vec2", "layer"))
    wave, norm = Waveform().spec(), 2 * 32
    for freeze, expected in {
        "nothing": convolutions + projection + position + 3 * layer + norm,
        "front_end": projection + position + 3 * layer + norm,
        None: projection + position + 3 * layer + norm,
        0: 3 * layer + norm,
        2: layer + norm,
        3: norm,
        "all": 0,
    }.items():
        assert num_trained(load_encoder(wave, checkpoint, freeze=freeze)) == expected
    group = str(found("wav2vec2", "group"))
    assert num_trained(load_encoder(wave, group, freeze=1)) == 2 * layer
    assert num_trained(load_encoder(ConvFeatures(group).spec(), group)) == projection + position + 3 * layer + norm
    lstm = 4 * 256 * (256 + 256 + 2)
    mels = Ge2eMels().spec()
    assert num_trained(load_encoder(mels, None)) == 4 * 256 * (40 + 256 + 2) + 2 * lstm
    assert num_trained(load_encoder(mels, None, freeze="front_end")) == 4 * 256 * (40 + 256 + 2) + 2 * lstm
    assert num_trained(load_encoder(mels, "resemblyzer", freeze=1)) == 2 * lstm
    assert num_trained(load_encoder(Ge2eStates().spec(), None, start_layer=-1)) == 0
    text = str(found("bert"))
    block = 4 * (16 * 16 + 16) + (16 * 24 + 24) + (24 * 16 + 16) + 4 * 16
    assert num_trained(load_encoder(TokenIds(text).spec(), text)) == 3 * block
    assert num_trained(load_encoder(TokenIds(text).spec(), text, freeze=2)) == block


def test_what_is_frozen_stays_in_eval_mode(found: Found) -> None:
    checkpoint = str(found("wav2vec2", "group"))
    encoder = load_encoder(Waveform().spec(), checkpoint, freeze=1, dropout=True).train()
    still = {name for name, module in encoder.named_modules() if not module.training}
    assert {"model.feature_extractor", "model.feature_projection", "model.encoder.layers.0"} <= still
    assert encoder.get_submodule("model.encoder.layers.1.attention").training
    assert not any(module.training for module in encoder.eval().modules())
    quiet = load_encoder(Waveform().spec(), checkpoint).train()
    assert not any(module.training for module in quiet.model.modules())  # type: ignore[union-attr]


@pytest.mark.parametrize("family", ["wav2vec2", "roberta"])
def test_dropout_is_off_unless_asked_for_and_follows_torchs_generator(found: Found, family: str) -> None:
    checkpoint = str(found(family, "layer")) if family == "wav2vec2" else str(found(family))
    stream = read(ConvFeatures(checkpoint), SPEECH) if family == "wav2vec2" else read(TokenIds(checkpoint), TEXTS)
    batch = stream.batch()
    quiet = load_encoder(stream.spec, checkpoint, dropout=False)
    assert torch.equal(quiet.train()(*batch)[0], quiet.eval()(*batch)[0])
    noisy = load_encoder(stream.spec, checkpoint, dropout=True)
    torch.testing.assert_close(noisy.eval()(*batch)[0], quiet(*batch)[0])
    noisy.train()
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        numpys = np.random.get_state()[1].copy()  # type: ignore[index]
        runs.append(noisy(*batch)[0])
        assert np.array_equal(np.random.get_state()[1], numpys)  # type: ignore[index]
        np.random.random(5)  # which is another state for the next run
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_spec_augment_masks_only_where_the_projection_trains(found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = str(found("wav2vec2", "layer"))
    stream = read(ConvFeatures(checkpoint), SPEECH)
    for freeze, expected in (("front_end", True), (0, False)):
        encoder = load_encoder(stream.spec, checkpoint, freeze=freeze, dropout=True).train()
        masked: list[int] = []
        real = encoder.model._mask_hidden_states  # type: ignore[union-attr]
        monkeypatch.setattr(
            encoder.model,
            "_mask_hidden_states",
            lambda *a, real=real, seen=masked, **k: seen.append(1) or real(*a, **k),
        )
        encoder(*stream.batch())
        assert bool(masked) == expected
        encoder.eval()(*stream.batch())
        assert len(masked) == int(expected)
        embedding = dict(encoder.named_parameters())["model.masked_spec_embed"]
        assert embedding.requires_grad == expected


def change(encoder: EncoderModule) -> None:
    """Change what trains, as training would."""
    with torch.no_grad():
        for value in encoder.parameters():
            if value.requires_grad:
                value.mul_(1.01).add_(0.01)


def test_a_saved_speech_encoder_is_extracted_as_it_ended(found: Found, tmp_path: Path) -> None:
    for number, (family, norm, layer) in enumerate(
        [("wav2vec2", "layer", None), ("wav2vec2", "group", 2), ("wavlm", "layer", 1), ("hubert", "layer", None)]
    ):
        source = found(family, norm)
        (source / "preprocessor_config.json").write_text('{"do_normalize": true}\n')
        cached = read(ConvFeatures(str(source)) if layer is None else HiddenStates(str(source)), SPEECH, layer or 0)
        encoder = load_encoder(cached.spec, str(source), start_layer=layer)
        change(encoder)
        states, lengths = encoder(*cached.batch())
        folder = tmp_path / f"fold {number}"
        encoder.save(folder)
        encoder.save(folder)  # again, in its place
        other = tmp_path / "other"
        encoder.save(other)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
            path.name: path.read_bytes() for path in other.iterdir()
        }
        assert (folder / "preprocessor_config.json").read_text() == '{"do_normalize": true}\n'
        assert not list(tmp_path.glob(".tmp-*"))
        for row, frames in enumerate(read(HiddenStates(str(folder), tap="final_norm"), SPEECH, -1).utterances):
            assert distance(frames, states[row, : lengths[row]].detach()) < 1e-5
        # What lay below is what it was.
        below = read(ConvFeatures(str(folder)), SPEECH).utterances[0]
        assert torch.equal(below, read(ConvFeatures(str(source)), SPEECH).utterances[0])


@pytest.mark.parametrize(("family", "layer"), [("bert", None), ("electra", 2), ("albert", None)])
def test_a_saved_text_encoder_is_extracted_as_it_ended(
    found: Found, tmp_path: Path, family: str, layer: int | None
) -> None:
    source = str(found(family))
    stream = TokenIds(source) if layer is None else TokenStates(source, special_tokens=True)
    cached = read(stream, TEXTS, layer or 0)
    encoder = load_encoder(cached.spec, source, start_layer=layer)
    change(encoder)
    states, lengths = encoder(*cached.batch())
    encoder.save(tmp_path / "one")
    saved = read(TokenStates(str(tmp_path / "one"), special_tokens=True), TEXTS, -1)
    for row, frames in enumerate(saved.utterances):
        assert distance(frames, states[row, : lengths[row]].detach()) < 1e-5
    before = text_encoders.identity(checkpoints.resolve(source))
    after = text_encoders.identity(checkpoints.resolve(str(tmp_path / "one")))
    assert before["tokenizer_sha256"] == after["tokenizer_sha256"]
    assert before["weights_sha256"] != after["weights_sha256"]


def test_a_saved_speaker_encoder_is_extracted_as_it_ended(tmp_path: Path) -> None:
    cached = read(Ge2eStates(), SPEECH, 0)
    encoder = load_encoder(cached.spec, None, start_layer=0)
    change(encoder)
    states, lengths = encoder(*cached.batch())
    encoder.save(tmp_path / "one")
    for row, frames in enumerate(read(Ge2eStates(checkpoint=str(tmp_path / "one")), SPEECH, 2).utterances):
        assert distance(frames, states[row, : lengths[row]].detach()) < 1e-5
    wheel, ours = ge2e.load_weights(), ge2e.load_weights(str(tmp_path / "one"))
    kept = {name for name in wheel if torch.equal(wheel[name], ours[name])}
    assert kept == {name for name in wheel if name.endswith("_l0") or name.startswith("linear.")}
    # A saved one can be trained further.
    again = load_encoder(Ge2eMels().spec(), str(tmp_path / "one"))
    torch.testing.assert_close(again(*read(Ge2eMels(), SPEECH).batch())[0], states, rtol=1e-4, atol=1e-5)


def test_random_weights_are_still_called_random_when_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load_encoder(ConvFeatures("demo:wav2vec2").spec(), "demo:wav2vec2").save(tmp_path / "saved")
    assert checkpoints.resolve(str(tmp_path / "saved")).identity()["random"] == "true"


def test_float16_boundaries_are_taken(found: Found) -> None:
    checkpoint = str(found("wav2vec2", "layer"))
    exact = read(ConvFeatures(checkpoint), SPEECH)
    rounded = Read(exact.spec, [frames.half().float() for frames in exact.utterances])
    encoder = load_encoder(ConvFeatures(checkpoint).spec("float16"), checkpoint)
    assert 0 < distance(encoder(*rounded.batch())[0], encoder(*exact.batch())[0]) < 1e-2


def test_a_stream_names_its_checkpoint(found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_encoder(Ge2eStates().spec(), None, start_layer=0).checkpoint.name == "resemblyzer"
    with pytest.raises(ConfigError, match="Say which speech encoder"):
        load_encoder(Waveform().spec(), None)

    def absent(*_: object) -> None:
        raise CheckpointError("Not on the Hub.")

    monkeypatch.setattr("featcache.hub.snapshot", absent)
    with pytest.raises(CheckpointError, match="Not on the Hub. conv_features-.* give that by the setting checkpoint"):
        load_encoder(ConvFeatures(str(found("wav2vec2", "layer"))).spec(), None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze": "nothing", "start_layer": 1}, r"freeze=nothing leaves front_end, input, layer_1 to train, .*below"),
        (
            {"freeze": "front_end", "start_layer": 1},
            "leaves input, layer_1 to train, which lie below layer_1 of hidden",
        ),
        ({"freeze": 1, "start_layer": 2}, "freeze=1 leaves layer_2 to train"),
        ({"freeze": 4, "start_layer": 1}, "freeze is 4, and the encoder has 3 layers"),
        ({"freeze": "bogus"}, "freeze is 'bogus'; it may be nothing, front_end, all, or a number of layers"),
        (
            {},
            r"^hidden_states-.* has 4 layers, 0 \('encoder_input'\) to 3 \('layer_3'\)\. .*--set settings.start_layer=",
        ),
        ({"start_layer": 4}, "^start_layer is 4, and hidden_states-.* has 4 layers, 0"),
        ({"start_layer": -5}, "^start_layer is -5, and"),
    ],
)
def test_what_cannot_be_trained_from_a_layer_is_refused(found: Found, settings: dict[str, Any], message: str) -> None:
    checkpoint = str(found("wav2vec2", "layer"))
    with pytest.raises(ConfigError, match=message):
        load_encoder(HiddenStates(checkpoint).spec(), checkpoint, **settings)


def test_a_stream_of_one_layer_needs_no_start_and_says_so() -> None:
    spec = Waveform().spec()
    assert [start_of(spec, layer) for layer in (None, 0, -1)] == [0, 0, 0]
    for layer in (1, -2):
        with pytest.raises(ConfigError, match=rf"^start_layer is {layer}, and waveform.* has one layer, 'samples'"):
            start_of(spec, layer)


@pytest.mark.parametrize("head", [Finetune, Mmer])
def test_what_cannot_be_frozen_is_refused_in_our_words_before_an_encoder_is_loaded(head: type[Finetune | Mmer]) -> None:
    with pytest.raises(
        ConfigError, match=r"^head: freeze is 'bogus'; it may be nothing, front_end, all, or a number of layers\.$"
    ):
        build(head, {"freeze": "bogus"}, "head")
    for freeze in ("nothing", "front_end", "all", 0, 3, None):
        assert build(head, {"freeze": freeze}, "head").freeze == freeze


def test_streams_that_do_not_fit_the_encoder_are_refused(found: Found) -> None:
    speech, other, text = str(found("wav2vec2", "layer")), str(found("wav2vec2", "layer", 1)), str(found("bert"))
    spec = ConvFeatures(speech).spec()
    with pytest.raises(ConfigError, match="was computed with the checkpoint .* whose weights are not those of"):
        load_encoder(spec, other)
    with pytest.raises(ConfigError, match="log_mel-.*Streams that one starts from: ge2e_mels, .*waveform"):
        load_encoder(replace(spec, kind="log_mel"), speech)
    with pytest.raises(ConfigError, match="without special tokens.*--set token_states.special_tokens=true"):
        load_encoder(TokenStates(text).spec(), text, start_layer=1)
    with pytest.raises(CheckpointError, match="is of type 'bert'"):
        load_encoder(Waveform().spec(), text)
    with pytest.raises(CheckpointError, match="is of type 'bert'.* is a speaker encoder"):
        load_encoder(Ge2eMels().spec(), text)
    albert, xlnet = str(found("albert")), str(found("xlnet"))
    with pytest.raises(ConfigError, match="from the stream tokens alone"):
        load_encoder(TokenStates(albert, special_tokens=True).spec(), albert, start_layer=1)
    with pytest.raises(ConfigError, match="layers of this encoder cannot be frozen one by one"):
        load_encoder(TokenIds(albert).spec(), albert, freeze=1)
    with pytest.raises(ConfigError, match="of type 'xlnet', which cannot be trained from tokens alone"):
        load_encoder(TokenIds(xlnet).spec(), xlnet)


def test_an_utterance_too_short_for_a_frame_is_refused(found: Found) -> None:
    checkpoint = str(found("wav2vec2", "layer"))
    assert least_frames(Waveform().spec(), checkpoint) == 400
    assert least_frames(ConvFeatures(checkpoint).spec(), checkpoint) == 1
    encoder = load_encoder(Waveform().spec(), checkpoint)
    assert encoder(torch.zeros(1, 1, 400, 1), torch.tensor([400]))[1].tolist() == [1]
    with pytest.raises(StreamError, match="has 399 samples, too few for one frame"):
        encoder(torch.zeros(1, 1, 400, 1), torch.tensor([399]))


def test_mixed_precision_trains_every_kind(every_start: Starts) -> None:
    for checkpoint, stream, layer in every_start:
        encoder = load_encoder(stream.spec, checkpoint, start_layer=layer)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(encoder, stream.batch())
        loss.backward()
        exact = load_encoder(stream.spec, checkpoint, start_layer=layer)
        assert distance(loss, loss_of(exact, stream.batch())) < 0.1


def test_the_law_is_tested_by_what_can_fail(found: Found) -> None:
    checkpoint = str(found("wav2vec2", "layer"))
    wrong = read(HiddenStates(checkpoint), SPEECH, 1)
    with pytest.raises(AssertionError):
        obeys_the_law(read(Waveform(), SPEECH), wrong, checkpoint, 2, 2)
