"""Runs and their files.

What is locked: 1) the fates of a run sum to n; 2) a run that was killed at any byte and started again leaves the same
file and the same predictions as one never killed; 3) finished items are not asked again; 4) a file of another run is
refused and left as it was.
"""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from evals import (
    EXACT,
    Interrupted,
    Item,
    Reply,
    Scoring,
    compare,
    evaluate,
    gap_recovery,
    read,
    scores,
    summarise,
)
from evals.media import Lazy
from evals.questions import Media
from evals.records import FATES
from evals.runner import CHUNK

from .predicted import predicted

OUTCOMES = ("correct", "wrong", *FATES[1:])
stable = settings(deadline=None, derandomize=True)
fates_and_kinds = st.lists(
    st.tuples(st.sampled_from(OUTCOMES), st.sampled_from(["colour", "count", ""])), min_size=1, max_size=40
)


def item(number, answer=None, question="How many?", **fields):
    message = {"role": "user", "content": [{"type": "text", "text": f"{question} ({number})"}]}
    group = {"kind": ("count", "colour", "shape")[number % 3]}
    return Item(id=f"q{number}", messages=(message,), answer=answer or str(number), group=group, **fields)


def prediction(number, outcome, kind="", **fields):
    return predicted(f"q{number}", outcome, group={"kind": kind}, **fields)


class Fake:
    """Answers by a hash of the item, in all ways; remembers what it was asked."""

    def __init__(self, dies_after=None):
        self.asked = []
        self.left = dies_after

    def generate(self, items):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        self.asked += [item.id for item in items]
        return [self.reply(item) for item in items]

    @staticmethod
    def reply(item):
        way = hashlib.sha256(item.id.encode()).digest()[0] % 5
        if way == 4:
            return Reply("", False, error="400: the picture is too large")
        text = (f"It is…\nAnswer: {item.answer}", "Answer: none\u2028of these", "I do not know, “sorry”.", "Let me see")
        return Reply(text[way], truncated=way == 3)


ITEMS = [item(n) for n in range(2 * CHUNK + 9)]


def test_an_uninterrupted_run_has_one_row_an_item_in_their_order(tmp_path):
    out = tmp_path / "new" / "run.jsonl"
    found = evaluate(Fake(), ITEMS, out)
    assert [row.id for row in found] == [one.id for one in ITEMS]
    assert read(out) == found == evaluate(Fake(), ITEMS)
    assert {row.fate for row in found} == set(FATES)
    for row, one in zip(found, ITEMS, strict=True):
        assert (row.group, row.answer, row.digest) == (one.group, one.answer, one.digest)
        reply = Fake.reply(one)
        assert (row.response, row.truncated) == (None if reply.error else reply.text, reply.truncated)
        assert row.protocol == EXACT.protocol and row.question == one.question


@settings(stable, max_examples=30)
@given(st.data())
def test_a_run_killed_at_any_byte_ends_as_if_it_had_not_been(tmp_path_factory, data):
    out = tmp_path_factory.mktemp("run") / "run.jsonl"
    whole = evaluate(Fake(), ITEMS, out)
    content = out.read_bytes()
    out.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    finished = {row.id for row in read(out)}
    again = Fake()
    assert evaluate(again, ITEMS, out) == whole
    assert out.read_bytes() == content
    assert again.asked == [one.id for one in ITEMS if one.id not in finished]


def test_what_was_asked_before_an_interrupt_is_kept(tmp_path):
    out = tmp_path / "run.jsonl"
    with pytest.raises(KeyboardInterrupt):
        evaluate(Fake(dies_after=1), ITEMS, out)
    assert len(read(out)) == CHUNK
    again = Fake()
    evaluate(again, ITEMS, out)
    assert again.asked == [one.id for one in ITEMS[CHUNK:]]
    finished = Fake()
    evaluate(finished, ITEMS, out)
    assert finished.asked == []


class Server(Fake):
    """Answers one by one, and is gone after some: of the chunk in work, every second reply came."""

    def __init__(self, gone_after):
        super().__init__()
        self.gone_after = gone_after

    def generate(self, items):
        if len(self.asked) + len(items) <= self.gone_after:
            return super().generate(items)
        self.asked += [one.id for one in items[::2]]
        raise Interrupted(
            "the server is gone", [self.reply(one) if n % 2 == 0 else None for n, one in enumerate(items)]
        )


@pytest.mark.parametrize("gone_after", [0, CHUNK, len(ITEMS) - 1])
def test_replies_that_came_before_a_server_died_are_kept_and_the_end_is_the_same(tmp_path, gone_after):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "run.jsonl"
    evaluate(Fake(), ITEMS, whole)
    server = Server(gone_after)
    with pytest.raises(Interrupted, match="the server is gone"):
        evaluate(server, ITEMS, out)
    assert {row.id for row in read(out)} == set(server.asked)
    again = Fake()
    evaluate(again, ITEMS, out)
    assert sorted(again.asked + server.asked) == sorted(one.id for one in ITEMS)  # nothing twice
    assert out.read_bytes() == whole.read_bytes()


def test_an_interruption_without_replies_loses_nothing(tmp_path):
    class Gone:
        def generate(self, items):
            raise Interrupted("no route")

    out = tmp_path / "run.jsonl"
    evaluate(Fake(), ITEMS[:CHUNK], out)
    with pytest.raises(Interrupted):
        evaluate(Gone(), ITEMS, out)
    assert len(read(out)) == CHUNK


def test_a_model_that_batches_meets_the_same_batches_after_a_kill(tmp_path):
    """A kill may cut the writing of a chunk. Asked alone, the rest could differ in a last bit."""

    class Batching(Fake):
        whole_chunks = True

    out = tmp_path / "run.jsonl"
    whole = evaluate(Batching(), ITEMS, out)
    content = out.read_bytes()
    out.write_bytes(b"".join(content.splitlines(keepends=True)[: CHUNK + 5]))
    again = Batching()
    assert evaluate(again, ITEMS, out) == whole and out.read_bytes() == content
    assert again.asked == [one.id for one in ITEMS[CHUNK:]]


def test_media_are_decoded_when_asked_and_a_bad_one_is_an_error_of_its_own(tmp_path):
    def load(content, root):
        if content == b"1":
            raise ValueError("expected an image, got 1 byte")
        return Image.new("RGB", (4, 4), (int(content), 0, 0))

    def picture_of(number):
        return Lazy(Media("image", {"bytes": b"%d" % number, "path": "photo.png"}), tmp_path, load, where=f"q{number}")

    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}
    items = [Item(id=f"q{n}", messages=(message,), images=(picture_of(n),), answer="7") for n in range(3)]
    seen = []

    class Seeing:
        def generate(self, asked):
            seen.extend(one.images[0].getpixel((0, 0))[0] for one in asked)
            return [Reply("Answer: 7", False)] * len(asked)

    rows = evaluate(Seeing(), items, tmp_path / "run.jsonl")
    assert seen == [0, 2] and [row.fate for row in rows] == ["parsed", "error", "parsed"]
    assert rows[1].method == "q1: image 1 (photo.png): expected an image, got 1 byte" and rows[1].response is None
    assert evaluate(Fake(), items, tmp_path / "run.jsonl") == rows  # not tried again: the file will not change


def test_a_run_under_another_protocol_is_refused(tmp_path):
    out = tmp_path / "run.jsonl"
    evaluate(Fake(), ITEMS[:3], out)
    other = Scoring("mmstar:toolkit:123", EXACT.score)
    with pytest.raises(ValueError, match="is of protocol 'held-out:exact:1', not 'mmstar:toolkit:123'"):
        evaluate(Fake(), ITEMS[:3], out, scoring=other)
    with pytest.raises(ValueError, match="expected one protocol, got 'held-out:exact:1' and 'mmstar:toolkit:123'"):
        compare(read(out), evaluate(Fake(), ITEMS[:3], scoring=other))


def picture(shade):
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many? (0)"}]}
    return Item(id="q0", messages=(message,), images=(Image.new("RGB", (4, 4), shade),), answer="0")


@pytest.mark.parametrize(
    ("first", "second", "run", "reason"),
    [
        ([item(0), item(1)], [item(0)], "", "line 2: item 'q1' is not among the items"),
        ([item(0)], [item(0, question="Why?")], "", "line 1: item 'q0' had another question"),
        ([item(0)], [item(0, answer="5")], "", "line 1: item 'q0' had another question, image or answer"),
        ([picture("red")], [picture("blue")], "", "line 1: item 'q0' had another question, image"),
        ([item(0)], [item(0)], "step 200", "is of run '', not 'step 200'"),
    ],
    ids=["items left out", "question changed", "answer changed", "pixels changed", "another run"],
)
def test_a_file_of_another_run_is_refused_and_kept(tmp_path, first, second, run, reason):
    out = tmp_path / "run.jsonl"
    evaluate(Fake(), first, out)
    with out.open("a") as file:
        file.write('{"id": "q')  # torn, and still not cut off
    content = out.read_bytes()
    with pytest.raises(ValueError, match=reason):
        evaluate(Fake(), second, out, run=run)
    assert out.read_bytes() == content


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not json\n", "line 1: expected a prediction"),
        (b'{"id": "q0"}\n', "line 1: expected a prediction"),
        (b'[{"rows": 3}]', "is not the file of a run"),
        (b"[]\n", "line 1: expected a prediction"),
    ],
    ids=["text", "other rows", "other file in one line", "a list"],
)
def test_a_file_that_is_not_ours_is_never_touched(tmp_path, content, reason):
    out = tmp_path / "precious.json"
    out.write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        evaluate(Fake(), [item(0)], out)
    assert out.read_bytes() == content


def test_a_row_that_occurs_twice_is_refused(tmp_path):
    out = tmp_path / "run.jsonl"
    evaluate(Fake(), [item(0)], out)
    out.write_bytes(2 * out.read_bytes())
    with pytest.raises(ValueError, match="line 2: item 'q0' occurs twice"):
        evaluate(Fake(), [item(0)], out)


def test_more_items_than_the_file_holds_are_a_resume(tmp_path):
    out = tmp_path / "run.jsonl"
    evaluate(Fake(), ITEMS[:5], out)
    again = Fake()
    assert evaluate(again, ITEMS[:8], out) == evaluate(Fake(), ITEMS[:8])
    assert again.asked == ["q5", "q6", "q7"]


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([item(1), item(1)], "unique ids, got 'q1' twice"),
        ([item(1, answer="**")], "would not be scored as correct"),
        ([item(1, answer="two\nlines")], "would not be scored as correct"),
    ],
    ids=["repeated id", "nothing but decoration", "two lines"],
)
def test_items_that_cannot_be_run_are_refused_before_asking(items, reason):
    fake = Fake()
    with pytest.raises(ValueError, match=reason):
        evaluate(fake, items)
    assert fake.asked == []


def test_a_model_that_loses_replies_is_an_error():
    class Lossy:
        def generate(self, items):
            return [Reply("Answer: 1", False)] * (len(items) - 1)

    with pytest.raises(ValueError, match="expected 3 replies, one for each item, got 2"):
        evaluate(Lossy(), ITEMS[:3])


@stable
@given(fates_and_kinds)
def test_fates_sum_to_n_and_kinds_add_up(cases):
    run = [prediction(n, fate, kind) for n, (fate, kind) in enumerate(cases)]
    result = summarise(run)
    assert sum(result.fates.values()) == result.n == len(run)
    assert result.accuracy == sum(fate == "correct" for fate, _ in cases) / result.n
    assert result.interval[0] <= result.accuracy <= result.interval[1]
    assert result.accuracy <= result.parse_rate <= 1
    assert sum(kind.n for kind in result.kinds.values()) == result.n
    for fate in FATES:
        assert sum(kind.fates[fate] for kind in result.kinds.values()) == result.fates[fate]
    difference = compare(run, run)
    assert (difference.difference, difference.interval) == (0.0, (0.0, 0.0))
    assert difference.before == result.accuracy


def test_a_result_by_hand():
    fates = ["correct"] * 3 + ["wrong"] * 2 + ["unparsed"] * 2 + ["truncated"]
    result = summarise([prediction(n, fate, "count" if n < 4 else "colour") for n, fate in enumerate(fates)])
    assert result.fates == {"parsed": 5, "unparsed": 2, "truncated": 1, "error": 0}
    assert (result.n, result.accuracy, result.parse_rate) == (8, 3 / 8, 5 / 8)
    assert {kind: one.accuracy for kind, one in result.kinds.items()} == {"colour": 0.0, "count": 0.75}
    assert str(result) == "accuracy 37.5% [13.7%, 69.4%] of n=8 (2 unparsed, 1 truncated)"
    with pytest.raises(ValueError, match="at least one prediction"):
        summarise([])


def test_runs_are_compared_item_by_item():
    before = [prediction(n, "wrong") for n in range(10)]
    after = [prediction(n, "correct" if n < 4 else "truncated") for n in reversed(range(10))]
    result = compare(before, after)
    assert (result.difference, result.gained, result.lost) == (0.4, 4, 0)
    assert result.p_value == 2 / 2**4
    teacher = [prediction(n, "correct" if n < 8 else "wrong") for n in range(10)]
    assert gap_recovery(scores(before), scores(after), scores(teacher)).value == 0.5


def test_runs_of_other_questions_are_not_compared():
    before = [prediction(0, "wrong")]
    with pytest.raises(ValueError, match="item 'q0' was another question"):
        compare(before, [prediction(0, "wrong", digest="other")])
    with pytest.raises(ValueError, match=r"lacks, e\.g\. 'q0'"):
        compare(before, [prediction(1, "wrong")])
    with pytest.raises(ValueError, match="'q0' twice"):
        compare(before, 2 * before)


def test_importing_evals_needs_no_torch():
    code = "import sys, evals; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0
