"""The report on a dataset, and the fixes that it can apply."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from tests import pictures
from tests.pictures import noise, save
from trainer.data import looks
from trainer.data.findings import Finding
from trainer.data.looks import Likeness
from trainer.data.report import Report, apply_fixes, check
from trainer.data.tokens import Tokenizer
from trainer.errors import DatasetError
from trainer.settings import Dataset


def photo(seed: int, width: int = 600, height: int = 400) -> Image.Image:
    """Edges at all scales, as in a photograph: overlapping discs of all sizes."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(picture)
    for radius in np.geomspace(width / 4, 4, 60):
        x, y = rng.integers(0, width), rng.integers(0, height)
        red, green, blue = (int(value) for value in rng.integers(0, 256, 3))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), (red, green, blue))
    return picture


def captioned(folder: Path, name: str, image: Image.Image, caption: str | None = "a cat") -> None:
    save(folder / name, image)
    if caption is not None:
        (folder / name).with_suffix(".txt").write_text(caption)


def checked(folder: Path, tokenizer: Tokenizer | None = None, **wanted: Any) -> Report:
    return check(folder, Dataset(resolution=256, **wanted), tokenizer)


def only(found: Report, code: str) -> Finding:
    (finding,) = (f for f in found.findings if f.code == code)
    return finding


def codes(found: Report) -> list[str]:
    return [finding.code for finding in found.findings]


def test_a_good_dataset_has_nothing_to_improve(tmp_path: Path) -> None:
    for index, words in enumerate(("a cat sleeps", "two dogs", "some birds")):
        captioned(tmp_path, f"{index}.png", photo(index), words)
    found = checked(tmp_path)
    assert found.findings == ()
    assert "Nothing to improve." in found.to_words()


def test_counts_sizes_and_buckets(tmp_path: Path) -> None:
    captioned(tmp_path, "3_a/1.png", photo(1, 512, 512), "one")
    captioned(tmp_path, "3_a/2.png", photo(2, 512, 512), "two")
    captioned(tmp_path, "wide.png", photo(3, 900, 600), None)
    captioned(tmp_path, "tall.png", photo(4, 300, 500), "four")
    found = checked(tmp_path)
    assert (found.images, found.captions, found.repeats) == (4, 3, 8)
    assert (found.smallest, found.median, found.largest) == ((300, 500), (512, 512), (900, 600))
    assert [(b.width, b.height, b.images, b.share) for b in found.buckets] == [
        (256, 256, 2, 0.75),
        (192, 320, 1, 0.125),
        (320, 192, 1, 0.125),
    ]
    assert found.bytes == sum(path.stat().st_size for path in tmp_path.rglob("*.png"))
    words = found.to_words()
    assert "4 images (8 with repeats), 3 with a caption" in words
    assert "256 x 256       2 images   75.0% of steps" in words


def test_json_is_the_whole_report(tmp_path: Path) -> None:
    captioned(tmp_path, "a.png", photo(1), None)
    found = checked(tmp_path, trigger="zork")
    assert Report.model_validate_json(found.to_json()) == found
    assert json.loads(found.to_json())["findings"][0] == {
        "severity": "warning",
        "code": "no_caption",
        "message": "1 image is without a caption, or with an empty one.",
        "files": ["a.png"],
        "fix": "Write in a .txt file of the same name what is to be seen.",
        "fixable": False,
    }


def test_broken_files_are_findings_and_the_others_are_looked_at(tmp_path: Path) -> None:
    captioned(tmp_path, "good.png", photo(1))
    captioned(tmp_path, "masked.png", photo(2))
    (tmp_path / "masked-masklabel.png").write_bytes(b"junk")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:999])
    (tmp_path / "good.txt").write_bytes(b"a cat\x00")
    found = checked(tmp_path)
    assert [(f.code, f.files) for f in found.findings if f.severity == "error"] == [
        ("broken_image", ("cut.png",)),
        ("broken_image", ("masked-masklabel.png",)),
        ("broken_text", ()),
    ]
    assert found.count("error") == 3
    assert found.images == 3


def test_small_cropped_and_animated_images(tmp_path: Path) -> None:
    captioned(tmp_path, "small.png", photo(1, 128, 128), "one")
    captioned(tmp_path, "long.png", photo(2, 3000, 300), "two")
    photo(3, 300, 300).save(tmp_path / "m.gif", save_all=True, append_images=[photo(4, 300, 300)])
    (tmp_path / "m.txt").write_text("three")
    found = checked(tmp_path)
    assert only(found, "too_small").files == ("small.png",)
    assert "up to 2.0 times" in only(found, "too_small").message
    assert only(found, "cropped").files == ("long.png",)
    assert only(found, "several").files == ("m.gif",)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("side", [64, 256, 512])
def test_blur_is_told_from_sharpness(tmp_path: Path, seed: int, side: int) -> None:
    sharp = photo(seed, 2 * side, 2 * side)
    soft = sharp.filter(ImageFilter.GaussianBlur(8))  # of 4 pixels at the size of training
    save(tmp_path / "sharp.png", sharp)
    save(tmp_path / "soft.png", soft)
    assert looks.look(tmp_path / "sharp.png", side).blur < 0.5
    assert looks.look(tmp_path / "soft.png", side).blur > looks.BLURRED


def test_flat_and_tiny_pictures_are_not_blurred() -> None:
    assert looks.blur(Image.new("RGB", (64, 64), "red")) == 0
    assert looks.blur(Image.new("RGB", (1, 1), "red")) == 0
    assert looks.blur(pictures.quadrants()) < 0.5


def test_blurred_images_are_found(tmp_path: Path) -> None:
    captioned(tmp_path, "sharp.png", photo(1), "one")
    captioned(tmp_path, "soft.png", photo(2).filter(ImageFilter.GaussianBlur(9)), "two")
    assert only(checked(tmp_path), "blurred").files == ("soft.png",)


def test_copies_and_look_alikes_are_told_apart(tmp_path: Path) -> None:
    original = photo(1)
    captioned(tmp_path, "a.png", original, None)
    captioned(tmp_path, "copy.png", original, "the one with a caption")
    captioned(tmp_path, "smaller.jpg", original.resize((450, 300)), "one")
    captioned(tmp_path, "crop.png", original.crop((8, 6, 592, 394)), "two")
    captioned(tmp_path, "brighter.png", original.point(lambda v: min(255, v * 21 // 20)), "three")
    captioned(tmp_path, "mirrored.png", original.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "four")
    captioned(tmp_path, "other.png", photo(2), "five")
    found = checked(tmp_path)
    assert only(found, "copies").files == ("copy.png", "a.png")
    assert set(only(found, "look_alikes").files) == {
        "brighter.png", "copy.png", "crop.png", "smaller.jpg",
    }  # fmt: skip


def test_the_same_shape_in_another_colour_is_another_picture() -> None:
    red, blue = Image.new("RGB", (64, 64), "white"), Image.new("RGB", (64, 64), "white")
    red.paste((200, 30, 30), (20, 20, 44, 44))
    blue.paste((30, 30, 200), (20, 20, 44, 44))
    assert looks.alike([Likeness.of(picture) for picture in (red, blue, red)]) == [[0, 2]]


def test_the_same_colours_in_another_shape_are_another_picture() -> None:
    left = Image.linear_gradient("L").convert("RGB")
    assert looks.alike([Likeness.of(left), Likeness.of(left.rotate(90))]) == []


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("quality", [40, 90])
def test_compressing_and_scaling_leave_a_picture_alike(seed: int, quality: int) -> None:
    original = photo(seed)
    content = io.BytesIO()
    original.resize((200, 133)).save(content, "JPEG", quality=quality)
    copy = Image.open(content).convert("RGB")
    others = [Likeness.of(photo(seed + 100 + other)) for other in range(20)]
    assert looks.alike([Likeness.of(original), *others, Likeness.of(copy)]) == [[0, 21]]


def test_alike_groups_are_joined_by_those_between() -> None:
    def step(bits: int, brightness: int = 100) -> Likeness:
        return Likeness(np.arange(64) < bits, np.full(192, brightness, np.uint8))

    most = looks.SAME_BITS
    chain = [step(0), step(most), step(2 * most, 116), step(2 * most, 132)]
    assert looks.alike([chain[0], step(0, 150), *chain[1:], step(0, 117)]) == [[0, 2, 3, 4]]
    assert looks.alike([]) == []


def test_long_captions_with_the_words_at_which_they_are_cut(tmp_path: Path) -> None:
    words = ["red", "cat", "blue", "dog"] * 20
    words[72:77] = ["one", "two", "three", "four", "five"]
    captioned(tmp_path, "a.png", photo(1), " ".join(words))
    found = only(checked(tmp_path), "long_caption")
    assert "has 80 tokens" in found.message
    assert found.message.endswith('"dog one two three" is past the 75 that are read.')

    assert "long_caption" not in codes(checked(tmp_path, max_tokens=150))
    (tmp_path / "a.txt").write_text(" ".join(words[:75]))
    assert "long_caption" not in codes(checked(tmp_path))
    found = only(checked(tmp_path, trigger="dogs"), "long_caption")
    assert "The caption of a.png, with the trigger, has 77 tokens" in found.message

    (tmp_path / "a.txt").write_text(" ".join(words))
    of_letters = Tokenizer([])
    found = only(checked(tmp_path, tokenizer=of_letters), "long_caption")
    assert f"has {len(''.join(words))} tokens" in found.message


def test_words_in_all_captions_and_missing_triggers(tmp_path: Path) -> None:
    captions = ("zork the red fox", "zork, a Red fox runs", "a red zorkling fox", "red FOX of zork")
    for index, words in enumerate(captions):
        captioned(tmp_path, f"{index}.png", photo(index), words)
    found = checked(tmp_path, trigger="Zork")
    assert only(found, "in_all_captions").message.startswith("In all captions: red, fox.")
    assert only(found, "no_trigger").files == ("2.png",)
    assert "no_trigger" not in codes(checked(tmp_path))


def test_the_gravest_come_first(tmp_path: Path) -> None:
    captioned(tmp_path, "a.png", photo(1, 3000, 300), None)
    (tmp_path / "b.png").write_bytes(b"junk")
    severities = [finding.severity for finding in checked(tmp_path, trigger="zork").findings]
    assert severities == ["error", "warning", "note", "note"]


def test_fixes_can_be_undone_and_leave_nothing_to_fix(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    captioned(folder, "a.png", photo(1), "a zork")
    captioned(folder, "sub/copy.png", photo(1), "another caption")
    captioned(folder, "b.png", photo(2), None)
    (folder / "b.txt").write_bytes("un café".encode("latin-1"))
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:999])
    (folder / "cut.txt").write_text("zork, broken")
    originals = {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    done = apply_fixes(checked(folder, trigger="zork"))
    assert done == [
        "cut.png was set aside in .removed.",
        "sub/copy.png was set aside in .removed.",
        "b.txt is UTF-8 now; it was read as cp1252.",
        '"zork" was put in front of 1 captions.',
    ]
    after = checked(folder, trigger="zork")
    assert not any(finding.fixable for finding in after.findings)
    assert (folder / "b.txt").read_text(encoding="utf-8") == "zork, un café\n"
    aside = {p.relative_to(folder / ".removed").as_posix() for p in folder.rglob(".removed/**/*.*")}
    assert aside == {"cut.png", "cut.txt", "sub/copy.png", "sub/copy.txt", "b.txt", "b (2).txt"}
    for name in ("cut.png", "sub/copy.png", "sub/copy.txt", "b.txt"):
        assert (folder / ".removed" / name).read_bytes() == originals[Path(name).name]
    assert apply_fixes(after) == []


def test_a_caption_that_two_images_share_stays_when_one_is_set_aside(tmp_path: Path) -> None:
    captioned(tmp_path, "a.jpg", photo(1), "a cat")
    (tmp_path / "a.png").write_bytes(b"junk")
    save(tmp_path / "a-masklabel.png", Image.new("L", (600, 400)))
    assert apply_fixes(checked(tmp_path)) == ["a.png was set aside in .removed."]
    names = {path.name for path in tmp_path.iterdir()}
    assert {"a.jpg", "a.txt", "a-masklabel.png"} <= names


def test_a_folder_of_masks_holds_no_images(tmp_path: Path) -> None:
    captioned(tmp_path, "a.png", photo(1))
    captioned(tmp_path, "b.png", photo(2), "a dog")
    save(tmp_path / "masks" / "a.png", Image.new("L", (600, 400)))
    (tmp_path / "masks" / "b.png").write_bytes(b"junk")
    assert checked(tmp_path).images == 4
    found = checked(tmp_path, mask_folder=tmp_path / "masks")
    assert found.images == 2
    assert only(found, "broken_image").files == ("masks/b.png",)
    assert apply_fixes(found) == ["masks/b.png was set aside in .removed."]


def test_regularisation_images_inside_the_dataset_are_none_of_it(tmp_path: Path) -> None:
    captioned(tmp_path, "img/a.png", photo(1))
    captioned(tmp_path, "reg/b.png", photo(2))
    assert checked(tmp_path, class_folder=tmp_path / "reg").images == 1


def test_missing_and_empty_folders_are_errors(tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(DatasetError):
            check(folder)


def test_names_that_are_no_text_do_not_break_the_json(tmp_path: Path) -> None:
    folder = tmp_path / "caf\udce9"
    captioned(folder, "new\nline\udce9.png", photo(1), None)
    captioned(folder, "copy.png", photo(1), "a caption")
    found = checked(folder)
    assert json.loads(found.to_json())["folder"].endswith("caf\\udce9")
    found.to_words().encode()
    assert only(found, "copies").files == ("copy.png", "new\\nline\\udce9.png")
    assert apply_fixes(found) == ["new\\nline\\udce9.png was set aside in .removed."]


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    for index in range(3):
        captioned(tmp_path, f"{index}.png", noise(index))
    seen: list[tuple[int, int]] = []
    check(tmp_path, Dataset(resolution=64), progress=lambda *counts: seen.append(counts))
    assert seen == [(1, 3), (2, 3), (3, 3)]
