"""Sees to it that there is a Chromium for the browser tests: `python -m tests.browser.install`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Playwright, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")


def find(playwright: Playwright) -> str | None:
    """The browser named by $CHROMIUM, one of the system's, or Playwright's own."""
    for name in (os.environ.get("CHROMIUM"), *NAMES):
        if name and (path := shutil.which(name)):
            return path
    own = playwright.chromium.executable_path
    return own if Path(own).exists() else None


def _is_there() -> bool:
    with sync_playwright() as playwright:
        return find(playwright) is not None


def main() -> int:
    """Installs a browser if there is none; returns the exit code."""
    if _is_there():
        return 0
    attempts = [[sys.executable, "-m", "playwright", "install", "chromium"]]
    if shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        # Without the recommended packages: a browser that nobody looks at needs no printers.
        apt = ["apt-get", "-o", "Acquire::Retries=3", "-o", "DPkg::Lock::Timeout=120"]
        install = [*apt, "install", "-y", "-qq", "--no-install-recommends"]
        attempts = [[*apt, "update", "-qq"], [*install, "chromium", "fonts-liberation"]]
    for command in attempts:
        print(f"No Chromium found: running {' '.join(command)}", file=sys.stderr)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            print(done.stdout, file=sys.stderr)
            break
    if _is_there():
        return 0
    print("Install Chromium, or set CHROMIUM to its path, and try again.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
