"""A view gives the cache's frames as tensors, the same from memory and from disk."""

from pathlib import Path

import numpy as np
import pytest
import torch
from makers import write_corpus
from test_cache import BACKENDS, run

import featcache
from featcache.cache import CachedStream
from featcache.errors import CacheError
from featcache.view import Place, View


def make(tmp_path: Path, **options: object) -> CachedStream:
    run(write_corpus(tmp_path / "corpus", [0.3, 0.51, 0.2, 1.0]), tmp_path / "cache", **options)
    return featcache.open(tmp_path / "cache")["ramp"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize("place", ["memory", "disk", "auto"])
def test_windows_hold_the_frames_and_zeros_behind_the_end(
    tmp_path: Path, backend: str, dtype: str, place: Place
) -> None:
    stream = make(tmp_path, backend=backend, dtype=dtype)
    view = View(stream, ["u003", "u000"], layers=[2, 0], place=place)
    frames, counts = view.windows(torch.tensor([1, 0, 1]), torch.tensor([20, 30, 0]), 25)
    assert frames.shape == (3, 2, 25, 8)
    assert counts.tolist() == [10, 25, 25]
    np.testing.assert_array_equal(frames[0, :, :10], stream.window("u000", 20, 10, [2, 0]).astype("float32"))
    np.testing.assert_array_equal(frames[1], stream.window("u003", 30, 25, [2, 0]).astype("float32"))
    assert not frames[0, :, 10:].any()


def test_padded_reaches_to_the_longest_of_the_batch(tmp_path: Path) -> None:
    view = View(make(tmp_path), ["u000", "u001", "u002"])
    frames, lengths = view.padded(torch.tensor([2, 0]))
    assert frames.shape == (2, 3, 30, 8)
    assert lengths.tolist() == [20, 30]


def test_stats_follow_the_order_of_ids_and_layers(tmp_path: Path) -> None:
    stream = make(tmp_path)
    mean, std = View(stream, ["u002", "u001"], layers=[1]).stats()
    np.testing.assert_array_equal(mean, stream.stats(["u002", "u001"])[0][:, [1]])
    np.testing.assert_array_equal(std, stream.stats(["u002", "u001"])[1][:, [1]])


def test_missing_utterances_are_counted_and_named(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="lacks 1 of 2 utterances, such as 'u009'"):
        View(make(tmp_path), ["u000", "u009"])


def test_a_window_that_starts_outside_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="frame 30 was asked of 'u000', which has 30"):
        View(make(tmp_path), ["u000"]).windows(torch.tensor([0]), torch.tensor([30]), 5)
