"""What each policy sees, as a page and as a picture.

What is locked: 1) data is never markup; 2) the page shows prompts character by character, and what cannot be seen has
a name; 3) the picture cuts nothing, and names what no font can show; 4) in a browser, wide and narrow, nothing
overlaps.
"""

import dataclasses
from html.parser import HTMLParser

import pytest
from PIL import Image

from privileged import Note, get_builder
from tests.browser import laid_out
from tests.photographs import photograph
from tests.test_preview import Failing, encoder, labelled, seen
from vlm_dopd.annotate import preview_picture
from vlm_dopd.annotate.preview_page import runs, write_page
from vlm_dopd.annotate.preview_picture import Fonts, write_picture

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7*7 }}<b onclick=x>"
LABELS = ("赤い自動車", "سيارة حمراء", "מכונית אדומה", "красный автомобиль", "빨간 자동차", "a" * 200)


@pytest.fixture(scope="module")
def own():
    return encoder()


class Dom(HTMLParser):
    """Elements with their attributes, all text, and the text of each prompt without what marks line ends."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.text, self.prompts = [], "", []
        self._open = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag in ("meta", "use", "image"):
            return
        self._open.append((tag, attributes.get("class") or ""))
        if self._open[-1] == ("div", "text"):
            self.prompts.append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open and self._open[-1][0] == tag, f"</{tag}> closes {self._open[-1:]}"
        self._open.pop()

    def handle_data(self, data):
        self.text += data
        classes = [name for _, name in self._open]
        if "text" in classes and not {"newline", "inline"} & set(classes):
            self.prompts[-1] += data


def test_data_is_never_markup(own, tmp_path):
    """Hostile text in id, question, label, hint, answer and builder options: shown, and no element or address of it."""
    sample = labelled(HOSTILE, question=HOSTILE, id=HOSTILE, answer=HOSTILE)
    record = dataclasses.replace(sample.privileged, notes=(Note(text=HOSTILE),))
    sample = dataclasses.replace(sample, privileged=record)
    builder = get_builder("compose", builders=["boxes", {"name": "template", "header": HOSTILE, "note": "{text}"}])
    page = Dom(write_page([seen(sample, own, builder), seen(sample, own, Failing())], tmp_path / "page.html"))
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "iframe", "link", "object", "base", "form", "a b"} and "svg" in tags
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,")), tag
    assert page.text.count(HOSTILE) >= 3
    assert ("meta", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in [
        (tag, attributes.get("content")) for tag, attributes in page.elements
    ]


def test_the_page_shows_the_prompts_character_by_character(own, tmp_path):
    """All three, with control tokens, spaces and line ends; placeholders of images are the images. Same bytes twice."""
    found = [seen(labelled(*LABELS, question="Wo?  a\tb"), own, "boxes"), seen(photograph("voc"), own, "marks")]
    page = write_page(found, tmp_path / "page.html")
    texts = [prompt.text for one in found for prompt in one.prompts]
    expected = [text.replace("<|image_pad|>", "").replace("\t", "U+0009") for text in texts]
    assert Dom(page).prompts == expected
    assert page.read_bytes() == write_page(found, tmp_path / "again.html").read_bytes()
    stored = [a["href"] for tag, a in Dom(page).elements if tag == "image"]
    assert len(stored) == len(set(stored)) == 3, "two images and a marked copy, each once"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a\nb", [("text", "a"), ("newline", "\n"), ("text", "b")]),
        ("<|im_end|>x<think>", [("token", "<|im_end|>"), ("text", "x"), ("token", "<think>")]),
        ("< |im_end|>", [("text", "< |im_end|>")]),
        ("a\u202eb\x00", [("text", "a"), ("hidden", "U+202E"), ("text", "b"), ("hidden", "U+0000")]),
        ("\ufeff", [("hidden", "U+FEFF")]),
        ("\u2028\ud800\t", [("hidden", "U+2028"), ("hidden", "U+D800"), ("hidden", "U+0009")]),
        ("a\u200db", [("text", "a"), ("hidden", "U+200D"), ("text", "b")]),
        ("👩\u200d👧 می\u200cخواهم", [("text", "👩\u200d👧 می\u200cخواهم")]),
        ("\u200d", [("hidden", "U+200D")]),
        ("", []),
    ],
)  # fmt: skip
def test_what_cannot_be_seen_has_a_name(text, expected):
    """Bidi overrides, control characters, zero-width ones; not the joiners that a script or an emoji needs."""
    assert [tuple(run) for run in runs(text)] == expected


def test_the_picture_cuts_nothing(own, tmp_path):
    """Rows hold all words in order and none is wider than its column; more text makes a taller picture."""
    sizes = []
    for count in (1, 3, 6):
        found = seen(labelled(*LABELS[-count:]), own, style="lines")
        write_picture(found, tmp_path / "picture.png")
        sizes.append(Image.open(tmp_path / "picture.png").size)
    assert sizes[0][0] == sizes[2][0] and sizes[0][1] < sizes[1][1] < sizes[2][1]
    words = list(Fonts().words("a" * 300 + " many words of some length " * 9 + "赤い自動車" * 30))
    rows = preview_picture._wrapped(words, 200)
    assert "".join(w.text for row in rows for w in row.words) == "".join(w.text for w in words)
    assert max(sum(w.width for w in row.words) for row in rows) <= 205


def test_what_no_font_has_is_named(own, tmp_path, monkeypatch):
    """One line with the characters, their script and what to install; other scripts are drawn without a word."""
    monkeypatch.setattr(preview_picture.features, "check", lambda name: True)  # fribidi may be missing here
    plain = seen(labelled("красный", "سيارة", "é ↵ ≤"), own)
    assert write_picture(plain, tmp_path / "plain.png") == ""
    assert write_picture(plain, tmp_path / "again.png") == ""
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    monkeypatch.setattr(preview_picture, "_installed", lambda: ())
    line = write_picture(seen(labelled("赤い", "หมา"), own), tmp_path / "bare.png")
    assert "\n" not in line and "赤い" in line and "(Cjk, Hiragana, Thai)" in line
    assert "install Noto Sans CJK, Noto Sans for Thai" in line
    fonts = Fonts()
    assert [word.text.strip() for word in fonts.words("a 赤b")] == ["a", "U+8D64", "b"]
    monkeypatch.setattr(preview_picture.features, "check", lambda name: False)
    assert "fribidi" in write_picture(plain, tmp_path / "plain.png")


def test_the_pixels_of_right_to_left_words_are_in_their_order(tmp_path):
    """Two words of Hebrew are drawn as one run, the first one on the right."""
    words = list(Fonts().words("מכונית אדומה"))
    assert len(words) == 2
    (run,) = preview_picture._joined(words)
    assert run.text == "מכונית אדומה"


def test_nothing_overlaps_in_a_browser(own, tmp_path):
    """Chromium's own boxes at 1400 and 420 px: no two blocks share a pixel, none is wider than the window.

    A screenshot of the upper part of both is kept. They are frames: a browser's window is never narrower than 500 px.
    """
    small = photograph("arc2017")
    small = dataclasses.replace(small, images=(small.images[0].resize((640, 480)).quantize(32).convert("RGB"),))
    samples = [
        seen(labelled(*LABELS, question="左の男性は何を持っていますか。" * 9, id="x" * 300), own, style="lines"),
        seen(small, own, "crops", teacher=encoder(template=lambda t: t + "x" * 200)),
        seen(labelled("cup", question="W" * 500, size=(64, 900), answer="y" * 200), own, "boxes", budget=5),
        seen(labelled("cup"), own, Failing()),
    ]
    found = laid_out(write_page(samples, tmp_path / "page.html"), tmp_path)
    assert {width: one["wrong"] for width, one in found.items()} == {1400: [], 420: []}
    assert {width: one["columns"] for width, one in found.items()} == {1400: 3, 420: 1}
    assert min(one["count"] for one in found.values()) > 60
