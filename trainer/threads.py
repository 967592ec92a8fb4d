"""How torch's worker threads wait, to be set before torch is imported."""

from __future__ import annotations

import os


def wait_without_spinning() -> None:
    """Makes idle OpenMP threads sleep instead of spin, unless the environment says otherwise.

    Spinning threads are a little quicker on an idle machine, and many times slower as soon as
    another program (a browser, say) wants a core: all then wait for the one that was put aside.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
