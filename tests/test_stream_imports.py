"""Listing and configuring streams stays light: a plug-in's file imports no heavy package."""

import subprocess
import sys

import pytest

from featcache import registry

HEAVY = ("librosa", "opensmile", "pandas", "resemblyzer", "scipy", "torch", "transformers", "webrtcvad")


def heavy_after(statement: str) -> str:
    """Return the heavy packages that a new interpreter has loaded after a statement."""
    code = f"import sys\n{statement}\nprint(*sorted(set(sys.modules) & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("name", registry.names("featcache.streams"))
def test_importing_a_stream_imports_no_heavy_package(name: str) -> None:
    assert heavy_after(f"import featcache.streams.{name}") == ""


def test_a_heavy_import_would_be_noticed() -> None:
    assert heavy_after("import scipy") == "scipy"


@pytest.mark.parametrize("name", ["ge2e_states", "log_mel", "speaker"])
def test_a_spec_without_a_checkpoint_of_transformers_needs_none_either(name: str) -> None:
    statement = (
        f"from featcache import registry, stream\nregistry.load('featcache.streams', {name!r}, stream.Stream)().spec()"
    )
    assert heavy_after(statement) == ""
