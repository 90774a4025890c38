"""A headless Chromium, spoken to through the pipe of its DevTools protocol; nothing beyond the standard library."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str | None:
    """Path of the browser; ``None`` where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def _high(descriptor: int) -> int:
    """The same file under a number that is out of the way of 3 and 4."""
    high = fcntl.fcntl(descriptor, fcntl.F_DUPFD, 20)
    os.close(descriptor)
    return high


class Browser:
    """One process with one page.

    Attributes:
        problems: what the page's console said as an error or warning, what it threw, what its policy refused.
        requests: every address the page asked for.
    """

    def __init__(self, program: str, patience_s: float = 60.0) -> None:
        self.patience_s = patience_s
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._loaded = False
        self._number, self._unread = 0, b""
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, self._out = (_high(fd) for fd in os.pipe())
        self._in, theirs_out = (_high(fd) for fd in os.pipe())
        # The browser reads commands from its descriptor 3 and answers on 4.
        shell = 'r=$0; w=$1; shift; exec "$@" 3<&"$r" 4>&"$w"'
        command = ["bash", "-c", shell, str(theirs_in), str(theirs_out), program, *FLAGS]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={self._profile.name}", "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        pages = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.on_page(f"{domain}.enable")

    def call(self, method: str, session: str | None = None, **arguments: Any) -> dict[str, Any]:
        """The answer to one command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": arguments}
        data = json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])

    def on_page(self, method: str, **arguments: Any) -> dict[str, Any]:
        return self.call(method, self._session, **arguments)

    def open(self, file: Path, width: int = 1280, height: int = 900, dark: bool = False) -> float:
        """Opens a file and waits until it says that it is ready.

        Returns:
            Seconds it took.
        """
        self.problems, self.requests, self._loaded = [], [], False
        self.on_page(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.on_page("Emulation.setEmulatedMedia", features=[scheme])
        begun = time.perf_counter()
        self.on_page("Page.navigate", url=file.resolve().as_uri())
        while not (self._loaded and self.run("document.documentElement.dataset.ready === 'true'")):
            if not self._loaded:
                self._next()
            assert time.perf_counter() - begun < self.patience_s, self.problems
        return time.perf_counter() - begun

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self.on_page("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def texts(self, selector: str) -> list[str]:
        """Texts of what can be seen of the elements meant."""
        seen = (
            "[...document.querySelectorAll({})].filter((e) => e.offsetParent !== null).map((e) => e.textContent.trim())"
        )
        return list(self.run(seen.format(json.dumps(selector))))

    def click(self, selector: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def type(self, selector: str, text: str) -> None:
        """Sets a field or a choice, as a user would: with the event that follows."""
        self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.value = {json.dumps(text)};"
            "e.dispatchEvent(new Event(e.tagName === 'SELECT' ? 'change' : 'input', {bubbles: true})); })()"
        )

    def close(self) -> None:
        os.close(self._out)  # the browser ends when its commands do
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        self._profile.cleanup()

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._in], [], [], self.patience_s)
            data = os.read(self._in, 1 << 20) if ready else b""
            assert data, f"the browser says nothing any more (exit status {self._process.poll()})"
            self._unread += data
        message, _, self._unread = self._unread.partition(b"\0")
        found = json.loads(message)
        self._take_note(found.get("method", ""), found.get("params", {}))
        return dict(found)

    def _take_note(self, event: str, told: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Network.requestWillBeSent" and not told["request"]["url"].startswith("data:"):
            self.requests.append(told["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(told["exceptionDetails"]))
        elif event == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.problems.append(told["entry"]["text"])
        elif event == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.problems.append(json.dumps(told["args"]))
