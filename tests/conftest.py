"""What many tests share: tiny bases and a small dataset, made once."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

# Properties without luck: the same examples each time, and no clock to fail by.
settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")

# Tiny models are faster on one thread, and processes that tests start side by side do not fight.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Caches belong to the tests, and to the processes that they start.
_caches = tempfile.TemporaryDirectory(prefix="atelier-tests-")
os.environ["ATELIER_CACHE"] = _caches.name


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random SD 1.x base in the diffusers layout."""
    from tests import tiny

    return tiny.stable_diffusion(tmp_path_factory.mktemp("bases") / "sd1")


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An even smaller one that predicts velocity, for tests that train often."""
    from tests import tiny

    folder = tmp_path_factory.mktemp("bases") / "small"
    return tiny.stable_diffusion(folder, "v_prediction", small=True)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight captioned images of two shapes."""
    folder = tmp_path_factory.mktemp("photos")
    for index in range(8):
        size = (96, 64) if index % 3 == 0 else (64, 64)
        shade = (20 * index, 255 - 30 * index, 128)
        Image.new("RGB", size, shade).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"picture, number {index}")
    return folder
