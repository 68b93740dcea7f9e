"""The generator against a real HTTP endpoint that behaves, and misbehaves.

What is locked: 1) rows come out in order, each with one fate, and records that training reads; boxes lie where the
rectangles are; 2) the two calls: no answer in the first, numbered boxes and the answer in the second; 3) each kind of
failure has its own fate, is asked again or not as it should, and never ends the run; 4) what ends the run at once;
5) embedded images, several images, text-only hints.
"""

import io
import json
import logging

import numpy as np
import pytest
from PIL import Image

from privileged import DataError
from privileged.builders import get_builder
from privileged.generate import generate
from privileged.views import build_views
from tests.fake_endpoint import DRIP, HANG, RESET, FakeEndpoint, Say, Status, verdict
from tests.generate_case import kept_replies, place, quick, run, samples, settings, write_data  # noqa: F401

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def server():
    with FakeEndpoint().serving() as running:
        yield running


def regions(*items, reason=""):
    return Say(json.dumps({"regions": list(items), "reason": reason}))


GOOD = {"label": "box", "bbox_2d": [100, 100, 500, 500]}


def test_every_row_gets_its_boxes(tmp_path, server):
    """In the order of the file, where the rectangles are, with where they come from."""
    data = write_data(tmp_path, 6)
    summary, rows = run(server, data)
    assert summary.fates == {"kept": 6} and summary.rows == 6 and not summary.stopped
    assert (summary.calls, summary.cached, summary.failures) == (12, 0, 0)
    assert (summary.tokens_in, summary.tokens_out) == (12_000, 1200)
    assert summary.boxes.objects == {"kept": 6}
    for number, sample in enumerate(samples(rows, tmp_path)):
        assert sample.id == f"s{number}" and sample.question.endswith(f"{number}?")
        (region,) = sample.privileged.regions
        assert np.allclose(region.box, place(number), atol=1.01)
        (ref,) = sample.privileged.images
        assert (ref.path, ref.width, ref.height) == (f"pictures/{number}.png", 120, 90) and len(ref.sha256) == 64
        origin, checks = sample.privileged.extra["origin"], sample.privileged.extra["checks"]
        assert origin | {"request": ""} == {
            "how": "model", "model": "m", "prompt": "boxes/1", "coords": "qwen3", "created": "2026-09-21T14:13:20Z",
            "request": "",
        }  # fmt: skip
        assert checks["recheck"]["verdict"] == "keep" and checks["geometry"] == []
        kept = [entry for entry in kept_replies(tmp_path / "data.replies") if entry["key"] == origin["request"]]
        assert kept[0]["raw"]["choices"][0]["message"]["content"] == kept[0]["reply"]["text"]
        assert build_views(sample, get_builder("boxes")).has_privilege


def test_the_answer_is_in_the_second_call_only(tmp_path, server):
    """Which shows the box drawn, and its number and label."""
    data = write_data(tmp_path, 1, answer="zebra crossing")
    run(server, data)
    (first,), (second,) = server.of("generate"), server.of("recheck")
    assert "zebra" not in json.dumps(first.body) and "zebra" in second.text
    assert '"number": 1, "label": "rectangle"' in second.text
    plain, drawn = np.asarray(first.images[0]).astype(int), np.asarray(second.images[0]).astype(int)
    x0, y0, x1, y1 = place(0)
    changed = np.abs(plain - drawn).max(axis=2) > 60
    assert changed[y0 - 2 : y1 + 2, x0 - 2 : x0].any() and not changed[y1 + 8 :, x1 + 8 :].any()
    assert first.body["response_format"]["json_schema"]["schema"]["required"] == ["regions", "reason"]
    assert first.body["max_completion_tokens"] == 2048 and first.once != second.once


def test_without_recheck_there_is_one_call_and_no_answer_is_needed(tmp_path, server):
    """`recheck=False`; with it, a row without answer is not paid for."""
    data = write_data(tmp_path, 2, answer=None)
    summary, rows = run(server, data)
    assert summary.fates == {"dropped:no answer": 2} and not server.calls and "privileged" not in rows[0]
    summary, rows = run(server, data, recheck=False)
    assert summary.fates == {"kept": 2} and len(server.calls) == 2
    assert "recheck" not in samples(rows, tmp_path)[0].privileged.extra["checks"]


FAILURES = [
    (Say(refusal="No."), "dropped:refused", True),
    (Say("Sorry, I can't help."), "dropped:refused", True),
    (Say('{"regions": [{"label": "a", "bb'), "dropped:truncated reply", True),
    (Say('{"regions": []}', finish="length"), "dropped:truncated reply", True),
    (Say("\x00 garbage \ufffd"), "dropped:not JSON", True),
    (Say(None), "dropped:not JSON", True),
    (Say('{"regions": 7}'), "dropped:wrong form", True),
    (regions(reason="no_local_evidence"), "dropped:no local evidence", True),
    (regions({"label": "a", "bbox_2d": [0, 0, 5, "x"]}), "dropped:no usable box", True),
    (Status(500), "dropped:endpoint gave up", False),
    (Status(429, headers={"retry-after": "0.01"}), "dropped:endpoint gave up", False),
    (Status(400), "dropped:rejected", False),
    (Status(413), "dropped:rejected", False),
    (Status(200, "<html>Gateway</html>", content_type="text/html"), "dropped:endpoint gave up", False),
    (Status(200, '{"error": {"message": "overloaded"}}'), "dropped:endpoint gave up", False),
    (Status(200, '{"choices": []}'), "dropped:endpoint gave up", False),
    (Status(200, '{"choices": [{"message": {"content": 3}}]}'), "dropped:endpoint gave up", False),
    (Status(200, "[" * 3000), "dropped:endpoint gave up", False),
    (RESET, "dropped:endpoint gave up", False),
    (HANG, "dropped:endpoint gave up", False),
    (DRIP, "dropped:endpoint gave up", False),
]


@pytest.mark.parametrize(("action", "fate", "final"), FAILURES, ids=lambda value: str(value)[:40])
def test_each_failure_has_its_fate_and_its_neighbours_go_on(tmp_path, server, action, fate, final):
    """Final ones are not asked again; others are, by the next run, which then succeeds."""
    data = write_data(tmp_path, 3)
    server.script = lambda call: action if "in 1?" in call.text else None
    quickly = {"max_retries": 1} | ({"timeout": 2.0, "deadline": 3.0} if action in (HANG, DRIP) else {})
    summary, rows = run(server, data, **quickly)
    assert summary.fates == {"kept": 2, fate: 1}
    assert ["privileged" in row for row in rows] == [True, False, True]
    assert fate in summary.examples and summary.examples[fate][0].startswith("data-1")
    server.script, before = None, len(server.calls)
    summary, _ = run(server, data, **quickly)
    assert summary.fates == ({"kept": 2, fate: 1} if final else {"kept": 3})
    assert len(server.calls) - before == (0 if final else 2)
    if final:
        assert run(server, data, retry_failed=True)[0].fates == {"kept": 3}


def test_attempts_are_repeated_with_the_same_key(tmp_path, server):
    """500, 429 with Retry-After, a broken connection, then an answer: one call, three retries."""
    actions = iter([Status(500), Status(429, headers={"retry-after": "0.02"}), RESET])
    server.script = lambda call: next(actions, None)
    summary, _ = run(server, write_data(tmp_path, 1), recheck=False, max_retries=3)
    assert summary.fates == {"kept": 1} and (summary.calls, summary.retries) == (1, 3)
    assert len(server.calls) == 4 and len({call.once for call in server.calls}) == 1
    assert len(server.calls[0].once) == 64


def test_retry_failed_asks_once_more_with_another_key(tmp_path, server):
    """An endpoint that honours the key would otherwise give the same reply."""
    server.script = lambda call: Say("garbage")
    data = write_data(tmp_path, 1)
    run(server, data, recheck=False)
    summary, _ = run(server, data, recheck=False, retry_failed=True)
    assert summary.fates == {"dropped:not JSON": 1} and summary.calls == 1
    assert len(server.calls) == 2 and server.calls[0].once != server.calls[1].once


@pytest.mark.parametrize("code", [401, 402, 403, 404, 307, 429])
def test_an_endpoint_that_takes_nothing_ends_the_run_at_once(tmp_path, server, code):
    """One line, no output, no storm of retries; nothing follows a redirect. A used-up quota says so by its code."""
    body = '{"error": {"message": "no", "code": "insufficient_quota"}}'
    headers = {"location": server.url + "/elsewhere", "x-should-retry": "false"}
    server.script = lambda call: Status(code, body if code == 429 else '{"error": {"message": "no"}}', headers)
    data = write_data(tmp_path, 8)
    with pytest.raises(DataError, match=f"got {code}") as caught:
        run(server, data, concurrency=3)
    assert "\n" not in str(caught.value) and len(server.calls) <= 3
    assert not (tmp_path / "out.jsonl").exists()
    if code == 401:
        server.script = None
        assert run(server, data)[0].fates == {"kept": 8}


def test_an_endpoint_that_is_down_ends_the_asking(tmp_path, server):
    """After `max_failures` calls in a row; the rest is not asked, and asked by the next run."""
    server.script = lambda call: Status(503) if call.number >= 4 else None
    data = write_data(tmp_path, 12)
    summary, rows = run(server, data, concurrency=1, max_failures=3, max_retries=0)
    assert summary.fates == {"kept": 2, "dropped:endpoint gave up": 3, "not asked:endpoint down": 7}
    assert summary.stopped.startswith("endpoint down") and len(rows) == 12 and len(server.calls) == 7
    server.script = None
    assert run(server, data)[0].fates == {"kept": 12}


def test_failures_between_replies_do_not_end_the_asking(tmp_path, server):
    """Only so many in a row do."""
    server.script = lambda call: Status(503) if call.number % 2 else None
    summary, _ = run(server, write_data(tmp_path, 6), concurrency=1, max_failures=2, max_retries=0, recheck=False)
    assert summary.fates == {"kept": 3, "dropped:endpoint gave up": 3} and not summary.stopped


def test_the_same_question_about_another_image_is_another_request(tmp_path, server):
    """Each row gets the boxes of its own image, in one size."""
    _, rows = run(server, write_data(tmp_path, 2, question="What is red?"), recheck=False)
    assert len(server.calls) == 2
    for number, sample in enumerate(samples(rows, tmp_path)):
        assert np.allclose(sample.privileged.regions[0].box, place(number), atol=1.01)


def test_progress_is_told_row_by_row(tmp_path, server):
    """How many are done, of how many, and the figures so far."""
    seen = []
    generate(
        write_data(tmp_path, 3), tmp_path / "out.jsonl", settings(server, concurrency=1),
        on_progress=lambda done, total, so_far: seen.append((done, total, so_far.calls)),
    )  # fmt: skip
    assert seen == [(1, 3, 2), (2, 3, 4), (3, 3, 6)]


def test_a_column_that_json_cannot_hold_is_found_before_it_is_paid_for(tmp_path, server):
    """Of a Parquet file, say: named, with its row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([{"question": "q", "answer": "a", "raw": b"x"}]), tmp_path / "data.parquet")
    with pytest.raises(DataError, match="row 0: expected columns that JSON can hold"):
        run(server, tmp_path / "data.parquet", kind="hints")
    assert not server.calls


def test_nothing_listens(tmp_path):
    """Connection refused: as an endpoint that is down, and nothing counts as perhaps paid."""
    with FakeEndpoint().serving() as gone:
        pass
    summary, _ = run(gone, write_data(tmp_path, 3), max_failures=1, max_retries=0, concurrency=1, price_out=1.0)
    assert summary.fates == {"dropped:endpoint gave up": 1, "not asked:endpoint down": 2} and summary.uncertain == 0


def test_an_endpoint_without_schemas_is_asked_without(tmp_path, server, caplog):
    """Said once; from then on without."""
    server.script = lambda call: Status(400, '{"error": "no schemas"}') if "response_format" in call.body else None
    with caplog.at_level(logging.WARNING):
        summary, _ = run(server, write_data(tmp_path, 3), concurrency=1)
    assert summary.fates == {"kept": 3} and len(server.calls) == 7
    assert len([r for r in caplog.records if "response_format" in r.getMessage()]) == 1
    assert len({call.once for call in server.calls}) == 7, "another body is another request"


ONE, TWO = verdict(2)["regions"]


@pytest.mark.parametrize(
    ("changes", "fate", "left"),
    [
        ({}, "kept", 2),
        ({"verdict": "drop"}, "dropped:re-check: drop", 0),
        ({"states_answer": True}, "dropped:re-check: states the answer", 0),
        ({"verdict": "fix", "regions": [ONE, TWO | {"present": False}]}, "fixed", 1),
        ({"regions": [ONE | {"relevant": False}, TWO | {"label_ok": False}]}, "dropped:re-check: drop", 0),
        ({"regions": []}, "dropped:re-check unreadable", 0),
    ],
)  # fmt: skip
def test_what_the_recheck_says_is_done(tmp_path, server, changes, fate, left):
    """Kept, fixed or dropped, and what was said is in the record."""

    def script(call):
        if call.kind == "recheck":
            return Say(json.dumps(verdict(2, **changes)))
        return regions(GOOD, {"label": "lid", "bbox_2d": [600, 600, 900, 900]})

    server.script = script
    summary, rows = run(server, write_data(tmp_path, 1))
    assert summary.fates == {fate: 1}
    (sample,) = samples(rows, tmp_path)
    assert len(sample.privileged.regions if sample.privileged else ()) == left
    if left:
        said = sample.privileged.extra["checks"]["recheck"]
        assert said["removed"] == 2 - left and len(said["parts"]) == 2 and said["prompt"] == "recheck-boxes/1"
    if fate == "fixed":
        assert [region.label for region in sample.privileged.regions] == ["box"]


def test_every_box_of_a_reply_has_a_fate(tmp_path, server):
    """The checks of all readers, and a limit on how many."""
    items = [
        GOOD, GOOD, {"label": "x" * 81, "bbox_2d": [1, 1, 300, 300]}, {"label": " ", "bbox_2d": [1, 1, 300, 300]},
        {"label": "a", "bbox_2d": [1, 1, 1300, 300]}, {"label": "a", "bbox_2d": [300, 300, 100, 100]}, "box", None,
        {"label": "a"}, {"label": 3, "bbox_2d": [1, 1, 300, 300]}, {"label": "a", "bbox_2d": [0, 0, 1000, 1000]},
        {"label": "a", "bbox_2d": [5, 5, 5, 9]}, {"label": "a", "box_2d": [1, 1, 300, 300]},
        {"label": "b", "bbox_2d": [1, 1, 300, 300]}, {"label": "c", "bbox_2d": [1, 1, 300, 300]},
    ]  # fmt: skip
    server.script = lambda call: regions(*items)
    summary, rows = run(server, write_data(tmp_path, 1), recheck=False, max_regions=2)
    assert summary.boxes.objects == {
        "kept": 2, "dropped:duplicate": 1, "dropped:long label": 1, "dropped:empty label": 1, "dropped:malformed": 6,
        "dropped:reversed": 1, "dropped:whole image": 1, "dropped:empty": 1,
    }  # fmt: skip
    assert summary.boxes.notes == {"left out: more boxes than max_regions": 1}
    (sample,) = samples(rows, tmp_path)
    assert [region.label for region in sample.privileged.regions] == ["box", "b"]
    assert len(sample.privileged.extra["checks"]["geometry"]) == 12
    assert "dropped:duplicate: 1" in "\n".join(summary.lines())


def test_bad_rows_cost_nothing_and_stay(tmp_path, server):
    """No question, no image, an image that is none, p already: one fate each, before any call."""
    data = write_data(tmp_path, 1)
    (tmp_path / "broken.png").write_bytes(b"no image")
    record = json.dumps({"schema": "privileged/1", "sample_id": "had", "notes": [{"text": "n"}]})
    more = [
        {"question": "", "answer": "a"}, {"question": "q", "answer": "a"}, {"answer": "a"},
        {"question": "q", "answer": "a", "images": ["broken.png"]},
        {"question": "q", "answer": "a", "images": ["../x"]},
        {"question": "q", "answer": "a", "images": [3]}, {"question": "q", "answer": " ", "images": ["pictures/0.png"]},
        {"question": "q", "answer": "a", "privileged": record}, {"question": ["q"], "answer": "a"},
    ]  # fmt: skip
    data.write_text(data.read_text() + "".join(json.dumps(row) + "\n" for row in more))
    summary, rows = run(server, data)
    assert summary.fates == {
        "kept": 1, "dropped:bad row": 4, "dropped:no image": 1, "dropped:bad image": 2, "dropped:no answer": 1,
        "already": 1,
    }  # fmt: skip
    assert rows[1:] == more and len(server.calls) == 2 and summary.rows == len(rows) == 10


def test_threads_may_write_the_same_embedded_image(tmp_path):
    """Many at once: one file with the right bytes, and no part of a file beside it."""
    from concurrent.futures import ThreadPoolExecutor

    from privileged.generate.pictures import unpack

    source = write_data(tmp_path / "source", 1)
    encoded = (source.parent / "pictures" / "0.png").read_bytes()
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        with ThreadPoolExecutor(16) as pool:
            rows = list(pool.map(lambda _: unpack({"images": [encoded]}, folder), range(32)))  # noqa: B023
        assert all(row == rows[0] for row in rows)
        (written,) = (folder / "images").iterdir()
        assert written.read_bytes() == encoded


def test_embedded_images_become_files(tmp_path, server):
    """Beside the output, by their digest; the row then names them, and training finds the same pixels."""
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = write_data(tmp_path / "source", 2)
    encoded = [(source.parent / "pictures" / f"{n}.png").read_bytes() for n in (0, 1)]
    rows = [{"question": f"red {n}?", "answer": "a", "images": [{"bytes": encoded[n], "path": None}]} for n in (0, 1)]
    pq.write_table(pa.Table.from_pylist([*rows, rows[0]]), tmp_path / "data.parquet")
    summary, rows = run(server, tmp_path / "data.parquet")
    assert summary.fates == {"kept": 3} and len(server.calls) == 4, "equal rows are asked once"
    assert sorted(path.read_bytes() for path in (tmp_path / "images").iterdir()) == sorted(encoded)
    for number, sample in zip((0, 1, 0), samples(rows, tmp_path), strict=True):
        assert np.array_equal(sample.images[0], Image.open(io.BytesIO(encoded[number])))
        assert np.allclose(sample.privileged.regions[0].box, place(number), atol=1.01)
        assert sample.privileged.images[0].path == rows[number]["images"][0]
    assert [sample.id for sample in samples(rows, tmp_path)] == ["data-0", "data-1", "data-2"]


def test_several_images_are_numbered(tmp_path, server):
    """Boxes lie on the image whose number they name; other numbers are malformed."""
    data = write_data(tmp_path, 2)
    names = ["pictures/0.png", "pictures/1.png"]
    data.write_text(json.dumps({"question": "red?", "answer": "a", "images": names}))
    _, rows = run(server, data)
    (sample,) = samples(rows, tmp_path)
    assert [region.image for region in sample.privileged.regions] == [0, 1]
    assert all(np.allclose(r.box, place(r.image), atol=1.01) for r in sample.privileged.regions)
    (check,) = server.of("recheck")
    assert '"image": 2' in check.text and len(check.images) == 2
    server.script = lambda call: regions(GOOD, *(GOOD | {"image": n} for n in (0, 3, -1, True, "1", 2)))
    summary, rows = run(server, data, recheck=False, model="other")
    assert summary.boxes.objects == {"dropped:malformed": 6, "kept": 1}
    assert samples(rows, tmp_path)[0].privileged.regions[0].image == 1


def test_hints_for_text(tmp_path, server):
    """Steps as notes, re-checked; a step that was carried out goes."""
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"question": f"{n} + 2?", "answer": str(n + 2)}) + "\n" for n in range(2)))

    def script(call):
        if call.kind == "generate":
            return Say(json.dumps({"steps": ["Take the first.", "Now 1 + 2 = 3.", "Add."], "reason": ""}))
        parts = [{"number": n, "correct": True, "executed": n == 2} for n in (1, 2, 3)]
        return Say(json.dumps(verdict(3, "steps", steps=parts, verdict="fix")))

    server.script = script
    summary, rows = run(server, path, kind="hints", probe=True)
    assert summary.fates == {"fixed": 2} and not server.of("probe")
    for sample in samples(rows, tmp_path):
        assert [note.text for note in sample.privileged.notes] == ["Take the first.", "Add."]
        assert sample.privileged.extra["origin"]["prompt"] == "hints/1"
        assert "1. Take the first." in str(build_views(sample, get_builder("hints")).privileged.messages)
