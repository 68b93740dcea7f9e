"""The page of an audit: one file, safe whatever the data says, with every label as text.

What is locked: 1) nothing is loaded from elsewhere, scripts cannot run, the page is the same twice; 2) markup, handlers
and marks that reverse text, planted in every field of a row, come out as text; 3) labels of any script are on the page
as text, and pictures hold the numbers that belong to them; 4) the contact sheet has random and worst rows; 5) all
figures are there; 6) rows without images, p or answer, and rows that cannot be built, have a card.
"""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser

import datasets
import numpy as np
import pytest
from PIL import Image

import evals
from privileged import Note, PrivilegedRecord, Region, get_builder
from privileged.draw import PALETTE
from tests.browser import laid_out
from tests.photographs import photograph
from vlm_dopd.annotate.audit import audit
from vlm_dopd.annotate.audit_page import BOXES, readable

EVIL = [
    "</script><script>alert(1)</script>", "<img src=x onerror=alert(2)>", "</style><style>*{display:none}",
    "\"><svg onload=alert(3)>", "' onmouseover='alert(4)", "{{ 7*7 }}", "{% raw %}", "&lt;b&gt;", "javascript:alert(5)",
    "\u202egnp.exe\u202c", "<!--", "]]>", "\ud800", "\x00\x1b[31m", "</bdi></article><iframe src=//evil>",
]  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


class Page(HTMLParser):
    """Tags with their attributes, and the text outside style."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.open, self.cards = [], "", [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)
        if tag == "article":
            self.cards.append("")

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
            if "article" in self.open:
                self.cards[-1] += data


def photo_row(name, **changes):
    sample = photograph(name)
    fields = {
        "id": name,
        "kind": "what",
        "question": f"What is on {name}?",
        "answer": "nothing",
        "images": [f"{name}.png"],
    }
    return fields | {"privileged": sample.privileged.to_json()} | changes


def page_of(tmp_path, rows, builder="boxes", **options):
    for name in ("voc", "arc2017"):
        photograph(name).images[0].save(tmp_path / f"{name}.png")
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    report = audit([data], builder=get_builder(builder), builder_name=builder, out=tmp_path / "out", **options)
    html = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    return Page(html), html, report


def record(sample_id, labels, **more):
    regions = [Region(id=f"r{i}", label=label, box=(20 * i, 10, 20 * i + 18, 60)) for i, label in enumerate(labels)]
    return PrivilegedRecord(sample_id=sample_id, regions=tuple(regions), **more).to_json()


def test_one_file_that_asks_for_nothing(tmp_path):
    page, html, _ = page_of(tmp_path, [photo_row("voc"), photo_row("arc2017")])
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert attributes.get(name, "data:image/jpeg;base64,").startswith(("data:image/jpeg;base64,", "#"))
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    around = re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)
    assert not re.findall(r"//[a-z]", around) and "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []
    assert "prefers-color-scheme: dark" in html and "@media print" in html


def test_the_same_data_gives_the_same_page(tmp_path):
    rows = [photo_row("voc"), photo_row("arc2017")]
    assert page_of(tmp_path, rows)[1] == page_of(tmp_path, rows)[1]


def test_what_the_data_says_stays_text(tmp_path):
    """Each string in every field that the page shows; the tags of the page are those of a harmless one."""

    def rows(evil):
        labels = [f"{text}{i}" for i, text in enumerate(evil[:14]) if text != "\ud800"]  # no record may hold it
        made = []
        for text in evil:
            notes = (Note(text=f"note {text}"),)
            origin = {"origin": {"how": text, "model": text}, "checks": {"recheck": {"verdict": text}}}
            made.append(
                {
                    "id": f"id {text}", "kind": f"kind {text}", "question": f"Q {text} A. {text} B. {text}",
                    "answer": text, "images": ["voc.png"],
                    "privileged": record(f"id {text}", labels, notes=notes, extra=origin),
                }
            )  # fmt: skip
        made.append({"id": f"bad {evil[0]}", "question": "q", "images": [evil[1]]})
        return made

    page, html, report = page_of(tmp_path, rows(EVIL))
    assert report["figures"]["rows"]["errors"] == 2, "half a character, and an image that is none"
    assert not [tag for tag, _ in page.tags if tag in ("script", "iframe", "bdi/")]
    assert not [a for _, a in page.tags for name in a if name.startswith("on")]
    assert [a for tag, a in page.tags if tag == "img" and not a["src"].startswith("data:image/jpeg")] == []
    assert sum(tag == "style" for tag, _ in page.tags) == 1
    assert "</script><script>alert(1)</script>" in page.text and "<img src=x onerror=alert(2)>" in page.text
    assert "{{ 7*7 }}" in page.text and "49" not in page.cards[0]
    assert "\u202e" not in html and "\x00" not in html and "\x1b" not in html
    harmless, _, _ = page_of(tmp_path, rows(["so the answer is word", "word"]))
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in harmless.tags}


def test_labels_of_every_script_are_text_on_the_page(tmp_path):
    labels = ["红色的人", "कुर्सी", "เก้าอี้", "الرجل الأيسر", "стул", "사람", "çöp kutusu", "𝒳-ray", "🙂 face"]
    page, _, report = page_of(tmp_path, [photo_row("voc", privileged=record("voc", labels))])
    for number, label in enumerate(labels, start=1):
        assert f"{number} {label}" in page.cards[0]
    assert set(report["figures"]["labels"]["scripts"]) >= {"CJK", "DEVANAGARI", "THAI", "ARABIC", "CYRILLIC", "HANGUL"}


def pictures(page):
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    return [Image.open(io.BytesIO(base64.b64decode(a["src"].partition(",")[2]))) for a in images]


def test_the_picture_shows_the_boxes(tmp_path):
    """Around the object, in the colour of its number; the rest of the photograph is as it was."""
    box = (100, 100, 300, 200)
    made = PrivilegedRecord(sample_id="voc", regions=(Region(id="r", label="x", box=box),)).to_json()
    page, _, _ = page_of(tmp_path, [photo_row("voc", privileged=made)])
    shown = pictures(page)[0]
    photo = photograph("voc").images[0]
    scale = shown.width / photo.width
    assert max(shown.size) == 420 and abs(shown.width / shown.height - photo.width / photo.height) < 0.01
    edge = np.asarray(shown, dtype=int)[int(150 * scale), int(100 * scale) - 3 : int(100 * scale) + 3]
    assert (abs(edge - PALETTE[0]).sum(axis=1) < 90).any()
    far = (
        np.asarray(shown, dtype=int)[int(250 * scale) :],
        np.asarray(photo.resize(shown.size), dtype=int)[int(250 * scale) :],
    )
    assert abs(far[0] - far[1]).mean() < 6


def test_many_boxes_are_cut_and_said(tmp_path):
    regions = [(x * 10, y * 10, x * 10 + 8, y * 10 + 8) for x in range(8) for y in range(8)]
    made = PrivilegedRecord(
        sample_id="voc", regions=tuple(Region(id=f"r{i}", label="x", box=box) for i, box in enumerate(regions))
    ).to_json()
    page, _, _ = page_of(tmp_path, [photo_row("voc", privileged=made)])
    assert f"{len(regions) - BOXES} not drawn" in page.cards[0] and f"{BOXES} x" in page.cards[0]


def test_every_kind_of_row_has_a_card(tmp_path):
    """Text only, no p, no answer, two images, a box outside: the last is dropped, with its reason."""
    outside = PrivilegedRecord(sample_id="out", regions=(Region(id="r", label="ghost", box=(900, 900, 950, 950)),))
    rows = [
        {"id": "text", "question": "What is 3+4?", "answer": "7", "images": []},
        photo_row("voc", privileged=None, answer=None),
        photo_row("arc2017", images=["voc.png", "arc2017.png"], privileged=record("arc2017", ["left thing"])),
        photo_row("voc", id="out", privileged=outside.to_json()),
    ]
    page, _, report = page_of(tmp_path, rows)
    cards = {
        name: next(card for card in page.cards if card.rstrip().endswith(name))
        for name in ("text", "voc", "arc2017", "out")
    }
    assert "What is 3+4?" in cards["text"] and "answer: none" in cards["voc"]
    assert "1 left thing" in cards["arc2017"] and "kept" in cards["arc2017"]
    assert "dropped" in cards["out"] and "lies wholly outside" in cards["out"] and "1 not drawn" in cards["out"]
    assert report["figures"]["rows"]["dropped_by"] == {"unreadable": 1}


def test_hints_are_shown_as_the_words_of_p(tmp_path):
    made = PrivilegedRecord(sample_id="t", notes=tuple(Note(text=f"Step {i}: add.") for i in range(20))).to_json()
    page, _, _ = page_of(tmp_path, [{"id": "t", "question": "q?", "answer": "7", "privileged": made}], builder="hints")
    assert "Step 0: add." in page.cards[0] and "8 more" in page.cards[0]


def test_worst_and_random_rows(tmp_path, monkeypatch):
    """A leak among many good rows is on the sheet of the worst, first; the random ones are drawn by seed."""
    monkeypatch.setattr("vlm_dopd.annotate.audit.SHEET", sheet := 5)
    good = [photo_row("voc", id=f"g{i:02}", privileged=record(f"g{i:02}", ["cup", f"mug {i}"])) for i in range(30)]
    bad = photo_row("voc", id="leak", answer="red", privileged=record("leak", ["red cup", "car"]))
    page, html, _ = page_of(tmp_path, [*good, bad])
    assert len(page.cards) == 1 + sheet
    assert page.cards[0].rstrip().endswith("leak") and "stated: verbatim" in page.cards[0]
    worst, _, random_ = html.partition("Random rows")
    assert "Worst rows" in worst and random_.count("<article") == sheet
    assert html != page_of(tmp_path, [*good, bad], seed=1)[1]


@pytest.mark.filterwarnings("error")
def test_kinds_of_any_script_label_the_chart(tmp_path):
    """Also those that no SVG, and no font of matplotlib, can show."""
    kinds = ["\ud800\ufffe", "颜色", "$x^2$", "<b>&", "นับ", "\x00", ""]
    rows = [photo_row("voc", id=f"r{i}", kind=kind, privileged=record(f"r{i}", ["a"])) for i, kind in enumerate(kinds)]
    page, _, _ = page_of(tmp_path, rows)
    for text in ("颜色", "$x^2$", "<b>&", "นับ"):
        assert text in page.text.partition("Leaks by kind of question")[2].partition("nothing found")[0], text


def test_the_figures_are_on_the_page(tmp_path):
    rows = [
        photo_row("voc", answer="red", privileged=record("voc", ["red cup"])),
        photo_row("arc2017", kind="other", question="How many?", answer="2", privileged=record("arc2017", ["a", "b"])),
        {"id": "bad", "question": "q", "images": ["gone.png"]},
    ]
    page, _, _ = page_of(tmp_path, rows)
    expected = [
        "3 rows: 1 fit for training, 2 dropped",
        "stated: verbatim",
        "derivable: count",
        "no such file",
        "other",
    ]
    expected += ["not run", "Length of prompts", "Regions of a row", "Size of boxes", "Leaks by kind of question"]
    for text in expected:
        assert text in page.text, text
    assert sum(tag == "svg" and a.get("role") == "img" for tag, a in page.tags) == 4
    assert "optimiser" not in page.text + str([a.get("aria-label") for _, a in page.tags])


def test_the_checks_with_a_model_are_on_the_page(tmp_path):
    """A policy that repeats p and cites it; replies of models are data too."""

    class Cites:
        def generate(self, items):
            texts = ["".join(part.get("text", "") for part in item.messages[0]["content"]) for item in items]
            return [
                evals.Reply(f"The bounding box <b>says</b>. Answer: {t.count('cup')}", truncated=False) for t in texts
            ]

    rows = [
        photo_row("voc", id=f"r{i}", kind=f"<i>k{i % 2}", answer="1", privileged=record(f"r{i}", ["cup"]))
        for i in range(4)
    ]
    page, html, _ = page_of(tmp_path, rows, model=Cites(), model_name="<u>m</u>")
    for text in (
        "+100.0 points",
        "asked of <u>m</u>",
        "By kind, without images",
        "<i>k1",
        "4 cite p with it, 4 without",
    ):
        assert text in page.text, text
    assert "The bounding box <b>says</b>." in page.text and "<b>says" not in html


def test_text_for_the_page_is_short_and_clean():
    assert readable("a\x00b\u202ec") == "abc"
    assert readable("x" * 400) == "x" * 320 + " […]"
    assert readable("<|im_end|>") == "< |im_end|>"
    assert readable(3) == "3"


def test_nothing_overlaps_in_a_browser(tmp_path):
    """Photographs, long and non-Latin labels, leaks and errors; wide and narrow."""
    labels = ["红色的人", "الرجل الأيسر", "кресло" * 12, "w" * 200]
    rows = [
        photo_row("voc"),
        photo_row("arc2017", question="How many are there?", answer="8"),
        photo_row("voc", id="x" * 200, privileged=record("x" * 200, labels)),
        photo_row("voc", id="gone", images=["none.png"], privileged=None),
    ]
    page_of(tmp_path, rows)
    found = laid_out(tmp_path / "out" / "audit.html", tmp_path)
    assert {width: one["wrong"] for width, one in found.items()} == {1400: [], 420: []}
    assert min(one["count"] for one in found.values()) > 60
