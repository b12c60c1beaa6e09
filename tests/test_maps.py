"""Maps of files: what they hold, that they keep no file open, and when they go."""

import gc
import os
from pathlib import Path

import numpy as np
import pytest

from featcache.maps import fetch, map_array, map_stack


def mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


def test_a_map_is_the_array_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    values = np.arange(5000, dtype=np.float16).reshape(50, 100)
    path.write_bytes(b"123" + values.tobytes() + b"the rest")
    before = len(os.listdir("/proc/self/fd"))
    array = map_array(path, np.float16, (50, 100), 3)
    assert np.array_equal(array, values)
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_a_map_lives_as_long_as_a_view_of_it(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(np.arange(9, dtype=np.int32).tobytes())
    view = map_array(path, np.int32, (3, 3))[1:, :2]
    gc.collect()
    assert mapped(path)
    assert view.tolist() == [[3, 4], [6, 7]]
    del view
    gc.collect()
    assert not mapped(path)


def test_files_that_are_too_short_missing_or_empty(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(15))
    with pytest.raises(ValueError, match="has 15 bytes, and 16 are needed"):
        map_array(path, np.float32, (2, 2))
    with pytest.raises(FileNotFoundError):
        map_array(tmp_path / "none", np.float32, (2, 2))
    assert map_array(path, np.float32, (0, 4)).shape == (0, 4)


def test_files_are_one_array_where_they_are_mapped_one_behind_the_other(tmp_path: Path) -> None:
    values = np.arange(3 * 50 * 100, dtype=np.float32).reshape(3, 50, 100)
    paths = [tmp_path / str(number) for number in range(3)]
    for path, one in zip(paths, values, strict=True):
        path.write_bytes(b"12345678" + one.tobytes() + b"the rest")
    before = len(os.listdir("/proc/self/fd"))
    stack = map_stack(paths, np.float32, (50, 100), 8)
    assert np.array_equal(stack, values)
    assert len(os.listdir("/proc/self/fd")) == before
    assert not stack.flags.writeable
    one = stack[1, 2:]
    del stack
    gc.collect()
    assert np.array_equal(one, values[1, 2:])
    del one
    gc.collect()
    assert not any(mapped(path) for path in paths)


def test_one_file_of_several_that_cannot_be_mapped_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(16))
    (tmp_path / "b").write_bytes(bytes(15))
    with pytest.raises(ValueError, match=r"b' has 15 bytes, and 16 are needed"):
        map_stack([tmp_path / "a", tmp_path / "b"], np.float32, (2, 2))
    gc.collect()
    assert not mapped(tmp_path / "a")
    assert map_stack([tmp_path / "a", tmp_path / "b"], np.float32, (0, 4)).shape == (2, 0, 4)
    assert map_stack([], np.float32, (2, 2)).shape == (0, 2, 2)


def test_fetching_gives_the_array_itself(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(np.arange(60000, dtype=np.float32).tobytes())
    stack = map_stack([path], np.float32, (600, 100))
    for window in (stack, stack[:, 7:200], stack[:, 600:], stack[:0]):
        assert fetch(window) is window
