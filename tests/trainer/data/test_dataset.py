"""Folders as people and other trainers lay them out."""

from __future__ import annotations

import json
import os
from hashlib import sha256
from pathlib import Path

import pytest

from tests import pictures
from tests.pictures import save
from trainer.data import images
from trainer.data.dataset import Example, list_folder, repeats_in_name, scan
from trainer.errors import DatasetError


def by_name(folder: Path) -> dict[str, Example]:
    return {e.image.relative_to(folder).as_posix(): e for e in scan(folder).examples}


def test_images_captions_and_sizes_sorted_by_path(tmp_path: Path) -> None:
    save(tmp_path / "b.png", pictures.quadrants(width=64, height=40))
    save(tmp_path / "a.jpg")
    (tmp_path / "b.txt").write_text("  a second picture\n")
    (tmp_path / "a.caption").write_text("a first picture")
    digests = [sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("a.jpg", "b.png")]
    assert scan(tmp_path).examples == (
        Example(tmp_path / "a.jpg", "a first picture", 48, 32, label="a.jpg", digest=digests[0]),
        Example(tmp_path / "b.png", "a second picture", 64, 40, label="b.png", digest=digests[1]),
    )
    assert scan(tmp_path).notices == ()


def test_txt_comes_before_caption_and_case_does_not_matter(tmp_path: Path) -> None:
    save(tmp_path / "a.PNG")
    (tmp_path / "a.TXT").write_text("from txt")
    (tmp_path / "a.caption").write_text("from caption")
    assert by_name(tmp_path)["a.PNG"].caption == "from txt"


def test_metadata_gives_captions_in_its_folder_and_below(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "deep/c.png", "d.png"):
        save(tmp_path / name)
    (tmp_path / "b.txt").write_text("from its own file")
    rows = [
        {"file_name": "a.png", "text": "line one\u2028line two"},
        {"file_name": "b.png", "text": "from metadata"},
        {"file_name": "deep/c.png", "caption": "below"},
        {"file_name": "d.png"},
        {"file_name": "gone.png", "text": "nothing to see"},
    ]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "metadata.jsonl").write_text(f"\ufeff{lines}\n\n", encoding="utf-8")
    assert {name: e.caption for name, e in by_name(tmp_path).items()} == {
        "a.png": "line one\u2028line two",
        "b.png": "from its own file",
        "deep/c.png": "below",
        "d.png": "",
    }
    assert "In metadata.jsonl, but not there: gone.png." in scan(tmp_path).notices


@pytest.mark.parametrize("line", ["nonsense", "[]", '{"text": "a"}', '{"file_name": 1, "text": 2}'])
def test_broken_metadata_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(f'{{"file_name": "a.png", "text": "b"}}\n{line}\n')
    with pytest.raises(DatasetError, match=r"Line 2 of .*metadata\.jsonl is broken"):
        scan(tmp_path)


def test_metadata_in_another_encoding_is_refused_in_plain_words(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}', encoding="utf-16")
    with pytest.raises(DatasetError, match=r"metadata\.jsonl is not in UTF-8, as JSON has to be"):
        scan(tmp_path)


def test_kohya_folders_give_repeats_and_captions(tmp_path: Path) -> None:
    for name in ("10_sks dog/a.png", "10_sks dog/b.png", "3_/c.png", "10_x/deep/d.png", "e.png"):
        save(tmp_path / name)
    (tmp_path / "10_sks dog" / "b.txt").write_text("a caption of its own")
    found = by_name(tmp_path)
    assert {name: (e.repeats, e.caption) for name, e in found.items()} == {
        "10_sks dog/a.png": (10, "sks dog"),
        "10_sks dog/b.png": (10, "a caption of its own"),
        "10_x/deep/d.png": (10, "x"),
        "3_/c.png": (3, ""),
        "e.png": (1, ""),
    }
    assert any('called "sks dog" after the folder: a.png' in n for n in scan(tmp_path).notices)


def test_a_year_is_not_taken_for_repeats_and_the_folder_itself_never(tmp_path: Path) -> None:
    folder = tmp_path / "10_cats"
    save(folder / "2024_holiday" / "a.png")
    save(folder / "b.png")
    assert {e.repeats for e in scan(folder).examples} == {1}
    assert any("2024_holiday was not taken as repeats" in n for n in scan(folder).notices)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("10_cat", (10, "cat")),
        ("1_a_b", (1, "a b")),
        ("1000_", (1000, "")),
        ("0_cat", None),
        ("1001_cat", None),
        ("9" * 5000 + "_cat", None),
        ("10 cat", None),
        ("_cat", None),
        ("٣_cat", None),
    ],
)
def test_repeats_in_names(name: str, expected: tuple[int, str] | None) -> None:
    assert repeats_in_name(name) == expected


def test_masks_belong_to_their_images(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "a-masklabel.png", pictures.quadrants().convert("L"))
    (example,) = scan(tmp_path).examples
    assert example.mask == tmp_path / "a-masklabel.png"
    (tmp_path / "a-masklabel.png").write_bytes(b"junk")
    with pytest.raises(DatasetError, match=r"a-masklabel\.png is not an image"):
        scan(tmp_path)


def test_hidden_system_and_other_files_are_left_alone(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    for name in (".hidden.png", ".removed/b.png", "__MACOSX/c.png", "sub/._d.png"):
        save(tmp_path / name)
    for name in ("notes.md", "Thumbs.db", "model.safetensors", ".DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    found = scan(tmp_path)
    assert [e.image.name for e in found.examples] == ["a.png"]
    assert found.notices == ("Without a caption: a.png.",)


def test_notices_name_what_a_person_should_know(tmp_path: Path) -> None:
    for index in range(8):
        save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_bytes("café".encode("latin-1"))
    save(tmp_path / "empty.png")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "lonely.txt").write_text("no image")
    save(tmp_path / "lonely-masklabel.png")
    still, moving = pictures.quadrants(), pictures.noise(1, 48, 32)
    still.save(tmp_path / "moving.gif", save_all=True, append_images=[moving])
    assert scan(tmp_path).notices == (
        "Captions not in UTF-8, read as cp1252: 0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 3 more.",
        "Captions and masks without an image: lonely-masklabel.png, lonely.txt.",
        "Only the first picture is used of those with frames or pages: moving.gif.",
        "Without a caption: empty.png, moving.gif.",
    )


def test_a_link_to_a_folder_is_not_followed_but_said(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "round").symlink_to(tmp_path, target_is_directory=True)
    found = scan(tmp_path)
    assert len(found.examples) == 1
    assert any("round is a link to a folder" in notice for notice in found.notices)


def test_missing_empty_and_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="does not exist"):
        scan(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="holds no images"):
        scan(tmp_path)
    path = save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match=r"a\.png is not a folder"):
        scan(path)
    for impossible in ("a" * 5000, "nul\x00"):
        with pytest.raises(DatasetError, match="cannot be read"):
            scan(tmp_path / impossible)


def test_pictures_of_other_kinds_are_not_passed_over_in_silence(tmp_path: Path) -> None:
    (tmp_path / "IMG_1.HEIC").write_bytes(b"....ftypheic")
    with pytest.raises(DatasetError, match=r"no images that can be read, but IMG_1\.HEIC"):
        scan(tmp_path)
    save(tmp_path / "a.png")
    assert "Not read, but can be saved as JPEG or PNG: IMG_1.HEIC." in scan(tmp_path).notices


def test_all_broken_files_are_named_at_once_up_to_a_point(tmp_path: Path) -> None:
    save(tmp_path / "good.png")
    for index in range(7):
        (tmp_path / f"bad{index}.png").write_bytes(b"junk")
    (tmp_path / "good.txt").write_bytes(b"a cat\x00")
    with pytest.raises(DatasetError) as caught:
        scan(tmp_path)
    said = str(caught.value)
    assert all(f"bad{index}.png" in said for index in range(4)) and "good.txt" in said
    assert "bad6" not in said and "Nor can 3 more be used." in said
    assert caught.value.exit_code == 2 and "\n" not in said


@pytest.mark.parametrize(
    "name",
    [
        "a" * 251 + ".png",
        "new\nline.png",
        "CON.png",
        "a:b.png",
        "dot..png",
        " space .png",
        "日本語.png",
        "right\u202eto-left.png",
        "quote'\".png",
    ],
)
def test_odd_names_are_read_and_shown_on_one_line(tmp_path: Path, name: str) -> None:
    save(tmp_path / "plain.png").rename(tmp_path / name)
    (tmp_path / name).with_suffix(".txt").write_text("a caption")
    (example,) = scan(tmp_path).examples
    assert example.caption == "a caption"
    assert example.label.isprintable() and len(example.label) <= 121


def test_bytes_that_are_no_text_in_a_name(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    content = save(tmp_path / "plain.png").read_bytes()
    (tmp_path / "plain.png").unlink()
    with open(folder + b"/caf\xe9.png", "wb") as file:  # noqa: PTH123 - a name in bytes
        file.write(content)
    (example,) = scan(tmp_path).examples
    assert example.label == "caf\\udce9.png"
    json.dumps(example.label).encode()
    with open(folder + b"/caf\xe9.png", "wb") as file:  # noqa: PTH123
        file.write(content[:-40])
    with pytest.raises(DatasetError) as caught:
        scan(tmp_path)
    assert "caf\\udce9.png is broken" in str(caught.value)
    str(caught.value).encode()


def test_listing_opens_no_image(tmp_path: Path) -> None:
    (tmp_path / "junk.png").write_bytes(b"junk")
    (entry,) = list_folder(tmp_path).entries
    assert entry.image.name == "junk.png"


def test_with_a_cache_only_what_has_changed_is_decoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = tmp_path / "dataset", tmp_path / "cache"
    for index in range(4):
        save(folder / f"{index}.png", pictures.noise(index))
    decoded: list[str] = []

    def counting(path: Path) -> images.Measured:
        decoded.append(path.name)
        return images.measure(path)

    monkeypatch.setattr("trainer.data.checked.measure", counting)
    first = scan(folder, cache)
    assert sorted(decoded) == ["0.png", "1.png", "2.png", "3.png"]
    decoded.clear()
    assert scan(folder, cache) == first and decoded == []

    content = (folder / "2.png").read_bytes()
    status, probe = (folder / "2.png").stat(), tmp_path / "probe"
    while probe.write_bytes(b"") or probe.stat().st_ctime_ns <= status.st_ctime_ns:
        pass  # the file system's clock goes in ticks of some milliseconds on older kernels
    (folder / "2.png").write_bytes(content[:-20] + b"x" * 20)  # as long as it was
    os.utime(folder / "2.png", ns=(status.st_atime_ns, status.st_mtime_ns))  # and as old
    with pytest.raises(DatasetError, match=r"2\.png is broken"):
        scan(folder, cache)
    (folder / "2.png").write_bytes(content)
    decoded.clear()
    assert len(scan(folder, cache).examples) == 4 and decoded == ["2.png"]


@pytest.mark.parametrize("content", [b"", b"junk", b"[]", b'{"a": 1}', b'{"a": []}', b"null"])
def test_a_broken_cache_is_made_anew(tmp_path: Path, content: bytes) -> None:
    folder, cache = tmp_path / "dataset", tmp_path / "cache"
    save(folder / "a.png")
    expected = scan(folder, cache)
    (file,) = cache.iterdir()
    good = file.read_bytes()
    file.write_bytes(content)
    assert scan(folder, cache) == expected
    assert file.read_bytes() == good


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    save(tmp_path / "dataset" / "a.png")
    (tmp_path / "file").write_text("no folder")
    assert len(scan(tmp_path / "dataset", tmp_path / "file").examples) == 1


def test_masks_from_a_folder_of_masks(tmp_path: Path) -> None:
    """By the names of the images, in the same sub-folders; one beside the image comes first."""
    folder, masks = tmp_path / "images", tmp_path / "images" / "masks"
    for name in ("a.jpg", "sub/b.png", "c.png", "c-masklabel.png"):
        save(folder / name)
    for name in ("a.png", "sub/b-masklabel.jpg", "c.png", "stray.png"):
        save(masks / name)
    found = scan(folder, masks=masks)
    assert {e.image.name: e.mask for e in found.examples} == {
        "a.jpg": masks / "a.png",
        "b.png": masks / "sub" / "b-masklabel.jpg",
        "c.png": folder / "c-masklabel.png",
    }
    assert all(len(example.mask_digest) == 64 for example in found.examples)
    assert any("Masks in the folder of masks without an image: " in n for n in found.notices)
    (masks / "a.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"masks/a\.png is not an image"):
        scan(folder, masks=masks)


def test_a_warm_cache_knows_the_hashes_too(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    save(folder / "a.png")
    first = scan(folder, tmp_path / "cache")
    assert first.examples[0].digest == sha256((folder / "a.png").read_bytes()).hexdigest()
    assert scan(folder, tmp_path / "cache") == first
    save(folder / "a.png", pictures.quadrants(width=64, height=40))
    assert scan(folder, tmp_path / "cache").examples[0].digest != first.examples[0].digest
