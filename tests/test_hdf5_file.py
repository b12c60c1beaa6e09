"""HDF5 files on a disk that fills: an error at any byte, no crash, and whole files otherwise."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from featcache.hdf5_file import create

CHILD = """
import resource, signal, sys
from pathlib import Path
import numpy as np, h5py
from featcache.hdf5_file import create

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
refused = 0
for size in [0, 1, 95, 96, 97, 800, 2048, 2500, 6000, 12000, 20000, 24000]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        with create(Path(sys.argv[1])) as file:
            file.create_dataset("ids", data=["a", "b"], dtype=h5py.string_dtype())
            file.create_dataset("frames", data=np.arange(6000, dtype=np.float32).reshape(3, 1000, 2))
            file.create_dataset("packed", data=np.zeros((40, 40)), compression="gzip")
    except OSError as error:
        refused += error.strerror == "File too large"
print(refused)
"""


def test_a_file_that_cannot_grow_is_an_error_at_any_byte(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "a.h5")], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "12", "")


def test_what_is_written_is_read_back_and_the_same_bytes_come_twice(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((3, 1000, 8), dtype=np.float32)
    for name in ("a.h5", "b.h5"):
        with create(tmp_path / name) as file:
            file.attrs["stream"] = "x"
            file.create_dataset("frames", data=values)
            file.create_dataset("packed", data=np.zeros((40, 40)), compression="gzip")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    with h5py.File(tmp_path / "a.h5", "r") as file:
        assert np.array_equal(file["frames"], values)
        assert file["frames"].id.get_offset() is not None  # contiguous: it can be mapped
        assert file["packed"].shape == (40, 40)


def test_an_error_inside_is_told_and_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="mine"), create(tmp_path / "a.h5"):
        raise KeyError("mine")
