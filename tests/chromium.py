"""A real browser that a test drives: pages, scripts in them, their console, pictures of them; DevTools over pipes."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

from absl.testing import absltest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 60  # until a browser that does not answer is given up


def program(test: absltest.TestCase) -> str:
    """The browser; the test fails without one where CI is set, and is skipped elsewhere."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        reason = f"no browser, none of {', '.join(BROWSERS)} (Debian: chromium)"
        test.fail(reason) if os.environ.get("CI") else test.skipTest(reason)
    return found


class Browser:
    """One page of a headless browser, which ends with the test."""

    def __init__(self, test: absltest.TestCase, *options: str):
        folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        test.addCleanup(folder.cleanup)
        self.console: list[str] = []  # errors and warnings, what is thrown in scripts too
        usual = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe")
        command = [program(test), *usual, f"--user-data-dir={folder.name}/profile", *options, "about:blank"]
        theirs, ours = zip(_pipe(), reversed(_pipe()), strict=True)  # they read from the first, and write to the second
        shell = ["bash", "-c", f'exec "$@" 3<&{theirs[0]} 4>&{theirs[1]}', "bash", *command]
        self._process = subprocess.Popen(shell, pass_fds=theirs, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        for end in theirs:
            os.close(end)
        self._to, self._from, self._number = os.fdopen(ours[0], "wb", 0), os.fdopen(ours[1], "rb"), 0
        self._session = {}
        test.addCleanup(self.close)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = dict(sessionId=self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for part in ("Page", "Runtime", "Log"):
            self.call(f"{part}.enable")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._to.close()
        self._from.close()

    def call(self, method: str, **parameters):
        """The result of a command of the DevTools protocol."""
        self._number += 1
        message = dict(id=self._number, method=method, params=parameters, **self._session)
        self._to.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def open(self, url: str) -> None:
        """Loads a page, until its scripts were run."""
        self.call("Page.navigate", url=url)
        self.evaluate(
            "new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', done))"
        )

    def evaluate(self, script: str):
        """The value of an expression in the page, once it is there if it is a promise."""
        found = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in found:
            raise AssertionError(found["exceptionDetails"].get("exception", {}).get("description", str(found)))
        return found["result"].get("value")

    def screen(self, width: int, height: int, dark: bool = False) -> None:
        """The size of the window, and the colours that its user likes."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = [dict(name="prefers-color-scheme", value="dark" if dark else "light")]
        self.call("Emulation.setEmulatedMedia", features=scheme)

    def picture(self, path: Path) -> None:
        """Writes a PNG of the whole page."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(found["data"]))

    def _read(self):
        """The next message; those of the console are kept."""
        late = threading.Timer(SECONDS, self._process.kill)
        late.start()
        content = bytearray()
        while (byte := self._from.read(1)) != b"\0":
            if not byte:
                raise AssertionError("the browser ended, or did not answer")
            content += byte
        late.cancel()
        message = json.loads(content)
        method, given = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.console.append(str(given["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" or method == "Log.entryAdded":
            self.console.append(str(given.get("entry", given.get("args"))))
        return message


def _pipe():
    """Ends to read and to write, above the numbers that are given out anew."""
    ends = os.pipe()
    found = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in ends]
    for end in ends:
        os.close(end)
    return found
