"""How many awkward images, captions and zips there are, and all of the images at once.

Each is checked by pixel, text or reason where its kind is tested.
"""

from __future__ import annotations

from pathlib import Path

from tests.trainer.data import test_captions, test_images, test_importing
from trainer.data.dataset import list_folder
from trainer.data.report import check
from trainer.settings import Dataset

IMAGES = {"accepted": test_images.ACCEPTED, "refused": test_images.REFUSED}
CAPTIONS = {"read": test_captions.READ, "refused": test_captions.REFUSED}


def test_the_zoo_is_large() -> None:
    images = [len(kind) for kind in IMAGES.values()]
    captions = [len(kind) for kind in CAPTIONS.values()]
    zips = len(test_importing.ZIPS)
    assert images[0] >= 60 and images[1] >= 30
    assert captions[0] >= 20 and captions[1] >= 8
    assert zips >= 25
    assert sum(images) + sum(captions) + zips >= 150


def test_a_report_on_the_whole_zoo_finds_each_that_is_refused(tmp_path: Path) -> None:
    for kind in IMAGES.values():
        for name, (make, _) in kind.items():
            (tmp_path / name).write_bytes(make())
    found = check(tmp_path, Dataset(resolution=64))
    broken = {file for f in found.findings if f.code == "broken_image" for file in f.files}
    assert broken == set(test_images.REFUSED)
    assert found.images == len(list_folder(tmp_path).entries)
    animated = {file for f in found.findings if f.code == "several" for file in f.files}
    assert animated == {"animated.gif", "animated.png", "animated.webp", "pages.tif"}
