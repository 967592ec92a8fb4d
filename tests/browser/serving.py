"""Serves the web app with a fake trainer and a fake worker, in a process of its own.

python -m tests.browser.serving --data=DATA --port=PORT
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.app.fakes import TOOLS, TRAINER, WORKER, until

_START_SECONDS = 120
_DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # by no proxy


class Server:
    """A server process on a data directory; it can be stopped and started again on its port."""

    def __init__(self, data: Path, real: bool = False) -> None:
        self.data = data
        self.port = _free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self._command = ["app", "serve"] if real else ["tests.browser.serving"]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        environment = {**os.environ, "FAKE_TRAINER_PACE": "0.02"}
        command = [sys.executable, "-m", *self._command]
        command += [f"--data={self.data}", f"--port={self.port}"]
        with (self.data.parent / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        until(self._answers, _START_SECONDS)

    def stop(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(timeout=30)

    def log(self) -> str:
        return (self.data.parent / "server.log").read_text(errors="replace")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        try:
            with _DIRECTLY.open(self.address, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.1)
            return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    from app.server import serve

    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    asked = parser.parse_args()
    fakes = {"trainer": TRAINER, "worker": WORKER, "tools": TOOLS}
    serve("127.0.0.1", asked.port, asked.data, **fakes)


if __name__ == "__main__":
    main()
