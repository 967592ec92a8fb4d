"""Hypothesis without luck: the same examples each time, and no clock to fail by."""

from __future__ import annotations

from hypothesis import settings

steady = settings(deadline=None, derandomize=True)
"""For any property; `steady_few` for those that take long."""
steady_few = settings(steady, max_examples=25)
