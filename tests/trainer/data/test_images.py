"""The zoo of images: each is read as its author saw it, or refused by name in one sentence."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageCms, TiffImagePlugin

from tests import pictures
from tests.pictures import BLUE, GREEN, RED, YELLOW, encode, oriented, quadrants
from trainer.data import images
from trainer.data.buckets import Size, assign, bucket_sizes
from trainer.data.dataset import scan
from trainer.data.versions import Version
from trainer.errors import DatasetError

Colours = list[tuple[int, ...]]
COLOURS: Colours = [RED, GREEN, BLUE, YELLOW]
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
GREYS = (0, 80, 160, 240)  # of the quadrants, in pictures without colour


def luma(colour: tuple[int, ...]) -> tuple[int, ...]:
    value = Image.new("RGB", (1, 1), colour[:3]).convert("L").getpixel((0, 0))
    assert isinstance(value, int)
    return (value,) * 3


def grey(*values: int) -> Colours:
    return [(value,) * 3 for value in values]


def values(scale: float, kind: str) -> np.ndarray:
    """The grey quadrants as an array, their 0-255 multiplied by `scale`."""
    return (np.asarray(quadrants([(v,) * 3 for v in GREYS]))[:, :, 0] * float(scale)).astype(kind)


def tiff_of(array: np.ndarray, **options: object) -> bytes:
    return encode(Image.fromarray(array), "TIFF", **options)


def with_hidden_corner(mode: str = "RGBA") -> Image.Image:
    """The last quadrant is transparent; what it hides is magenta."""
    picture = quadrants([(*RED, 255), (*GREEN, 255), (*BLUE, 255), (255, 0, 255, 0)])
    return picture if mode == "RGBA" else picture.convert(mode)


def half_transparent() -> Image.Image:
    return quadrants([(*BLACK, 255), (*BLACK, 128), (*BLACK, 64), (*BLACK, 0)])


def palette_with_transparency() -> bytes:
    picture = quadrants().quantize(4)
    corner = picture.getpixel((40, 28))
    return encode(picture, "PNG", transparency=corner)


def grey_png_16(transparent: int | None = None) -> bytes:
    rows = values(257, ">u2").view(np.uint8).reshape(pictures.HEIGHT, -1)
    content = pictures.raw_png(rows, pictures.WIDTH, colour_type=0)
    if transparent is not None:
        chunk = pictures.png_chunk(b"tRNS", struct.pack(">H", transparent))
        content = content.replace(b"\x00\x00\x00\x00IEND", b"\x00\x00\x00\x00IEND")
        at = content.index(b"IDAT") - 4
        content = content[:at] + chunk + content[at:]
    return content


def rgb_png_16() -> bytes:
    rows = (np.asarray(quadrants()).astype(np.uint16) * 257).astype(">u2")
    return pictures.raw_png(
        rows.view(np.uint8).reshape(pictures.HEIGHT, -1), pictures.WIDTH, colour_type=2
    )


def animation(format_name: str) -> bytes:
    other = [quadrants([YELLOW, BLUE, GREEN, RED]), quadrants([BLUE, BLUE, BLUE, BLUE])]
    options = {"lossless": True} if format_name == "WEBP" else {}
    return encode(
        quadrants(), format_name, save_all=True, append_images=other, duration=100, **options
    )


def multi_picture_jpeg() -> bytes:
    return encode(quadrants(), "MPO", save_all=True, append_images=[quadrants([BLUE] * 4)],
                  quality=95)  # fmt: skip


def lab_tiff() -> bytes:
    to_lab = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    lab = to_lab.apply(quadrants())
    return encode(lab, "TIFF")


def cmyk_profile_on_rgb() -> bytes:
    """The profile of a grey scale in a colour picture: it says nothing about these pixels."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[16:20] = b"CMYK"
    return encode(quadrants(), "PNG", icc_profile=bytes(profile))


ACCEPTED: dict[str, tuple[Callable[[], bytes], Colours]] = {
    # EXIF orientation, in every format that has it
    **{f"jpeg-{n}.jpg": (lambda n=n: oriented("JPEG", n, quality=95), COLOURS)  # type: ignore[misc]
       for n in range(1, 9)},
    **{f"tiff-{n}.tif": (lambda n=n: oriented("TIFF", n), COLOURS)  # type: ignore[misc]
       for n in (3, 6, 7)},
    **{f"png-{n}.png": (lambda n=n: oriented("PNG", n), COLOURS)  # type: ignore[misc]
       for n in (5, 6)},
    **{f"webp-{n}.webp": (lambda n=n: oriented("WEBP", n, lossless=True), COLOURS)  # type: ignore[misc]
       for n in (6, 8)},
    **{f"avif-{n}.avif": (lambda n=n: oriented("AVIF", n, quality=95), COLOURS)  # type: ignore[misc]
       for n in (3, 6, 7)},
    "orientation-9.jpg": (lambda: oriented("JPEG", 9, quality=95), COLOURS),
    "broken-exif.jpg": (lambda: encode(quadrants(), "JPEG", quality=95,
                                       exif=b"Exif\0\0MM\0*\0\0\xff\xff junk"), COLOURS),
    # kinds of pixels
    "plain.png": (lambda: encode(quadrants(), "PNG"), COLOURS),
    "palette.png": (lambda: encode(quadrants().quantize(4), "PNG"), COLOURS),
    "one-bit.png": (lambda: encode(quadrants(grey(0, 255, 255, 0)).convert("1"), "PNG"),
                    grey(0, 255, 255, 0)),
    "grey.png": (lambda: encode(quadrants().convert("L"), "PNG"), [luma(c) for c in COLOURS]),
    "grey-16.png": (grey_png_16, grey(*GREYS)),
    "grey-16-transparent.png": (lambda: grey_png_16(240 * 257), grey(0, 80, 160, 255)),
    "colour-16.png": (rgb_png_16, COLOURS),
    "grey-16.tif": (lambda: tiff_of(values(257, "<u2")), grey(*GREYS)),
    "grey-16-big-endian.tif": (lambda: encode(Image.frombytes(
        "I;16B", (pictures.WIDTH, pictures.HEIGHT), values(257, ">u2").tobytes()), "TIFF"),
        grey(*GREYS)),
    "grey-32.tif": (lambda: tiff_of(values(257, "<i4")), grey(*GREYS)),
    "float-to-1.tif": (lambda: tiff_of(values(1 / 255, "<f4")), grey(*GREYS)),
    "float-to-255.tif": (lambda: tiff_of(values(1, "<f4")), grey(*GREYS)),
    "float-to-65535.tif": (lambda: tiff_of(values(257, "<f4")), grey(*GREYS)),
    "cmyk.tif": (lambda: encode(quadrants().convert("CMYK"), "TIFF"), COLOURS),
    "cmyk.jpg": (lambda: encode(quadrants().convert("CMYK"), "JPEG", quality=95), COLOURS),
    "lab.tif": (lab_tiff, COLOURS),
    "grey.jpg": (lambda: encode(quadrants().convert("L"), "JPEG", quality=95),
                 [luma(c) for c in COLOURS]),
    "progressive.jpg": (lambda: encode(quadrants(), "JPEG", progressive=True, quality=95), COLOURS),
    "multi-picture.jpg": (multi_picture_jpeg, COLOURS),
    "plain.bmp": (lambda: encode(quadrants(), "BMP"), COLOURS),
    "palette.bmp": (lambda: encode(quadrants().quantize(4), "BMP"), COLOURS),
    "plain.gif": (lambda: encode(quadrants(), "GIF"), COLOURS),
    "lossless.webp": (lambda: encode(quadrants(), "WEBP", lossless=True), COLOURS),
    "lossy.webp": (lambda: encode(quadrants(), "WEBP", quality=95), COLOURS),
    "plain.avif": (lambda: encode(quadrants(), "AVIF", quality=95), COLOURS),
    "deflate.tiff": (lambda: encode(quadrants(), "TIFF", compression="tiff_deflate"), COLOURS),
    "jpeg-in.tiff": (lambda: encode(quadrants(), "TIFF", compression="jpeg", quality=95), COLOURS),
    # transparency: what was hidden stays hidden
    "alpha.png": (lambda: encode(with_hidden_corner(), "PNG"), [RED, GREEN, BLUE, WHITE]),
    "alpha.webp": (lambda: encode(with_hidden_corner(), "WEBP", lossless=True, exact=True),
                   [RED, GREEN, BLUE, WHITE]),
    "alpha.tif": (lambda: encode(with_hidden_corner(), "TIFF"), [RED, GREEN, BLUE, WHITE]),
    "alpha.avif": (lambda: encode(with_hidden_corner(), "AVIF", quality=100),
                   [RED, GREEN, BLUE, WHITE]),
    "half-alpha.png": (lambda: encode(half_transparent(), "PNG"), grey(0, 127, 191, 255)),
    "grey-alpha.png": (lambda: encode(half_transparent().convert("LA"), "PNG"),
                       grey(0, 127, 191, 255)),
    "palette-transparent.png": (palette_with_transparency, [RED, GREEN, BLUE, WHITE]),
    "colour-key.png": (lambda: encode(quadrants(), "PNG", transparency=YELLOW),
                       [RED, GREEN, BLUE, WHITE]),
    "transparent.gif": (lambda: encode(with_hidden_corner(), "GIF"), [RED, GREEN, BLUE, WHITE]),
    # animations and pages: the first
    "animated.gif": (lambda: animation("GIF"), COLOURS),
    "animated.png": (lambda: animation("PNG"), COLOURS),
    "animated.webp": (lambda: animation("WEBP"), COLOURS),
    "pages.tif": (lambda: animation("TIFF"), COLOURS),
    # colour profiles
    "swapped-profile.png": (lambda: encode(quadrants(), "PNG",
                                           icc_profile=pictures.swapped_profile()),
                            [(30, 220, 30), (200, 30, 60), (60, 40, 210), (220, 230, 50)]),
    "broken-profile.png": (lambda: encode(quadrants(), "PNG", icc_profile=b"not a profile"),
                           COLOURS),
    "wrong-profile.png": (cmyk_profile_on_rgb, COLOURS),
    # names that say something else
    "png-inside.jpg": (lambda: encode(quadrants(), "PNG"), COLOURS),
    "SHOUTED.PNG": (lambda: encode(quadrants(), "PNG"), COLOURS),
    "trailing-bytes.png": (lambda: encode(quadrants(), "PNG") + b"junk" * 100, COLOURS),
}  # fmt: skip


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_as_its_author_saw_it(name: str, tmp_path: Path) -> None:
    make, expected = ACCEPTED[name]
    path = tmp_path / name
    path.write_bytes(make())
    image = images.open_image(path)
    assert image.mode == "RGB"
    assert image.size == (pictures.WIDTH, pictures.HEIGHT)
    tolerance = 12 if path.suffix in (".jpg", ".avif", ".webp") or "jpeg" in name else 4
    assert np.abs(np.array(pictures.corners(image)) - np.array(expected)).max() <= tolerance
    (example,) = scan(tmp_path).examples
    assert (example.width, example.height) == image.size


def truncated(format_name: str, **options: object) -> bytes:
    content = encode(pictures.noise(1), format_name, **options)
    return content[: len(content) * 2 // 3]


def bad_checksum() -> bytes:
    content = bytearray(encode(pictures.noise(1), "PNG"))
    content[len(content) // 2] ^= 0xFF
    return bytes(content)


def text_bomb() -> bytes:
    """A PNG whose compressed comment unpacks to more than Pillow admits."""
    comment = b"Comment\x00\x00" + zlib.compress(b"\x00" * 5_000_000)
    content = encode(quadrants(), "PNG")
    return content[:33] + pictures.png_chunk(b"zTXt", comment) + content[33:]


def tiff_claiming(width: int, height: int) -> bytes:
    content = bytearray(encode(quadrants(), "TIFF"))
    with Image.open(io.BytesIO(content)) as image:
        assert isinstance(image, TiffImagePlugin.TiffImageFile)
        offset = image.tag_v2._offset or 8
    (count,) = struct.unpack_from("<H", content, offset)
    for n in range(count):
        at = offset + 2 + 12 * n
        tag, kind = struct.unpack_from("<HH", content, at)
        if tag in (256, 257):
            struct.pack_into("<HHI", content, at, tag, 4, 1)
            struct.pack_into("<I", content, at + 8, width if tag == 256 else height)
        assert kind
    return bytes(content)


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.png": (lambda: b"", "is empty"),
    "page.png": (lambda: b"<!doctype html><html><body>Not found</body></html>", "not an image"),
    "text.jpg": (lambda: b"this is a text", "not an image"),
    "drawing.png": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image"),
    "script.png": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
    "eps.jpg": (lambda: encode(quadrants(), "EPS"), "not an image"),
    "icon.png": (lambda: encode(quadrants(), "ICO"), "not an image"),
    "pixmap.png": (lambda: encode(quadrants(), "PPM"), "not an image"),
    "targa.png": (lambda: encode(quadrants(), "TGA"), "not an image"),
    "jpeg2000.jpg": (lambda: encode(quadrants(), "JPEG2000"), "not an image"),
    "pickle.png": (lambda: pickle.dumps({"weights": [0.0]}), "not an image"),
    "zip.png": (lambda: b"PK\x03\x04" + b"\x00" * 100, "not an image"),
    "signature-only.png": (lambda: b"\x89PNG\r\n\x1a\n", "is"),
    "cut.jpg": (lambda: truncated("JPEG"), "is broken"),
    "cut-progressive.jpg": (lambda: truncated("JPEG", progressive=True), "is broken"),
    "cut.png": (lambda: truncated("PNG"), "is broken"),
    "cut.webp": (lambda: truncated("WEBP"), "is"),
    "cut.avif": (lambda: truncated("AVIF"), "is"),
    "cut.bmp": (lambda: truncated("BMP"), "is broken"),
    "cut.gif": (lambda: truncated("GIF"), "is broken"),
    "cut.tif": (lambda: truncated("TIFF"), "is"),
    "cut-deflate.tif": (lambda: truncated("TIFF", compression="tiff_deflate"), "is"),
    "bad-checksum.png": (bad_checksum, "is broken"),
    "text-bomb.png": (text_bomb, "is broken"),
    "bomb.png": (lambda: pictures.png_claiming(50_000, 50_000), "million are allowed"),
    "warned.png": (lambda: pictures.png_claiming(12_000, 10_000), "12000 x 10000 pixels"),
    "just-too-many.png": (lambda: pictures.png_claiming(9_000, 9_900), "9000 x 9900 pixels"),
    "no-width.png": (lambda: pictures.png_claiming(0, 10), "is"),
    "bomb.tif": (lambda: tiff_claiming(30_000, 30_000), "million are allowed"),
    "not-a-number.tif": (lambda: tiff_of(values(np.nan, "<f4")), "not finite"),
    "infinite.tif": (lambda: tiff_of(values(1, "<f4") / np.float32(0)), "not finite"),
    "negative.tif": (lambda: tiff_of(values(-1, "<f4")), "negative"),
    "negative-integer.tif": (lambda: tiff_of(values(-1, "<i4")), "negative"),
    "thirty-bits.tif": (lambda: tiff_of(values(2**20, "<i4")), "more than 16 bits"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name_in_one_sentence(name: str, tmp_path: Path) -> None:
    make, reason = REFUSED[name]
    path = tmp_path / name
    path.write_bytes(make())
    for read in (images.open_image, images.measure, lambda _: scan(tmp_path)):
        with pytest.raises(DatasetError) as caught:
            read(path)
        sentence = caught.value.what
        assert name in sentence and reason in sentence
        assert sentence.endswith(".") and "\n" not in sentence and len(sentence) < 500


def test_a_file_over_the_byte_cap_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "heavy.png"
    with path.open("wb") as file:
        file.write(encode(quadrants(), "PNG"))
        file.truncate(images.MAX_BYTES + 1)  # sparse
    with pytest.raises(DatasetError, match=r"heavy\.png has 256 MiB, more than"):
        images.open_image(path)


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "missing.png")
    with pytest.raises(DatasetError, match=r"pipe\.png is not a file"):
        images.open_image(tmp_path / "pipe.png")
    with pytest.raises(DatasetError, match=r"nowhere\.png cannot be read: No such file"):
        images.open_image(tmp_path / "nowhere.png")
    with pytest.raises(DatasetError, match=r"nowhere\.png cannot .*pipe\.png is not"):
        scan(tmp_path)


def test_a_link_to_an_image_is_that_image(tmp_path: Path) -> None:
    original = pictures.save(tmp_path / "elsewhere" / "a.png")
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "link.png").symlink_to(original)
    (example,) = scan(folder).examples
    assert example.image == folder / "link.png"


def test_transparency_shows_the_chosen_background(tmp_path: Path) -> None:
    path = pictures.save(tmp_path / "a.png", with_hidden_corner())
    assert pictures.corners(images.open_image(path, background=(9, 8, 7)))[3] == (9, 8, 7)


def test_transparency_can_serve_as_a_mask(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    path = pictures.save(tmp_path / "a.png", with_hidden_corner(), exif=exif)
    alpha = images.open_alpha(path)
    assert alpha is not None and alpha.mode == "L"
    assert [alpha.getpixel(p) for p in ((5, 5), (40, 5), (5, 28), (40, 28))] == [0, 255, 255, 255]
    assert images.open_alpha(pictures.save(tmp_path / "b.png")) is None


def test_a_mask_is_one_channel(tmp_path: Path) -> None:
    path = pictures.save(tmp_path / "a-masklabel.png", quadrants(grey(0, 255, 128, 255)))
    assert images.open_mask(path).mode == "L"


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_the_preview_is_the_image_at_a_smaller_size(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = pictures.save(tmp_path / f"a{suffix}", quadrants(width=400, height=300), exif=exif)
    whole = images.open_image(path)
    measured, small = images.preview(path, 60)
    assert (measured.width, measured.height) == whole.size == (300, 400)
    assert small.size == (60, 80)
    difference = np.array(pictures.corners(small)) - np.array(pictures.corners(whole))
    assert np.abs(difference).max() <= 8


def test_only_the_wanted_part_is_resized() -> None:
    picture = quadrants(width=120, height=60)
    left = Version(across=0.0).of_image(picture, Size(30, 30))
    assert left.size == (30, 30)
    assert pictures.corners(left) == [RED, RED, BLUE, BLUE]


def damaged(content: bytes, random: Random) -> bytes:
    """Some bytes changed, more of them near the start, or the end cut off."""
    changed = bytearray(content)
    for _ in range(random.choice((1, 2, 20))):
        reach = min(len(changed), random.choice((60, 400, len(changed))))
        changed[random.randrange(reach)] = random.randrange(256)
    return bytes(changed[: random.randrange(len(changed))] if random.random() < 0.2 else changed)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format_name", images.FORMATS)
def test_damage_is_refused_by_all_readers_alike(format_name: str, tmp_path: Path) -> None:
    """What `measure` lets into a dataset, `open_image` can read; and no decoder's error escapes."""
    random = Random(format_name)
    content = encode(pictures.noise(1), format_name)
    path = tmp_path / "damaged.png"

    def refuses(read: Callable[[Path], object]) -> bool:
        try:
            read(path)
        except DatasetError as error:
            assert "damaged.png" in error.what
            return True
        return False

    outcomes = []
    for _ in range(40):
        path.write_bytes(damaged(content, random))
        outcomes.append(refuses(images.open_image))
        assert refuses(images.measure) == outcomes[-1]
        assert refuses(lambda file: images.preview(file, 16)) == outcomes[-1]
    assert any(outcomes)
    assert format_name != "PNG" or all(outcomes)  # whose checksums tell of any change


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 3000), (3000, 1), (7, 5)])
def test_slivers(tmp_path: Path, width: int, height: int) -> None:
    for suffix in (".png", ".jpg"):
        path = pictures.save(tmp_path / f"a{suffix}", Image.new("RGB", (width, height), RED))
        assert images.open_image(path).size == (width, height)
        measured, _ = images.preview(path, 384)
        assert (measured.width, measured.height) == (width, height)
        size = assign(width, height, bucket_sizes(512))
        whole = images.open_image(path)
        assert Version().of_image(whole, size).size == size
