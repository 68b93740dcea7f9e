"""Images of strangers, made on the spot: whatever a data set may hold or name, each with its documented fate.

`write_images(folder)` fills a folder and lists the cases. A fate is `loaded` with the size of the upright image and the
notes, or the words that the one-line ImageError holds.
"""

import base64
import io
import json
import os
import struct
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from privileged import ImageError, load_image
from privileged.images import inspect_image

LOADED = "loaded"
UNREADABLE, BOMB, SMALL, THIN = "unreadable file", "expected at most", "expected at least", "100 to 1"
OUTSIDE, MISSING, ODD, URL = "leads outside", "no such file", "drive letter, backslash or NUL", "got a URL"
URI, NOT_BASE64, PATH, LARGE = "data:image/png, jpeg or webp", "expected base64", "not a usable path", "plain file"


@dataclass(frozen=True)
class Case:
    """`source` is what a row names, relative to `root` under the folder."""

    name: str
    source: str
    fate: str
    size: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()


def fate_of(source, root):
    """`loaded`, or the message of the ImageError. Anything else that is raised is a bug, and comes through."""
    try:
        load_image(source, Path(root))
    except ImageError as error:
        return str(error)
    return LOADED


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, *extra, depth=1, colour=0, compressed=None):
    """A black grey PNG of any size from a few kB of memory; `extra` chunks come before its pixels."""
    if compressed is None:
        packer, line = zlib.compressobj(1), bytes(1 + (width * depth + 7) // 8)
        compressed = b"".join(packer.compress(line) for _ in range(height)) + packer.flush()
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + png_chunk(b"IDAT", compressed) + png_chunk(b"IEND", b"")


def patched(data, place, form, *values):
    """`data` with `values` packed over what is at `place` (an offset, or bytes after which it lies)."""
    offset = place if isinstance(place, int) else data.index(place) + len(place)
    packed = struct.pack(form, *values)
    return data[:offset] + packed + data[offset + len(packed) :]


def tiff_sized(data, width, height):
    """Other numbers in the tags 256 and 257 of a little-endian TIFF."""
    directory = struct.unpack_from("<I", data, 4)[0]
    for index in range(struct.unpack_from("<H", data, directory)[0]):
        entry = directory + 2 + 12 * index
        tag = struct.unpack_from("<H", data, entry)[0]
        if tag in (256, 257):
            data = patched(data, entry, "<HHII", tag, 4, 1, width if tag == 256 else height)
    return data


NOISE = Image.frombytes("RGB", (40, 30), np.random.default_rng(0).integers(0, 256, 3600, dtype=np.uint8).tobytes())
GREY = NOISE.convert("L")
DEEP = np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50
WRITTEN = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
FOREIGN = ("PPM", "ICO", "ICNS", "TGA", "PCX", "SGI", "DDS", "JPEG2000", "EPS", "PDF", "QOI", "AVIF")
JUNK = {
    "zero bytes": b"",
    "one byte": b"\xff",
    "text": b"this is text\nin two lines\n",
    "HTML": b"<!DOCTYPE html><html><body><h1>404</h1></body></html>",
    "SVG that includes": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "PostScript that deletes": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) deletefile\n",
    "DOS EPS": b"\xc5\xd0\xd3\xc6" + bytes(60),
    "PSD": b"8BPS\x00\x01" + bytes(6) + struct.pack(">HIIHH", 3, 100, 100, 8, 3) + bytes(40),
    "FITS": b"SIMPLE  =                    T" + b" " * 50,
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(50),
    "pickle": b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    "numpy": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n",
    "zip": b"PK\x03\x04" + bytes(60),
    "gzip": b"\x1f\x8b\x08" + bytes(60),
    "program": b"\x7fELF\x02\x01\x01" + bytes(60),
    "video": b"\x00\x00\x00\x18ftypmp42" + bytes(60),
    "HEIC": b"\x00\x00\x00\x18ftypheic" + bytes(60),
    "PNG signature alone": b"\x89PNG\r\n\x1a\n",
    "JPEG marker alone": b"\xff\xd8\xff\xe0",
    "GIF header alone": b"GIF89a",
    "WebP header alone": b"RIFF\x24\x00\x00\x00WEBPVP8 ",
    "TIFF header alone": b"II*\x00\x08\x00\x00\x00",
    "TIFF directory that leads to itself": b"II*\x00\x08\x00\x00\x00\x00\x00\x08\x00\x00\x00",
    "TIFF tag of four billion entries": b"II*\x00\x08\x00\x00\x00\x01\x00"
    + struct.pack("<HHIII", 256, 4, 2**32 - 1, 8, 0),
    "BMP header alone": b"BM" + bytes(12),
    "git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
}


def bombs():
    """Headers that promise what no memory holds: name -> (bytes, fate)."""
    animated = {"save_all": True, "append_images": [GREY.convert("RGB")]}
    webp = encoded(NOISE, "WEBP", **animated)
    side = struct.pack("<I", 19_999)[:3]
    canvas = webp.index(b"VP8X") + 12
    endless = zlib.compress(bytes(2 * 10**7), 1)
    text, profile = (png_chunk(kind, b"a\0\0" + endless) for kind in (b"zTXt", b"iCCP"))
    passes = encoded(NOISE, "JPEG", progressive=True)
    scan, end, start = passes[passes.rindex(b"\xff\xda") : -2], b"\xff\xd9", b"\xff\xd8"
    words = b"\xff\xfe" + struct.pack(">H", 802) + b"\xff\xda" * 400
    return {
        "JPEG of 200 scans": (passes[:-2] + scan * 200 + end, BOMB),
        "JPEG of 60 scans": (passes[:-2] + scan * 50 + end, LOADED),
        "JPEG of 20,000 comments": (start + b"\xff\xfe\x00\x02" * 20_000 + passes[2:], BOMB),
        "JPEG that talks of scans": (start + words + passes[2:] + b"\xff\xda" * 400, LOADED),
        "PNG of 400 Mpx": (png(20_000, 20_000, compressed=b""), BOMB),
        "PNG of 54 Mpx": (png(9000, 6000, compressed=b""), BOMB),
        "PNG of 2**31 a side": (png(2**31 - 1, 2**31 - 1, compressed=b""), BOMB),
        "PNG with a long side": (png(20_001, 300, compressed=b""), BOMB),
        "PNG that never ends": (png(400, 400, compressed=zlib.compress(bytes(10**7))), LOADED),
        "PNG with 20 MB of text": (png(40, 30, text), UNREADABLE),
        "PNG with 20 MB of profile": (png(40, 30, profile), UNREADABLE),
        "JPEG of 4 Gpx": (patched(encoded(NOISE, "JPEG"), b"\xff\xc0\x00\x11\x08", ">HH", 65_000, 65_000), BOMB),
        "WebP of 400 Mpx": (webp[:canvas] + side + side + webp[canvas + 6 :], BOMB),
        "GIF of 4 Gpx": (patched(encoded(GREY, "GIF"), 6, "<HH", 65_535, 65_535), BOMB),
        "TIFF of 400 Mpx": (tiff_sized(encoded(NOISE, "TIFF"), 20_000, 20_000), BOMB),
        "TIFF of 2**32 a side": (tiff_sized(encoded(NOISE, "TIFF"), 2**32 - 1, 2**32 - 1), BOMB),
        "BMP of 400 Mpx": (patched(encoded(NOISE, "BMP"), 18, "<II", 20_000, 20_000), BOMB),
        "BMP of a negative width": (patched(encoded(NOISE, "BMP"), 18, "<ii", -40, 30), BOMB),
    }  # fmt: skip


def modes():
    """Every way to store a picture: name -> (bytes, suffix, notes)."""
    palette = GREY.quantize(4)
    alpha = NOISE.copy()
    alpha.putalpha(128)
    floats = Image.fromarray(np.full((30, 40), 7.5, np.float32))
    holes = np.full((30, 40), np.nan, np.float32)
    holes[0, :2] = np.inf, -np.inf
    many = {"save_all": True, "append_images": [GREY.convert("RGB")]}
    gif = encoded(NOISE, "GIF", **many)
    return {
        "grey": (encoded(GREY, "PNG"), ".png", ()),
        "bits": (encoded(GREY.convert("1"), "PNG"), ".png", ()),
        "palette": (encoded(palette, "PNG"), ".png", ()),
        "palette with alpha": (encoded(palette, "PNG", transparency=b"\x00\x80"), ".png", ("transparent",)),
        "palette with one clear entry": (encoded(palette, "GIF", transparency=0), ".gif", ("transparent",)),
        "colour key": (encoded(NOISE, "PNG", transparency=(1, 2, 3)), ".png", ("transparent",)),
        "RGBA": (encoded(alpha, "PNG"), ".png", ("transparent",)),
        "RGBA WebP": (encoded(alpha, "WEBP"), ".webp", ("transparent",)),
        "RGBA TIFF": (encoded(alpha, "TIFF"), ".tif", ("transparent",)),
        "LA": (encoded(alpha.convert("LA"), "PNG"), ".png", ("transparent",)),
        "16 bit PNG": (encoded(Image.fromarray(DEEP), "PNG"), ".png", ("16 bit",)),
        "16 bit TIFF": (encoded(Image.fromarray(DEEP), "TIFF"), ".tif", ("16 bit",)),
        "16 bit colour": (png(40, 30, depth=16, colour=2, compressed=zlib.compress(bytes(241 * 30))), ".png", ()),
        "32 bit": (encoded(Image.fromarray(DEEP.astype(np.int32)), "TIFF"), ".tif", ("32 bit",)),
        "floats": (encoded(floats, "TIFF"), ".tif", ("32 bit",)),
        "floats that are none": (encoded(Image.fromarray(holes), "TIFF"), ".tif", ("32 bit",)),
        "CMYK JPEG": (encoded(NOISE.convert("CMYK"), "JPEG"), ".jpg", ("CMYK",)),
        "CMYK TIFF": (encoded(NOISE.convert("CMYK"), "TIFF"), ".tif", ("CMYK",)),
        "YCbCr TIFF": (encoded(NOISE.convert("YCbCr"), "TIFF"), ".tif", ()),
        "progressive": (encoded(NOISE, "JPEG", progressive=True), ".jpg", ()),
        "packed TIFF": (encoded(NOISE, "TIFF", compression="tiff_lzw"), ".tif", ()),
        "animated GIF": (gif, ".gif", ("first frame",)),
        "animated GIF, cut in frame two": (gif[:-300], ".gif", ("first frame",)),
        "animated WebP": (encoded(NOISE, "WEBP", **many), ".webp", ("first frame",)),
        "animated PNG": (encoded(NOISE, "PNG", **many), ".png", ("first frame",)),
        "pages": (encoded(NOISE, "TIFF", **many), ".tif", ("first frame",)),
        "telephone's MPO": (encoded(NOISE, "MPO", **many), ".jpg", ()),
        "garbage profile": (encoded(NOISE, "JPEG", icc_profile=b"\xff" * 99), ".jpg", ()),
        "garbage profile PNG": (encoded(NOISE, "PNG", icc_profile=b"\xff" * 99), ".png", ()),
        "garbage EXIF": (encoded(NOISE, "JPEG", exif=b"Exif\0\0" + b"\xff" * 30), ".jpg", ("bad EXIF",)),
        "cut EXIF": (encoded(NOISE, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01"), ".jpg", ()),
        "wrong suffix": (encoded(NOISE, "WEBP"), ".jpg", ()),
        "no suffix": (encoded(NOISE, "JPEG"), "", ()),
        "something behind": (encoded(NOISE, "PNG") + b"PK\x03\x04" + bytes(99), ".png", ()),
        "something behind a JPEG": (encoded(NOISE, "JPEG") + bytes(999), ".jpg", ()),
    }


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def write_images(folder):
    """All cases; the files are under `folder / "root"`, one secret lies beside it."""
    root = folder / "root"
    (root / "sub").mkdir(parents=True)
    cases = []

    def file(name, data, fate=LOADED, size=None, notes=()):
        (root / name).write_bytes(data)
        cases.append(Case(name, name, fate, size, tuple(notes)))

    for name, (data, fate) in bombs().items():
        file(name, data, fate)
    for name, (data, suffix, notes) in modes().items():
        file(name + suffix, data, LOADED, (40, 30), notes)
    for kind in WRITTEN:
        whole = encoded(NOISE, kind)
        for percent in (5, 50, 90):
            file(f"{percent} percent.{kind.lower()}", whole[: len(whole) * percent // 100], UNREADABLE)
    for kind in FOREIGN:
        file(f"{kind} as.jpg", encoded(NOISE.resize((32, 32)), kind), UNREADABLE)
    for name, data in JUNK.items():
        file(f"{name}.png", data, UNREADABLE)
    for value in range(1, 9):
        size, notes = ((30, 40) if value > 4 else (40, 30)), ("turned",) * (value > 1)
        file(f"turned {value}.jpg", encoded(NOISE, "JPEG", exif=exif(value)), LOADED, size, notes)
        file(f"turned {value}.tif", encoded(NOISE, "TIFF", exif=exif(value)), LOADED, size, notes)
    for value in (0, 9, 65_535):
        file(f"turned {value}.png", encoded(NOISE, "PNG", exif=exif(value)), LOADED, (40, 30), ("bad EXIF",))
    sizes = {(1, 1): SMALL, (7, 8): SMALL, (8, 7): SMALL, (1, 20_000): SMALL, (20_000, 1): SMALL, (0, 5): UNREADABLE}
    sizes |= {(8, 8): LOADED, (800, 8): LOADED, (8, 800): LOADED, (801, 8): THIN, (20_000, 8): THIN}
    sizes |= {(20_000, 200): LOADED}
    for size, fate in sizes.items():
        file("{}x{}.png".format(*size), png(*size), fate, size if fate == LOADED else None)
    cases += [Case(f"path {i}: {source[:50]}", source, fate) for i, (source, fate) in enumerate(_paths(folder, root))]
    cases += [Case(f"URI {i}: {source[:50]}", source, fate) for i, (source, fate) in enumerate(_uris())]
    (folder / "cases.json").write_text(json.dumps([asdict(case) for case in cases]))
    return cases


def _paths(folder, root):
    """(what a row names, its fate)."""
    (root / "sub" / "a.png").write_bytes(encoded(NOISE, "PNG"))
    (folder / "secret.png").write_bytes(encoded(NOISE, "PNG"))
    (root / "locked.png").write_bytes(encoded(NOISE, "PNG"))
    (root / "locked.png").chmod(0)
    (root / "bad\nname.png").write_bytes(b"x")
    for name, target in {
        "to_a.png": "sub/a.png", "to_to_a.png": "to_a.png", "to_sub": "sub", "out.png": "../secret.png",
        "outdir": "..", "rootdir": "/", "loop.png": "loop.png", "ping.png": "pong.png", "pong.png": "ping.png",
        "dangling.png": "nothing.png", "device.png": "/dev/zero", "there_and_back.png": "../root/sub/a.png",
    }.items():  # fmt: skip
        (root / name).symlink_to(target)
    os.mkfifo(root / "pipe.png")
    with (root / "huge.webp").open("wb") as huge:  # sparse: 2 GiB that take no room
        huge.write(b"RIFF\xff\xff\xff\x7fWEBPVP8 ")
        huge.truncate(1 << 31)
    good = ["sub/a.png", "./sub/a.png", "sub/../sub/a.png", "sub//a.png", "to_a.png", "to_to_a.png", "to_sub/a.png"]
    yield from ((source, LOADED) for source in [*good, "there_and_back.png", f"{root}/sub/a.png"])
    outside = ["../secret.png", "sub/../../secret.png", "out.png", "outdir/secret.png", "rootdir/etc/passwd"]
    outside += ["/etc/passwd", "//host/share/a.png", "/proc/self/environ", "/dev/zero", "device.png", "..", "/"]
    yield from ((source, OUTSIDE) for source in [*outside, f"{folder}/secret.png"])
    missing = ["missing.png", "", ".", "sub", "sub/", "pipe.png", "dangling.png", "file:a.png", "~/a.png", "$HOME/a"]
    yield from ((source, MISSING) for source in [*missing, "SUB/A.PNG.", "sub/a.png/b.png", "%2e%2e/secret.png"])
    odd = [
        "sub/a.png\0.txt",
        "\0",
        "sub\\a.png",
        "..\\secret.png",
        "\\\\host\\share\\a.png",
        "C:\\a.png",
        "C:/a.png",
        "c:a",
    ]
    yield from ((source, ODD) for source in odd)
    urls = ["http://127.0.0.1:9/a.png", "https://example.org/a.png", "HTTPS://example.org/a", "ftp://example.org/a.png"]
    urls += [
        "file:///etc/passwd",
        "FILE://localhost/etc/passwd",
        "s3://bucket/a.png",
        "hf://datasets/a/b.png",
        "gs://b/a",
    ]
    yield from ((source, URL) for source in [*urls, "zip://a.png::b.zip", "jar://a", "://"])
    yield from [("loop.png", PATH), ("ping.png", PATH), ("x" * 300 + ".png", PATH), ("huge.webp", LARGE)]
    yield "bad\nname.png", UNREADABLE
    yield "locked.png", LOADED if os.geteuid() == 0 else "expected a readable file"


def _uris():
    """(data URI, its fate)."""
    data = {kind: base64.b64encode(encoded(NOISE, kind)).decode() for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF")}
    good = {"image/png": "PNG", "image/jpeg": "JPEG", "image/jpg": "JPEG", "image/webp": "WEBP", "IMAGE/PNG": "PNG"}
    for head, kind in (good | {"image/png;charset=utf-8": "PNG"}).items():
        yield f"data:{head};base64,{data[kind]}", LOADED
    yield f"DATA:image/png;base64,{data['WEBP']}", LOADED
    yield f"data:image/png;base64,{data['GIF']}", UNREADABLE
    yield f"data:image/png;base64,{data['TIFF']}", UNREADABLE
    yield f"data:image/png;base64,{data['PNG'][:400]}", UNREADABLE
    yield "data:image/png;base64,", UNREADABLE
    for head in (
        "image/gif",
        "image/svg+xml",
        "image/bmp",
        "text/html",
        "application/octet-stream",
        "",
        "image/png;x y",
    ):
        yield f"data:{head};base64,{data['PNG']}", URI
    for uri in (
        "data:",
        "data:image/png",
        "data:image/png;base64",
        "data:image/png,abc",
        "data:,",
        "data://image/png;base64,",
    ):
        yield uri, URI
    for payload in ("!!!!", "abc", data["PNG"][:-3], data["PNG"][:60] + "\n" + data["PNG"][60:], "é", "%41%41"):
        yield f"data:image/png;base64,{payload}", NOT_BASE64


def read_cases(folder):
    """The cases of a folder that `write_images` filled, also in another process."""
    rows = json.loads((Path(folder) / "cases.json").read_text())
    return [Case(r["name"], r["source"], r["fate"], r["size"] and tuple(r["size"]), tuple(r["notes"])) for r in rows]


def inspected(source, root):
    """The facts of the header, or the message of the ImageError."""
    try:
        return inspect_image(source, Path(root))
    except ImageError as error:
        return str(error)
