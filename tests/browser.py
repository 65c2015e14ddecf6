"""Headless Chromium without a network, controlled through its debugging pipe."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--proxy-server=http://127.0.0.1:9",  # nothing listens there
)
IMAGES = "[...document.images].map(image => image.complete && image.naturalWidth)"
WIDTH = "document.documentElement.scrollWidth"


@dataclass
class RenderedPage:
    """A page in the browser. `images` are their widths, 0 for a missing one; `png` is a screenshot of it."""

    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    width: int = 0
    png: bytes = b""


class Browser:
    """Sends one command at a time, and collects the events that arrive in the meantime."""

    def __init__(self, commands: int, responses: int):
        self.commands = os.fdopen(commands, "wb", buffering=0)
        self.responses = os.fdopen(responses, "rb")
        self.number = 0
        self.events: list[dict] = []

    def call(self, method: str, session: str | None = None, **parameters: object) -> dict:
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        self.commands.write(json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while True:
            response = self._next()
            if response.get("id") == self.number:
                assert "error" not in response, response
                return response["result"]
            self.events.append(response)

    def wait(self, method: str) -> None:
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._next())

    def open(self, page: Path, width: int, *, dark: bool = False) -> RenderedPage:
        """Load a page in a window of `width` pixels."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Log", "Runtime", "Network"):
            self.call(f"{domain}.enable", session)
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", session, **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", session, features=[scheme])
        self.events.clear()
        self.call("Page.navigate", session, url=page.resolve().as_uri())
        self.wait("Page.loadEventFired")
        rendered = RenderedPage(images=self._value(session, IMAGES), width=self._value(session, WIDTH))
        shot = self.call("Page.captureScreenshot", session, captureBeyondViewport=True)
        rendered.png = base64.b64decode(shot["data"])
        for event in self.events:
            if event["method"] in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
                rendered.messages.append(json.dumps(event["params"]))
            if event["method"] == "Network.requestWillBeSent":
                rendered.requests.append(event["params"]["request"]["url"])
        self.call("Target.closeTarget", targetId=target)
        return rendered

    def _value(self, session: str, expression: str):
        return self.call("Runtime.evaluate", session, expression=expression, returnByValue=True)["result"]["value"]

    def _next(self) -> dict:
        message = bytearray()
        while (byte := self.responses.read(1)) != b"\0":
            assert byte, "the browser has ended"
            message += byte
        return json.loads(message)


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser with a profile folder of its own, which ends with the `with` block."""
    assert CHROMIUM, "there is no Chromium"
    to_browser, commands = os.pipe()
    responses, from_browser = os.pipe()

    def use_3_and_4() -> None:  # --remote-debugging-pipe reads from 3 and writes to 4
        kept = [os.dup(to_browser), os.dup(from_browser)]
        for number, descriptor in enumerate(kept, start=3):
            os.dup2(descriptor, number)

    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [CHROMIUM, *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={folder}"],
            preexec_fn=use_3_and_4,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        driver = Browser(commands, responses)
        try:
            yield driver
            driver.call("Browser.close")
        finally:
            driver.commands.close()
            driver.responses.close()
            process.terminate()
            process.wait(timeout=30)
