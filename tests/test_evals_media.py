"""Images and videos of questions: decoded on demand, named by their content, never from outside the data's folder.

What is locked: 1) one image has one digest in every form that a data set may hold it in; 2) the frames of a video are
those of the official formula, whatever its header says; 3) every unreadable file is one line with question and path.
"""

import base64
import hashlib
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from evals import video
from evals.decoded import Video, inside
from evals.fixture_rows import picture
from evals.fixtures import png, write_video
from evals.media import Lazy, encoded, lazy
from evals.questions import Media
from evals.tables import Cell
from evals.video import frame_numbers, read_frames
from privileged.images import load_image

PNG = png(picture(3))


def of(ref, root, kind="image", frames=None):
    return lazy(Media(kind, ref), root, load_image, frames, where="q-1")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").write_bytes(PNG)
    (tmp_path / "outside.png").write_bytes(PNG)
    return tmp_path / "data"


def forms_of(content):
    text = base64.b64encode(content).decode()
    return {
        "path": "a.png",
        "bytes": content,
        "hub cell with bytes": {"bytes": content, "path": "elsewhere.png"},
        "hub cell with a path": {"bytes": None, "path": "a.png"},
        "base64": text,
        "base64 in lines": "\n".join(text[i : i + 76] for i in range(0, len(text), 76)),
        "hub cell with base64": {"bytes": None, "path": text},
        "data URI": f"data:image/png;base64,{text}",
        "cell of a file": Cell(lambda: {"bytes": content, "path": None}, "x.parquet row 3"),
        "text cell of a file": Cell(lambda: text, "x.tsv row 3"),
    }


@pytest.mark.parametrize("form", forms_of(PNG))
def test_one_image_in_every_form(folder, form):
    item = of(forms_of(PNG)[form], folder)
    assert item.kind == "image" and item.digest == hashlib.sha256(PNG).hexdigest()
    assert np.array_equal(item.load(), picture(3))


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_base64_of_every_format_is_told_from_a_path(folder, kind, tmp_path):
    picture(1).save(tmp_path / "x", kind)
    content = (tmp_path / "x").read_bytes()
    assert encoded(base64.b64encode(content).decode()) == content


def test_a_path_is_never_taken_for_base64():
    for path in ("/9j/" + "a" * 80 + ".jpg", "iVBORw0KGgo=", "images/" + "b" * 90, "x" * 64):
        assert encoded(path) == path


def test_a_pil_image_counts_by_its_pixels(folder):
    one, two = Image.new("L", (4, 3), 7), Image.new("L", (3, 4), 7)
    assert of(one, folder).digest == of(one.copy(), folder).digest != of(two, folder).digest
    assert of(one, folder).load().mode == "RGB"


def test_nothing_is_opened_before_it_is_needed(folder):
    def never(*_):
        raise AssertionError("opened")

    item = Lazy(Media("image", Cell(never, "x")), folder, never)
    assert item.kind == "image"
    with pytest.raises(AssertionError):
        _ = item.digest


BAD_IMAGES = [
    ("../outside.png", r"q-1: image 1 \(\.\./outside\.png\): path .*expected one inside .*leads outside"),
    ("/etc/hostname", "expected one inside"),
    ("link.png", "expected one inside"),
    ("none.png", r"q-1: image 1 \(none\.png\): no such file under"),
    ("a\0b.png", "not a usable path"),
    (b"GIF8 but not really", r"q-1: image 1 \(bytes\)"),
    (b"", "q-1: image 1"),
    ("", "expected an image, its bytes or its path, got str"),
    ({"bytes": None, "path": None}, r"q-1: image 1 \(bytes of a cell\): expected an image, .* got NoneType"),
    (Cell(lambda: b"broken", "x.parquet row 3, column 'image'"), r"q-1: image 1 \(x\.parquet row 3, column 'image'\)"),
    (3, r"q-1: image 1 \(int\): expected an image"),
    ("data:image/png;base64,@@@", "q-1: image 1"),
    ("http://127.0.0.1/x.png", "no such file under"),
]


@pytest.mark.parametrize(("ref", "message"), BAD_IMAGES, ids=[str(ref)[:20] for ref, _ in BAD_IMAGES])
def test_an_unreadable_image_is_one_line(folder, ref, message):
    (folder / "link.png").symlink_to(folder.parent / "outside.png")
    with pytest.raises(ValueError, match=message) as error:
        of(ref, folder).load()
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    if isinstance(ref, str) and ref[:5] != "data:":
        with pytest.raises(ValueError, match=message):
            _ = of(ref, folder).digest


@given(st.lists(st.sampled_from(["..", ".", "a", "b.png", "data", ""]), min_size=1, max_size=6).map("/".join))
def test_no_path_leaves_the_folder(tmp_path_factory, name):
    root = tmp_path_factory.getbasetemp() / "jail" / "data"
    root.mkdir(parents=True, exist_ok=True)
    try:
        assert inside(name, root).is_relative_to(root.resolve())
    except ValueError as error:
        assert "leads outside" in str(error)


@given(st.integers(1, 20_000), st.integers(1, 300))
def test_frame_numbers_are_the_official_ones(total, wanted):
    numbers = frame_numbers(total, wanted)
    assert numbers == sorted(set(numbers)) and numbers[0] == 0 and numbers[-1] < total
    assert len(numbers) == min(total, wanted)
    if 1 < wanted <= total:
        assert numbers[-1] == total - 1
        gaps = np.diff(numbers)
        assert gaps.max() - gaps.min() <= 1
    if wanted <= total:
        assert numbers == [int(x) for x in np.linspace(0, total - 1, wanted)]


def test_frame_numbers_by_hand():
    assert frame_numbers(10, 4) == [0, 3, 6, 9]
    assert frame_numbers(11, 4) == [0, 3, 6, 10]
    assert frame_numbers(3, 32) == [0, 1, 2]
    assert frame_numbers(100, 1) == [0]
    for total, wanted in ((0, 4), (4, 0)):
        with pytest.raises(ValueError, match="expected at least one frame"):
            frame_numbers(total, wanted)


def film(path, count, fps, codec="libx264", **options):
    """A film whose frame i has the grey level 4i: what was taken can be read off."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options={"threads": "1", **options})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for i in range(count):
            grey = np.full((32, 32, 3), 4 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return path


def levels(taken):
    return [round(float(np.asarray(frame).mean()) / 4) for frame in taken.frames]


FILMS = [
    ("b-frames.mp4", 60, 30, {"bf": "3"}),
    ("odd-rate.mp4", 50, Fraction(30000, 1001), {}),
    ("slow.mp4", 40, Fraction(5, 2), {}),
    ("no-count.mkv", 60, 25, {"bf": "2"}),
    ("no-count.ts", 60, 25, {"bf": "2"}),
    ("few-keyframes.mp4", 60, 25, {"g": "250"}),
]


@pytest.mark.parametrize(("name", "count", "fps", "options"), FILMS, ids=[name for name, *_ in FILMS])
def test_frames_of_a_film(tmp_path, name, count, fps, options):
    assert video._count(film(tmp_path / name, count, fps, **options)) == count
    taken = of(name, tmp_path, "video", 8).load()
    assert isinstance(taken, Video) and taken.fps == pytest.approx(float(fps), rel=0.01)
    assert levels(taken) == frame_numbers(count, 8)
    assert taken.seconds == pytest.approx([n / float(fps) for n in frame_numbers(count, 8)], abs=0.02)
    assert {frame.size for frame in taken.frames} == {(32, 32)}


def test_a_short_film_gives_each_frame_once(tmp_path):
    taken = read_frames(film(tmp_path / "short.mp4", 5, 10), 32, load_image, tmp_path)
    assert levels(taken) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("claimed", [0, 3, 59, 61, 500])
def test_the_header_is_not_trusted_with_the_number_of_frames(tmp_path, monkeypatch, claimed):
    film(tmp_path / "film.mp4", 60, 30)
    monkeypatch.setattr(video, "_count", lambda path: claimed)
    assert levels(read_frames(tmp_path / "film.mp4", 8, load_image, tmp_path)) == frame_numbers(60, 8)


def test_a_film_is_decoded_once_for_neighbours_and_again_once_it_changed(tmp_path, monkeypatch):
    film(tmp_path / "film.mp4", 10, 10)
    first = read_frames(tmp_path / "film.mp4", 4, load_image, tmp_path)
    assert read_frames(tmp_path / "film.mp4", 4, load_image, tmp_path) is first
    assert len(read_frames(tmp_path / "film.mp4", 5, load_image, tmp_path).frames) == 5
    write_video(tmp_path / "film.mp4", 2)
    assert read_frames(tmp_path / "film.mp4", 4, load_image, tmp_path).frames[0].size == (96, 72)


def test_a_folder_of_frames_stands_for_a_film(tmp_path):
    (tmp_path / "scene").mkdir()
    for i in range(9):
        Image.new("RGB", (8, 8), (4 * i,) * 3).save(tmp_path / "scene" / f"frame_{i:03d}.png")
    (tmp_path / "scene" / "notes.txt").write_text("not a frame")
    item = of("scene.mp4", tmp_path, "video", 3)
    taken = item.load()
    assert levels(taken) == [0, 4, 8] and taken.seconds == (0, 4, 8) and taken.fps == 1
    before = item.digest
    Image.new("RGB", (8, 8)).save(tmp_path / "scene" / "frame_009.png")
    longer = of("scene.mp4", tmp_path, "video", 3).digest
    picture(0).save(tmp_path / "scene" / "frame_009.png")
    assert len({before, longer, of("scene.mp4", tmp_path, "video", 3).digest}) == 3
    film(tmp_path / "scene.mp4", 20, 10)
    assert len(of("scene.mp4", tmp_path, "video", 20).load().frames) == 20, "the film itself comes first"


def test_a_video_is_named_by_path_and_size(tmp_path):
    for name, content in (("a.mp4", b"12"), ("b.mp4", b"12")):
        (tmp_path / name).write_bytes(content)
    a = of("a.mp4", tmp_path, "video", 4).digest
    assert a != of("b.mp4", tmp_path, "video", 4).digest
    (tmp_path / "a.mp4").write_bytes(b"34")
    assert of("a.mp4", tmp_path, "video", 4).digest == a
    (tmp_path / "a.mp4").write_bytes(b"345")
    assert of("a.mp4", tmp_path, "video", 4).digest != a


def test_an_unreadable_video_is_one_line(tmp_path):
    (tmp_path / "torn.mp4").write_bytes(film(tmp_path / "whole.mp4", 30, 10).read_bytes()[:400])
    (tmp_path / "text.mp4").write_text("not a film")
    (tmp_path / "empty").mkdir()
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux([*stream.encode(sound), *stream.encode()])
    wrong = {
        "torn.mp4": "can be decoded",
        "text.mp4": "can be decoded",
        "sound.mp4": "without a video stream",
        "none.mp4": "no such video under",
        "empty": "expected frames (.bmp, ",
        "../x.mp4": "leads outside",
    }
    for name, message in wrong.items():
        with pytest.raises(ValueError) as error:
            of(name, tmp_path, "video", 4).load()
        said = str(error.value)
        assert "\n" not in said and said.startswith(f"q-1: video 1 ({name}): ") and message in said, said
    with pytest.raises(ValueError, match="how many frames"):
        of("whole.mp4", tmp_path, "video").load()
    with pytest.raises(ValueError, match="expected the path of a video, got dict"):
        of({"bytes": b""}, tmp_path, "video", 4).load()
    with pytest.raises(ValueError, match="no such video"):
        _ = of("none.mp4", tmp_path, "video", 4).digest


def test_a_film_that_breaks_off_gives_what_it_has(tmp_path):
    content = film(tmp_path / "whole.ts", 60, 25, g="10").read_bytes()
    (tmp_path / "half.ts").write_bytes(content[: len(content) // 2])
    taken = read_frames(tmp_path / "half.ts", 4, load_image, tmp_path)
    assert len(taken.frames) == 4 and 10 < levels(taken)[-1] < 59
