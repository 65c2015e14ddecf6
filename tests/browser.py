"""Headless Chromium without a network, driven over its debugging pipe."""

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
    "--proxy-server=http://127.0.0.1:9",  # where nobody listens
)
IMAGES = "[...document.images].map(image => image.complete && image.naturalWidth)"
WIDTH = "document.documentElement.scrollWidth"


@dataclass
class Seen:
    """What a browser made of a page: `images` are their widths, 0 for a missing one; `png` shows all of the page."""

    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    width: int = 0
    png: bytes = b""


class Browser:
    """Sends one command at a time and keeps the events that come between."""

    def __init__(self, commands: int, answers: int):
        self.commands = os.fdopen(commands, "wb", buffering=0)
        self.answers = os.fdopen(answers, "rb")
        self.number = 0
        self.events: list[dict] = []

    def call(self, method: str, session: str | None = None, **parameters: object) -> dict:
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        self.commands.write(json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def wait(self, method: str) -> None:
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._next())

    def open(self, page: Path, width: int, *, dark: bool = False) -> Seen:
        """The page, once it is loaded, in a window of `width` pixels."""
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
        seen = Seen(images=self._value(session, IMAGES), width=self._value(session, WIDTH))
        shot = self.call("Page.captureScreenshot", session, captureBeyondViewport=True)
        seen.png = base64.b64decode(shot["data"])
        for event in self.events:
            if event["method"] in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
                seen.messages.append(json.dumps(event["params"]))
            if event["method"] == "Network.requestWillBeSent":
                seen.requests.append(event["params"]["request"]["url"])
        self.call("Target.closeTarget", targetId=target)
        return seen

    def _value(self, session: str, expression: str):
        return self.call("Runtime.evaluate", session, expression=expression, returnByValue=True)["result"]["value"]

    def _next(self) -> dict:
        message = bytearray()
        while (byte := self.answers.read(1)) != b"\0":
            assert byte, "the browser has ended"
            message += byte
        return json.loads(message)


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser of its own profile folder; it ends with the block."""
    assert CHROMIUM, "there is no Chromium"
    to_browser, commands = os.pipe()
    answers, from_browser = os.pipe()

    def as_3_and_4() -> None:  # where --remote-debugging-pipe reads and writes
        kept = [os.dup(to_browser), os.dup(from_browser)]
        for place, number in enumerate(kept, start=3):
            os.dup2(number, place)

    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [CHROMIUM, *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={folder}"],
            preexec_fn=as_3_and_4,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        driver = Browser(commands, answers)
        try:
            yield driver
            driver.call("Browser.close")
        finally:
            driver.commands.close()
            driver.answers.close()
            process.terminate()
            process.wait(timeout=30)
