"""What may be opened, as options; and what is known of an image before, or without, its pixels.

What is locked: 1) options are checked, and every one does what it says, at its limit and beyond; 2) `inspect_image`
decodes nothing and agrees with `load_image`; 3) notes and digest are right; 4) a file that changes under us, may not be
read or is no file is one line; 5) grey of more than 8 bits in both scalings.
"""

import base64
import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile

from privileged import DataError, ImageError, load_image
from privileged import images as loader
from privileged.image_policy import DEFAULT, ImagePolicy
from privileged.images import NOTES, image_source, inspect_image
from tests.hostile import NOISE, WRITTEN, encoded, exif, png, png_chunk

PNG = encoded(NOISE, "PNG")


def refused(source, root=Path(), **options):
    """The line with which both the loader and the inspector refuse."""
    lines = set()
    for act in (load_image, inspect_image):
        with pytest.raises(ImageError) as caught:
            act(source, root, ImagePolicy(**options))
        lines.add(str(caught.value))
    (line,) = lines
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *[(name, bad) for name in ("max_pixels", "max_side", "min_side", "max_file_bytes", "max_bytes")
          for bad in (0, -1, 1.5, True, "1", None, 1 << 60)],
        ("max_pixels", 178_956_971),
        *[(name, bad) for name in ("max_ratio", "timeout") for bad in (0, -1, True, "1", None, np.inf, np.nan)],
        ("max_ratio", 0.99),
        *[(name, bad) for name in ("follow_symlinks", "deep") for bad in ("", "all", None, True)],
        *[(name, bad) for name in ("allow_data_uris", "refuse_animated") for bad in (1, "yes", None)],
    ],
)  # fmt: skip
def test_options_are_checked(name, bad):
    """The message names the option and what it got."""
    with pytest.raises(DataError, match=rf"^images: {name}: expected"):
        ImagePolicy(**{name: bad})


def test_the_defaults_are_those_of_the_table():
    """For files of strangers."""
    assert ImagePolicy() == DEFAULT
    assert (DEFAULT.max_pixels, DEFAULT.max_side, DEFAULT.min_side, DEFAULT.max_ratio) == (50_000_000, 20_000, 8, 100)
    assert (DEFAULT.allow_hosts, DEFAULT.max_bytes, DEFAULT.timeout) == ((), 32 * 2**20, 20)
    assert (DEFAULT.follow_symlinks, DEFAULT.allow_data_uris, DEFAULT.refuse_animated) == ("inside", True, False)
    assert ImagePolicy(max_pixels=178_956_970).max_pixels == 2 * Image.MAX_IMAGE_PIXELS
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize(
    ("options", "size", "words"),
    [
        ({"max_pixels": 1200}, (40, 30), None),
        ({"max_pixels": 1199}, (40, 30), "at most 1,199 pixels"),
        ({"max_side": 40}, (40, 30), None),
        ({"max_side": 39}, (40, 30), "39 a side, got 40x30"),
        ({"max_side": 39}, (30, 40), "39 a side, got 30x40"),
        ({}, (8, 9), None),
        ({}, (7, 9), "at least 8 pixels a side, got 7x9"),
        ({}, (9, 7), "at least 8 pixels a side, got 9x7"),
        ({"min_side": 1}, (1, 1), None),
        ({}, (800, 8), None),
        ({}, (801, 8), "at most 100 to 1, got 801x8"),
        ({}, (8, 801), "at most 100 to 1, got 8x801"),
        ({"max_ratio": 1}, (9, 9), None),
        ({"max_ratio": 1.5}, (14, 9), "at most 1.5 to 1"),
        ({"max_ratio": 200, "min_side": 1}, (200, 1), None),
        ({"max_pixels": 10**8}, (9000, 7000), None),
    ],
)
def test_sizes_at_the_limit_and_beyond(options, size, words):
    """Judged by the header: the pixels of those refused are not even there."""
    if words is not None:
        assert words in refused(png(*size, compressed=b""), **options)
        return
    facts = inspect_image(png(*size, compressed=b""), Path(), ImagePolicy(**options))
    assert facts.size == size
    if size[0] * size[1] < 10**6:
        assert load_image(png(*size), Path(), ImagePolicy(**options)).size == size


@pytest.fixture
def root(tmp_path):
    inside, outside = tmp_path / "root", tmp_path / "outside"
    (inside / "sub").mkdir(parents=True)
    (outside / "deep").mkdir(parents=True)
    for place in (inside / "a.png", inside / "sub" / "a.png", outside / "a.png", outside / "deep" / "a.png"):
        place.write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    (inside / "out.png").symlink_to(outside / "a.png")
    (inside / "store").symlink_to(outside / "deep")
    (inside / "zero.png").symlink_to("/dev/zero")
    return inside


@pytest.mark.parametrize("name", ["out.png", "store/a.png"])
def test_links_may_be_allowed_to_lead_out(root, name):
    """As where a data set is a folder of links into a store."""
    assert "leads outside" in refused(name, root)
    assert load_image(name, root, ImagePolicy(follow_symlinks="any")).size == (40, 30)


@pytest.mark.parametrize(
    "name", ["../secret.png", "sub/../../secret.png", "store/../../secret.png", "/etc/passwd", "{root}/../secret.png"]
)
def test_names_may_not_lead_out_all_the_same(root, name):
    """`..` is taken literally, so that a link is no place to climb up from."""
    assert "leads outside" in refused(name.format(root=root), root, follow_symlinks="any")


def test_a_dotted_name_behind_a_link_means_what_it_says(root):
    """`store/../a.png` is the root's own file, not the store's neighbour."""
    (root.parent / "outside" / "a.png").write_bytes(encoded(NOISE.resize((20, 20)), "PNG"))
    any_link = ImagePolicy(follow_symlinks="any")
    assert load_image("store/../a.png", root, any_link).size == (40, 30)
    assert load_image(f"{root}/sub/../a.png", root, any_link).size == (40, 30)
    assert "no such file" in refused("zero.png", root, follow_symlinks="any")


def test_no_device_and_no_pipe(root):
    """Neither blocks, also where one takes the place of the file after the first look."""
    assert "no such file" in refused("zero", Path("/dev"))
    os.mkfifo(root / "pipe.png")
    with pytest.raises(ImageError, match="plain file"):
        loader._open_file(root / "pipe.png", "pipe.png", 10**6)
    with pytest.raises(ImageError, match="readable file"):  # a link, put there since
        loader._open_file(root / "out.png", "out.png", 10**6)
    with pytest.raises(ImageError, match="readable file"):
        loader._open_file(root / "gone.png", "gone.png", 10**6)


def test_a_file_that_may_not_be_read(root, monkeypatch):
    """The reason of the system, in one line."""

    def denied(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    assert refused("a.png", root) == "image 'a.png': expected a readable file (Permission denied)"


def test_a_file_that_is_too_long(root):
    """Before a decoder reads all of it."""
    assert f"at most {len(PNG) - 1:,} bytes" in refused("a.png", root, max_file_bytes=len(PNG) - 1)
    assert load_image("a.png", root, ImagePolicy(max_file_bytes=len(PNG))).size == (40, 30)


def test_data_uris_are_an_option_and_capped(monkeypatch):
    """What is too long is not decoded."""
    uri = "data:image/png;base64," + base64.b64encode(PNG).decode()
    assert load_image(uri, Path()).tobytes() == NOISE.tobytes()
    assert load_image(uri, Path(), ImagePolicy(max_bytes=len(PNG) + 3)).size == (40, 30)
    assert "allow_data_uris" in refused(uri, allow_data_uris=False)
    monkeypatch.setattr(base64, "b64decode", None)
    line = refused(uri, max_bytes=len(PNG) - 3)
    assert f"at most {len(PNG) - 3:,} bytes" in line
    assert len(line) < 250


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_may_be_refused(kind):
    """A single frame of the same format may not; nor may a telephone's photograph with its preview."""
    many = encoded(NOISE, kind, save_all=True, append_images=[NOISE.rotate(180)])
    assert "refuse_animated" in refused(many, refuse_animated=True)
    assert "first frame" in inspect_image(many, Path()).notes
    assert inspect_image(many, Path()).several
    for single in (encoded(NOISE, kind), encoded(NOISE, "MPO", save_all=True, append_images=[NOISE])):
        assert load_image(single, Path(), ImagePolicy(refuse_animated=True)).size == (40, 30)
        assert not inspect_image(single, Path()).several
    assert inspect_image(encoded(NOISE, "MPO", save_all=True, append_images=[NOISE]), Path()).format == "JPEG"


@pytest.mark.parametrize("kind", WRITTEN)
def test_no_pixel_is_decoded_for_the_facts(kind, monkeypatch):
    """Format, mode, size, digest: all from the header and the bytes."""
    data = encoded(NOISE, kind)
    decoded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: decoded.append(self))
    monkeypatch.setattr(Image.Image, "getdata", lambda self: decoded.append(self))
    facts = inspect_image(data, Path(), digest=True)
    assert decoded == []
    assert (facts.format, facts.size, facts.orientation) == (kind, (40, 30), 1)
    assert facts.sha256 == hashlib.sha256(data).hexdigest()
    assert inspect_image(data, Path()).sha256 is None


def test_the_digest_is_that_of_the_file(root):
    """Of its bytes, so that other tools find the same."""
    assert inspect_image("a.png", root, digest=True).sha256 == hashlib.sha256(PNG).hexdigest()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_upright_size_is_known_before(kind, orientation):
    """In TIFF too, whose size Pillow turns itself."""
    data = encoded(NOISE, kind, exif=exif(orientation))
    facts = inspect_image(data, Path())
    assert facts.size == load_image(data, Path()).size == ((40, 30) if orientation < 5 else (30, 40))
    assert facts.stored_size == (40, 30)
    assert facts.orientation == orientation
    assert facts.notes == (() if orientation == 1 else ("turned",))


@pytest.mark.parametrize("block", [b"\xff" * 40, b"II*\0" + b"\xff" * 40, b"M", b"MM*\0\0\0\0\x08"])
def test_damaged_exif_costs_nothing_but_the_orientation(block):
    """The picture is taken as it is stored, by the loader as by the inspector."""
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encoded(NOISE, kind, exif=b"Exif\0\0" + block)
        assert load_image(data, Path()).size == inspect_image(data, Path()).size == (40, 30)
        if block[:2] != b"II":
            assert inspect_image(data, Path()).notes == ("bad EXIF",)


def test_exif_behind_the_pixels_counts_for_neither():
    """A PNG may have it there. What reads headers cannot know it, and both must agree on where the boxes lie."""
    body = exif(6).tobytes()[6:]
    late = PNG[:-12] + png_chunk(b"eXIf", body) + PNG[-12:]
    assert Image.open(io.BytesIO(late)).getexif()[ExifTags.Base.Orientation] == 6
    assert load_image(late, Path()).size == inspect_image(late, Path()).size == (40, 30)


def test_a_turned_picture_keeps_its_transparency():
    """A colour key of a picture that is stored on its side."""
    grey = Image.new("L", (40, 30), 7)
    data = encoded(grey, "PNG", exif=exif(6), transparency=7)
    loaded = load_image(data, Path())
    assert (loaded.size, loaded.getpixel((0, 0))) == ((30, 40), (255, 255, 255))
    assert inspect_image(data, Path()).notes == ("turned", "transparent")


def test_sixteen_bits_with_a_colour_key():
    """White where the key is, scaled elsewhere."""
    deep = np.full((10, 10), 5140, np.uint16)
    deep[0, 0] = 257
    image = Image.fromarray(deep)
    loaded = load_image(encoded(image, "PNG", transparency=257), Path())
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (20, 20, 20)]


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_stretching_grey_of_more_than_eight_bits(kind):
    """A scan that uses 12 of 16 bits: dark by its range, readable by its percentiles; the rest is clipped."""
    ramp = np.linspace(1000, 3000, 10_000).reshape(100, 100)
    ramp[0, 0], ramp[0, 1] = 0, 60_000
    data = encoded(Image.fromarray(ramp.astype(kind)), "TIFF")
    full = np.asarray(load_image(data, Path()))[..., 0].astype(int)
    stretched = np.asarray(load_image(data, Path(), ImagePolicy(deep="stretch")))[..., 0].astype(int)
    assert full.std() < 8 or kind is np.float32  # mode F is taken as 0..255
    assert abs(stretched[50, 50] - 128) <= 2
    assert (stretched[0, 0], stretched[0, 1]) == (0, 255)
    flat = encoded(Image.fromarray(np.full((10, 10), 5000, kind)), "TIFF")
    assert load_image(flat, Path(), ImagePolicy(deep="stretch")).getpixel((5, 5)) == (0, 0, 0)


def test_floats_without_a_number():
    """NaN is black, infinities are the ends of the range."""
    floats = np.full((10, 10), 100.4, np.float32)
    floats[0, :3] = np.nan, np.inf, -np.inf
    for deep in ("full", "stretch"):
        loaded = load_image(encoded(Image.fromarray(floats), "TIFF"), Path(), ImagePolicy(deep=deep))
        assert [loaded.getpixel((x, 0))[0] for x in range(3)] == [0, 255, 0]
    assert load_image(encoded(Image.fromarray(floats), "TIFF"), Path()).getpixel((5, 5)) == (100, 100, 100)


def test_every_note_has_a_meaning():
    """The words that a report counts."""
    assert all(meaning and "\n" not in meaning for meaning in NOTES.values())


def test_what_a_cell_may_hold():
    """Bytes, a path, Arrow's object of both; anything else is named."""
    assert image_source(b"x", "image") == b"x"
    assert image_source("a.png", "image") == "a.png"
    assert image_source({"bytes": b"x", "path": "a.png"}, "image") == b"x"
    assert image_source({"bytes": None, "path": "a.png"}, "image") == "a.png"
    for bad in (None, 5, [], {}, {"bytes": 5}, {"path": None}):
        with pytest.raises(DataError, match=r"^images\[3\]: expected a path or encoded bytes, got"):
            image_source(bad, "images[3]")


def test_messages_hold_no_secrets():
    """Neither the query nor the user of a URL, both of which are used for keys."""
    line = refused("https://user:pass@example.org/a.png?key=word")
    assert "example.org/a.png" in line
    assert not any(secret in line for secret in ("user", "pass@", "word"))
