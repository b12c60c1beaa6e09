"""MMER's blocks give what one works out by hand, and neither padding nor what is switched off has a part in a score."""

import json
import logging
import math
import shutil
from dataclasses import replace
from itertools import combinations, groupby, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers import speech_checkpoint, write_corpus
from text_makers import text_checkpoint
from torch import nn

import featcache
from featcache import Manifest, Utterance
from featcache.commit import StreamWriter, store
from featcache.errors import ConfigError, StreamError
from featcache.extract import Options, extract
from featcache.stream import Features, Stream, StreamSpec
from featcache.streams.characters import Characters
from featcache.streams.conv_features import ConvFeatures
from featcache.streams.token_states import TokenStates
from featcache.streams.waveform import Waveform
from heads.encoder import load_encoder
from heads.encoders.speech import SpeechEncoder
from heads.fit_settings import FitSettings
from heads.folds import make_folds
from heads.metrics import ua
from heads.models._mmer import CrossModalBlock, CtcLoss, Interaction, MmerModule, apart, frames_needed
from heads.models.mmer import Mmer
from heads.task import Task, Trained

LAYERS, DIM, TEXT_DIM = 2, 6, 4
SMALL = Mmer(layer=0, heads=2, feed_forward=8, dropout=0.0)
QUICK = FitSettings(steps=60, batch_size=8, learning_rate=(0.02,), eval_every=20)
SPECS = {
    "toy": StreamSpec("toy", 1, "audio", {}, ("l0", "l1"), DIM, frame_shift_s=0.02, dtype="float32"),
    "token_states": StreamSpec("token_states", 1, "text", {}, ("last",), TEXT_DIM, axis="tokens", dtype="float32"),
    "characters": Characters().spec(),
}


def make_task(folder: Path, num: int = 24, num_frames: int = 20) -> Task:
    """Speech in whose first layer the class is, words that tell only the first class, and characters."""
    stored: dict[str, list[Any]] = {name: [] for name in SPECS}
    utterances = []
    characters = Characters().load("cpu", "float32")
    for number in range(num):
        generator, name, label = np.random.default_rng(number), f"u{number:03d}", number % 3
        hidden = 0.3 * generator.standard_normal((LAYERS, num_frames + number % 5, DIM)).astype(np.float32)
        hidden[0, :, label] += 1.0
        tokens = 0.3 * generator.standard_normal((1, 3 + number % 4, TEXT_DIM)).astype(np.float32)
        tokens[0, :, 0] += label == 0
        [target] = characters.extract(["so it is"[: 4 + number % 5]])
        assert isinstance(target, Features)
        for kind, features in {"toy": Features(hidden), "token_states": Features(tokens), "characters": target}.items():
            stored[kind].append(store(name, "0", 0, features, SPECS[kind], "frames"))
        utterances.append(Utterance(name, label="abc"[label], speaker=f"s{number // 3 % 2}"))
    for kind, spec in SPECS.items():
        with StreamWriter(folder, spec, "zarr", "frames") as writer:
            writer.commit(stored[kind], {})
    cache = featcache.open(folder)
    labels = np.array([number % 3 for number in range(num)])
    ids = [one.id for one in utterances]
    folds = tuple(make_folds(Manifest(utterances), "speaker"))
    return Task({kind: cache[kind] for kind in SPECS}, ids, labels, ("a", "b", "c"), folds)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return make_task(tmp_path_factory.mktemp("mmer"))


def only(task: Task, *kinds: str) -> Task:
    return replace(task, streams={kind: task.streams[kind] for kind in kinds})


def normalised(row: np.ndarray) -> np.ndarray:
    return (row - row.mean()) / np.sqrt(row.var() + 1e-12)


def linear(layer: nn.Linear, row: np.ndarray) -> np.ndarray:
    assert layer.bias is not None
    return layer.weight.detach().double().numpy() @ row + layer.bias.detach().double().numpy()


def by_hand(block: CrossModalBlock, heads: int, queries: np.ndarray, memory: np.ndarray) -> np.ndarray:
    """One cross-modal block written out with loops: ``(frames, dim)`` and ``(others, dim)`` to ``(frames, dim)``."""
    dim, size = queries.shape[1], queries.shape[1] // heads
    weights = block.attend.in_proj_weight.detach().double().numpy()
    biases = block.attend.in_proj_bias.detach().double().numpy()
    q, k, v = (
        rows @ weights[at : at + dim].T + biases[at : at + dim]
        for rows, at in ((queries, 0), (memory, dim), (memory, 2 * dim))
    )
    results = []
    for frame, query in enumerate(queries):
        gathered = np.zeros(dim)
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = [math.exp(q[frame, part] @ k[other, part] / math.sqrt(size)) for other in range(len(memory))]
            for other, score in enumerate(scores):
                gathered[part] += score / sum(scores) * v[other, part]
        state = normalised(query + linear(block.attend.out_proj, gathered))
        hidden = linear(block.expand, state)
        hidden = np.array([0.5 * value * (1 + math.erf(value / math.sqrt(2))) for value in hidden])
        results.append(normalised(state + linear(block.contract, hidden)))
    return np.array(results)


@pytest.mark.parametrize(("dim", "heads"), [(2, 1), (4, 2)])
def test_a_cross_modal_block_is_its_formula(dim: int, heads: int) -> None:
    torch.manual_seed(0)
    block = CrossModalBlock(dim, heads, 5, 0.0).double()
    nn.init.normal_(block.attend.in_proj_bias)
    nn.init.normal_(block.attend.out_proj.bias)
    queries, memory = torch.randn(1, 2, dim).double(), torch.randn(1, 3, dim).double()
    found = block(queries, memory, torch.zeros(1, 3, dtype=torch.bool))
    np.testing.assert_allclose(
        found[0].detach().numpy(), by_hand(block, heads, queries[0].numpy(), memory[0].numpy()), rtol=1e-9
    )
    hidden = block(queries, memory, torch.tensor([[False, False, True]]))
    np.testing.assert_allclose(
        hidden[0].detach().numpy(), by_hand(block, heads, queries[0].numpy(), memory[0, :2].numpy()), rtol=1e-9
    )


def test_attention_on_numbers_that_one_can_follow() -> None:
    """Queries (1, 0) and (0, 2), keys (0, 0) and (ln 3 sqrt 2, 0): shares 1/4 and 3/4, then 1/2 and 1/2."""
    block = CrossModalBlock(2, 1, 2, 0.0)
    with torch.no_grad():
        block.attend.in_proj_weight.copy_(torch.eye(2).repeat(3, 1))
        block.attend.out_proj.weight.copy_(torch.eye(2))
        block.contract.weight.zero_()
        block.contract.bias.zero_()
    key = math.log(3) * math.sqrt(2)
    block.norm_attended, block.norm = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    found = block(
        torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]), torch.tensor([[[0.0, 0.0], [key, 0.0]]]), torch.zeros(1, 2).bool()
    )
    torch.testing.assert_close(found[0], torch.tensor([[1 + 0.75 * key, 0.0], [0.5 * key, 2.0]]))


def interaction(gate: bool = True, code_layers: bool = False) -> Interaction:
    torch.manual_seed(1)
    return Interaction(4, 4, 4, 1, 6, 0.0, gate, code_layers)


def visible(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.bool)


def test_m_is_the_linear_map_of_gated_q_and_r() -> None:
    module = interaction()
    speech, text = torch.randn(1, 5, 4), torch.randn(1, 3, 4)
    behind = (visible(1, 5), visible(1, 3))
    p = module.block_b(speech, text, behind[1])
    r = module.block_c(text, p, behind[0])
    q = module.block_d(text, speech, behind[0])
    assert (p.shape, r.shape, q.shape) == ((1, 5, 4), (1, 3, 4), (1, 3, 4))
    assert module.gate is not None
    with torch.no_grad():
        for layer in (module.gate, module.merge):
            layer.weight.zero_()
            layer.bias.zero_()
        module.gate.weight[0, 0] = 1.0  # r_1
        module.gate.weight[3, 6] = 2.0  # q_3
        module.gate.bias[3] = -1.0
        module.merge.weight[0, 0] = 1.0  # the gated q_1
        module.merge.weight[1, 3], module.merge.weight[1, 6] = 10.0, 1.0  # the gated q_4, and r_3
        module.merge.bias[2] = 0.5
    g_1, g_4 = 1 / (1 + torch.exp(-r[..., 0])), 1 / (1 + torch.exp(1 - 2 * q[..., 2]))
    nothing = torch.zeros(1, 3)
    m_2 = 10 * g_4 * q[..., 3] + r[..., 2]
    expected = torch.stack([g_1 * q[..., 0], m_2, nothing + 0.5, nothing], dim=-1)
    torch.testing.assert_close(module(speech, behind[0], text, behind[1]), expected)


def test_a_gate_that_is_shut_leaves_the_words_alone_and_none_is_one_that_is_open() -> None:
    shut, none = interaction(), interaction(gate=False)
    speech, text = torch.randn(1, 5, 4), torch.randn(1, 3, 4)
    behind = (visible(1, 5), visible(1, 3))
    assert shut.gate is not None
    with torch.no_grad():
        shut.gate.weight.zero_()
        shut.gate.bias.fill_(-200.0)
    merge, r = shut.merge, shut.block_c(text, shut.block_b(speech, text, behind[1]), behind[0])
    torch.testing.assert_close(shut(speech, behind[0], text, behind[1]), r @ merge.weight[:, 4:].T + merge.bias)
    with torch.no_grad():
        shut.gate.bias.fill_(200.0)
        none.load_state_dict({name: value for name, value in shut.state_dict().items() if "gate" not in name})
    torch.testing.assert_close(none(speech, behind[0], text, behind[1]), shut(speech, behind[0], text, behind[1]))


def test_the_layers_of_the_published_code_stand_before_the_blocks() -> None:
    module = interaction(code_layers=True)
    speech, text = torch.randn(1, 5, 4), torch.randn(1, 3, 4)
    behind_speech, behind_text = visible(1, 5), visible(1, 3)
    assert module.text_layer is not None
    assert module.gate is not None
    words = module.text_layer(text, text, behind_text)
    r = module.block_c(words, module.block_b(module.map_b(speech), words, behind_text), behind_speech)
    q = module.block_d(words, module.map_d(speech), behind_speech)
    q = torch.sigmoid(module.gate(torch.cat([r, q], dim=-1))) * q
    expected = module.merge(torch.cat([q, r], dim=-1))
    torch.testing.assert_close(module(speech, behind_speech, text, behind_text), expected)
    plain = interaction()
    assert plain.text_layer is None
    assert isinstance(plain.map_b, nn.Identity)


@pytest.mark.parametrize("head", [SMALL, replace(SMALL, code_layers=True), replace(SMALL, layer="mix", dim=8)])
@pytest.mark.parametrize("garbage", [math.nan, 1e30, -math.inf])
def test_padding_of_either_changes_no_score_and_no_loss(head: Mmer, garbage: float) -> None:
    torch.manual_seed(0)
    layers = LAYERS if head.layer == "mix" else 1
    module = head.module(layers, DIM, 3, TEXT_DIM)
    frames, tokens = torch.randn(1, layers, 9, DIM), torch.randn(1, 1, 4, TEXT_DIM)
    ids = torch.tensor([2.0, 1.0, 2.0])[None, None, :, None]
    alone = module(frames, torch.tensor([9]), tokens, torch.tensor([4]), ids, torch.tensor([3]))
    sizes = torch.tensor([9, 20]), torch.tensor([4, 6]), torch.tensor([3, 5])
    batch = [torch.full((2, *shape), garbage) for shape in ((layers, 20, DIM), (1, 6, TEXT_DIM), (1, 5, 1))]
    batch[0][0, :, :9], batch[1][0, :, :4] = frames[0], tokens[0]
    batch[0][1], batch[1][1] = torch.randn(layers, 20, DIM), torch.randn(1, 6, TEXT_DIM)
    batch[2][0, :, :3], batch[2][1] = ids[0], 4.0
    assert module.training
    logits, further = module(batch[0], sizes[0], batch[1], sizes[1], batch[2], sizes[2])
    torch.testing.assert_close(logits[:1], alone[0], rtol=1e-5, atol=1e-6)
    other = module(*(item[1:] for pair in zip(batch, sizes, strict=True) for item in pair))
    torch.testing.assert_close(further, (alone[1] + other[1]) / 2, rtol=1e-5, atol=1e-6)
    (logits.sum() + further).backward()
    assert all(value.grad is not None and bool(value.grad.isfinite().all()) for value in module.parameters())


def spelt(path: tuple[int, ...]) -> list[int]:
    """Return what CTC reads from a path: equal neighbours are one, blanks are none."""
    return [one for one, _ in groupby(path) if one != 0]


def all_paths(scores: np.ndarray, ids: list[int]) -> float:
    """Return the negative log of the probability of all paths that spell characters."""
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    paths = product(range(scores.shape[1]), repeat=len(scores))
    total = sum(math.prod(shares[at, one] for at, one in enumerate(path)) for path in paths if spelt(path) == ids)
    return -math.log(total)


def test_the_ctc_loss_is_that_of_all_paths_that_spell_the_characters() -> None:
    torch.manual_seed(3)
    loss = CtcLoss(2, 3, "mean")
    frames, lengths = torch.randn(3, 5, 2), torch.tensor([5, 4, 3])
    targets = [[1, 2], [1, 1], [2]]
    ids, num_ids = torch.tensor([[1, 2], [1, 1], [2, 0]]), torch.tensor([2, 2, 1])
    scores = loss.project(frames).detach().double().numpy()
    each = [all_paths(one[:length], ids) for one, length, ids in zip(scores, lengths.tolist(), targets, strict=True)]
    expected = {"mean": sum(each) / 3, "sum": sum(each), "characters": (each[0] / 2 + each[1] / 2 + each[2]) / 3}
    for reduction, value in expected.items():
        loss.reduction = reduction
        assert float(loss(frames, lengths, ids, num_ids).detach()) == pytest.approx(value, rel=1e-5)


def test_characters_that_the_frames_cannot_spell_count_as_nothing() -> None:
    assert [frames_needed(ids) for ids in ([5], [5, 6], [5, 5], [5, 5, 5, 1])] == [1, 2, 3, 6]
    loss = CtcLoss(2, 3, "sum")
    frames = torch.randn(2, 3, 2, requires_grad=True)
    lengths, ids, num_ids = torch.tensor([3, 2]), torch.tensor([[1, 1], [1, 1]]), torch.tensor([2, 2])
    found = loss(frames, lengths, ids, num_ids)
    found.backward()
    assert float(found.detach()) == pytest.approx(
        all_paths(loss.project(frames[0]).detach().double().numpy(), [1, 1]), rel=1e-5
    )
    assert frames.grad is not None
    assert frames.grad[0].abs().sum() > 0
    assert frames.grad[1].abs().sum() == 0


def names(head: Mmer, **shapes: int) -> set[str]:
    module = head.module(1, DIM, 3, **shapes)  # type: ignore[arg-type]
    return {name.partition(".")[0] for name, _ in module.named_parameters()}


def test_what_is_switched_off_has_no_parameters() -> None:
    assert names(SMALL, text_dim=TEXT_DIM) == {"interaction", "ctc", "classify"}
    assert names(replace(SMALL, alpha=0.0), text_dim=TEXT_DIM) == {"interaction", "classify"}
    assert names(replace(SMALL, text=False)) == {"ctc", "classify"}
    assert names(replace(SMALL, text=False, alpha=0.0)) == {"classify"}
    assert names(replace(SMALL, speech=False)) == {"classify"}
    inner = {name for name, _ in SMALL.module(1, DIM, 3, TEXT_DIM).named_parameters()}
    ungated = {name for name, _ in replace(SMALL, gate=False).module(1, DIM, 3, TEXT_DIM).named_parameters()}
    assert inner - ungated == {"interaction.gate.weight", "interaction.gate.bias"}
    mapped = {name for name in inner if "map" in name}
    assert mapped == {f"interaction.map_{block}.{part}" for block in "bd" for part in ("weight", "bias")}
    assert not any("map" in name for name, _ in SMALL.module(1, TEXT_DIM, 3, TEXT_DIM).named_parameters())


def test_the_papers_size() -> None:
    def count(head: Mmer) -> int:
        return sum(value.numel() for value in head.module(1, 768, 4, 768, 29).parameters())

    block = 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 2 * 2 * 768
    doubled = 2 * 768 * 768 + 768  # gate; and merge
    assert count(Mmer()) == 3 * block + 2 * doubled + (2 * 768 * 4 + 4) + (768 * 29 + 29) == 23_652_897
    assert count(Mmer(alpha=0.0)) == 23_652_897 - 22_301
    assert count(Mmer(code_layers=True)) == 23_652_897 + block + 2 * (768 * 768 + 768) == 31_921_953
    assert count(Mmer(text=False, alpha=0.0)) == 768 * 4 + 4


def test_what_variants_have_in_common_begins_alike() -> None:
    """An ablation compares what it switches off, and not two draws of all other weights."""
    begun = {}
    for alpha, gate, code_layers, dim in product((0.0, 0.1), (True, False), (True, False), (TEXT_DIM, 8)):
        torch.manual_seed(3)
        head = replace(SMALL, alpha=alpha, gate=gate, code_layers=code_layers, dim=dim)
        begun[alpha, gate, code_layers, dim] = head.module(1, TEXT_DIM, 3, TEXT_DIM, 11).state_dict()
    for (of, state), (against, other) in combinations(begun.items(), 2):
        if of[-1] == against[-1]:
            shared = state.keys() & other.keys()
            assert {"interaction.block_d.expand.weight", "interaction.merge.weight", "classify.weight"} <= shared
            assert all(torch.equal(state[name], other[name]) for name in shared), (of, against)
    torch.manual_seed(3)
    speech = replace(SMALL, text=False).module(1, TEXT_DIM, 3, num_symbols=11).state_dict()
    assert torch.equal(speech["ctc.project.weight"], begun[0.1, True, False, TEXT_DIM]["ctc.project.weight"])
    torch.manual_seed(3)
    with apart():
        drawn = torch.rand(5)
    assert not torch.equal(drawn, torch.rand(5))


def test_the_further_loss_is_alpha_times_ctc_and_without_alpha_there_is_none() -> None:
    batch = [torch.randn(2, 1, 9, DIM), torch.tensor([9, 9]), torch.randn(2, 1, 4, TEXT_DIM), torch.tensor([4, 4])]
    characters = [torch.full((2, 1, 3, 1), 2.0), torch.tensor([1, 1])]
    further = {}
    for alpha in (0.1, 0.01):
        torch.manual_seed(0)
        logits, further[alpha] = replace(SMALL, alpha=alpha).module(1, DIM, 3, TEXT_DIM)(*batch, *characters)
    assert float(further[0.1].detach()) == pytest.approx(10 * float(further[0.01].detach()), rel=1e-5)
    torch.manual_seed(0)
    alone = replace(SMALL, alpha=0.0).module(1, DIM, 3, TEXT_DIM)(*batch)
    assert isinstance(alone, torch.Tensor)
    assert alone.shape == logits.shape


@pytest.mark.parametrize(
    ("head", "kinds"),
    [
        (SMALL, ("toy", "token_states", "characters")),
        (replace(SMALL, alpha=0.0, gate=False), ("toy", "token_states")),
        (replace(SMALL, text=False), ("characters", "toy")),
        (replace(SMALL, text=False, alpha=0.0, layer="mix"), ("toy",)),
    ],
)
def test_every_form_learns_and_scores_again_without_characters(task: Task, head: Mmer, kinds: tuple[str, ...]) -> None:
    own = only(task, *kinds)
    outcomes = head.train(own, QUICK, lambda *_: None)
    scorer = head.scoring()
    assert "characters" not in scorer.further_streams()
    unseen = only(task, *(kind for kind in kinds if kind != "characters"))
    for outcome, fold in zip(outcomes, task.folds, strict=True):
        assert ua(task.labels[task.positions(fold.test)], outcome.test.argmax(axis=1)) > 0.9
        scores = scorer.score(unseen, Trained(outcome.weights, outcome.chosen))
        np.testing.assert_allclose(scores[task.positions(fold.test)], outcome.test, atol=1e-6)
        assert (outcome.layer_weights is None) == (head.layer != "mix")


def test_the_same_seed_gives_the_same_numbers_with_dropout(task: Task) -> None:
    head, few = replace(SMALL, dropout=0.3), replace(QUICK, steps=5, eval_every=5)
    first, second = (head.train(task, few, lambda *_: None) for _ in range(2))
    assert all(np.array_equal(one.test, other.test) for one, other in zip(first, second, strict=True))


def test_mixed_precision_trains_as_well(task: Task) -> None:
    mixed = replace(QUICK, precision="bfloat16", steps=30, eval_every=15)
    for outcome, fold in zip(SMALL.train(task, mixed, lambda *_: None), task.folds, strict=True):
        assert ua(task.labels[task.positions(fold.test)], outcome.test.argmax(axis=1)) > 0.9


def test_text_alone_tells_the_class_that_words_tell(task: Task) -> None:
    head = replace(SMALL, speech=False)
    assert head.reads == ("text",)
    assert head.further_streams() == ()
    # Words do not tell the other two classes: what validation would prefer is chance, so the last weights are taken.
    last = replace(QUICK, eval_every=QUICK.steps)
    for outcome, fold in zip(head.train(task, last, lambda *_: None), task.folds, strict=True):
        truth, predicted = task.labels[task.positions(fold.test)] == 0, outcome.test.argmax(axis=1) == 0
        assert np.mean(truth == predicted) > 0.9


@pytest.mark.parametrize(
    ("head", "kinds", "words"),
    [
        (SMALL, ("toy", "characters"), "reads 3 streams.* none could be the text"),
        (SMALL, ("token_states", "characters"), "none could be the speech.*settings.speech=false"),
        (SMALL, ("toy", "token_states"), "none could be the characters.*settings.alpha=0"),
        (replace(SMALL, speech=False), ("toy", "characters"), "reads 1 streams, one of kind token_states"),
    ],
)
def test_a_missing_modality_is_named_with_what_to_do(
    task: Task, head: Mmer, kinds: tuple[str, ...], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        head.train(only(task, *kinds), QUICK, lambda *_: None)


def test_two_streams_of_speech_are_refused(task: Task) -> None:
    two = replace(task, streams={**task.streams, "other": task.streams["toy"]})
    with pytest.raises(ConfigError, match="of which 2 could be the speech"):
        SMALL.train(two, QUICK, lambda *_: None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"speech": False, "text": False}, "neither speech nor text"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"alpha": -0.1}, "alpha must be"),
        ({"alpha": math.inf}, "alpha must be"),
        ({"alpha": math.nan}, "alpha must be"),
        ({"heads": 0}, "heads must be"),
        ({"dim": 0}, "dim must be"),
        ({"encoder": "x", "layer": 3}, "is of frozen frames"),
    ],
)
def test_settings_that_make_no_network_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Mmer(**settings)


def test_heads_that_do_not_divide_the_size_are_refused(task: Task) -> None:
    with pytest.raises(ConfigError, match="4 wide, which 3 attention heads do not divide"):
        replace(SMALL, heads=3).train(task, QUICK, lambda *_: None)


def test_utterances_with_too_few_frames_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # 4 to 8 characters of "so it is" in 3 to 7 frames: only "so i" and "so it" have enough, once each.
    short = make_task(tmp_path / "short", num=12, num_frames=3)
    with caplog.at_level(logging.WARNING):
        outcomes = SMALL.train(short, replace(QUICK, steps=4, eval_every=2), lambda *_: None)
    assert "10 of 12 utterances, such as 'u000', have fewer frames than their characters need" in caplog.text
    assert all(np.isfinite(outcome.test).all() for outcome in outcomes)


def test_speech_without_enough_frames_for_any_transcript_is_refused(tmp_path: Path) -> None:
    none = make_task(tmp_path / "none", num=12, num_frames=1)
    everything = [name for name in none.ids if none.streams["toy"].num_frames(name) < 4]
    fold = replace(none.folds[0], train=tuple(everything), validation=tuple(everything), test=tuple(everything))
    kept = [none.ids.index(name) for name in everything]
    few = replace(none, ids=everything, labels=none.labels[kept], folds=(fold,))
    with pytest.raises(ConfigError, match=r"CTC cannot spell them.*settings.alpha=0"):
        SMALL.train(few, QUICK, lambda *_: None)


def respelt(task: Task, folder: Path, texts: dict[str, str]) -> Task:
    """Return a task with the characters of other texts, for some utterances; what has no id is dropped."""
    stream = Characters(unknown="drop", empty="boundary")
    spec, extractor = stream.spec(), stream.load("cpu", "float32")
    with StreamWriter(folder, spec, "zarr", "frames") as writer:
        for name in task.ids:
            [target] = extractor.extract([texts.get(name, "so it is")])
            assert isinstance(target, Features)
            writer.commit([store(name, "0", 0, target, spec, "frames")], {})
    return replace(task, streams={**task.streams, "characters": featcache.open(folder)["characters"]})


def test_transcripts_without_characters_and_dropped_ones_are_counted(
    task: Task, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = respelt(task, tmp_path / "some", {"u003": "今日は元気です 123", "u005": "room 101", "u006": "[LAUGHTER]"})
    with caplog.at_level(logging.WARNING):
        SMALL.inputs(other)
    name = other.streams["characters"].name
    assert [record.message for record in caplog.records] == [
        f"{name}: 13 characters were left out, which its vocabulary does not have, in 2 of 24 utterances, such as "
        "'u003'.",
        f"{name}: 2 of 24 utterances, such as 'u003', have no characters in its vocabulary: from their speech CTC "
        "learns one boundary between words.",
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        SMALL.inputs(task)
        replace(SMALL, alpha=0.0).inputs(other)
    assert not caplog.records


def test_transcripts_of_which_none_has_characters_are_refused(task: Task, tmp_path: Path) -> None:
    none = respelt(task, tmp_path / "none", dict.fromkeys(task.ids, "今日は元気です 123"))
    words = r"24 of 24 utterances, such as 'u000', have no characters in its vocabulary; 240 characters were left out"
    with pytest.raises(ConfigError, match=rf"^characters-\w+: {words}.*nothing to spell.*settings.alpha=0"):
        SMALL.train(none, QUICK, lambda *_: None)
    replace(SMALL, alpha=0.0).inputs(none)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, str]:
    """A small encoder's front end cached, the samples, characters, and the states of another small encoder."""
    folder = tmp_path_factory.mktemp("spoken")
    manifest = write_corpus(folder / "wav", [0.5, 0.8, 0.65, 0.9, 0.7, 0.55, 0.85, 0.6])
    checkpoint = str(speech_checkpoint(folder / "w2v2", norm="group"))
    manifest = Manifest([replace(one, text="so it is") for one in manifest], folder=manifest.folder)
    streams: list[Stream] = [ConvFeatures(checkpoint=checkpoint), Waveform(), Characters()]
    streams.append(TokenStates(checkpoint=str(text_checkpoint(folder / "bert")), layers="last", special_tokens=True))
    for stream in streams:
        extract(manifest, folder / "cache", stream, Options(dtype="float32"))
    cache = featcache.open(folder / "cache")
    names = [stream.kind() for stream in streams]
    labels = np.array([one.label == "sad" for one in manifest]).astype(int)
    folds = tuple(make_folds(manifest, "speaker", validation=0.5))
    return Task({name: cache[name] for name in names}, list(manifest.ids), labels, ("happy", "sad"), folds), checkpoint


def trained(checkpoint: str, **settings: Any) -> Mmer:
    return Mmer(heads=2, feed_forward=8, dropout=0.0, encoder=checkpoint, encoder_dropout=False, **settings)


def form(spoken: tuple[Task, str], kind: str) -> Task:
    return only(spoken[0], kind, "token_states", "characters")


def fresh(head: Mmer, task: Task) -> MmerModule:
    torch.manual_seed(0)
    return head.module(**head.shapes(task))


def outputs(module: MmerModule, head: Mmer, task: Task, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    batch = head.inputs(task).training_batch(torch.tensor([rows]), None, torch.Generator())
    logits, further = module(*(item[0] for item in batch))
    return logits, further


def scores(head: Mmer, task: Task, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    return outputs(fresh(head, task).eval(), head, task, rows)


def test_an_encoder_gives_the_same_from_the_samples_and_from_its_front_end(spoken: tuple[Task, str]) -> None:
    head = trained(spoken[1])
    for rows in ([0, 1, 3], [2]):
        for ours, theirs in zip(
            scores(head, form(spoken, "conv_features"), rows), scores(head, form(spoken, "waveform"), rows), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def silence(module: nn.Module) -> None:
    """Set every dropout of a network to 0, which stays in training mode."""
    block: Any
    for block in module.modules():
        if isinstance(block, nn.Dropout):
            block.p = 0.0
        elif isinstance(getattr(block, "dropout", None), float):
            block.dropout = 0.0
        if hasattr(block, "config"):
            block.config.layerdrop = 0.0


def test_a_batch_changes_neither_scores_nor_the_further_loss_of_an_encoder_in_training(
    spoken: tuple[Task, str],
) -> None:
    head, task = replace(trained(spoken[1]), encoder_dropout=True), form(spoken, "conv_features")
    module = fresh(head, task)
    silence(module)
    assert module.training
    assert module.speech is not None
    assert module.speech.get_submodule("model").training
    logits, further = outputs(module, head, task, [0, 1, 3])
    each = [outputs(module, head, task, [number]) for number in (0, 1, 3)]
    torch.testing.assert_close(logits, torch.cat([one for one, _ in each]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(further, torch.stack([one for _, one in each]).mean(), rtol=1e-5, atol=1e-6)
    assert len({round(float(one.detach()), 4) for _, one in each}) == 3


def test_characters_teach_the_encoder_and_nothing_that_only_emotions_use(spoken: tuple[Task, str]) -> None:
    head, task = trained(spoken[1]), form(spoken, "conv_features")
    module = fresh(head, task)
    _, further = outputs(module, head, task, [0, 1, 3])
    further.backward()
    gradients = {name: value.grad for name, value in module.named_parameters() if value.requires_grad}
    shares = {name: 0.0 if value is None else float(value.abs().sum()) for name, value in gradients.items()}
    reached = {name.partition(".")[0] for name, share in shares.items() if share}
    assert reached == {"speech", "ctc"}
    assert all(shares[name] > 0 for name in shares if name.endswith("q_proj.weight"))
    assert any(name.endswith("layers.0.attention.q_proj.weight") for name in shares)


def test_the_context_network_trains_and_is_what_was_learnt_elsewhere(spoken: tuple[Task, str]) -> None:
    head, task = trained(spoken[1]), form(spoken, "conv_features")
    module = head.module(**head.shapes(task))
    own = {name for name, _ in module.named_parameters() if name.startswith("speech.model.")}
    assert set(head.pretrained(module)) == own
    assert any(".encoder.layers." in name for name in own)
    assert not any("feature_extractor" in name for name in own)
    assert Mmer().pretrained(Mmer(heads=1).module(1, DIM, 3, TEXT_DIM)) == ()
    settings = FitSettings(steps=4, batch_size=4, eval_every=2, learning_rate=(1e-3,), accumulate=2)
    before = {name: value.numpy().copy() for name, value in module.state_dict().items() if name in own}
    for outcome in head.train(task, settings, lambda *_: None):
        changed = {name for name, value in before.items() if not np.array_equal(outcome.weights[name], value)}
        assert any(name.endswith("layers.0.attention.q_proj.weight") for name in changed)
        assert any("feature_projection" in name for name in changed)
        scored = head.scoring().score(
            only(task, "conv_features", "token_states"), Trained(outcome.weights, outcome.chosen)
        )
        fold = next(fold for fold in task.folds if fold.name == outcome.fold)
        np.testing.assert_allclose(scored[task.positions(fold.test)], outcome.test, atol=1e-6)


def test_the_encoders_dropout_works_in_training_and_its_specaugment_never(
    spoken: tuple[Task, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    head, task = replace(trained(spoken[1]), encoder_dropout=True), form(spoken, "conv_features")
    module = head.module(**head.shapes(task))
    assert module.speech is not None
    model: Any = module.speech.get_submodule("model")
    assert model.training
    assert not model.masked_spec_embed.requires_grad
    model.config.mask_time_length = 2  # of frames, of which an utterance needs more to be masked
    monkeypatch.setattr(SpeechEncoder, "_augmented", refuse)
    one, other = (outputs(module, head, task, [0, 1])[0] for _ in range(2))
    assert not torch.equal(one, other)
    noisy = load_encoder(task.streams["conv_features"].spec, spoken[1], None, None, True)
    noisy.get_submodule("model").config.mask_time_length = 2  # type: ignore[union-attr]
    with pytest.raises(AssertionError, match="masked"):
        noisy.train()(torch.zeros(1, 1, 20, task.streams["conv_features"].spec.dim), torch.tensor([20]))


def refuse(*_: Any) -> torch.Tensor:
    raise AssertionError("masked")


def of_samples(spoken: tuple[Task, str], folder: Path, samples: dict[str, int]) -> Task:
    """Return a task on waveforms of so many samples."""
    spec = spoken[0].streams["waveform"].spec
    with StreamWriter(folder, spec, "zarr", "frames") as writer:
        frames = {name: Features(np.ones((1, number, 1), np.float32)) for name, number in samples.items()}
        writer.commit([store(name, "0", 0, one, spec, "frames") for name, one in frames.items()], {})
    return replace(spoken[0], streams={"waveform": featcache.open(folder)["waveform"]}, ids=list(samples))


def test_an_utterance_too_short_for_the_encoder_is_named(spoken: tuple[Task, str], tmp_path: Path) -> None:
    short = of_samples(spoken, tmp_path, {"u000": 399, "u001": 9000})
    with pytest.raises(StreamError, match=r"'u000' has 399 frames in waveform-.* needs 400 for its first state. Leave"):
        trained(spoken[1], text=False, alpha=0.0).inputs(short)


def test_the_frames_of_samples_are_those_of_the_encoders_own_convolutions(
    spoken: tuple[Task, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fast = shutil.copytree(spoken[1], tmp_path / "fast")
    config = json.loads((fast / "config.json").read_text(encoding="utf-8"))
    strides = [*config["conv_stride"][:-1], 1]
    (fast / "config.json").write_text(json.dumps({**config, "conv_stride": strides}), encoding="utf-8")
    # 12 frames of 20 ms, 22 of 10 ms
    task = of_samples(spoken, tmp_path / "samples", {"u000": 4000, "u001": 9000})
    task = respelt(task, tmp_path / "characters", {"u000": "so it is so it is"})
    for checkpoint, told in ((spoken[1], True), (str(fast), False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            trained(checkpoint, text=False).inputs(task)
        assert ("1 of 2 utterances, such as 'u000', have fewer frames" in caplog.text) == told


def test_an_encoder_is_not_guessed(spoken: tuple[Task, str]) -> None:
    with pytest.raises(ConfigError, match="samples only through an encoder.*settings.encoder=CHECKPOINT"):
        Mmer(heads=2).inputs(form(spoken, "waveform"))
    with pytest.raises(ConfigError, match="needs the stream that it starts from"):
        trained(spoken[1]).module(1, DIM, 3)
    with pytest.raises(ConfigError, match="No encoder starts from toy"):
        trained(spoken[1]).module(1, DIM, 3, speech_spec=SPECS["toy"])
