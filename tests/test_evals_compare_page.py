"""The page of a comparison: the numbers of the figures, honest counts of what flipped, and strangers' text inert."""

import base64
import html
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from evals.benchmarks import available, example, find
from evals.compare_page import LONGEST, SHOWN, write_page
from evals.compare_table import rows
from evals.comparison import compare_runs
from evals.printable import printable
from evals.records import Prediction

from .browser import WIDTHS, laid_out

EVIL = "</style><script>alert(1)</script>\"'><img src=x onerror=alert(1)> \u202egnp.exe\u2069 \ud800 \x00 {{7*7}} &amp;"
ALLOWED = """html head meta title style body main header section footer h1 h2 h3 p a dl dt dd ul li table thead tbody tr
th td span i b bdi small details summary article div img"""
TAGS = set(ALLOWED.split())


def png(size=(40, 30)):
    buffer = io.BytesIO()
    Image.new("RGB", size, "teal").save(buffer, "PNG")
    return buffer.getvalue()


def prediction(key, score, protocol="held-out:exact:1", **fields):
    made = {
        "id": str(key),
        "question": f"What is in picture {key}?",
        "response": f"I see it. Answer: {'B' if score else 'A'}",
        "truncated": False,
        "answer": "B",
        "parsed": "B" if score else "A",
        "score": float(score),
        "fate": "parsed",
        "digest": str(key),
        "protocol": protocol,
        "run": "a model",
        "group": {"kind": "colour"},
    }
    return Prediction(**made | fields)


class Page(HTMLParser):
    """Tags, attributes and what is to be read of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.inside = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        self.inside.append(tag)

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" not in self.inside:
            self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts))


def written(tmp_path, runs, name="held-out", picture=None, **options):
    runs = {run: rows if isinstance(rows, dict) else {name: rows} for run, rows in runs.items()}
    figures = compare_runs(*runs.values())
    out = tmp_path / "new" / "page.html"
    write_page(figures, runs, out, picture, **options)
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]
    text = out.read_text(encoding="utf-8")
    return figures, text, Page(text)


def flipping(gained, lost, same=20, **fields):
    scores = [(0, 1)] * gained + [(1, 0)] * lost + [(1, 1)] * same
    return {
        run: [prediction(i, pair[place], run=f"the {run} model", **fields) for i, pair in enumerate(scores)]
        for place, run in enumerate(("before", "after"))
    }


def everything(seed=0, n=36):
    """Three runs of all benchmarks, with the groups of their own examples."""
    rng = np.random.default_rng(seed)
    runs = {"before": {}, "after": {}, "teacher": {}}
    for name in available():
        cases = [find(name).record(case.row, find(name).sources[case.source], 3) for case in example(name)]
        for run, rate in zip(runs, (0.3, 0.5, 0.9), strict=True):
            runs[run][name] = [
                prediction(i, rng.random() < rate, f"{name}:official:1a", group=cases[i % len(cases)].group, run=run)
                for i in range(n)
            ]
    return runs


def test_the_page_has_the_numbers_of_the_figures(tmp_path):
    figures, _, page = written(tmp_path, everything())
    for row in rows(figures):
        for cell in filter(None, row[1:]):
            assert cell in page.text, cell
    for name, figure in figures["benchmarks"].items():
        assert find(name).title in page.text and figure["protocol"] in page.text
        assert f"{figure['gained']} gained, {figure['lost']} lost" in page.text
        for label, entry in figure["headlines"].items():
            assert label in page.text and (entry["p_value"] is not None or entry["p_undefined"])
        for table, groups in figure["groups"].items():
            assert f"By {table} ({len(groups)})" in page.text
            assert all(label in page.text for label in groups)
        assert all(note in page.text for note in figure["notes"])
    assert page.text.count("published number not yet reproduced with real weights") == len(available())
    assert all(line in page.text for line in figures["method"])
    assert figures["macro"] is not None and "Macro mean" in page.text


def test_one_file_that_asks_nobody(tmp_path):
    _, text, page = written(tmp_path, everything(), picture=lambda row: [png()])
    assert set(page.tags) <= TAGS
    sources = [value for _, key, value in page.attributes if key in ("src", "srcset", "data", "action")]
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert {value[0] for _, key, value in page.attributes if key == "href"} == {"#"}
    targets = {value for _, key, value in page.attributes if key == "id"}
    assert {value[1:] for _, key, value in page.attributes if key == "href"} <= targets
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert ("meta", "content", policy) in page.attributes
    assert not re.search(r"https?:|@import|url\(", text)
    assert "prefers-color-scheme: dark" in text and "@media print" in text and "width=device-width" in text


def test_strangers_text_is_seen_and_does_nothing(tmp_path):
    fields = {"question": EVIL, "answer": EVIL, "response": EVIL, "parsed": EVIL, "group": {"kind": EVIL, EVIL: "x"}}
    runs = flipping(2, 2, **fields)
    runs = {run: {EVIL: [replace(row, id=EVIL + row.id, run=EVIL) for row in rows]} for run, rows in runs.items()}
    more = {**runs["before"], f"only {EVIL}": runs["before"][EVIL]}
    _, text, page = written(tmp_path, {**runs, "before": more})
    assert set(page.tags) <= TAGS and not any(key.startswith("on") for _, key, _ in page.attributes)
    assert not re.search("[\u202e\u2069\x00\ud800]", text)
    seen = re.sub(r"\s+", " ", printable(EVIL))
    assert r"\u202egnp.exe\u2069 \ud800 \x00 {{7*7}} &amp;" in seen
    # In a label, a run and a group each; in every sample its id, group, question, gold, answers and replies.
    assert page.text.count(seen) >= 2 + 3 + 4 * 8
    assert f"only {seen}: only in before, left out" in page.text


def test_what_is_shown_is_counted(tmp_path):
    asked = []
    runs = flipping(57, 3)
    _, _, page = written(tmp_path, runs, picture=lambda row: asked.append(row.id) or [])
    assert f"Gained: {SHOWN} of 57 samples evenly over the file" in page.text
    assert "Lost: 3 of 3 samples" in page.text and page.tags.count("article") == SHOWN + 3
    shown = [int(key) for key in asked]
    assert len(set(shown)) == SHOWN + 3 and shown[-3:] == [57, 58, 59]
    assert np.ptp(np.diff(shown[:SHOWN])) <= 1 and shown[0] < 5 and shown[SHOWN - 1] > 51
    _, _, page = written(tmp_path, runs, shown=20)
    assert "Gained: 20 of 57 samples" in page.text
    _, _, page = written(tmp_path, flipping(1_200, 0, same=1))
    assert f"Gained: {SHOWN} of 1,200 samples" in page.text and "Lost: no samples." in page.text


def test_pictures_are_held_by_the_page_or_said_to_be_missing(tmp_path):
    jpeg = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(jpeg, "JPEG")
    held = {"0": [png(), jpeg.getvalue()], "1": [b"<svg onload=alert(1)>"], "2": []}
    _, _, page = written(tmp_path, flipping(3, 0), picture=lambda row: held[row.id])
    uris = [value for tag, key, value in page.attributes if (tag, key) == ("img", "src")]
    kinds = [uri.split(",")[0] for uri in uris]
    assert kinds == ["data:image/png;base64", "data:image/jpeg;base64"]
    assert base64.b64decode(uris[0].split(",")[1]) == png()
    assert page.text.count("picture not at hand") == 2
    alts = [value for tag, key, value in page.attributes if (tag, key) == ("img", "alt")]
    assert alts == ["Picture 1 of the question", "Picture 2 of the question"]
    _, _, page = written(tmp_path, flipping(3, 0))
    assert page.text.count("picture not at hand") == 3


def test_a_sample_says_what_every_run_answered(tmp_path):
    runs = flipping(1, 0)
    runs["teacher"] = [replace(row, run="the teacher", score=0.4, parsed="4") for row in runs["after"]]
    failed = {"fate": "error", "response": None, "parsed": None}
    runs["before"][0] = replace(runs["before"][0], **failed)
    _, _, page = written(tmp_path, runs)
    card = page.text[page.text.index("Gained: 1 of 1") :]
    assert "What is in picture 0? gold: B" in card
    order = [
        "before ✗ wrong error: no answer read",
        "no reply came",
        "after ✓ right read as B",
        "Answer: B",
        "teacher 0.40",
    ]
    places = [card.index(part) for part in order]
    assert places == sorted(places)
    assert "the before model" in page.text and "the teacher" in page.text


def test_long_texts_open_on_demand(tmp_path):
    long = "word " * 100 + "the end"
    huge = "x" * LONGEST + "y" * 1_234
    runs = flipping(1, 0, question="q " * 300)
    runs["before"][0] = replace(runs["before"][0], response=long)
    runs["after"][0] = replace(runs["after"][0], response=huge)
    _, text, page = written(tmp_path, runs)
    assert "question of 600 characters" in page.text
    assert "reply of 507 characters" in page.text and "the end" in page.text
    assert "reply of 21,234 characters" in page.text and "[1,234 more characters]" in page.text
    assert "y" * 9 not in text and "x" * LONGEST in text
    brief = flipping(1, 0, answer="gold " * 999, group={"kind": "k" * 5_000})
    _, text, _ = written(tmp_path, brief)
    assert text.count("[…]") == 3 and "k" * 300 not in text


def test_samples_of_a_question_are_one_card(tmp_path):
    before = [prediction(i, k == 0) for i in range(30) for k in range(4)]
    after = [prediction(i, k < 2) for i in range(30) for k in range(4)]
    _, _, page = written(tmp_path, {"before": before, "after": after})
    assert f"Gained: {SHOWN} of 30 samples" in page.text
    assert "before 0.25" in page.text and "after 0.50" in page.text and "first of 4 replies" in page.text


def test_without_a_teacher_nothing_is_said_of_one(tmp_path):
    _, _, page = written(tmp_path, flipping(30, 5))
    heads = page.text[: page.text.index("Held-out questions", page.text.index("MDE"))]
    assert "teacher" not in heads and "recovered" not in heads
    assert ("i", "class", "teacher") not in page.attributes
    assert "published number" not in page.text


@pytest.mark.parametrize(
    ("gained", "lost", "said"),
    [
        (60, 0, "+75.0\u00a0[+65.0,\u00a0+83.8] points on Held-out questions"),
        (6, 5, "No difference that chance does not explain: +"),
        (0, 60, "−75.0"),
    ],
    ids=["better", "chance", "worse"],
)
def test_the_result_in_one_sentence(tmp_path, gained, lost, said):
    _, text, page = written(tmp_path, flipping(gained, lost))
    assert html.unescape(re.search("<h1>(.*?)</h1>", text)[1]).startswith(said)
    assert ("i", "class", "move down") in page.attributes or gained >= lost


def test_a_real_lead_is_named_and_no_lead_is_not(tmp_path):
    runs = flipping(20, 0, same=60)
    best = [replace(row, score=1.0) for row in runs["after"]]
    _, text, _ = written(tmp_path, {**runs, "teacher": best})
    assert "100\u00a0%\u00a0[100,\u00a0100] of the way to the teacher" in text
    _, text, page = written(tmp_path, {**runs, "teacher": runs["before"]})
    assert (
        "of the way" not in text and "gap recovery undefined: the interval of teacher − before includes 0" in page.text
    )


def test_the_same_figures_make_the_same_page(tmp_path):
    first = written(tmp_path, flipping(40, 9))[1]
    assert first == written(tmp_path, flipping(40, 9))[1]


def test_nothing_lies_over_anything(tmp_path):
    names, long = ("mmstar", "vsibench"), "w" * 90
    runs = {
        run: {name: [replace(row, id=long + row.id) for row in rows[name]] for name in names}
        for run, rows in everything(n=20).items()
    }
    written(tmp_path, runs, picture=lambda row: [png((300, 200))], shown=2)
    page = tmp_path / "new" / "page.html"
    page.write_text(page.read_text(encoding="utf-8").replace("<details>", "<details open>"), encoding="utf-8")
    found = laid_out(page, tmp_path)
    for width in WIDTHS:
        assert found[width]["wrong"] == []
        assert found[width]["count"] > 200
