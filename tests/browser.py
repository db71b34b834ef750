"""A page opened in a real browser without a window: headless Chromium, driven by Playwright.

The browser is Debian's (/usr/bin/chromium) or the one that Playwright installed (`playwright install chromium`). Where there is
neither, tests that need it are skipped and say so.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

# Quiet: the browser itself shall send nothing either.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
)
PLACES = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")


@dataclass
class Log:
    """What a page did.

    Attributes:
      complaints: errors and warnings of its console, exceptions, and violations of its policy.
      requests: addresses that it asked for, other than the file itself and data it holds.
      dialogs: texts of alerts.
    """

    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)


def executable() -> str | None:
    """Path of an installed Chromium; None leaves it to Playwright."""
    return next((path for path in PLACES if os.path.exists(path)), None)


@contextmanager
def browser() -> Iterator[object]:
    """A running browser; skips the test where none is installed."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    with sync_api.sync_playwright() as driver:
        path = executable()
        if path is None and not os.path.exists(driver.chromium.executable_path):
            pytest.skip("no Chromium: apt-get install chromium, or playwright install chromium")
        chromium = driver.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        try:
            yield chromium
        finally:
            chromium.close()


def opened(chromium, path, *, width=1400, height=900, dark=False, scripts=True, touch=False):
    """Opens a local file: (the page, its log). The log goes on while the page is used."""
    context = chromium.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
        java_script_enabled=scripts,
        has_touch=touch,
        offline=True,
    )
    page = context.new_page()
    page.set_default_timeout(20_000)
    log = Log()
    address = f"file://{os.path.abspath(path)}"
    page.on("console", lambda message: log.complaints.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: log.complaints.append(str(error)))
    page.on("dialog", lambda dialog: (log.dialogs.append(dialog.message), dialog.dismiss()))
    asked = log.requests
    page.on(
        "request", lambda r: asked.append(r.url) if r.url.split("#")[0] != address and not r.url.startswith("data:") else None
    )
    page.goto(address)
    return page, log
