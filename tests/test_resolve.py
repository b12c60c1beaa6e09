"""Which cached streams a preset means."""

from pathlib import Path
from typing import Any

import pytest

import featcache
from featcache.commit import StreamWriter
from featcache.errors import CacheError
from featcache.stream import StreamSpec
from pipelines.config import TrainConfig
from pipelines.resolve import meant, resolve_streams


def hold(cache: Path, kind: str, settings: dict[str, Any], checkpoint: str | None = None) -> str:
    """Put a stream without utterances into a cache; return its full name."""
    named = None if checkpoint is None else {"name": checkpoint, "weights_sha256": "0"}
    spec = StreamSpec(kind, 1, "audio", settings, ("l",), 2, checkpoint=named)
    with StreamWriter(cache, spec, "zarr", "frames") as writer:
        writer.commit([], {"broken": "a reason"})
    return spec.name


def preset(kind: str, **settings: Any) -> dict[str, Any]:
    return {"extract": {"streams": {kind: settings}}, "train": {"streams": [kind]}}


def test_a_checkpoint_is_told_by_the_last_part_of_its_name(tmp_path: Path) -> None:
    cased = hold(tmp_path, "token_states", {"layers": "last"}, "bert-large-cased")
    uncased = hold(tmp_path, "token_states", {"layers": "all"}, "bert-large-uncased")
    cache = featcache.open(tmp_path)
    assert resolve_streams(cache, preset("token_states", checkpoint="org/bert-large-cased")) == {"token_states": cased}
    wanted = preset("token_states", checkpoint="/models/bert-large-uncased", layers="last")
    assert resolve_streams(cache, wanted) == {"token_states": uncased}  # of all layers: the last is among them
    with pytest.raises(CacheError, match="has no token_states with checkpoint=bert-large-cased, layers=all; it has: "):
        resolve_streams(cache, preset("token_states", checkpoint="bert-large-cased", layers="all"))


def test_what_is_missing_is_told_with_its_command(tmp_path: Path) -> None:
    other = hold(tmp_path, "hidden_states", {"pad": None}, "wav2vec2-base")
    wanted = preset("hidden_states", checkpoint="facebook/wav2vec2-large-lv60", pad="match_log_mel")
    with pytest.raises(CacheError) as told:
        resolve_streams(featcache.open(tmp_path), wanted)
    assert f"it has: {other}. Make it with: featcache extract MANIFEST --cache {tmp_path}" in str(told.value)
    assert "--set hidden_states.checkpoint=facebook/wav2vec2-large-lv60 --set hidden_states.pad=match_log_mel" in str(
        told.value
    )
    with pytest.raises(CacheError, match="none of that kind"):
        resolve_streams(featcache.open(tmp_path), preset("speaker"))


def test_of_several_that_fit_the_named_one_is_taken(tmp_path: Path) -> None:
    one = hold(tmp_path, "log_mel", {"definition": "mel80_20ms", "scale": "a"})
    two = hold(tmp_path, "log_mel", {"definition": "mel80_20ms", "scale": "b"})
    cache = featcache.open(tmp_path)
    with pytest.raises(CacheError, match="could be any of .*log_mel-.*log_mel-.*--stream"):
        resolve_streams(cache, preset("log_mel", definition="mel80_20ms"))
    for name in (one, two):
        assert resolve_streams(cache, preset("log_mel", definition="mel80_20ms"), [name]) == {"log_mel": name}


def test_a_named_stream_does_not_take_the_place_of_one_that_fits(tmp_path: Path) -> None:
    bert = hold(tmp_path, "token_states", {"layers": "last"}, "bert-large-uncased")
    all_layers = hold(tmp_path, "token_states", {"layers": "all"}, "bert-large-uncased")
    roberta = hold(tmp_path, "token_states", {"layers": "last"}, "roberta-large")
    cache = featcache.open(tmp_path)
    for name in (bert, all_layers):
        wanted = preset("token_states", checkpoint="bert-large-uncased", layers="last")
        assert resolve_streams(cache, wanted, [name]) == {"token_states": name}
        wanted = preset("token_states", checkpoint="roberta-large", layers="last")
        assert resolve_streams(cache, wanted, [name]) == {"token_states": roberta}
    # Where nothing fits, what is named is taken: the user's own copy of a checkpoint under another name.
    assert resolve_streams(cache, preset("token_states", checkpoint="mine"), [bert]) == {"token_states": bert}


def test_phones_are_those_of_the_alignment_that_the_preset_names(tmp_path: Path) -> None:
    held = {
        aligner: hold(tmp_path, "phones", {"alignment": {"kind": "alignment", "settings": {"aligner": aligner}}})
        for aligner in ("mfa", "pocketsphinx")
    }
    for aligner, name in held.items():
        wanted = {
            "extract": {"streams": {"alignment": {"aligner": aligner}, "phones": {}}}, "train": {"streams": ["phones"]},
        }  # fmt: skip
        assert resolve_streams(featcache.open(tmp_path), wanted) == {"phones": name}
        for other in held.values():  # unless another is named
            assert resolve_streams(featcache.open(tmp_path), wanted, [other]) == {"phones": other}


def test_phones_of_any_alignment_do_where_there_is_one(tmp_path: Path) -> None:
    name = hold(tmp_path, "phones", {"alignment": {"kind": "alignment", "settings": {"aligner": "mfa"}}})
    wanted = {
        "extract": {"streams": {"alignment": {"aligner": "pocketsphinx"}, "phones": {}}},
        "train": {"streams": ["phones"]},
    }
    assert resolve_streams(featcache.open(tmp_path), wanted) == {"phones": name}


def test_a_presets_stream_is_taken_where_a_cache_has_several_of_its_kind(tmp_path: Path) -> None:
    slow = hold(tmp_path, "log_mel", {"definition": "mel80_20ms"})
    chosen = preset("log_mel", definition="mel80_20ms")
    config = TrainConfig(streams=("log_mel",))
    assert meant(config, chosen, tmp_path) == {}  # the only one
    fast = hold(tmp_path, "log_mel", {"definition": "mel128_10ms"})
    assert meant(config, chosen, tmp_path) == {"log_mel": slow}
    assert meant(TrainConfig(streams=(fast,)), chosen, tmp_path) == {}
    assert meant(config, {}, tmp_path) == {}
    with pytest.raises(CacheError, match="has no log_mel with definition=mfcc"):
        meant(config, preset("log_mel", definition="mfcc"), tmp_path)
    assert meant(config, chosen, tmp_path / "none") == {}
