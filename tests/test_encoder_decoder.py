"""The cross-representation speech model: its sizes, its parts by hand, and what may not change a score."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from speech_task import DIM, LAYERS, MELS, PHONES, SPEAKER, features, make_task
from torch import nn

from benchmarks.plain_speech import PlainModel, carry_over, plain_step
from featcache.errors import ConfigError, ProtocolError, StreamError
from featcache.manifest import Utterance
from featcache.speakers import speaker_means
from heads.fit_settings import FitSettings
from heads.layers import LayerMix
from heads.members import Alone
from heads.models import _encoder_decoder
from heads.models._encoder_decoder import Conv, downsampled, recur
from heads.models.encoder_decoder import SPEAKER as PREFIX
from heads.models.encoder_decoder import EncoderDecoder
from heads.task import Task

TINY = EncoderDecoder(
    window=8, bottleneck=4, factor=4, channels=12, phone_channels=8, phone_dim=3, decoder_channels=8, decoder_dim=6,
    post_net_channels=8, classifier_dim=16, dropout=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return make_task(tmp_path_factory.mktemp("cache"), [5 + number % 17 for number in range(48)])


def module(head: EncoderDecoder = TINY, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return head.module(LAYERS, DIM, 3, MELS, SPEAKER, PHONES)


@pytest.mark.parametrize(
    ("size", "layers", "dim", "parameters"),
    [("small", 25, 1024, 84_427_101), ("large", 25, 1024, 88_979_549), ("spec", 1, 80, 32_746_308)],
)
def test_the_papers_sizes_have_their_parameters(size: str, layers: int, dim: int, parameters: int) -> None:
    with torch.device("meta"):
        built = EncoderDecoder(size=size).module(layers, dim, 4)
    assert sum(parameter.numel() for parameter in built.parameters() if parameter.requires_grad) == parameters


def test_the_downsampler_keeps_the_last_forward_and_the_first_backward_state_of_each_block() -> None:
    # One unit a direction: frame t has the forward state t and the backward state 100 + t.
    states = torch.stack([torch.arange(6.0), 100 + torch.arange(6.0)], dim=-1)[None]
    assert downsampled(states, 3).tolist() == [[[2.0, 100.0], [5.0, 103.0]]]
    assert downsampled(states, 6).tolist() == [[[5.0, 100.0]]]
    assert torch.equal(downsampled(states, 1), states)


def test_equal_layers_are_their_plain_mean_and_pull_equally_at_their_weights() -> None:
    mix = LayerMix(3, "ratio")
    layer = torch.randn(2, 1, 4, 5)
    mixed = mix(layer.expand(-1, 3, -1, -1))
    torch.testing.assert_close(mixed, layer[:, 0])
    (mixed**2).sum().backward()
    assert mix.alpha.grad is not None
    torch.testing.assert_close(mix.alpha.grad, mix.alpha.grad[0].expand(3))


def test_the_mix_is_the_papers_first_equation() -> None:
    mix = LayerMix(2, "ratio")
    mix.alpha.data = torch.tensor([3.0, 1.0])
    assert mix(torch.tensor([[[4.0], [8.0]]])).tolist() == [[5.0]]  # (3 * 4 + 1 * 8) / 4


def test_the_further_loss_is_the_sum_of_two_mean_squared_errors() -> None:
    built = module().eval()
    hidden, speaker = torch.randn(2, LAYERS, 8, DIM), torch.randn(2, SPEAKER)
    phones = F.one_hot(torch.randint(0, PHONES, (2, 8)), PHONES).float()
    mel = torch.rand(2, 8, MELS)
    with torch.no_grad():
        logits, loss = built(hidden, speaker, phones, mel)
        codes = built.codes(hidden, speaker)
        assert codes.shape == (2, 2, 8)
        joined = torch.cat(
            [codes[:, [0] * 4 + [1] * 4], speaker[:, None].repeat(1, 8, 1), built.phone_encoder(phones)], dim=-1
        )
        rough = built.decoder(joined)
        refined = built.post_net(rough)
        expected = ((rough - mel) ** 2).sum() / mel.numel() + ((refined - mel) ** 2).sum() / mel.numel()
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(logits, built(hidden, speaker))


@pytest.mark.parametrize("bottleneck", [None, 8])
def test_it_trains_as_plain_modules_of_torch_do(bottleneck: int | None) -> None:
    head = EncoderDecoder(
        bottleneck=bottleneck, channels=12, phone_channels=8, phone_dim=3, decoder_channels=8, decoder_dim=6,
        post_net_channels=8, classifier_dim=16, dropout=0.0,
    )  # fmt: skip
    ours = Alone(module(head))
    ours.train(True)
    theirs = PlainModel(head, LAYERS, DIM, 3, MELS, SPEAKER, PHONES)
    carry_over(ours.state(0), theirs)
    optimiser, adam = (
        ours.optimiser(FitSettings(gradient_clip=None), [1e-3], [0.0]),
        torch.optim.Adam(theirs.parameters(), 1e-3),
    )
    labels = torch.tensor([0, 2, 1])
    for _ in range(5):
        phones = F.one_hot(torch.randint(0, PHONES, (3, 96)), PHONES).float()
        batch = [torch.randn(3, LAYERS, 96, DIM), torch.rand(3, SPEAKER), phones, torch.rand(3, 96, MELS)]
        logits, further = ours(tuple(item[None] for item in batch))
        loss = F.cross_entropy(logits[0], labels) + further.sum()
        loss.backward()
        optimiser.step()
        assert loss.item() == pytest.approx(plain_step(theirs, adam, batch, labels, "float32"), rel=1e-5)


@pytest.mark.parametrize(("batch", "dim", "channels", "frames"), [(1, 1, 1, 1), (2, 3, 5, 4), (3, 40, 24, 96)])
def test_a_convolution_in_bfloat16_is_torchs_of_the_rounded_numbers(
    monkeypatch: pytest.MonkeyPatch, batch: int, dim: int, channels: int, frames: int
) -> None:
    monkeypatch.setattr(_encoder_decoder, "_LARGE", 0)
    conv = Conv(dim, channels)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.copy_(parameter.bfloat16())
    values = torch.randn(batch, dim, frames).bfloat16().float().requires_grad_()
    pull = torch.randn(batch, channels, frames).bfloat16().float()
    wanted = [values, conv.weight, conv.bias]
    plain = F.conv1d(values, conv.weight, conv.bias, padding=2)
    with torch.autocast("cpu", torch.bfloat16):
        ours = conv(values)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(conv(values), plain)  # outside mixed precision it is nn.Conv1d
    # A result is rounded to 8 bits; where terms cancel, the error is of the size of the terms.
    tolerance = {"rtol": 2**-7, "atol": 2**-7 * (5 * max(dim, channels)) ** 0.5}
    torch.testing.assert_close(ours.float(), plain, **tolerance)
    for own, other in zip(
        torch.autograd.grad(ours, wanted, pull.bfloat16()), torch.autograd.grad(plain, wanted, pull), strict=True
    ):
        torch.testing.assert_close(own, other, **tolerance)


def test_large_recurrent_layers_are_float32_in_mixed_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    lstm = nn.LSTM(5, 4, num_layers=2, batch_first=True, bidirectional=True)
    frames = torch.randn(2, 7, 5).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert recur(lstm, frames).dtype == torch.bfloat16
        monkeypatch.setattr(_encoder_decoder, "_LARGE", 0)
        mixed = recur(lstm, frames)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(mixed, lstm(frames.float())[0])


def test_batch_norm_uses_its_running_statistics_in_scoring() -> None:
    built = module()
    hidden, speaker = torch.randn(4, LAYERS, 8, DIM), torch.randn(4, SPEAKER)
    for _ in range(3):
        built.train()(hidden, speaker)
    built.eval()
    with torch.no_grad():
        alone = torch.cat([built(hidden[row : row + 1], speaker[row : row + 1]) for row in range(4)])
        torch.testing.assert_close(alone, built(hidden, speaker), rtol=1e-5, atol=1e-6)


def test_an_utterance_is_scored_by_the_mean_over_its_consecutive_windows(task: Task) -> None:
    inputs = TINY.inputs(task)
    long, short = 12, 0  # 17 and 5 frames: three windows of 8, and one
    (hidden, speaker), owners = inputs.scored(torch.tensor([long, short]), None)
    assert owners.tolist() == [0, 0, 0, 1]
    frames = torch.from_numpy(features(long, 17)["toy"])
    torch.testing.assert_close(hidden[0], frames[:, :8])
    torch.testing.assert_close(hidden[1], frames[:, 8:16])
    torch.testing.assert_close(hidden[2, :, :1], frames[:, 16:])
    assert not hidden[2, :, 1:].any()
    assert not hidden[3, :, 5:].any()
    assert torch.equal(speaker[0], speaker[2])


def test_every_frame_is_in_one_window_and_every_utterance_in_one_chunk(task: Task) -> None:
    inputs = TINY.inputs(task)
    positions = torch.arange(len(task.ids))
    chunks = inputs.chunks(positions)
    assert sorted(torch.cat(list(chunks)).tolist()) == positions.tolist()
    _, owners = inputs.scored(positions, None)
    assert torch.bincount(owners).tolist() == [-(-int(length) // 8) for length in inputs.lengths]


def test_training_windows_are_drawn_anywhere_and_repeat_with_their_generator(task: Task) -> None:
    inputs = TINY.inputs(task)
    long = torch.full((1, 400), 12)

    def starts(seed: int) -> list[int]:
        hidden, _, phones, mel = inputs.training_batch(long, None, torch.Generator().manual_seed(seed))
        assert (hidden.shape, phones.shape, mel.shape) == (
            (1, 400, LAYERS, 8, DIM), (1, 400, 8, PHONES), (1, 400, 8, MELS),
        )  # fmt: skip
        frames = features(12, 17)
        whole = [torch.from_numpy(frames["toy"][:, at : at + 8]) for at in range(10)]
        found = [next(at for at in range(10) if torch.equal(whole[at], window)) for window in hidden[0]]
        for row in (0, 1, 2):
            at = found[row]
            assert phones[0, row].argmax(-1).tolist() == frames["phones"][0, at : at + 8, 0].tolist()
            torch.testing.assert_close(mel[0, row], torch.from_numpy(frames["log_mel"][0, at : at + 8]))
        return found

    first = starts(1)
    assert set(first) == set(range(10))
    assert starts(1) == first
    assert starts(2) != first


def test_what_is_shorter_than_a_window_is_padded_with_nothing_spoken(task: Task) -> None:
    hidden, _, phones, mel = TINY.inputs(task).training_batch(torch.tensor([[0]]), None, torch.Generator())
    assert not hidden[0, 0, :, 5:].any()
    assert not phones[0, 0, 5:].any()
    assert not mel[0, 0, 5:].any()
    assert phones[0, 0, :5].sum() == 5


def test_streams_a_frame_apart_are_cut_to_the_shortest(tmp_path: Path) -> None:
    inputs = TINY.inputs(make_task(tmp_path, [17] * 12, shorter={"toy": 1, "phones": 2}))
    assert inputs.lengths.tolist() == [15] * 12
    (hidden, _), owners = inputs.scored(torch.tensor([0]), None)
    assert len(owners) == 2
    assert not hidden[1, :, 7:].any()


def test_streams_of_other_audio_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(StreamError, match="'u000' has another number of frames in each stream .*toy-.* 14"):
        TINY.inputs(make_task(tmp_path, [17] * 12, shorter={"toy": 3}))


def test_copies_have_no_part_in_the_mean_of_their_speaker(tmp_path: Path) -> None:
    task = make_task(tmp_path, [9] * 48, unlike=True)
    copies = frozenset(task.ids[number] for number in (1, 15, 40))
    rows = zip(task.ids, task.speakers, strict=True)
    people = [Utterance(name, speaker=speaker) for name, speaker in rows if name not in copies]
    wanted = speaker_means(task.streams["speaker"], people)
    with_copies = replace(task, copies=copies)
    found = TINY.context(with_copies)
    assert {name.removeprefix(PREFIX): mean.tolist() for name, mean in found.items()} == {
        name: mean.tolist() for name, mean in wanted.items()
    }
    assert TINY.context(task)[f"{PREFIX}{task.speakers[1]}"].tolist() != wanted[str(task.speakers[1])].tolist()
    _, embeddings = TINY.inputs(with_copies).batch(torch.arange(48)[None], None)
    assert embeddings[0].tolist() == [wanted[str(speaker)].tolist() for speaker in task.speakers]  # of copies too


def test_batch_order_and_company_change_no_score(task: Task) -> None:
    built = module().eval()
    inputs = TINY.inputs(task)

    def scores(positions: list[int]) -> dict[int, np.ndarray]:
        batch, owners = inputs.scored(torch.tensor(positions), None)
        with torch.no_grad():
            rows = torch.softmax(built(*batch).double(), 1)
        return {one: rows[owners == index].mean(0).numpy() for index, one in enumerate(positions)}

    together = scores([3, 30, 12, 7])
    for one in (12, 3, 7, 30):
        np.testing.assert_allclose(scores([one])[one], together[one], atol=1e-6)


def test_it_overfits_eight_utterances(tmp_path: Path) -> None:
    task = make_task(tmp_path, [12] * 12)
    [fold, *_] = task.folds
    eight = tuple(task.ids[:8])
    own = replace(fold, train=eight, validation=eight, test=eight)
    small = replace(task, folds=(own,))
    [outcome] = TINY.train(small, FitSettings(steps=200, batch_size=4, learning_rate=(3e-3,), eval_every=20), _ignore)
    assert (outcome.test.argmax(1) == task.labels[:8]).all()
    losses = [point["loss"] for point in outcome.curve]
    assert losses[-1] < 0.5 * losses[0]
    assert outcome.layer_weights is not None
    assert outcome.layer_weights.sum() == pytest.approx(1, abs=1e-5)
    assert outcome.layer_names == ("l0", "l1", "l2", "l3")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("head", [TINY, replace(TINY, reconstruct=False), replace(TINY, size="spec")])
def test_every_form_trains_in_either_precision(task: Task, head: EncoderDecoder, precision: str) -> None:
    unread = {"phones"} if not head.reconstruct else {"toy"} if head.size == "spec" else set()
    wanted = replace(task, streams={name: task.streams[name] for name in task.streams if name not in unread})
    settings = FitSettings(steps=3, eval_every=3, batch_size=4, precision=precision)
    for outcome in head.train(wanted, settings, _ignore):
        assert np.isfinite(outcome.test).all()


def _ignore(*_: object) -> None:
    pass


@pytest.mark.parametrize("missing", ["toy", "log_mel", "speaker", "phones"])
def test_a_missing_stream_is_a_clear_error(task: Task, missing: str) -> None:
    streams = {name: stream for name, stream in task.streams.items() if name != missing}
    with pytest.raises(ConfigError, match=r"reads the streams log_mel, speaker, phones, and encodes exactly one more"):
        TINY.inputs(replace(task, streams=streams))


def test_an_utterance_without_a_speaker_is_named(task: Task) -> None:
    with pytest.raises(ProtocolError, match="1 utterances have no speaker, such as 'u001'"):
        TINY.inputs(replace(task, speakers=["s", None, *["s"] * (len(task.ids) - 2)]))


def test_a_window_must_hold_whole_blocks() -> None:
    with pytest.raises(ConfigError, match="multiple of the factor"):
        EncoderDecoder(window=100)
