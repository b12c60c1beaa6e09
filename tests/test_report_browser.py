"""The report in a browser: sorted, filtered and opened by keyboard, printed, and with nothing to complain of."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_report import write_full_run, write_small_run

from pipelines import report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome is installed")

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
)  # fmt: skip
HANGS_S = 120
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27}
LOADED = """new Promise((done) => {
    if (document.readyState === 'complete') done(); else window.addEventListener('load', () => done());
})"""
NAMES = [f"layer={layer}" for layer in range(12)]


class Browser:
    """Chromium, spoken to in the DevTools protocol over two pipes: JSON texts that end with a NUL."""

    def __init__(self, profile: Path) -> None:
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        command = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            [str(shutil.which("bash")), "-c", command, "bash", str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._waiting = b""
        self._number = 0
        self._session: str | None = None
        self.complaints: list[str] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the answer to a command; what the page complains of meanwhile is kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        os.write(
            self._out, json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._keep(answer)

    def open(self, address: str, width: int = 1280, height: int = 800) -> None:
        """Open a page and wait for it."""
        self._session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=address)
        self.run(LOADED)

    def run(self, expression: str) -> Any:
        """Return what a piece of script gives."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key where the focus is."""
        code = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]} | (
            {"text": "\r"} if key == "Enter" else {}
        )
        self.call("Input.dispatchKeyEvent", type="keyDown", **code)
        self.call("Input.dispatchKeyEvent", type="keyUp", **code)

    def type(self, text: str) -> None:
        """Type where the focus is."""
        self.call("Input.insertText", text=text)

    def close(self) -> None:
        """End it."""
        self._session = None
        self.call("Browser.close")
        self._process.wait(30)
        os.close(self._out)
        os.close(self._in)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._waiting:
            assert select.select([self._in], [], [], HANGS_S)[0], "the browser hangs"
            piece = os.read(self._in, 2**16)
            assert piece, "the browser has gone"
            self._waiting += piece
        message, _, self._waiting = self._waiting.partition(b"\0")
        return json.loads(message)

    def _keep(self, event: dict[str, Any]) -> None:
        method, values = event.get("method"), event.get("params", {})
        bad = (
            method == "Runtime.exceptionThrown"
            or (method == "Log.entryAdded" and values["entry"]["level"] in ("error", "warning"))
            or (method == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning", "assert"))
        )
        if bad:
            self.complaints.append(json.dumps(values))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runs")
    for number, name in enumerate(NAMES):
        settings = {"head": "svm" if number % 2 else "linear_probe", "settings": {"layer": number}}
        write = write_full_run if number == 3 else write_small_run
        write(folder / "ablation" / name, seed=number, seconds=float(number * 10 % 7), **settings)
    report.run([folder / "ablation"], folder / "report.html", "report", details=4)
    return (folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """The browser, which must have had nothing to complain of when a test is done."""
    chromium.complaints.clear()
    yield chromium
    assert not chromium.complaints


ROWS = "Array.from(document.querySelector('table[data-view]').tBodies[0].rows)"
SHOWN = f"{ROWS}.filter((row) => !row.hidden && row.offsetHeight > 0)"


def shown(browser: Browser) -> list[str]:
    return browser.run(f"{SHOWN}.map((row) => row.cells[0].textContent.trim())")


def column(browser: Browser, key: str) -> list[float]:
    return browser.run(f"""(() => {{
        const heads = Array.from(document.querySelector('table[data-view]').tHead.rows[0].cells);
        const place = heads.findIndex((head) => head.dataset.key === {json.dumps(key)});
        return {SHOWN}.map((row) => Number(row.cells[place].dataset.sort));
    }})()""")


def focus_header(browser: Browser, key: str) -> None:
    browser.run(f"document.querySelector('th[data-key=\"{key}\"] button').focus()")


def test_a_header_sorts_by_keyboard_and_says_so(page: str, browser: Browser) -> None:
    browser.open(page)
    assert shown(browser) == NAMES
    focus_header(browser, "ua")
    browser.press("Enter")
    assert column(browser, "ua") == sorted(column(browser, "ua"), reverse=True)
    assert browser.run("document.querySelector('th[data-key=ua]').getAttribute('aria-sort')") == "descending"
    browser.press("Enter")
    assert column(browser, "ua") == sorted(column(browser, "ua"))
    focus_header(browser, "run")
    browser.press("Enter")
    assert shown(browser) == NAMES
    assert browser.run("document.querySelectorAll('table[data-view] [aria-sort]').length") == 1


def test_text_filters_rows_by_all_of_its_words_and_says_how_many_are_left(page: str, browser: Browser) -> None:
    browser.open(page)
    assert "12 of 12 runs" in browser.run("document.querySelector('.tools output').textContent")
    browser.run("document.querySelector('.tools input').focus()")
    browser.type("SVM layer=1")
    assert shown(browser) == ["layer=1", "layer=11"]
    assert browser.run("document.querySelector('.tools output').textContent") == "2 of 12 runs"
    assert browser.run("document.querySelector('.tools output').getAttribute('aria-live')") == "polite"
    # Sections stay, and sorting leaves what is filtered out of view.
    assert browser.run("document.querySelectorAll('details.run').length") == 4
    focus_header(browser, "run")
    browser.press("Enter")
    browser.press("Enter")
    assert shown(browser) == ["layer=11", "layer=1"]
    browser.run("document.querySelector('.tools input').select()")
    browser.type("nothing like it")
    assert shown(browser) == []


def test_the_address_keeps_the_view(page: str, browser: Browser) -> None:
    browser.open(page)
    browser.run("document.querySelector('.tools input').focus()")
    browser.type("linear_probe")
    focus_header(browser, "seconds")
    browser.press("Enter")
    address, rows = browser.run("location.href"), shown(browser)
    assert address.endswith("#sort=seconds&order=descending&filter=linear_probe")
    browser.open(address)
    assert shown(browser) == rows
    assert len(rows) == 6
    assert browser.run("document.querySelector('.tools input').value") == "linear_probe"


def test_an_address_that_is_written_by_hand_is_understood(page: str, browser: Browser) -> None:
    browser.open(f"{page}#sort=settings.layer")
    assert shown(browser) == NAMES[::-1]
    browser.open(f"{page}#sort=nothing&filter=%22%3E")
    assert shown(browser) == []


def test_a_link_opens_the_section_of_a_run(page: str, browser: Browser) -> None:
    browser.open(page)
    browser.run("document.querySelectorAll('details.run').forEach((run) => { run.open = false; })")
    browser.run("document.querySelector('table[data-view] a').focus()")
    browser.press("Enter")
    ident = browser.run("document.querySelector('table[data-view] a').hash.slice(1)")
    opened = f"document.getElementById({json.dumps(ident)}).open"
    deadline = time.monotonic() + 30  # the page learns of its new address a little later
    while not browser.run(opened) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert browser.run(opened) is True


def test_the_first_stop_of_the_keyboard_leads_past_the_top(page: str, browser: Browser) -> None:
    browser.open(page)
    browser.press("Tab")
    assert browser.run("document.activeElement.className") == "skip"
    assert browser.run("document.activeElement.getBoundingClientRect().left >= 0") is True
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_nothing_is_wider_than_a_phone(page: str, browser: Browser) -> None:
    browser.open(page, width=390)
    assert browser.run("document.documentElement.scrollWidth") <= 390


def test_paper_has_every_section_and_no_controls(page: str, browser: Browser) -> None:
    browser.open(page)
    browser.run("document.querySelectorAll('details.run').forEach((run) => { run.open = false; })")
    browser.run("""window.addEventListener('beforeprint', () => {
        window.opened = Array.from(document.querySelectorAll('details.run')).every((run) => run.open);
    })""")
    assert base64.b64decode(browser.call("Page.printToPDF")["data"]).startswith(b"%PDF")
    assert browser.run("window.opened") is True
    assert browser.run("document.querySelector('details.run').open") is False
    browser.call("Emulation.setEmulatedMedia", media="print")
    for control in (".tools", ".skip", ".back"):
        assert browser.run(f"getComputedStyle(document.querySelector('{control}')).display") == "none"
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_paper_is_white_where_the_screen_is_dark(page: str, browser: Browser) -> None:
    browser.open(page)
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    colour = "getComputedStyle(document.body).backgroundColor"
    browser.call("Emulation.setEmulatedMedia", media="screen", features=dark)
    assert browser.run(colour) == "rgb(20, 23, 28)"
    browser.call("Emulation.setEmulatedMedia", media="print", features=dark)
    assert browser.run(colour) == "rgb(255, 255, 255)"


def test_the_check_of_complaints_can_fail(page: str, chromium: Browser) -> None:
    chromium.open(page)
    chromium.run("setTimeout(() => { throw new Error('bad'); }); new Promise((done) => setTimeout(done, 50))")
    assert "bad" in "".join(chromium.complaints)
    chromium.complaints.clear()
    # The page's own policy refuses scripts that are not its own, and the browser says so.
    chromium.run("""(() => { const script = document.createElement('script'); script.textContent = 'window.x = 1';
        document.body.append(script); return new Promise((done) => setTimeout(done, 50)); })()""")
    assert chromium.run("window.x === undefined") is True
    assert "Content Security Policy" in "".join(chromium.complaints)
    chromium.complaints.clear()
