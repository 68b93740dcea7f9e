"""One loader for everybody: whatever a file holds, the same upright RGB pixels, or one ImageError of one line.

What is locked: 1) no path leaves the root and nothing is fetched; 2) a bomb is refused by its header; 3) every mode,
orientation and animation arrives as the picture a viewer shows; 4) a bad file is an ImageError, never a crash;
5) metadata stays behind.
"""

import io
import os
import resource
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from privileged import ImageError
from privileged import images as loader
from privileged.image_policy import ImagePolicy

MAX_SIDE = ImagePolicy().max_side
RED, WHITE, BLUE = (255, 0, 0), (255, 255, 255), (0, 0, 255)


def load_image(source, root, **options):
    """The loader, open to the few pixels of the pictures here."""
    return loader.load_image(source, root, ImagePolicy(**{"min_side": 1, **options}))


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def one_bit_png(width, height):
    """A valid black PNG of any size, made without holding its pixels: 1 bit a pixel, a few kB."""
    packer, line = zlib.compressobj(9), bytes(1 + (width + 7) // 8)
    data = b"".join(packer.compress(line) for _ in range(height)) + packer.flush()

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def refused(source, root, **options):
    """The one-line message with which `source` is refused."""
    with pytest.raises(ImageError) as caught:
        load_image(source, root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def root(tmp_path):
    """A root with images inside, a secret beside it, and links of all kinds."""
    inside = tmp_path / "root"
    (inside / "sub").mkdir(parents=True)
    Image.new("RGB", (4, 3), RED).save(inside / "sub" / "a.png")
    Image.new("RGB", (4, 3), BLUE).save(tmp_path / "secret.png")
    (inside / "to_a.png").symlink_to(inside / "sub" / "a.png")
    (inside / "out.png").symlink_to(tmp_path / "secret.png")
    (inside / "outdir").symlink_to(tmp_path)
    (inside / "loop.png").symlink_to(inside / "loop.png")
    (inside / "dangling.png").symlink_to(inside / "nothing.png")
    os.mkfifo(inside / "pipe.png")
    return inside


@pytest.mark.parametrize("name", ["sub/a.png", "./sub/a.png", "sub/../sub/a.png", "to_a.png"])
def test_paths_inside_the_root_are_read(root, name):
    """Plain, dotted and linked names, as long as they end inside."""
    image = load_image(name, root)
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (4, 3), RED)


def test_the_root_itself_may_be_reached_through_a_link(root, tmp_path):
    """A dataset folder that is a symlink (as on most clusters) works."""
    link = tmp_path / "dataset"
    link.symlink_to(root)
    assert load_image("sub/a.png", link).size == (4, 3)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("../secret.png", id="parent"),
        pytest.param("sub/../../secret.png", id="parent of a child"),
        pytest.param("{parent}/secret.png", id="absolute"),
        pytest.param("/etc/passwd", id="absolute, elsewhere"),
        pytest.param("out.png", id="symlink out"),
        pytest.param("outdir/secret.png", id="symlinked folder out"),
        pytest.param("sub/a.png\0.txt", id="NUL"),
        pytest.param("http://127.0.0.1:9/a.png", id="http"),
        pytest.param("https://example.org/a.png", id="https"),
        pytest.param("file:///etc/passwd", id="file URL"),
        pytest.param("sub\\a.png", id="backslash"),
        pytest.param("..\\secret.png", id="parent with backslash"),
        pytest.param("\\\\host\\share\\a.png", id="UNC"),
    ],
)
def test_paths_out_of_the_root_are_refused(root, tmp_path, name):
    """The message says what was expected of a path and does not show what lies outside."""
    message = refused(name.format(parent=tmp_path), root)
    assert "expected a" in message
    assert "path" in message


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("missing.png", id="missing"),
        pytest.param("", id="empty"),
        pytest.param("sub", id="a folder"),
        pytest.param("pipe.png", id="a pipe, which would block for ever"),
        pytest.param("dangling.png", id="dangling link"),
        pytest.param("loop.png", id="link to itself"),
        pytest.param("x" * 300 + ".png", id="name too long for the file system"),
        pytest.param("data:image/png;base64," + "iVBORw0KGgo" * 40, id="data URI"),
        pytest.param("C:/Users/a.png", id="drive letter"),
    ],
)
def test_paths_that_lead_nowhere_are_an_image_error(root, name):
    """Also where the file system itself objects to the name."""
    assert "image" in refused(name, root)


def test_a_newline_in_a_file_name_does_not_break_the_line(root):
    """Names come from data too: a log stays one line an error."""
    (root / "bad\nname.png").write_bytes(b"not an image")
    assert "bad" in refused("bad\nname.png", root)


@pytest.mark.parametrize(
    ("width", "height"),
    [
        pytest.param(20_000, 20_000, id="400 Mpx in 49 kB"),
        pytest.param(9_000, 6_000, id="54 Mpx, below Pillow's own limit"),
        pytest.param(MAX_SIDE + 1, 2, id="one side too long"),
    ],
)
def test_a_bomb_is_refused_by_its_header(tmp_path, monkeypatch, width, height):
    """Its pixels are never decoded: memory does not grow."""
    decoded = []
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: decoded.append(self.size))
    bomb = one_bit_png(width, height)
    assert len(bomb) < 100_000
    (tmp_path / "bomb.png").write_bytes(bomb)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for source in (bomb, "bomb.png"):
        refused(source, tmp_path)
    assert decoded == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_the_pixel_limit_is_exact_and_an_option(tmp_path):
    """At the limit an image is read, above it the message says both numbers."""
    assert load_image(encoded(Image.new("1", (10, 10))), tmp_path, max_pixels=100).size == (10, 10)
    message = refused(encoded(Image.new("1", (10, 10))), tmp_path, max_pixels=99)
    assert "99 pixels" in message
    assert "10x10" in message
    assert ImagePolicy().max_pixels == 50_000_000


def test_sixteen_bit_grey_is_scaled_not_saturated(tmp_path):
    """All 65,536 levels map to round(level / 257), in PNG and TIFF and in both byte orders."""
    ramp = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    expected = np.round(ramp / 257.0).astype(np.uint8)
    sources = [encoded(Image.fromarray(ramp), "PNG"), encoded(Image.fromarray(ramp), "TIFF")]
    big = Image.frombytes("I;16B", (256, 256), ramp.astype(">u2").tobytes())
    sources += [encoded(big, "TIFF")]
    for source in sources:
        image = load_image(source, tmp_path)
        assert image.mode == "RGB"
        for channel in image.split():
            assert np.array_equal(np.asarray(channel), expected)


def transparent_palette():
    image = Image.new("P", (4, 3), 0)
    image.putpalette([*RED, *BLUE])
    image.putpixel((3, 2), 1)
    image.info["transparency"] = 0
    return image


def marked(mode, background, dot):
    image = Image.new(mode, (4, 3), background)
    image.putpixel((3, 2), dot)
    return image


@pytest.mark.parametrize(
    ("image", "kind", "background", "dot"),
    [
        pytest.param(marked("RGBA", (*RED, 0), (*BLUE, 255)), "PNG", WHITE, BLUE, id="RGBA, red under the alpha"),
        pytest.param(marked("RGBA", (*RED, 0), (*BLUE, 255)), "WEBP", WHITE, BLUE, id="RGBA, WebP"),
        pytest.param(marked("RGBA", (*RED, 0), (*BLUE, 255)), "TIFF", WHITE, BLUE, id="RGBA, TIFF"),
        pytest.param(marked("RGBA", (*RED, 128), (*BLUE, 255)), "PNG", (255, 127, 127), BLUE, id="half transparent"),
        pytest.param(marked("LA", (0, 0), (80, 255)), "PNG", WHITE, (80, 80, 80), id="LA"),
        pytest.param(transparent_palette(), "PNG", WHITE, BLUE, id="palette with a transparent entry"),
        pytest.param(transparent_palette(), "GIF", WHITE, BLUE, id="GIF with a transparent entry"),
        pytest.param(marked("L", 40, 90), "PNG", (40, 40, 40), (90, 90, 90), id="L"),
        pytest.param(marked("1", 1, 0), "PNG", WHITE, (0, 0, 0), id="1 bit"),
        pytest.param(marked("P", 0, 1), "BMP", (0, 0, 0), (1, 1, 1), id="palette BMP"),
        pytest.param(marked("CMYK", (0, 255, 255, 0), (255, 255, 0, 0)), "TIFF", RED, BLUE, id="CMYK TIFF"),
    ],
)
def test_every_mode_becomes_the_picture_a_viewer_shows(tmp_path, image, kind, background, dot):
    """Colours by hand, everything transparent on white."""
    options = {"lossless": True} if kind == "WEBP" else {}
    loaded = load_image(encoded(image, kind, **options), tmp_path)
    assert (loaded.mode, loaded.size) == ("RGB", (4, 3))
    assert np.abs(np.subtract(loaded.getpixel((0, 0)), background)).max() <= 1
    assert np.abs(np.subtract(loaded.getpixel((3, 2)), dot)).max() <= 1


def test_transparent_colour_keys_are_white_too(tmp_path):
    """PNG's tRNS chunk without an alpha channel: RGB and grey."""
    for image, key in ((marked("RGB", RED, BLUE), RED), (marked("L", 10, 90), 10)):
        loaded = load_image(encoded(image, "PNG", transparency=key), tmp_path)
        assert loaded.getpixel((0, 0)) == WHITE
        assert loaded.getpixel((3, 2)) != WHITE


def test_cmyk_jpeg_is_not_inverted(tmp_path):
    """Pure magenta and yellow ink is red."""
    loaded = load_image(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95), tmp_path)
    red, green, blue = loaded.getpixel((8, 8))
    assert red > 245
    assert max(green, blue) < 10


# EXIF orientation -> how the pixels V that a viewer shows are stored (rows and columns by the standard's table).
STORED = {
    1: lambda v: v,
    2: lambda v: v[:, ::-1],
    3: lambda v: v[::-1, ::-1],
    4: lambda v: v[::-1],
    5: lambda v: v.swapaxes(0, 1),
    6: lambda v: v[:, ::-1].swapaxes(0, 1),
    7: lambda v: v[::-1, ::-1].swapaxes(0, 1),
    8: lambda v: v[::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_marker_is_found_where_the_viewer_sees_it(tmp_path, orientation, kind):
    """For all eight orientations the marker of a 48x32 picture is at [32:40, 8:16], and nowhere else."""
    shown = np.full((32, 48, 3), 255, np.uint8)
    shown[8:16, 32:40] = RED
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](shown)))
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    loaded = load_image(encoded(stored, kind, exif=exif, **options), tmp_path)
    assert loaded.size == (48, 32)
    assert np.abs(np.asarray(loaded).astype(int) - shown).max() <= (6 if kind == "JPEG" else 0)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path, kind):
    """Two frames or pages: red is shown, blue is not."""
    options = {"lossless": True} if kind == "WEBP" else {}
    frames = [Image.new("RGB", (6, 6), BLUE)]
    source = encoded(Image.new("RGB", (6, 6), RED), kind, save_all=True, append_images=frames, **options)
    loaded = load_image(source, tmp_path)
    assert np.array_equal(np.asarray(loaded), np.full((6, 6, 3), RED, np.uint8))


PHOTO = Image.effect_noise((64, 64), 80)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        pytest.param("a.png", b"", id="empty file"),
        pytest.param("a.png", b"this is text\nin two lines\n", id="text renamed .png"),
        pytest.param("a.jpg", EPS, id="EPS renamed .jpg, which might start Ghostscript"),
        pytest.param("a.jpg", encoded(PHOTO, "PPM"), id="a format that is not on the list"),
        pytest.param("a.jpg", encoded(PHOTO, "JPEG")[:700], id="truncated JPEG"),
        pytest.param("a.png", encoded(PHOTO, "PNG")[:1500], id="truncated PNG"),
        pytest.param("a.gif", encoded(PHOTO, "GIF")[:800], id="truncated GIF"),
        pytest.param("a.webp", encoded(PHOTO, "WEBP")[:300], id="truncated WebP"),
        pytest.param("a.tif", encoded(PHOTO, "TIFF")[:300], id="truncated TIFF"),
        pytest.param("a.bmp", encoded(PHOTO, "BMP")[:300], id="truncated BMP"),
        pytest.param("a.png", b"\x89PNG\r\n\x1a\n", id="PNG signature only"),
        pytest.param("a.png", one_bit_png(0, 5), id="no width"),
        pytest.param("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", id="SVG"),
        pytest.param("a.pdf", b"%PDF-1.7\n", id="PDF"),
    ],
)
def test_a_bad_file_is_one_line_by_path_and_by_bytes(tmp_path, name, data):
    """The message names the file; decoders' own exceptions never come through."""
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    (tmp_path / name).write_bytes(data)
    assert name in refused(name, tmp_path)
    assert "<bytes>" in refused(data, tmp_path)


def test_metadata_stays_behind(tmp_path):
    """EXIF with a place, a profile, a comment and text chunks: gone from the image and from what it is saved as."""
    exif = Image.Exif()
    exif[0x010E] = "secret-exif"
    exif.get_ifd(0x8825)[29] = "2020:01:01"
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "secret-text")
    plain = Image.new("RGB", (8, 8), RED)
    sources = [
        encoded(plain, "JPEG", exif=exif, icc_profile=b"secret-profile", comment=b"secret-comment"),
        encoded(plain, "PNG", exif=exif, pnginfo=text, icc_profile=b"secret-profile"),
    ]
    for source in sources:
        assert b"secret" in source or b"Comment" in source
        loaded = load_image(source, tmp_path)
        assert loaded.info == {}
        assert dict(loaded.getexif()) == {}
        for kind in ("PNG", "JPEG", "WEBP"):
            assert b"secret" not in encoded(loaded, kind)


def test_the_file_is_closed_and_the_image_outlives_it(root):
    """A worker that reads a million images keeps none open."""
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    images = [load_image("sub/a.png", root) for _ in range(5)]
    (root / "bad.png").write_bytes(b"x")
    for _ in range(5):
        refused("bad.png", root)
    if os.path.isdir("/proc/self/fd"):
        assert len(os.listdir("/proc/self/fd")) == before
    assert all(image.getpixel((3, 2)) == RED for image in images)
