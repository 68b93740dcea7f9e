"""Rows of chat messages, as Qwen-VL users keep them, become a question, images and an answer.

What is locked: 1) the forms of images and texts in use; 2) the size that a part asks for is that of qwen-vl-utils;
3) what has no place in a sample is refused in one line; 4) our loader reads them: upright, in the root, no network.
"""

import base64
import io
import json

import datasets
import pytest
from PIL import Image
from qwen_vl_utils import process_vision_info

from privileged import DataError, ImageError
from privileged.image_policy import ImagePolicy
from privileged.qwen_messages import read_turn

RED = (255, 0, 0)


@pytest.fixture
def root(tmp_path):
    Image.linear_gradient("L").resize((200, 100)).convert("RGB").save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), RED).save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path.parent / "secret.png").write_bytes((tmp_path / "a.png").read_bytes())
    return tmp_path


def user(*parts):
    return {"role": "user", "content": list(parts)}


def image(source="a.png", **keys):
    return {"type": "image", "image": source, **keys}


def text(words="What is it?"):
    return {"type": "text", "text": words}


def test_a_row_as_in_the_readme_of_qwen(root):
    """Images, then words; the answer may be text or parts."""
    for answer in ("A ramp.", [text("A "), text("ramp.")]):
        turn = read_turn([user(image(), image("turned.jpg"), text("Look. "), text("What?")),
                          {"role": "assistant", "content": answer}], root)  # fmt: skip
        assert (turn.question, turn.answer) == ("Look. What?", "A ramp.")
        assert [im.size for im in turn.images] == [(200, 100), (20, 40)]
    assert read_turn([{"role": "user", "content": "Only words?"}], root).images == ()
    assert read_turn([user(image(), text())], root).answer is None


def test_the_forms_of_an_image(root):
    """A path, one with file:// inside the root, bytes, Arrow's object, OpenAI's object, a data URI, no `type`."""
    data = (root / "a.png").read_bytes()
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    forms = [image(), image(f"file://{root}/a.png"), image(data), image({"bytes": data, "path": None}), image(uri)]
    forms += [image({"bytes": None, "path": "a.png"}), {"image": "a.png"}, {"type": "image_url", "image_url": uri}]
    forms += [{"type": "image_url", "image_url": {"url": uri, "detail": "low"}}]
    for form in forms:
        assert [im.size for im in read_turn([user(form, text())], root).images] == [(200, 100)]


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"min_pixels": 50_176},
        {"max_pixels": 10_000},
        {"min_pixels": 100_352, "max_pixels": 200_704},
        {"resized_height": 64, "resized_width": 90},
        {"resized_height": 280, "resized_width": 420},
        {"resized_height": 33, "resized_width": 47, "max_pixels": 1024},
        {"resized_height": 90.0, "resized_width": 64.0},
        {"max_pixels": 10_000.0, "min_pixels": None},
    ],
)
def test_the_size_that_is_asked_for(root, keys):
    """The pixels are those of qwen-vl-utils; without keys the image stays as it is, for the processor to decide."""
    (made,) = read_turn([user(image(**keys), text())], root).images
    if not keys:
        assert made.size == (200, 100)
        return
    part = {key: value for key, value in keys.items() if value is not None}
    opened = Image.open(root / "a.png")
    ((theirs,), _) = process_vision_info([user({"type": "image", "image": opened, **part})], image_patch_size=16)
    assert made.size == theirs.size
    assert made.tobytes() == theirs.tobytes()
    assert made.size[0] % 32 == made.size[1] % 32 == 0


def test_a_limit_of_one_token(root):
    """Where qwen-vl-utils ends with a side of 0, the processor's arithmetic, which is ours, ends with one square."""
    part = image(min_pixels=1, max_pixels=1024)
    with pytest.raises(ValueError, match="height and width"):
        process_vision_info([user(part | {"image": Image.open(root / "a.png")})], image_patch_size=16)
    assert read_turn([user(part, text())], root).images[0].size == (32, 32)


def test_a_column_of_messages_survives_arrow(root):
    """Which fills absent keys with nulls and turns whole numbers beside gaps into floats or leaves them."""
    rows = [{"messages": [user(image(max_pixels=10_000), text())]}, {"messages": [user(text("Why?"))]}]
    for row in datasets.Dataset.from_list(rows):
        turn = read_turn(row["messages"], root)
        assert turn.question in ("What is it?", "Why?")
    assert read_turn(json.loads(json.dumps(rows[0]["messages"])), root).images[0].size == (128, 64)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (None, "expected a list"),
        ("What?", "expected a list"),
        ([], "got none"),
        ([5], "role and content"),
        ([{"content": "x"}], "role and content"),
        ([{"role": "user"}], "content"),
        ([{"role": "user", "content": [5]}], "content"),
        ([{"role": "user", "content": {"text": "x"}}], "content"),
        ([{"role": "system", "content": "Be brief."}, user(text())], "system, user"),
        ([{"role": "assistant", "content": "Hello."}], "assistant"),
        ([user(text()), {"role": "assistant", "content": "x"}, user(text())], "user, assistant, user"),
        ([user(text()), user(text())], "user, user"),
        ([user(text()), {"role": "tool", "content": "x"}], "user, tool"),
        ([user(text("A:"), image())], "images before the text"),
        ([user({"type": "video", "video": "a.mp4"}, text())], "got video"),
        ([user({"type": "image"}, text())], "got none"),
        ([user({"image": "a.png", "text": "x"})], "got image, text"),
        ([user({"type": "text", "text": 5})], "expected a string"),
        ([user(image(5))], "expected a path"),
        ([user(image({"url": None}))], "expected a path"),
        ([user(text()), {"role": "assistant", "content": [image()]}], "expected text as the answer"),
        ([user(image(resized_height=64), text())], "one of them"),
        ([user(image(min_pixels=64, max_pixels=32), text())], "min_pixels up to max_pixels"),
        ([user(image(max_pixels="many"), text())], "max_pixels: expected"),
        ([user(image(max_pixels=True), text())], "max_pixels: expected"),
        ([user(image(max_pixels=0), text())], "max_pixels: expected"),
        ([user(image(max_pixels=1e300), text())], "max_pixels: expected"),
        ([user(image(min_pixels=float("nan")), text())], "min_pixels: expected"),
        ([user(image(min_pixels=10**12), text())], "min_pixels: expected"),
        ([user(image(resized_height=1, resized_width=201), text())], "at most 200 to 1"),
    ],
)
def test_what_has_no_place_in_a_sample(root, messages, words):
    """Refused in one line that says where; nothing is left out in silence."""
    with pytest.raises(DataError) as caught:
        read_turn(messages, root)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "source", ["../secret.png", "file:///etc/passwd", "file://host/a.png", "http://127.0.0.1:9/a", "missing.png"]
)
def test_the_loader_is_ours(root, source):
    """Its jail, and its limits."""
    with pytest.raises(ImageError):
        read_turn([user(image(source), text())], root)


def test_the_policy_is_passed_on(root):
    """And an image that asks to be small is still refused as too large a file of pixels."""
    with pytest.raises(ImageError, match="at most 100 pixels"):
        read_turn([user(image(max_pixels=1024), text())], root, ImagePolicy(max_pixels=100))
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    assert read_turn([user(image(buffer.getvalue()), text())], root, ImagePolicy(min_side=1)).images[0].size == (4, 4)
