"""Every command and option is documented, in its help and in the README, and help is quick to import."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from makers import write_corpus
from test_cli import call

import featcache
from featcache.extract import Options, extract
from featcache.streams.log_mel import LogMel
from pipelines.cli import app


def commands() -> dict[str, typer.core.TyperCommand]:
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", commands())
def test_every_command_and_option_has_help(name: str) -> None:
    command = commands()[name]
    assert command.help
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{name}: {parameter.name}"


def test_help_shows_the_defaults() -> None:
    for name, default in {"extract": "float16", "train-heads": "session", "fuse": "prob"}.items():
        assert default in call(name, "--help")


@pytest.mark.parametrize("name", commands())
def test_every_command_is_in_the_readme(name: str) -> None:
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    assert f"featcache {name}" in readme


def test_list_shows_every_plugin_with_its_title() -> None:
    output = call("list")
    for name in ("iemocap", "hidden_states", "layer_mix", "hdf5", "demo"):
        assert re.search(rf"^  {name}\b", output, flags=re.MULTILINE)
    assert "not usable" not in output


HEAVY = {"torch", "transformers", "librosa", "sklearn", "scipy", "matplotlib", "zarr", "h5py"}


def imported_by(*arguments: object) -> set[str]:
    """Run a command in a process of its own and return the top-level modules that it left imported."""
    code = (
        "import sys, pipelines.cli; "
        f"pipelines.cli.app({[str(argument) for argument in arguments]!r}, standalone_mode=False); "
        "print('\\n' + ' '.join({name.partition('.')[0] for name in sys.modules}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [("--help",), ("extract", "--help"), ("train-heads", "--help")])
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert not imported_by(*arguments) & {*HEAVY, "numpy"}


@pytest.mark.parametrize("backend", ["zarr", "hdf5"])
def test_info_imports_nothing_heavy(tmp_path: Path, backend: str) -> None:
    manifest = write_corpus(tmp_path / "corpus", [0.3, 0.5])
    extract(manifest, tmp_path / "cache", LogMel(), Options(device="cpu", backend=backend))
    assert not imported_by("info", tmp_path / "cache") & HEAVY


def test_coverage_does_not_import_torch(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path / "corpus", [0.3, 0.5])
    manifest.write(tmp_path / "manifest.jsonl")
    extract(manifest, tmp_path / "cache", LogMel(), Options(device="cpu"))
    assert not imported_by("coverage", tmp_path / "cache", tmp_path / "manifest.jsonl") & {"torch", "transformers"}


def test_what_a_command_imports_is_seen() -> None:
    assert {"torch", "numpy", "yaml"} <= imported_by("describe", "linear_probe")


def test_the_package_gives_its_public_names_when_asked() -> None:
    code = "import sys, featcache; before = 'numpy' in sys.modules; from featcache import *; print(before, Cache, open)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("False <class 'featcache.cache.Cache'> <function open")
    assert {name for name in featcache.__all__ if hasattr(featcache, name)} == set(featcache.__all__)
    with pytest.raises(AttributeError, match="no attribute 'opne'"):
        _ = featcache.opne


def test_the_readmes_plain_readers_read_every_utterance(tmp_path: Path) -> None:
    """The block that uses zarr and h5py alone is run as it stands, on caches of both backends."""
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    [block] = [block for block in re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL) if "import zarr" in block]
    manifest = write_corpus(tmp_path / "corpus", [0.3, 0.5, 0.2])
    for backend in ("zarr", "hdf5"):
        extract(manifest, tmp_path / backend, LogMel(), Options(device="cpu", backend=backend))
    name = LogMel().spec().name
    block = block.replace("cache/hidden_states-0a1b2c3d/all.h5", f"{tmp_path}/hdf5/{name}/all.h5")
    block = block.replace("cache/hidden_states-0a1b2c3d", f"{tmp_path}/zarr/{name}")
    block = re.sub(r"^( +)mean = .*$", r"\g<0>\n\1read.append((id, frames, mean))", block, flags=re.MULTILINE)
    read: list[tuple[str, np.ndarray, np.ndarray]] = []
    exec(block, {"read": read})  # noqa: S102 - what a reader would paste
    assert sorted(one for one, _, _ in read) == sorted([*manifest.ids, *manifest.ids])
    stream = featcache.open(tmp_path / "zarr")["log_mel"]
    for one, frames, mean in read:
        assert np.array_equal(frames, stream[one])
        assert np.array_equal(mean, stream.stats([one])[0][0])
