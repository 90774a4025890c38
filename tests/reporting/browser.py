"""A headless Chromium, driven by Playwright, that records what goes wrong in a page and what the page asks for."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser as Chromium
from playwright.sync_api import ConsoleMessage, Page, Request, sync_playwright

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str | None:
    """Path of the system's browser; ``None`` where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """Opens files, one at a time.

    Attributes:
        page: the file that is open.
        problems: errors and warnings of its console (violations of its content policy among them) and exceptions.
        requests: every address it asked for, ``data:`` left out.
    """

    page: Page

    def __init__(self, chromium: Chromium) -> None:
        self._chromium = chromium
        self.problems: list[str] = []
        self.requests: list[str] = []

    def open(self, file: Path, width: int = 1280, height: int = 900, dark: bool = False) -> float:
        """Opens a file and waits until its script has run.

        Returns:
            Seconds it took.
        """
        self.problems, self.requests = [], []
        for context in self._chromium.contexts:
            context.close()
        self.page = self._chromium.new_page(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        self.page.on("console", self._note_message)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", self._note_request)
        begin = time.perf_counter()
        self.page.goto(file.resolve().as_uri())
        self.page.wait_for_function("document.documentElement.dataset.ready === 'true'", polling=10)
        return time.perf_counter() - begin

    def texts(self, selector: str) -> list[str]:
        """Texts of the visible elements."""
        return [text.strip() for text in self.page.locator(f"{selector} >> visible=true").all_text_contents()]

    def _note_message(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning", "assert"):
            self.problems.append(message.text)

    def _note_request(self, request: Request) -> None:
        if not request.url.startswith("data:"):
            self.requests.append(request.url)


@contextmanager
def launch(program: str) -> Iterator[Browser]:
    """Starts the browser and ends it with the block."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield Browser(chromium)
        chromium.close()
