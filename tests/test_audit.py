"""What an audit finds: facts of a row, fates, overlap, figures.

What is locked: 1) the facts of a row, by hand, with every oddity of a box counted; 2) what p discloses is what the
builder shows, not what the record holds; 3) a bad row is a row with a reason; 4) fates follow the policy and name their
rule, and a builder's declaration is honoured; 5) overlap with evaluation rows
is told from likeness; 6) figures are right, and do not depend on the order of rows.
"""

from __future__ import annotations

import functools
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.ImageFile import ImageFile

from privileged import DataError, get_builder
from privileged.audit import (
    DropPolicy,
    audit_row,
    decide,
    dhash,
    fingerprint_row,
    mark_overlap,
    summarise,
)
from tests.audit_case import jpeg, many, noise, png, record, row, words

BOXES, HINTS = get_builder("boxes"), get_builder("hints")
KEPT = {"fate": "kept", "rules": []}


def facts_of(one, builder=BOXES, root=None, **options):
    return audit_row(one, "file-0", root or NOWHERE, builder=builder, **options)


NOWHERE = None


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "NOWHERE", tmp_path)


def test_the_facts_of_a_row():
    """All by hand; JSON keeps them as they are."""
    regions = [("red cup", (0, 0, 100, 50)), ("杯子", (100, 0, 200, 100)), ("red cup", (150, 50, 160, 90))]
    facts = facts_of(row(1, regions=regions, answer="cup"))
    image = facts.pop("images")[0]
    assert json.loads(json.dumps(facts)) == facts
    assert image["size"] == [200, 100] and image["mode"] == "RGB" and image["format"] == "PNG"
    assert (image["orientation"], image["notes"]) == (1, [])
    assert len(image["sha256"]) == 64 and len(image["dhash"]) == 16 and len(image["cells"]) == 192
    hits = facts.pop("hits")
    assert [(hit["rule"], hit["grade"], hit["text"], hit["weak"]) for hit in hits] == [
        ("verbatim", 3, "red cup", False)
    ]
    plain, privileged = facts.pop("chars")
    assert plain == len("What is red?") and privileged > plain + 3 * 30
    assert facts.pop("question_key") == facts_of(row(2, question="what  IS red?"))["question_key"]
    assert facts == {
        "id": "s1",
        "kind": "what",
        "error": None,
        "question": "What is red?",
        "answer": "cup",
        "form": "open",
        "regions": [3],
        "area": [0.25, 0.5, 0.02],
        "aspect": [2.0, 1.0, 0.25],
        "flags": {},
        "labels": {"red cup": 2, "杯子": 1},
        "scripts": {"CJK": 1, "LATIN": 2},
        "origin": "",
        "recheck": "",
        "empty": False,
        "left_out": 0,
        "pictures": 1,
        "tokens": [None, None],
        "grade": 3,
    }


@pytest.mark.parametrize(
    ("flag", "regions"),
    [
        ("clipped", [("a", (-10, 10, 50, 50))]),
        ("clipped", [("a", (10, 10, 50, 50), {"extra": {"clipped": 0.2}})]),
        ("outside", [("a", (300, 10, 350, 50))]),
        ("reversed", [("a", (50, 10, 40, 50))]),
        ("empty", [("a", (50, 10, 50, 50))]),
        ("tiny", [("a", (50, 10, 51.5, 12))]),
        ("whole image", [("a", (0, 0, 200, 99))]),
        ("duplicate", [("a", (0, 0, 100, 50)), ("a", (0, 0, 100, 50.1))]),
        ("long label", [("x" * 81, (0, 0, 100, 50))]),
        ("no such image", [("a", (0, 0, 100, 50), {"image": 1})]),
    ],
)
def test_the_oddities_of_a_box(flag, regions):
    """Counted even where the builder refuses the row for it."""
    facts = facts_of(row(regions=regions))
    assert facts["flags"] == {flag: 1}
    assert (facts["error"] is not None) is (flag in ("outside", "reversed", "empty", "no such image"))


def test_images_are_told_as_stored(tmp_path):
    """Mode, format, orientation and notes are those of the file; size and hash those of the upright image."""
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(1).convert("L").save(tmp_path / "a.jpg", exif=exif)
    one = row(images=["a.jpg", png(noise(2).convert("RGBA").quantize(), transparency=0)], privileged=None)
    first, second = facts_of(one, root=tmp_path)["images"]
    assert (first["mode"], first["format"], first["orientation"], first["size"]) == ("L", "JPEG", 6, [100, 200])
    assert first["notes"] == ["turned"] and second["notes"] == ["transparent"] and second["mode"] == "P"
    upright = Image.open(tmp_path / "a.jpg").transpose(Image.Transpose.ROTATE_270).convert("RGB")
    assert first["dhash"] == dhash(upright)


def test_an_image_is_decoded_once(monkeypatch, tmp_path):
    noise(1).save(tmp_path / "a.png")
    decoded = []
    plain = ImageFile.load
    monkeypatch.setattr(ImageFile, "load", lambda self: decoded.append(self.tile) or plain(self))
    assert facts_of(row(images=["a.png"]), root=tmp_path)["error"] is None
    assert len([tile for tile in decoded if tile]) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"images": ["nothing.png"]}, "no such file"),
        ({"images": ["../up.png"]}, "leads outside"),
        ({"images": [b"junk"]}, "unreadable"),
        ({"images": "a.png"}, "expected a list"),
        ({"question": ""}, "question"),
        ({"question": None}, "question"),
        ({"answer": [1]}, "answer"),
        ({"privileged": "{"}, "JSON"),
        ({"privileged": record("other")}, "its own record"),
        ({"kind": 3}, None),
    ],
)
def test_a_bad_row_is_a_row_with_a_reason(changes, reason):
    facts = facts_of(row() | changes)
    assert (facts["error"] is None) if reason is None else (reason in facts["error"])
    json.dumps(facts)
    fate = decide(facts, DropPolicy(), "cue")
    assert fate == (KEPT if reason is None else {"fate": "dropped", "rules": ["unreadable"]})
    assert summarise([facts | fate])["rows"]["errors"] == (reason is not None)


def test_a_row_without_question_and_a_broken_builder():
    """Whatever else goes wrong names its type; the audit goes on."""

    class Broken:
        discloses = "cue"

        def build(self, sample, record):
            raise KeyError("oops")

    one = row()
    assert facts_of(one, builder=Broken())["error"] == "KeyError: 'oops'"
    assert facts_of(one, builder=Broken())["labels"] == {"cup": 1}
    del one["question"]
    assert "question" in facts_of(one)["error"]
    assert "question" in fingerprint_row(one, "x", NOWHERE)["error"]


def test_p_is_what_the_builder_shows():
    """Three boxes count the answer out, unless the builder shows two of them, or none; drawn ones count."""
    three = [("cup", (10 * i, 10, 10 * i + 8, 60)) for i in range(3)]
    one = row(question="How many cups?", answer="3", regions=three)
    rules = {
        name: {hit["rule"] for hit in facts_of(one, builder=builder)["hits"]}
        for name, builder in {
            "all": BOXES,
            "two": get_builder("boxes", max_regions=2),
            "hints": HINTS,
            "drawn": get_builder("overlay"),
        }.items()
    }
    assert rules == {"all": {"count"}, "two": set(), "hints": set(), "drawn": {"count"}}
    assert facts_of(one, builder=get_builder("boxes", max_regions=2))["left_out"] == 1
    assert facts_of(one, builder=HINTS)["empty"] is True


def test_the_answer_goes_only_to_a_builder_that_discloses_it():
    facts = facts_of(row(answer="blue"), builder=get_builder("answer"))
    assert facts["grade"] == 3 and not facts["empty"]
    assert decide(facts, DropPolicy(), "answer") == KEPT
    assert decide(facts, DropPolicy(), "cue") == {"fate": "dropped", "rules": ["stated: verbatim"]}


def test_a_worked_solution_is_compared():
    steps = "Take the sum of both numbers and divide it by seven"
    one = row(images=None, privileged=record("s0", notes=[steps]), solution=f"First: {steps}.", why=f"{steps}!")
    assert [hit["rule"] for hit in facts_of(one, builder=HINTS)["hits"]] == ["overlap"]
    assert [hit["rule"] for hit in facts_of(one, builder=HINTS, reference="nothing")["hits"]] == []
    assert [hit["rule"] for hit in facts_of(one | {"solution": 3}, builder=HINTS)["hits"]] == []


def test_tokens_are_those_of_the_given_counter():
    facts = facts_of(row(), count_tokens=words)
    assert facts["tokens"][0] == 103 and facts["tokens"][1] > 120
    within, over = facts["tokens"][1], facts["tokens"][1] - 1
    assert decide(facts, DropPolicy(max_tokens=within), "cue") == KEPT
    assert decide(facts, DropPolicy(max_tokens=over), "cue") == {"fate": "warned", "rules": ["over budget"]}
    assert decide(facts, DropPolicy(max_tokens=over, over_budget="drop"), "cue")["fate"] == "dropped"


@pytest.mark.parametrize(
    ("grade", "discloses", "fate"),
    [
        (3, "none", "dropped"), (3, "cue", "dropped"), (3, "derivable", "dropped"), (3, "answer", "kept"),
        (2, "cue", "warned"), (2, "derivable", "kept"), (1, "none", "kept"), (1, "cue", "kept"), (0, "none", "kept"),
    ],
)  # fmt: skip
def test_fates_by_grade(grade, discloses, fate):
    hits = [{"rule": "count", "grade": grade, "weak": False}, {"rule": "phrase", "grade": 1, "weak": False}]
    facts = {"error": None, "empty": False, "tokens": [None, None], "images": [1], "grade": grade, "hits": hits}
    got = decide(facts, DropPolicy(), discloses)
    names = {3: "stated", 2: "derivable"}
    assert got == {"fate": fate, "rules": [] if fate == "kept" else [f"{names[grade]}: count"]}


def test_weak_hits_warn_as_cues():
    facts = facts_of(row(answer="3", regions=[("3 cups", (10, 10, 60, 60))]))
    assert facts["grade"] == 1
    assert decide(facts, DropPolicy(), "cue") == KEPT
    strict = decide(facts, DropPolicy(cue="drop"), "none")
    assert strict == {"fate": "dropped", "rules": ["cue: numeric", "cue: verbatim"]}


def test_the_policy_is_checked():
    assert decide(facts_of(row(privileged=None)), DropPolicy(), "cue") == {"fate": "warned", "rules": ["empty p"]}
    with pytest.raises(DataError, match="stated: expected one of keep, warn, drop, got 'no'"):
        DropPolicy(stated="no")
    with pytest.raises(DataError, match="max_tokens"):
        DropPolicy(max_tokens=0)


def test_overlap_with_evaluation_rows():
    """The same file, a recompressed copy, a repeated question; and what only looks alike to a coarse hash."""
    held = [fingerprint_row(row(i, question=f"Eval {i}?"), f"e-{i}", NOWHERE) for i in range(5)]
    copy = png(jpeg(noise(1), 80).resize((150, 75)))
    page = Image.new("RGB", (200, 100), "white")
    drawings = []
    for colour in ("red", "blue"):
        drawn = page.copy()
        drawn.paste(Image.new("RGB", (40, 90), colour), (60, 5))
        drawings.append(png(drawn))
    held.append(fingerprint_row(row(7, images=[drawings[0]]), "e", NOWHERE))
    rows = [
        facts_of(row(10, images=[png(noise(0))])),
        facts_of(row(11, images=[copy])),
        facts_of(row(12, question="eval  3?", images=None, privileged=None)),
        facts_of(row(13, images=[drawings[1]])),
        facts_of(row(14, images=["none"])),
        facts_of(row(15, question="EVAL 4?")),
    ]
    marked = mark_overlap(rows, held)
    assert [one["overlap"] for one in marked] == [
        {"same image": "s0", "same question": "s7"},
        {"near image": "s1", "same question": "s7"},
        {"same question": "s3"},
        {"same question": "s7"},
        {},
        {"same question": "s4"},
    ]
    fates = [decide(one, DropPolicy(overlap="drop", empty="keep"), "cue")["rules"] for one in marked]
    assert fates == [*[["in an evaluation file"]] * 3, [], ["unreadable"], []]
    figures = summarise([one | decide(one, DropPolicy(), "cue") for one in marked])["overlap"]
    assert (figures["same image"], figures["near image"], figures["same question"]) == (1, 1, 5)
    assert figures["examples"][0] == {"id": "s10", "what": "same image", "other": "s0"}
    assert summarise([rows[0] | KEPT])["overlap"] is None


def audited(rows):
    return [facts | decide(facts, DropPolicy(), "cue") for facts in map(facts_of, rows)]


def test_the_figures_by_hand():
    figures = summarise(audited(many()))
    assert {key: figures["rows"][key] for key in ("total", "kept", "warned", "dropped", "errors", "repeated_ids")} == {
        "total": 12, "kept": 4, "warned": 3, "dropped": 5, "errors": 3, "repeated_ids": 0,
    }  # fmt: skip
    assert figures["rows"]["dropped_by"] == {"unreadable": 3, "stated: verbatim": 2}
    assert figures["rows"]["warned_by"] == {"empty p": 3}
    assert figures["regions"]["total"] == 9
    assert figures["regions"]["per_row"] == {"0": 3, "1": 3, "2-5": 3, "6-20": 0, ">20": 0}
    assert figures["regions"]["flags"] == {"clipped": {"count": 3, "share": 1 / 3}}
    assert figures["regions"]["area"] == {
        "<0.1 %": 0, "0.1-1 %": 0, "1-5 %": 0, "5-20 %": 9, "20-50 %": 0, "50-95 %": 0, ">95 %": 0,
    }  # fmt: skip
    assert figures["regions"]["aspect"]["1:1-2:1"] == 9
    assert figures["labels"]["top"][0] == ["red cup", 6] and figures["labels"]["once"] == 3
    assert figures["leaks"]["grades"] == {"none": 7, "cue": 0, "derivable": 0, "stated": 2}
    verbatim = figures["leaks"]["rules"]["verbatim"]
    assert (verbatim["hits"], verbatim["kinds"]) == (2, {"k0": 1, "k1": 1})
    assert verbatim["examples"][0]["question"] == "What is red?" and verbatim["examples"][0]["text"] == "red cup"
    assert figures["kinds"]["k0"]["total"] == 6 and figures["kinds"]["k0"]["left"] == 5
    assert figures["prompts"]["empty"] == 3 and figures["prompts"]["chars"]["plain"] == {
        "p50": 12,
        "p95": 12,
        "max": 12,
    }
    assert figures["prompts"]["tokens"]["plain"] is None
    assert figures["images"]["total"] == figures["images"]["distinct"] == 9 and figures["images"]["modes"] == {"RGB": 9}


def test_percentiles_are_values_that_occur():
    facts = facts_of(row(0, privileged=None)) | KEPT
    rows = [facts | {"id": str(n), "chars": [n, n]} for n in range(1, 101)]
    assert summarise(rows)["prompts"]["chars"]["plain"] == {"p50": 50, "p95": 95, "max": 100}


@settings(max_examples=10)
@given(seed=st.integers(0, 99))
def test_figures_do_not_depend_on_order(seed):
    rows = audited_once()
    shuffled = random.Random(seed).sample(rows, len(rows))
    assert summarise(shuffled) == summarise(rows)
    json.dumps(summarise(rows), allow_nan=False)


@functools.cache
def audited_once():
    return audited(many())


def test_where_p_comes_from_is_counted():
    told = record(
        "s0",
        ("cup", (1, 1, 50, 50)),
        origin={"how": "model", "model": "m", "prompt": "boxes/3"},
        checks={"recheck": {"verdict": "keep"}},
    )
    odd = record("s1", ("cup", (1, 1, 50, 50)), origin=3, checks={"recheck": "x"})
    figures = summarise(audited([row(0, privileged=told), row(1, privileged=odd)]))
    assert figures["origin"] == {"model m boxes/3": 1, "not told": 1}
    assert figures["recheck"] == {"keep": 1}
