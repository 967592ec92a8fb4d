"""Imports: whatever is offered, what is good is taken and what is not is named."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import stat
import struct
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from random import Random

import pytest

from tests import pictures
from tests.pictures import encode, noise, quadrants, save
from trainer.data import archives, importing
from trainer.data.dataset import scan
from trainer.data.editing import create_dataset, remove_example, write_caption
from trainer.data.importing import ImportReport, import_files
from trainer.errors import DatasetError

PNG = encode(quadrants(), "PNG")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return create_dataset(tmp_path / "datasets", "mine")


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    folder = tmp_path / "uploads"
    folder.mkdir()
    return folder


def offer(uploads: Path, dataset: Path, files: Mapping[str, bytes]) -> ImportReport:
    """Imports uploads whose files have other names than the people who sent them gave."""
    sources = []
    for index, content in enumerate(files.values()):
        path = uploads / f"upload-{len(list(uploads.iterdir()))}-{index}"
        path.write_bytes(content)
        sources.append(path)
    return import_files(sources, list(files), dataset)


def zipped(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def inside(dataset: Path) -> set[str]:
    return {
        path.relative_to(dataset).as_posix()
        for path in dataset.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_images_get_numbers_and_keep_their_bytes_and_names(dataset: Path, uploads: Path) -> None:
    jpeg = encode(noise(1), "JPEG")
    found = offer(uploads, dataset, {"my cat.JPEG": jpeg, "my cat.txt": "a cät".encode("latin-1"),
                                     "png.webp": PNG})  # fmt: skip
    assert found == ImportReport(
        images=("0001.jpg", "0002.png"),
        captions=1,
        refused=(),
        notices=("my cat.txt is not UTF-8; it was read as cp1252.",),
    )
    assert (dataset / "0001.jpg").read_bytes() == jpeg
    assert (dataset / "0001.txt").read_text(encoding="utf-8") == "a cät\n"
    assert [e.label for e in scan(dataset).examples] == ["my cat.JPEG", "png.webp"]
    more = offer(uploads, dataset, {"b.png": encode(noise(2), "PNG")})
    assert more.images == ("0003.png",)
    assert inside(dataset) == {"0001.jpg", "0001.txt", "0002.png", "0003.png", "labels.json"}


def test_what_is_wrong_is_named_and_the_rest_is_taken(dataset: Path, uploads: Path) -> None:
    found = offer(
        uploads,
        dataset,
        {
            "good.png": PNG,
            "cut.png": PNG[:-30],
            "empty.jpg": b"",
            "model.ckpt": b"\x80\x04.",
            "movie.mp4": b"....ftyp",
            "IMG_1.HEIC": b"....ftypheic",
            "good.txt": b"a picture",
            "binary.txt": b"a\x00",
            "lonely.txt": b"no image",
            "copy.png": PNG,
            "x-masklabel.png": PNG,
            "archive.zip": b"PK no zip",
        },
    )
    assert found.images == ("0001.png",) and found.captions == 1
    assert {refused.name for refused in found.refused} == {
        "cut.png", "empty.jpg", "model.ckpt", "movie.mp4", "IMG_1.HEIC", "binary.txt", "lonely.txt",
        "copy.png", "x-masklabel.png", "archive.zip",
    }  # fmt: skip
    for refused in found.refused:
        assert refused.name in refused.reason and refused.reason.endswith(".")
        assert str(uploads) not in refused.reason and "\n" not in refused.reason
    assert found.to_words().startswith("Imported: 1 images, 1 captions.\n")


def test_names_from_anywhere_never_become_paths(dataset: Path, uploads: Path) -> None:
    names = ["../../escape.png", "/etc/absolute.png", r"C:\windows\back.png", "CON.png",
             "new\nline.png", "dot.png.", "a" * 300 + ".png", "..png", "caf\udce9.png", "a:b.png",
             "nul\x00byte.png", "~/home.png"]  # fmt: skip
    files = {name: encode(noise(index), "PNG") for index, name in enumerate(names)}
    before = inside(dataset.parent.parent)
    found = offer(uploads, dataset, files)
    taken = len(found.images)
    assert taken + len(found.refused) == len(names) and taken >= 10
    new = inside(dataset.parent.parent) - before
    assert all(name.startswith(("datasets/mine/", "uploads/")) for name in new)
    assert all(path.name[:4].isdigit() for path in dataset.glob("*.png"))
    labels = json.loads((dataset / "labels.json").read_text())
    assert all(label.isprintable() and len(label) <= 121 for label in labels.values())
    found.to_words().encode()
    scan(dataset)


def test_captions_that_come_later_find_their_image(dataset: Path, uploads: Path) -> None:
    offer(uploads, dataset, {"cat.png": PNG, "dog.png": encode(noise(1), "PNG")})
    found = offer(uploads, dataset, {"dog.txt": b"a dog", "cat.caption": b"a cat"})
    assert found.captions == 2 and not found.refused
    assert [e.caption for e in scan(dataset).examples] == ["a cat", "a dog"]


def test_a_later_caption_that_fits_two_images_is_refused(dataset: Path, uploads: Path) -> None:
    offer(uploads, dataset, {"a/cat.png": PNG, "b/cat.png": encode(noise(1), "PNG")})
    (refused,) = offer(uploads, dataset, {"cat.txt": b"which?"}).refused
    assert refused.reason == "cat.txt fits 2 images of that name."


def test_folders_keep_captions_masks_repeats_and_metadata(dataset: Path, tmp_path: Path) -> None:
    source = tmp_path / "kohya"
    save(source / "10_sks dog" / "a.png", noise(1))
    (source / "10_sks dog" / "a.txt").write_text("a dog")
    save(source / "10_sks dog" / "a-masklabel.png", quadrants())
    save(source / "plain" / "a.png", noise(2))
    (source / "plain" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a cat"}')
    save(source / ".hidden" / "b.png", noise(3))
    found = import_files([source], ["kohya"], dataset)
    assert found.images == ("10_sks dog/0001.png", "0002.png") and not found.refused
    examples = {e.image.name: e for e in scan(dataset).examples}
    assert examples["0001.png"].repeats == 10
    assert examples["0001.png"].caption == "a dog"
    assert examples["0001.png"].mask == dataset / "10_sks dog" / "0001-masklabel.png"
    assert examples["0002.png"].caption == "a cat"


def test_captions_of_one_zip_are_not_those_of_another(dataset: Path, uploads: Path) -> None:
    first = zipped({"a.png": PNG, "a.txt": b"first"})
    second = zipped({"a.png": encode(noise(1), "PNG"), "a.txt": b"second"})
    offer(uploads, dataset, {"1.zip": first, "2.zip": second})
    assert [e.caption for e in scan(dataset).examples] == ["first", "second"]


def test_an_exported_dataset_comes_back_with_its_labels(dataset: Path, uploads: Path) -> None:
    offer(uploads, dataset, {"Grandma's cat.png": PNG, "Grandma's cat.txt": b"a cat"})
    exported = zipped({name: (dataset / name).read_bytes() for name in inside(dataset)})
    other = create_dataset(dataset.parent, "other")
    assert not offer(uploads, other, {"mine.zip": exported}).refused
    (example,) = scan(other).examples
    assert (example.label, example.caption) == ("Grandma's cat.png", "a cat")


def linked() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("link.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def patched(content: bytes, signature: bytes, offset: int, value: bytes) -> bytes:
    """A zip with some bytes of its first local (PK34) or directory (PK12) header replaced."""
    at = content.index(signature) + offset
    return content[:at] + value + content[at + len(value) :]


def encrypted() -> bytes:
    content = patched(zipped({"a.png": PNG}), b"PK\x03\x04", 6, b"\x01\x00")
    return patched(content, b"PK\x01\x02", 8, b"\x01\x00")


def wrong_checksum() -> bytes:
    content = patched(zipped({"a.png": PNG}), b"PK\x03\x04", 14, b"\x00\x00\x00\x00")
    return patched(content, b"PK\x01\x02", 16, b"\x00\x00\x00\x00")


def lying_size() -> bytes:
    """A member that unpacks to far more than its directory entry says."""
    content = zipped({"a.bmp": b"\x00" * 60_000_000})
    return patched(content, b"PK\x01\x02", 24, struct.pack("<I", 1000))


def unknown_method() -> bytes:
    content = patched(zipped({"a.png": PNG}), b"PK\x03\x04", 8, b"\x63\x00")
    return patched(content, b"PK\x01\x02", 10, b"\x63\x00")


def duplicates() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a.png", PNG)
        archive.writestr("a.png", encode(noise(1), "PNG"))
    return buffer.getvalue()


def shift_jis_names() -> bytes:
    """As a Japanese Windows writes them: bytes that do not say in what encoding they are."""
    content = zipped({"xxxx.png": PNG})
    return content.replace(b"xxxx", "ねこ".encode("cp932"))


# What is taken (as labels) and what is refused (name and a part of the reason).
Outcome = tuple[bytes, list[str], dict[str, str]]
ZIPS: dict[str, Outcome] = {
    "plain": (zipped({"a.png": PNG, "b/": b"", "c/d.jpg": encode(noise(1), "JPEG")}),
              ["a.png", "d.jpg"], {}),
    "stored": (zipped({"a.png": PNG}, zipfile.ZIP_STORED), ["a.png"], {}),
    "bzip2": (zipped({"a.png": PNG}, zipfile.ZIP_BZIP2), ["a.png"], {}),
    "lzma": (zipped({"a.png": PNG}, zipfile.ZIP_LZMA), ["a.png"], {}),
    "upwards": (zipped({"../../../a.png": PNG}), ["a.png"], {}),
    "absolute": (zipped({"/etc/cron.d/a.png": PNG}), ["a.png"], {}),
    "windows": (zipped({"C:\\Users\\a.png": PNG}), ["a.png"], {}),
    "long": (zipped({"x" * 300 + ".png": PNG}), ["x" * 60 + "…" + "x" * 56 + ".png"], {}),
    "duplicates": (b"", ["a.png", "a.png"], {}),
    "nul": (zipped({"a.png": PNG}).replace(b"a.png", b"a\x00png"), [],
            {"a": "is neither an image"}),
    "shift-jis": (shift_jis_names(), ["ねこ.png"], {}),
    "system-files": (zipped({"a.png": PNG, "__MACOSX/._a.png": b"x", ".DS_Store": b"x",
                             "sub/Thumbs.db": b"x"}), ["a.png"], {}),
    "nested": (zipped({"a.png": PNG, "more.zip": zipped({"b.png": PNG})}), ["a.png"],
               {"more.zip": "is a zip within a zip"}),
    "program": (zipped({"a.png": PNG, "setup.exe": b"MZ"}), ["a.png"],
                {"setup.exe": "is neither an image"}),
    "broken-member": (zipped({"a.png": PNG, "b.png": PNG[:99]}), ["a.png"],
                      {"b.png": "b.png is broken"}),
    "link": (linked(), [], {"link.png": "is a link"}),
    "bomb": (zipped({"a.bmp": b"\x00" * 50_000_000, "b.png": PNG}), ["b.png"],
             {"a.bmp": "as bombs do"}),
    "lying-size": (lying_size(), [], {"a.bmp": ""}),
    "encrypted": (encrypted(), [], {"a.png": "is encrypted"}),
    "wrong-checksum": (wrong_checksum(), [], {"a.png": "cannot be unpacked"}),
    "unknown-method": (unknown_method(), [], {"a.png": "cannot be unpacked"}),
    "empty": (zipped({}), [], {}),
    "cut": (zipped({"a.png": PNG})[:-30], [], {"cut.zip": "is not a zip"}),
    "not-a-zip": (b"Rar!\x1a\x07\x00", [], {"not-a-zip.zip": "is not a zip"}),
    "nothing": (b"", [], {"nothing.zip": "is not a zip"}),
}  # fmt: skip


@pytest.mark.parametrize("name", ZIPS)
def test_zips(name: str, dataset: Path, uploads: Path) -> None:
    content, labels, refused = ZIPS[name]
    content = duplicates() if name == "duplicates" else content
    found = offer(uploads, dataset, {f"{name}.zip": content})
    taken = json.loads((dataset / "labels.json").read_text()) if found.images else {}
    assert list(taken.values()) == labels
    assert {r.name for r in found.refused} == set(refused)
    for one in found.refused:
        assert refused[one.name] in one.reason
    assert inside(dataset) == {*found.images, *(["labels.json"] if found.images else [])}
    assert sorted(os.listdir(dataset.parent.parent)) == ["datasets", "uploads"]  # noqa: PTH208


def test_a_damaged_zip_never_breaks_an_import(dataset: Path, uploads: Path) -> None:
    random = Random(2)
    files = {"a.png": PNG, "a.txt": b"a cat", "10_x/b.jpg": encode(noise(1), "JPEG"),
             "metadata.jsonl": b'{"file_name": "a.png", "text": "b"}'}  # fmt: skip
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        content = zipped(files, method)
        for _ in range(15):
            changed = bytearray(content)
            for _ in range(random.choice((1, 3, 20))):
                changed[-random.randrange(1, 400)] = random.randrange(256)
            offer(uploads, dataset, {"z.zip": bytes(changed)}).to_words().encode()
    scan(dataset)


def test_too_many_members(dataset: Path, uploads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    found = offer(uploads, dataset, {"z.zip": zipped({f"{n}.png": PNG for n in range(4)})})
    assert [r.reason for r in found.refused] == ["z.zip holds 4 files; 3 are allowed. Split it."]


def test_too_much_in_all(dataset: Path, uploads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes that really come are counted, over all members."""
    monkeypatch.setattr(archives, "MAX_BYTES", 20_000)
    files = {f"{n}.bmp": encode(noise(n), "BMP") for n in range(3)}  # 18 kB each
    found = offer(uploads, dataset, {"z.zip": zipped(files)})
    assert found.images == ("0001.bmp",)
    assert "was not read to its end" in found.refused[0].reason


def test_many_small_bombs_stop_the_archive(
    dataset: Path, uploads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "_RATIO_FREE_BYTES_IN_ALL", 40_000_000)
    bombs = {f"{n}.bmp": b"\x00" * 15_000_000 for n in range(4)}
    found = offer(uploads, dataset, {"z.zip": zipped(bombs)})
    assert "z.zip unpacks to over" in found.refused[0].reason


def test_a_full_disk_changes_nothing(
    dataset: Path, uploads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(uploads, dataset, {"a.png": PNG})
    before = inside(dataset)

    def full(source: object, target: object) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(DatasetError, match="cannot be changed: No space left on device"):
        offer(uploads, dataset, {"b.png": encode(noise(1), "PNG")})
    assert inside(dataset) == before


def test_what_a_killed_import_left_is_swept(dataset: Path, uploads: Path) -> None:
    (dataset / ".import-dead").mkdir()
    (dataset / ".import-dead" / "copy-0").write_bytes(PNG)
    offer(uploads, dataset, {"a.png": PNG})
    assert inside(dataset) == {"0001.png", "labels.json"}


def test_two_imports_at_once_take_turns(dataset: Path, tmp_path: Path) -> None:
    folders = []
    for index in range(2):
        folders.append(tmp_path / f"source-{index}")
        for number in range(6):
            save(folders[-1] / f"{number}.png", noise(10 * index + number))
    threads = [
        threading.Thread(target=import_files, args=([folder], [folder.name], dataset))
        for folder in folders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(scan(dataset).examples) == 12
    assert len(json.loads((dataset / "labels.json").read_text())) == 12


def test_progress_counts_to_the_end(dataset: Path, tmp_path: Path) -> None:
    for number in range(5):
        save(tmp_path / "source" / f"{number}.png", noise(number))
    seen: list[tuple[int, int]] = []
    import_files(
        [tmp_path / "source"], ["source"], dataset, lambda done, total: seen.append((done, total))
    )
    assert seen == [(n, 5) for n in range(1, 6)]


def test_a_missing_dataset(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="There is no dataset nowhere"):
        importing.import_files([], [], tmp_path / "nowhere")


# Editing


@pytest.mark.parametrize("name", ["my cats", "Ärger", "日本", "a.b-c_d 1", "  trimmed "])
def test_names_that_do(tmp_path: Path, name: str) -> None:
    folder = create_dataset(tmp_path, name)
    assert folder.is_dir() and folder.parent == tmp_path and folder.name == name.strip()


@pytest.mark.parametrize(
    "name",
    ["", " ", ".", "..", ".hidden", "a/b", r"a\b", "../up", "a\nb", "CON", "nul.txt", "com1",
     "trailing.", "a:b", "x" * 61, "-flag", "a\x00b", "a\udce9"],
)  # fmt: skip
def test_names_that_do_not(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError):
        create_dataset(tmp_path, name)
    assert not list(tmp_path.iterdir())


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    create_dataset(tmp_path, "cats")
    with pytest.raises(DatasetError, match="There is a dataset cats already"):
        create_dataset(tmp_path, "cats")


def test_captions_are_written_whole(dataset: Path, uploads: Path) -> None:
    offer(uploads, dataset, {"a.png": PNG})
    write_caption(dataset, "0001.png", "  two lines,\nund ein Käfer 🐞 ")
    assert (dataset / "0001.txt").read_bytes() == "two lines,\nund ein Käfer 🐞\n".encode()
    write_caption(dataset, "0001.png", "")
    assert scan(dataset).examples[0].caption == ""
    for text in ("nul \x00", "x" * 70_000):
        with pytest.raises(DatasetError):
            write_caption(dataset, "0001.png", text)
    assert inside(dataset) == {"0001.png", "0001.txt", "labels.json"}


@pytest.mark.parametrize(
    "image",
    ["0002.png", "../secret.png", "/etc/passwd", "labels.json", ".lock", "", "sub/../0001.png",
     "link.png", ".hidden/a.png", "0001.txt"],
)  # fmt: skip
def test_nothing_but_its_images_can_be_named(dataset: Path, uploads: Path, image: str) -> None:
    offer(uploads, dataset, {"a.png": PNG, "a.txt": b"a"})
    save(dataset.parent / "secret.png")
    (dataset / "link.png").symlink_to(dataset.parent / "secret.png")
    save(dataset / ".hidden" / "a.png")
    before = inside(dataset.parent)
    with pytest.raises(DatasetError, match="has no image"):
        write_caption(dataset, image, "x")
    with pytest.raises(DatasetError, match="has no image"):
        remove_example(dataset, image)
    assert inside(dataset.parent) == before


def test_removing_an_image_takes_all_that_is_its_own(dataset: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    save(source / "a.png", noise(1))
    save(source / "a-masklabel.png")
    (source / "a.txt").write_text("a")
    save(source / "b.png", noise(2))
    import_files([source], ["source"], dataset)
    remove_example(dataset, "0001.png")
    assert inside(dataset) == {"0002.png", "labels.json"}
    assert json.loads((dataset / "labels.json").read_text()) == {"0002.png": "b.png"}


def test_a_caption_that_two_images_share_stays_for_the_other(dataset: Path) -> None:
    save(dataset / "a.png")
    pictures.save(dataset / "a.jpg")
    (dataset / "a.txt").write_text("both")
    remove_example(dataset, "a.jpg")
    assert inside(dataset) == {"a.png", "a.txt"}
