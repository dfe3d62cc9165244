"""A headless Chromium that tests control through its DevTools pipe."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LIMIT = 60  # seconds for one answer


class Browser:
    """One browser with one page.

    Attributes:
        requests: addresses that the page asked for, since the last `open`.
        events: methods of the protocol's other messages.
        errors: uncaught exceptions, and messages of the console about errors and refused requests.
        process: the browser's first process.
    """

    def __init__(self, profile: Path):
        flags = ("--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu", "--mute-audio")
        flags += ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-sandbox")
        flags += ("--disable-dev-shm-usage", f"--user-data-dir={profile}", "about:blank")
        read, self._write = os.pipe()
        self._read, write = os.pipe()

        def descriptors() -> None:
            # Both are moved away first: a pipe may have got one of the numbers that the browser expects.
            one, other = os.dup(read), os.dup(write)
            os.dup2(one, 3)
            os.dup2(other, 4)

        self.process = subprocess.Popen(
            [CHROMIUM, *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=descriptors,
        )
        os.close(read)
        os.close(write)
        self._text, self._number, self._session = b"", 0, None
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.events: list[str] = []
        target = next(t for t in self("Target.getTargets")["targetInfos"] if t["type"] == "page")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_) -> None:
        try:
            self._session = None
            self("Browser.close")
            self.process.wait(20)
        except (OSError, subprocess.TimeoutExpired, AssertionError):
            self.process.kill()
            self.process.wait()
        os.close(self._read)
        os.close(self._write)

    def __call__(self, method: str, **parameters) -> dict:
        """Sends a command of the DevTools protocol -> its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + LIMIT
        while True:
            answer = self._receive(end)
            if answer.get("id") == message["id"]:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _receive(self, end: float) -> dict:
        while b"\0" not in self._text:
            assert select.select([self._read], [], [], max(0.0, end - time.monotonic()))[0], "no answer"
            block = os.read(self._read, 2**16)
            assert block, "the browser has ended"
            self._text += block
        first, self._text = self._text.split(b"\0", 1)
        message = json.loads(first)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method: str | None, parameters: dict) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method is not None:
            self.events.append(method)
        if method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(parameters["entry"]["text"])

    def open(self, address: str) -> None:
        """Loads a page and waits until it is loaded and all that it shows at once."""
        self("Page.navigate", url="about:blank")
        self.until("location.href === 'about:blank'")
        self.requests.clear()
        self.errors.clear()
        self.events.clear()
        self("Page.navigate", url=address)
        self.until(f"location.href.startsWith({json.dumps(address)}) && document.readyState === 'complete'")

    def run(self, code: str):
        """The value of an expression in the page, as JSON data; waits for a promise."""
        result = self("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True, userGesture=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, code: str, limit: float = 20) -> None:
        """Waits until an expression in the page is true."""
        self.wait(lambda: self.run(f"Boolean({code})"), code, limit)

    def wait(self, done: Callable[[], bool], what: str, limit: float = 20) -> None:
        end = time.monotonic() + limit
        while not done():
            assert time.monotonic() < end, f"not within {limit} s: {what}; {self.errors}"
            time.sleep(0.03)

    def press(self, key: str, code: str | None = None, text: str = "") -> None:
        """Presses and releases a key."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "ArrowLeft": 37, "ArrowUp": 38}
        codes |= {"ArrowRight": 39, "ArrowDown": 40}
        about = {"key": key, "code": code or key, "windowsVirtualKeyCode": codes.get(key, 0)}
        text = text or {"Enter": "\r", " ": " "}.get(key, "")
        self("Input.dispatchKeyEvent", type="keyDown", **about, **({"text": text} if text else {}))
        self("Input.dispatchKeyEvent", type="keyUp", **about)

    def move(self, selector: str) -> None:
        """Moves the mouse to the middle of an element."""
        x, y = self.middle(selector)
        self("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector: str) -> None:
        x, y = self.middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def middle(self, selector: str) -> tuple[float, float]:
        """The middle of an element in the window, which is scrolled to it."""
        self.run(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'nearest'}})")
        x, y, width, height = self.run(
            f"(({{x, y, width, height}}) => [x, y, width, height])"
            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )
        return x + width / 2, y + height / 2

    def resize(self, width: int, height: int, scale: float = 1, dark: bool = False, touch: bool = False) -> None:
        """Sets the size of the window, the colour scheme, and whether it is a phone's."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=touch)
        self("Emulation.setTouchEmulationEnabled", enabled=touch)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self("Page.captureScreenshot", format="png")["data"]))
