"""Files are written whole or not at all, whatever happens in between."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from trainer.files import replace_atomically, sweep, write_atomically


def test_the_new_content_replaces_the_old(tmp_path: Path) -> None:
    file = tmp_path / "f"
    write_atomically(file, b"old")
    write_atomically(file, b"new")
    assert file.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [file]


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    file = tmp_path / "f"
    write_atomically(file, b"old")

    def fail(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_atomically(file, fail)
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_kill_leaves_the_old_content_and_an_orphan_that_is_swept(tmp_path: Path) -> None:
    file = tmp_path / "f"
    write_atomically(file, b"old")
    script = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from trainer.files import replace_atomically
        def die(temporary):
            temporary.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        replace_atomically(Path(sys.argv[1]), die)
        """
    )
    assert subprocess.run([sys.executable, "-c", script, str(file)]).returncode == -9
    assert file.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [file]


def test_the_file_gets_the_mode_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_atomically(tmp_path / "f", b"")
    assert (tmp_path / "f").stat().st_mode == (tmp_path / "plain").stat().st_mode
