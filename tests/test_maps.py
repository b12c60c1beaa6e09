"""Maps of files: what they hold, that they keep no file open, and when they go."""

import gc
import os
from pathlib import Path

import numpy as np
import pytest

from featcache.maps import map_array


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
