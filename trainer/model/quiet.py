"""Keeps libraries from talking through our own words: their bars, hints and reports."""

from __future__ import annotations

import logging


def quiet_libraries() -> None:
    """Turns off the progress bars and the hints of diffusers, transformers and bitsandbytes."""
    # Before they are imported: bitsandbytes says then which fast kernels it has not found.
    for name in ("bitsandbytes", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
