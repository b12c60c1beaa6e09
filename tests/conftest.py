"""Fixtures that many tests share."""

import os
import signal
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported. Processes that share cores and each use all of them spin on each other's threads: tests
    # of small models then take ten times as long.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # Begun in the background of a shell, where programs that tests start would ignore Ctrl-C too.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real recordings and labels, beside the checkout of this project's makers; users do not have them."""
    folder = (Path(__file__).resolve().parents[2] / "shared" / "data").resolve()
    if not folder.is_dir():
        pytest.skip("the real corpora are not at hand")
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what faults cost, and what was measured of memory, where tests injected or measured some."""
    from faults import PROPERTY, table

    reports = [report for report in terminalreporter.getreports("passed") if report.when == "call"]
    told = [pair for report in reports for pair in report.user_properties]
    costs = [str(value) for name, value in told if name == PROPERTY]
    bounds = [str(value) for name, value in told if name == "bound"]
    if costs:
        terminalreporter.section("faults injected")
        terminalreporter.write_line(table(costs))
    if bounds:
        terminalreporter.section("peak memory and open files")
        terminalreporter.write_line("\n".join(bounds))
