"""Debian's Chromium, headless, driven over its DevTools protocol: enough to look at a page."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium")
START_DEADLINE_S = 60.0

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


class Page:
    """One tab."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._n_sent = 0

    def call(self, method: str, **params: object) -> dict[str, Any]:
        """Send one DevTools command and return its result; events in between are dropped."""
        self._n_sent += 1
        self._connection.send(json.dumps({"id": self._n_sent, "method": method, "params": params}))
        while True:
            message = json.loads(self._connection.recv(timeout=60))
            if message.get("id") == self._n_sent:
                assert "error" not in message, (method, message["error"])
                result: dict[str, Any] = message["result"]
                return result

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression in the page; a promise is awaited."""
        reply = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in reply, reply["exceptionDetails"]
        return reply["result"].get("value")

    def text(self) -> str:
        """The text that a person would read on the page."""
        return str(self.evaluate("document.body ? document.body.innerText : ''"))

    def until(self, claim: Callable[[], Any], what: str, deadline_s: float = 60.0) -> Any:
        """Poll until `claim()` is truthy and return it; fails with the page's text."""
        end = time.monotonic() + deadline_s
        while not (value := claim()):
            assert time.monotonic() < end, f"not within {deadline_s:g} s: {what}\n{self.text()}"
            time.sleep(0.1)
        return value

    def click(self, text: str, selector: str = "a, button, li, [role=tab]") -> None:
        """Click the middle of the visible element with exactly this text, as a mouse would."""
        script = f"""(() => {{
            const found = [...document.querySelectorAll({json.dumps(selector)})]
                .find(e => e.innerText.trim() === {json.dumps(text)} && e.offsetParent);
            if (!found) return null;
            found.scrollIntoView({{block: "center"}});
            const r = found.getBoundingClientRect();
            return [r.x + r.width / 2, r.y + r.height / 2];
        }})()"""
        x, y = self.until(lambda: self.evaluate(script), f"an element to click named {text!r}")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def resize(self, width_px: int, height_px: int, scale: float = 1.0) -> None:
        """Let the tab be as large; `scale`: pixels of a picture for each of the page."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width_px,
            height=height_px,
            deviceScaleFactor=scale,
            mobile=False,
        )

    def prefer(self, theme: str) -> None:
        """Say that the person likes pages `light` or `dark`."""
        feature = {"name": "prefers-color-scheme", "value": theme}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def picture(self, path: Path) -> bytes:
        """Save what the tab shows as a PNG, and return it."""
        shot = self.call("Page.captureScreenshot", format="png")
        png = base64.b64decode(shot["data"])
        path.write_bytes(png)
        return png


@contextmanager
def chromium(profile: Path, width_px: int = 1440, height_px: int = 1100) -> Iterator[Page]:
    """A fresh Chromium with one empty tab; closed, with its children, at the end."""
    assert CHROMIUM is not None
    log_path = profile.with_suffix(".log")
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        # Chromium writes the port that it took into its profile.
        port_file = profile / "DevToolsActivePort"
        end = time.monotonic() + START_DEADLINE_S
        while not (port_file.exists() and port_file.read_text().count("\n") >= 1):
            assert process.poll() is None, log_path.read_text()[-3000:]
            assert time.monotonic() < end, log_path.read_text()[-3000:]
            time.sleep(0.05)
        port = int(port_file.read_text().splitlines()[0])
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{port}/json/list", timeout=10) as reply:
            (tab,) = [t for t in json.loads(reply.read()) if t["type"] == "page"]
        with connect(tab["webSocketDebuggerUrl"], max_size=None, proxy=None) as connection:
            page = Page(connection)
            page.call("Page.enable")
            page.resize(width_px, height_px)
            yield page
            page.call("Browser.close")
    finally:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
