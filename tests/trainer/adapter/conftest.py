"""Tiny pipelines of every family, built once."""

from __future__ import annotations

from typing import Any

import pytest

from tests.trainer.adapter import families
from trainer.model.bases import Family


@pytest.fixture(scope="session", params=list(Family), ids=str)
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(family, pipeline) for each family in turn; tests leave it as they found it."""
    folder = tmp_path_factory.mktemp("words")
    return request.param, families.pipeline(request.param, folder)
