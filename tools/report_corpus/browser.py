"""Pages drawn by headless Chromium: pictures and PDF. One browser, spoken to through a pair of pipes."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

_QUIET = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-lcd-text",
)


class Browser:
    """Chromium with one tab. `shot` gives the element `#shot` of a page as PNG, `pdf` a page as PDF."""

    def __init__(self, program: str = "/usr/bin/chromium") -> None:
        self._home = tempfile.TemporaryDirectory(prefix="corpus-chromium-")
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        options = " ".join((*_QUIET, "--remote-debugging-pipe", f"--user-data-dir={self._home.name}", "about:blank"))
        self._process = subprocess.Popen(
            ["bash", "-c", f"exec {program} {options} 3<&{theirs_in} 4>&{theirs_out}"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._number = 0
        self._left = b""
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._tab = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._frame = self._ask("Page.getFrameTree")["frameTree"]["frame"]["id"]

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tab = ""
        self._ask("Browser.close")
        self._process.wait(timeout=30)
        os.close(self._in)
        os.close(self._out)
        self._home.cleanup()

    def shot(self, page: str, *, scale: float = 1.0, width: int = 1600) -> bytes:
        """The element `#shot` as PNG, `scale` pixels of the picture to one of the page."""
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=1400, deviceScaleFactor=scale, mobile=False)
        self._show(page)
        box = self._value("(({x, y, width, height}) => ({x, y, width, height}))(shot.getBoundingClientRect())")
        picture = self._ask(
            "Page.captureScreenshot", format="png", clip={**box, "scale": 1}, captureBeyondViewport=True
        )
        return base64.b64decode(picture["data"])

    def pdf(self, page: str) -> bytes:
        self._show(page)
        printed = self._ask("Page.printToPDF", printBackground=True, paperWidth=8.27, paperHeight=11.69)
        return base64.b64decode(printed["data"])

    def _show(self, page: str) -> None:
        self._ask("Page.setDocumentContent", frameId=self._frame, html=page)
        self._value("Promise.all([document.fonts.ready, ...[...document.images].map(each => each.decode())])")

    def _value(self, expression: str) -> Any:
        answer = self._ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        return answer["result"].get("value")

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if getattr(self, "_tab", ""):
            message["sessionId"] = self._tab
        rest = json.dumps(message).encode() + b"\0"
        while rest:
            rest = rest[os.write(self._out, rest) :]
        while True:
            answer = json.loads(self._message())
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])

    def _message(self) -> bytes:
        while b"\0" not in self._left:
            piece = os.read(self._in, 1 << 20)
            if not piece:
                raise RuntimeError("Chromium ended")
            self._left += piece
        message, _, self._left = self._left.partition(b"\0")
        return message


def data_uri(picture: Path) -> str:
    kind = "jpeg" if picture.suffix in (".jpg", ".jpeg") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(picture.read_bytes()).decode()}"
