"""The program ``mfa`` of the Montreal Forced Aligner: where it is, whether it works, and running it.

It is another program in another environment: Kaldi's bindings exist on conda-forge alone, and the package of the same
name on PyPI installs but does not run, so that only ``mfa version`` tells whether it is usable.

Every run gets an ``MFA_ROOT_DIR`` of its own. The option ``--temporary_directory`` is not enough to keep runs apart:
MFA 3.4.3 unpacks models into ``MFA_ROOT_DIR/extracted_models`` after removing what lies there (``Archive.__init__`` of
models/classes.py), rewrites ``MFA_ROOT_DIR/command_history.yaml`` at exit, and reads settings of the user's own from
``MFA_ROOT_DIR/global_config.yaml`` (config.py). Since downloaded models lie in ``MFA_ROOT_DIR/pretrained_models``,
names are looked up here, as MFA does it (``MfaModel.get_available_models``), and handed over as paths.

Source: the package montreal-forced-aligner 3.4.3 and its documentation.
"""

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from queue import Empty, Queue
from typing import IO, Literal

from featcache.errors import ConfigError
from featcache.mfa_folder import run_folder

ROOT_VARIABLE = "MFA_ROOT_DIR"
INSTALL = (
    "Install the Montreal Forced Aligner with 'conda env create -f environment.yml' (conda-forge; pip alone cannot), "
    "then set program to the path of mfa in that environment, such as ~/miniforge3/envs/featcache-mfa/bin/mfa, or put "
    "it on PATH."
)
_NAME = "mfa"
_VERSION_TIMEOUT_S = 180  # its imports take seconds, and minutes from a cold network disk
_TICK_S = 1.0
_STRAGGLE_S = 10.0
# Settings of this process's Python, and of a profile of MFA's, would change what another environment does.
_LEFT_OUT = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONWARNINGS", "MFA_PROFILE")

ModelKind = Literal["acoustic", "dictionary", "g2p"]
_EXTENSIONS: Mapping[ModelKind, tuple[str, ...]] = {
    "acoustic": (".zip", ".am"),
    "dictionary": (".dict", ".txt"),
    "g2p": (".zip", ".g2p"),
}


@dataclass(frozen=True)
class Status:
    """Whether the program is usable.

    Attributes:
        path: where it is; None where there is none.
        version: what it says of itself; None where it does not run.
        problem: why it is not usable, and what to do; empty where it is.
    """

    path: Path | None
    version: str | None
    problem: str


def status(program: str | None = None) -> Status:
    """Return whether the program is usable, without raising.

    Args:
        program: its path or name; None looks for ``mfa`` on PATH.
    """
    path = None
    try:
        path = find(program)
        return Status(path, version(path), "")
    except ConfigError as error:
        return Status(path, None, str(error))


def find(program: str | None = None) -> Path:
    """Return the program's absolute path.

    Args:
        program: its path or name; None looks for ``mfa`` on PATH.

    Raises:
        ConfigError: there is none; says how to install it.
    """
    wanted = _NAME if program is None else str(Path(program).expanduser())
    found = shutil.which(wanted)
    if found is None:
        where = "on PATH" if program is None else f"at {program!r}"
        raise ConfigError(f"There is no program 'mfa' {where} that can be started. {INSTALL}")
    return Path(found).absolute()


def version(path: Path) -> str:
    """Return the version that the program tells, such as ``"3.4.3"``; asked once in a process.

    Raises:
        ConfigError: it does not run, or is older than 3, or newer than 4.
    """
    return _version(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _version(path: Path, _: int) -> str:
    with run_folder() as root:  # it writes a configuration even for this
        try:
            told = subprocess.run(
                [path, "version"], env=environment(path, root), stdin=subprocess.DEVNULL, capture_output=True,
                timeout=_VERSION_TIMEOUT_S, encoding="utf-8", errors="replace", check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ConfigError(f"'{path} version' does not work: {error}. {INSTALL}") from error
    numbers = re.findall(r"^\s*(\d+\.\d+\S*)\s*$", told.stdout, re.MULTILINE)
    if told.returncode != 0 or not numbers:
        said = last_lines(f"{told.stdout}\n{told.stderr}", 1) or "nothing"
        raise ConfigError(
            f"'{path} version' does not work: it ended with code {told.returncode} and {said!r}. {INSTALL}"
        )
    found = str(numbers[-1])
    if not 3 <= int(found.split(".")[0]) <= 4:
        raise ConfigError(f"{path} is version {found} of the Montreal Forced Aligner; version 3 is needed. {INSTALL}")
    return found


def environment(program: Path, root: Path) -> dict[str, str]:
    """Return the environment to run the program in, as if its conda environment were activated.

    Args:
        program: its path; the programs beside it (sqlite3, OpenFst, Kaldi) are found first.
        root: a folder of this run's own.
    """
    values = {name: value for name, value in os.environ.items() if name not in _LEFT_OUT}
    beside = dict.fromkeys([str(program.parent), str(program.resolve().parent)])
    values["PATH"] = os.pathsep.join([*beside, values.get("PATH", os.defpath)])
    values[ROOT_VARIABLE] = str(root)
    return values | {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}


def find_model(kind: ModelKind, given: str) -> Path:
    """Return the file of a model that is given by name or path.

    Args:
        kind: what it is.
        given: a name as ``mfa model list`` shows it, or a path of a file.

    Raises:
        ConfigError: there is no such file, or it is of another kind; says how to download it.
    """
    extensions = _EXTENSIONS[kind]
    path = Path(given).expanduser()
    if path.suffix in (".yaml", ".yml"):
        raise ConfigError(f"{given!r}: MFA's YAML files of several models a corpus are not supported. Give one {kind}.")
    if not is_name(kind, given):
        if not path.is_file() or path.suffix not in extensions:
            raise ConfigError(
                f"There is no file {given!r} for MFA's {kind} model. Expected a name, or the path of a file that ends "
                f"in {' or '.join(extensions)}."
            )
        return path.absolute()
    installed = installed_models(kind)
    if given in installed:
        return installed[given]
    raise ConfigError(
        f"MFA's {kind} model {given!r} is not installed in {_models(kind)}; installed there: "
        f"{', '.join(installed) or 'none'}. Download it with 'mfa model download {kind} {given}', set {ROOT_VARIABLE} "
        "to where it is, or give the path of a file."
    )


def is_name(kind: ModelKind, given: str) -> bool:
    """Return whether a model is given by its name, as ``mfa model download`` takes it, and not by a path."""
    path = Path(given)
    return path.suffix not in _EXTENSIONS[kind] and path.name == given


def installed_models(kind: ModelKind) -> dict[str, Path]:
    """Return name to file of the models that ``mfa model download`` has fetched for this user."""
    # Of one name with several endings, the first ending counts.
    files = [file for ending in reversed(_EXTENSIONS[kind]) for file in _models(kind).glob(f"*{ending}")]
    return {file.stem: file.absolute() for file in sorted(files, key=lambda file: file.stem) if file.is_file()}


def _models(kind: ModelKind) -> Path:
    return Path(os.environ.get(ROOT_VARIABLE, "~/Documents/MFA")).expanduser() / "pretrained_models" / kind


def run(
    command: Sequence[str | Path],
    env: Mapping[str, str],
    output: Path,
    on_line: Callable[[str], None],
    own_log: Path,
    on_group: Callable[[int], None] = lambda _: None,
) -> int:
    """Run the program and hand on what it shows, line by line, as it appears.

    Args:
        command: program and arguments.
        env: its environment.
        output: file to keep the command and everything shown in.
        on_line: called with each line without its colours and bars, and, while nothing appears, every second with the
            last one and the time since then, so that it can raise to stop the program.
        own_log: a file that the program writes and, with ``--final_clean``, removes; it is kept beside `output`.
        on_group: called with the number of the program's process group when it runs, and with 0 when it has ended.

    Returns:
        The exit code; negative is the signal that ended it. Whatever is raised here, by a Ctrl-C or by `on_line`, ends
        the program and all its processes first.
    """
    process = subprocess.Popen(
        command, env=dict(env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True, encoding="utf-8", errors="replace",
    )  # fmt: skip
    lines: Queue[str | None] = Queue()
    reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
    kept: IO[bytes] | None = None
    whole = False
    try:
        on_group(process.pid)
        reader.start()
        with output.open("w", encoding="utf-8") as log:
            log.write(" ".join(str(part) for part in command) + "\n")
            shown, since = "started", time.monotonic()
            while True:
                try:
                    line = lines.get(timeout=_TICK_S)
                except Empty:
                    waited_s = time.monotonic() - since
                    if process.poll() is not None and waited_s > _STRAGGLE_S:  # a process it left holds the output
                        break
                    on_line(f"{shown} ({waited_s:.0f} s)")
                    continue
                if line is None:
                    whole = True
                    break
                log.write(line)
                log.flush()
                if kept is None and own_log.exists():
                    kept = own_log.open("rb")  # open, it stays readable after the program has removed it
                if plain := plain_line(line):
                    shown, since = plain, time.monotonic()
                    on_line(plain)
        return process.wait() if whole else process.poll() or 0
    finally:
        if not whole or process.poll() is None:
            _kill_group(process)
        on_group(0)
        if reader.ident is not None:
            reader.join(_STRAGGLE_S)
        if kept is not None:
            with kept:
                (output.parent / own_log.name).write_bytes(kept.read())


def _read(stream: IO[str], lines: "Queue[str | None]") -> None:
    # Universal newlines: a carriage return, with which bars are redrawn, ends a line too.
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def _kill_group(process: "subprocess.Popen[str]") -> None:
    # Nothing that MFA does when asked politely is wanted: its folders are removed as a whole.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def plain_line(line: str) -> str:
    """Return a line of MFA's without colours, bars and the name of its level; empty for one that says nothing."""
    line = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line)
    line = re.sub(r"^\s*(?:DEBUG|INFO)\s", "", re.sub(r"[━╸╺]+", " ", line))
    return " ".join(line.split())


def last_lines(text: str, count: int) -> str:
    """Return the last lines that say something, one after the other on one line."""
    said = [plain for line in text.splitlines() if (plain := plain_line(line).strip("│╭╮╰╯─ "))]
    return " | ".join(said[-count:])
