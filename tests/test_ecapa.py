"""ECAPA-TDNN: each block, and all of it, against numbers computed one by one; padding is seen by none of them."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from featcache.errors import ConfigError
from heads.layers import MaskedBatchNorm
from heads.models._ecapa import (
    AttentiveStatistics,
    EcapaTdnn,
    FrameConv,
    SqueezeExcitation,
    mirrored,
    speechbrain_name,
    weighted_statistics,
)
from heads.models.ecapa import Ecapa

DIM = 5
Edges = Literal["zeros", "reflect"]
EDGES: Sequence[Edges] = ("zeros", "reflect")
TINY = {
    "channels": 8, "mfa_channels": 6, "scale": 4, "se_channels": 3, "attention_channels": 4, "embedding_dim": 5,
}  # fmt: skip
DILATIONS = (2, 3, 1)


def network(edges: Edges = "zeros", global_context: bool = True, summed: bool = False) -> EcapaTdnn:
    """Return a tiny network in which every weight and every running statistic does something."""
    torch.manual_seed(1)
    settings = {"padding": edges, "global_context": global_context, "dilations": DILATIONS, "summed": summed, **TINY}
    module = Ecapa(**settings).pooling(DIM)  # type: ignore[arg-type]
    for block in module.modules():
        if isinstance(block, MaskedBatchNorm):
            nn.init.uniform_(block.weight, 0.5, 1.5)
            nn.init.normal_(block.bias, 0.0, 0.3)
            nn.init.normal_(block.running_mean, 0.0, 0.3)
            nn.init.uniform_(block.running_var, 0.5, 2.0)
    return module.eval()


class Reference:
    """The network of one utterance as the paper has it, one number at a time, in Python's floats."""

    def __init__(self, module: EcapaTdnn, edges: Edges, global_context: bool, summed: bool) -> None:
        self.weights = {name: value.double().numpy() for name, value in module.state_dict().items()}
        self.edges, self.global_context, self.summed = edges, global_context, summed

    def conv(self, name: str, frames: np.ndarray, dilation: int = 1) -> np.ndarray:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        channels, _, kernel = weight.shape
        num_frames = frames.shape[1]
        given = np.zeros((channels, num_frames))
        for channel in range(channels):
            for frame in range(num_frames):
                total = float(bias[channel])
                for tap in range(kernel):
                    at = frame + (tap - kernel // 2) * dilation
                    if not 0 <= at < num_frames and self.edges == "zeros":
                        continue
                    while not 0 <= at < num_frames:
                        at = -at if at < 0 else 2 * (num_frames - 1) - at
                    total += sum(weight[channel, dim, tap] * frames[dim, at] for dim in range(frames.shape[0]))
                given[channel, frame] = total
        return given

    def norm(self, name: str, values: np.ndarray) -> np.ndarray:
        given = np.zeros_like(values)
        for index in np.ndindex(values.shape):
            weight, bias, mean, var = (
                self.weights[f"{name}.{what}"][index[0]] for what in ("weight", "bias", "running_mean", "running_var")
            )
            given[index] = (values[index] - mean) / math.sqrt(var + 1e-5) * weight + bias
        return given

    def tdnn(self, name: str, frames: np.ndarray, dilation: int = 1) -> np.ndarray:
        return self.norm(f"{name}.norm", np.maximum(self.conv(f"{name}.conv", frames, dilation), 0))

    def linear(self, name: str, values: np.ndarray) -> np.ndarray:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return np.array([bias[row] + sum(weight[row] * values) for row in range(len(weight))])

    def block(self, name: str, frames: np.ndarray, dilation: int, scale: int) -> np.ndarray:
        groups = np.split(self.tdnn(f"{name}.enter", frames), scale)
        given = [groups[0]]
        for number in range(1, scale):
            group = groups[number] if number == 1 else groups[number] + given[-1]
            given.append(self.tdnn(f"{name}.res2net.blocks.{number - 1}", group, dilation))
        values = self.tdnn(f"{name}.leave", np.concatenate(given))
        squeezed = np.maximum(self.linear(f"{name}.gate.squeeze", values.mean(axis=1)), 0)
        gate = 1 / (1 + np.exp(-self.linear(f"{name}.gate.excite", squeezed)))
        return frames + values * gate[:, None]

    def pooled(self, frames: np.ndarray) -> np.ndarray:
        channels, num_frames = frames.shape
        seen = frames
        if self.global_context:
            shared = np.concatenate([frames.mean(axis=1), frames.std(axis=1)])
            seen = np.concatenate([frames, np.repeat(shared[:, None], num_frames, axis=1)])
        hidden = np.tanh(self.norm("statistics.norm", np.maximum(self.conv("statistics.hidden", seen), 0)))
        scores = self.conv("statistics.score", hidden)
        means, deviations = [], []
        for channel in range(channels):
            weights = np.exp(scores[channel]) / np.exp(scores[channel]).sum()
            mean = sum(weights[frame] * frames[channel, frame] for frame in range(num_frames))
            means.append(mean)
            deviations.append(math.sqrt(sum(weights * (frames[channel] - mean) ** 2)))
        return np.array(means + deviations)

    def embedding(self, frames: np.ndarray) -> np.ndarray:
        before = [self.tdnn("first", frames)]
        for number, dilation in enumerate(DILATIONS):
            read = sum(before) if self.summed else before[-1]
            before.append(self.block(f"blocks.{number}", np.asarray(read), dilation, TINY["scale"]))
        pooled = self.pooled(self.tdnn("aggregate", np.concatenate(before[1:])))
        return self.linear("embed", self.norm("norm", pooled))


@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("global_context", [True, False])
@pytest.mark.parametrize("edges", EDGES)
def test_the_network_is_the_reference_number_by_number(edges: Edges, global_context: bool, summed: bool) -> None:
    """`summed` is section 3.3 of the paper: a block reads the sum of the outputs of all that stands before it."""
    module = network(edges, global_context, summed)
    frames, lengths = torch.randn(2, 7, DIM), torch.tensor([7, 4])
    found = module(frames, lengths)
    reference = Reference(module, edges, global_context, summed)
    for row, length in enumerate(lengths.tolist()):
        expected = reference.embedding(frames[row, :length].double().numpy().T)
        np.testing.assert_allclose(found[row].detach().numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("edges", EDGES)
def test_whatever_lies_behind_an_utterance_changes_no_embedding(edges: Edges) -> None:
    module = network(edges)
    frames, lengths = torch.randn(3, 9, DIM), torch.tensor([9, 5, 1])
    alone = torch.cat([module(frames[[row], : int(lengths[row])], lengths[[row]]) for row in range(3)])
    for garbage in (0.0, 1e3, math.nan, math.inf):
        behind = torch.arange(14) >= lengths[:, None]
        padded = torch.cat([frames, torch.zeros(3, 5, DIM)], dim=1).masked_fill(behind[..., None], garbage)
        torch.testing.assert_close(module(padded, lengths), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("edges", EDGES)
def test_padding_has_no_part_in_training(edges: Edges) -> None:
    lengths = torch.tensor([8, 5, 3])
    frames = torch.randn(3, 8, DIM)
    behind = (torch.arange(12) >= lengths[:, None])[..., None]
    seen = []
    for width, garbage in ((8, 0.0), (12, 0.0), (12, math.nan)):
        module = network(edges).train()
        padded = torch.cat([frames, torch.zeros(3, 4, DIM)], dim=1).masked_fill(behind, garbage)[:, :width]
        embeddings = module(padded, lengths)
        embeddings.square().sum().backward()
        gradients = {name: value.grad for name, value in module.named_parameters()}
        seen.append((embeddings.detach(), gradients, dict(module.named_buffers())))
    for embeddings, gradients, buffers in seen[1:]:
        torch.testing.assert_close(embeddings, seen[0][0], rtol=1e-4, atol=1e-5)
        for name, value in gradients.items():
            torch.testing.assert_close(value, seen[0][1][name], rtol=1e-3, atol=1e-4)
        for name, value in buffers.items():
            torch.testing.assert_close(value, seen[0][2][name], rtol=1e-4, atol=1e-5)


def test_batch_norm_of_masked_frames_is_torchs_of_the_others() -> None:
    ours, theirs = MaskedBatchNorm(4), nn.BatchNorm1d(4)
    values = 3 + torch.randn(3, 4, 6)
    mask = torch.arange(6) < torch.tensor([6, 2, 4])[:, None]
    for _ in range(3):
        found = ours(values.masked_fill(~mask[:, None], 1e4), mask)
        expected = theirs(values.mT[mask])
        torch.testing.assert_close(found.mT[mask], expected)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(values, mask).mT[mask], theirs(values.mT[mask]))


def test_batch_norm_of_one_row_takes_the_running_statistics() -> None:
    block = MaskedBatchNorm(2)
    block.running_mean.fill_(1.0)
    block.running_var.fill_(4.0)
    expected = (torch.tensor([[5.0, 1.0]]) - 1) / math.sqrt(4 + 1e-5)
    torch.testing.assert_close(block.train()(torch.tensor([[5.0, 1.0]])), expected)
    assert block.running_mean.tolist() == [1.0, 1.0]
    assert torch.isfinite(block(torch.ones(1, 2, 3), torch.tensor([[True, False, False]]))).all()


@pytest.mark.parametrize("length", [1, 2, 3, 6])
def test_frames_are_mirrored_as_often_as_needed(length: int) -> None:
    at = mirrored(torch.tensor([length]), 8, 5)[0]
    expected = np.pad(np.arange(length), (5, 5 + 8 - length), mode="reflect")
    assert at[: length + 10].tolist() == expected[: length + 10].tolist()


def test_a_mirrored_convolution_is_torchs_on_a_whole_utterance() -> None:
    ours = FrameConv(3, 4, 3, 2, "reflect")
    theirs = nn.Conv1d(3, 4, 3, dilation=2, padding=2, padding_mode="reflect")
    theirs.load_state_dict(ours.state_dict())
    frames = torch.randn(2, 3, 7)
    torch.testing.assert_close(ours(frames, torch.tensor([7, 7])), theirs(frames))
    torch.testing.assert_close(ours(frames, torch.tensor([7, 5]))[1:, :, :5], theirs(frames[1:, :, :5]))


def test_the_gate_opens_by_the_mean_over_an_utterances_own_frames() -> None:
    gate = SqueezeExcitation(2, 1)
    with torch.no_grad():
        gate.squeeze.weight.copy_(torch.tensor([[1.0, 1.0]]))
        gate.squeeze.bias.fill_(-1.0)
        gate.excite.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        gate.excite.bias.zero_()
    frames = torch.tensor([[[1.0, 3.0, 50.0], [2.0, 0.0, 50.0]]])
    opened = 1 / (1 + math.exp(-2.0))  # means 2 and 1, together 3, less 1
    expected = torch.tensor([[[opened, 3 * opened], [2 * (1 - opened), 0.0]]])
    torch.testing.assert_close(gate(frames, torch.tensor([2]))[..., :2], expected)


def test_equal_attention_gives_the_plain_mean_and_deviation() -> None:
    block = AttentiveStatistics(3, 2, global_context=True).eval()
    with torch.no_grad():
        block.score.weight.zero_()
    frames = torch.randn(2, 3, 6)
    found = block(frames, torch.tensor([6, 4]))
    for row, length in enumerate((6, 4)):
        std, mean = torch.std_mean(frames[row, :, :length], dim=1, correction=0)
        torch.testing.assert_close(found[row], torch.cat([mean, std]))


def test_weighted_statistics_by_hand() -> None:
    frames, weights = torch.tensor([[[1.0, 5.0, 9.0]]]), torch.tensor([[[0.75, 0.25, 0.0]]])
    mean, std = weighted_statistics(frames, weights)
    assert mean.item() == 2.0  # 0.75 + 1.25
    assert std.item() == pytest.approx(math.sqrt(3.0))  # 0.75 * 1 + 0.25 * 9


@pytest.mark.parametrize(("channels", "parameters"), [(512, 6_194_048), (1024, 14_660_416)])
def test_the_papers_sizes_have_as_many_parameters_as_it_says(channels: int, parameters: int) -> None:
    """6.2 and 14.7 million with 80 mels: Desplanques et al. 2020, Table 1; SpeechBrain's have these very numbers."""
    with torch.device("meta"):
        module = Ecapa(channels=channels).pooling(80)
    assert sum(value.numel() for value in module.parameters()) == parameters


def test_every_weight_has_speechbrains_name() -> None:
    names = {name: speechbrain_name(name) for name in Ecapa().pooling(80).state_dict()}
    assert len(set(names.values())) == len(names)
    assert {
        "first.conv.weight": "blocks.0.conv.conv.weight",
        "first.norm.running_mean": "blocks.0.norm.norm.running_mean",
        "blocks.0.enter.conv.bias": "blocks.1.tdnn1.conv.conv.bias",
        "blocks.2.res2net.blocks.6.conv.weight": "blocks.3.res2net_block.blocks.6.conv.conv.weight",
        "blocks.1.leave.norm.weight": "blocks.2.tdnn2.norm.norm.weight",
        "blocks.1.gate.squeeze.weight": "blocks.2.se_block.conv1.conv.weight",
        "aggregate.conv.weight": "mfa.conv.conv.weight",
        "statistics.hidden.weight": "asp.tdnn.conv.conv.weight",
        "statistics.norm.bias": "asp.tdnn.norm.norm.bias",
        "statistics.score.weight": "asp.conv.conv.weight",
        "norm.running_var": "asp_bn.norm.running_var",
        "embed.bias": "fc.conv.bias",
    }.items() <= names.items()


def test_mixed_precision_gives_finite_gradients_near_those_of_float32() -> None:
    frames, lengths = torch.randn(4, 12, DIM), torch.tensor([12, 7, 1, 9])
    found = []
    for mixed in (False, True):
        module = network().train()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = module(frames, lengths).float().square().mean()
        loss.backward()
        assert all(torch.isfinite(value.grad).all() for value in module.parameters() if value.grad is not None)
        found.append(loss.item())
    assert found[1] == pytest.approx(found[0], rel=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 100}, "100 is not a multiple of 8"),
        ({"kernel": 2}, "kernel of ecapa must be an odd number of frames, got 2"),
        ({"dilations": ()}, r"dilations of ecapa must be 1 or more, got \(\)"),
        ({"embedding_dim": 0}, "embedding_dim of ecapa must be 1 or more, got 0"),
        ({"dropout": 1.0}, "dropout must be 0 to below 1"),
    ],
)
def test_sizes_that_make_no_network_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Ecapa(**settings)  # type: ignore[arg-type]
