"""No row lost, none twice, no money spent twice: what is kept, what is resumed, and what a cap allows.

What is locked: 1) SIGKILL in the middle: kept replies are not asked again, requests in flight are repeated under the
same Idempotency-Key, and the output ends in the same bytes; 2) shards, one after the other, are the whole, and share
what is kept; 3) the kept replies survive a torn line, and refuse damage and a second writer; 4) the cap holds with
calls side by side, the estimate of a dry run sends nothing and is not exceeded.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from privileged import DataError
from privileged.generate import Shard
from privileged.generate.ledger import Ledger
from privileged.generate.spend import Budget
from tests.fake_endpoint import HANG, RESET, FakeEndpoint, Say
from tests.generate_case import kept_replies, quick, run, samples, settings, write_data  # noqa: F401

pytestmark = pytest.mark.usefixtures("quick")

ROOT = Path(__file__).resolve().parent.parent
MILLION = 1_000_000


@pytest.fixture
def server():
    with FakeEndpoint().serving() as running:
        yield running


def test_a_kill_in_the_middle(tmp_path, server):
    """After 21 complete replies, with four requests in flight; then the run is repeated and an undisturbed one made."""
    data = write_data(tmp_path, 16)
    reached, over = threading.Event(), threading.Event()

    def script(call):
        if call.number >= 21 and not over.is_set():
            if call.number == 24:
                reached.set()
            over.wait(20)
            return RESET
        return None

    server.script = script
    code = (
        "import sys; from pathlib import Path; from privileged.generate import *;"
        "generate(Path(sys.argv[1]), Path(sys.argv[2]), Settings(base_url=sys.argv[3], model='m', concurrency=4))"
    )
    arguments = [str(data), str(tmp_path / "out.jsonl"), server.url]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, stderr=subprocess.DEVNULL)
    assert reached.wait(30)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    over.set()
    assert not (tmp_path / "out.jsonl").exists()
    kept = {entry["once"] for entry in kept_replies(tmp_path / "data.replies")}
    first = [call.once for call in server.calls]
    in_flight = set(first) - kept
    assert len(kept) == 21 and kept == set(server.completed) and len(in_flight) == 4 and len(first) == 25

    summary, rows = run(server, data, probe=True)
    second = [call.once for call in server.calls[25:]]
    assert not kept & set(second), "a reply that was kept is not paid for again"
    assert set(first) & set(second) == in_flight, "and what was in flight carries the same key"
    assert len(second) == len(set(second)) == 3 + 2 * 16 - 21
    assert summary.fates == {"kept": 16} and summary.cached == 21 and len(rows) == 16

    with FakeEndpoint().serving() as undisturbed:
        whole = write_data(tmp_path / "again", 16)
        run(undisturbed, whole, probe=True)
    assert (tmp_path / "out.jsonl").read_bytes() == (whole.parent / "out.jsonl").read_bytes()


def test_a_second_run_sends_nothing(tmp_path, server):
    """And writes the same bytes."""
    data = write_data(tmp_path, 3)
    run(server, data)
    before, calls = (tmp_path / "out.jsonl").read_bytes(), len(server.calls)
    summary, _ = run(server, data)
    assert (summary.calls, summary.cached, summary.cost) == (0, 6, 0) and len(server.calls) == calls
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_a_verdict_holds_for_the_boxes_that_were_shown(tmp_path, server):
    """Another box under the same label is another re-check."""
    box = {"label": "rectangle", "bbox_2d": [100, 100, 500, 500]}
    server.script = lambda call: Say(json.dumps({"regions": [box], "reason": ""})) if call.kind == "generate" else None
    data = write_data(tmp_path, 1)
    run(server, data)
    (path,) = (tmp_path / "data.replies").glob("*.jsonl")
    path.write_bytes(path.read_bytes().split(b"\n")[1] + b"\n")  # the reply with the box is gone
    assert run(server, data)[0].calls == 1
    path.write_bytes(path.read_bytes().split(b"\n")[0] + b"\n")
    box["bbox_2d"] = [200, 100, 500, 500]
    assert run(server, data)[0].calls == 2


@pytest.mark.parametrize("count", [2, 3, 7])
def test_shards_one_after_the_other_are_the_whole(tmp_path, server, count):
    """Rows, records and fates; a shard more than there are rows is empty. Replies are shared by all ways to split."""
    server.script = lambda call: Say("garbage") if "in 2?" in call.text else None
    data = write_data(tmp_path, 5)
    whole, _ = run(server, data)
    calls = len(server.calls)
    parts = [
        run(server, data, f"{i}.jsonl", Shard(i, count))[0] for i in range(1, count + 1) if Shard(i, count).slice(5)
    ]
    names = [tmp_path / f"{i}.jsonl" for i in range(1, count + 1)]
    joined = b"".join(name.read_bytes() for name in names if name.exists())
    assert joined == (tmp_path / "out.jsonl").read_bytes() and len(server.calls) == calls
    assert sum((part.fates for part in parts), start=type(whole.fates)()) == whole.fates
    assert sum(part.rows for part in parts) == 5


def test_an_empty_shard_is_an_empty_file(tmp_path, server):
    """More jobs than rows: no error, no call."""
    data = write_data(tmp_path, 1)
    summary, _ = run_shard(server, data, Shard(1, 2))
    assert summary.rows == 0 and not server.calls and (tmp_path / "out.jsonl").read_bytes() == b""


def run_shard(server, data, shard):
    from privileged.generate import generate

    return generate(data, data.parent / "out.jsonl", settings(server), shard=shard), None


def test_a_torn_last_line_is_cut_off(tmp_path, server):
    """Wherever the kill came; the replies before it are used, the last one is asked for again."""
    data = write_data(tmp_path, 1)
    run(server, data)
    (path,) = (tmp_path / "data.replies").glob("*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    for cut in (1, len(lines[1]) // 2, len(lines[1]) - 1):
        path.write_bytes(lines[0] + lines[1][:cut])
        before = len(server.calls)
        summary, _ = run(server, data)
        assert summary.fates == {"kept": 1} and len(server.calls) == before + 1
        assert server.calls[-1].kind == "recheck" and path.read_bytes() == b"".join(lines)


@pytest.mark.parametrize("damage", [b"{}\n", b"nonsense\n", b'{"key": 1, "cost": "x"}\n', b"[]\n", b'{"cost": null}\n'])
def test_damage_in_the_middle_is_said(tmp_path, server, damage):
    """With file and line; nothing is asked that may have been paid for."""
    data = write_data(tmp_path, 1)
    run(server, data)
    (path,) = (tmp_path / "data.replies").glob("*.jsonl")
    path.write_bytes(damage + path.read_bytes())
    calls = len(server.calls)
    with pytest.raises(DataError, match=r"1-of-1\.jsonl line 1"):
        run(server, data)
    assert len(server.calls) == calls


def test_two_runs_do_not_write_the_same_replies(tmp_path):
    """The second one says so; after the first has ended, or died, the file is free."""
    first = Ledger(tmp_path, "1-of-1")
    with pytest.raises(DataError, match="another run"):
        Ledger(tmp_path, "1-of-1")
    Ledger(tmp_path, "1-of-2").close()
    Ledger(tmp_path, "1-of-1", read_only=True)
    first.close()
    Ledger(tmp_path, "1-of-1").close()


def test_a_reply_is_on_the_disk_before_it_is_used(tmp_path, monkeypatch):
    """fsync, then the entry is found; not before."""
    ledger, seen = Ledger(tmp_path, "a"), []
    monkeypatch.setattr(os, "fsync", lambda file: seen.append((ledger.find("k"), (tmp_path / "a.jsonl").read_text())))
    ledger.record({"key": "k", "cost": 0, "reply": {"text": "t", "finish": None, "refusal": None}})
    ledger.close()
    assert seen[0][0] is None and '"text": "t"' in seen[0][1] and ledger.find("k")["reply"].text == "t"


@pytest.mark.parametrize("concurrency", [1, 8])
def test_the_cap_holds_with_calls_side_by_side(tmp_path, server, concurrency):
    """The worst case is reserved first; what is left over from it is used; the next run goes on."""
    server.script = lambda call: None if call.kind != "generate" else server.honest(call)
    data = write_data(tmp_path, 8)
    usage = {"prompt_tokens": 1000, "completion_tokens": 100}  # 1100 a call, of at most some 2000 + 200
    prices = {"price_in": 1.0, "price_out": 1.0, "max_tokens": 200, "concurrency": concurrency, "recheck": False}
    summary, rows = run(server, data, **prices, max_spend=7000 / MILLION)
    assert summary.spent <= 7000 / MILLION and summary.spent == pytest.approx(
        len(server.calls) * sum(usage.values()) / 1e6
    )
    asked = summary.fates["kept"]
    assert 2 <= asked == len(server.calls) < 8 and summary.fates["not asked:spend cap"] == 8 - asked
    assert summary.stopped.startswith("spend cap") and len(rows) == 8
    again, _ = run(server, data, **prices, max_spend=7000 / MILLION)
    assert len(server.calls) == asked and again.spent == summary.spent, "the cap is for all runs together"
    assert run(server, data, **prices, max_spend=1.0)[0].fates == {"kept": 8} and len(server.calls) == 8


def test_reservations_wait_for_calls_that_may_be_cheaper(tmp_path, server):
    """Two of 10 fit one after the other if the first costs 1; not side by side."""
    given = settings(server, price_in=1e6, max_tokens=1, max_spend=12.0)

    async def both():
        budget, order = Budget(given, spent=0.0), []

        async def call(number, used):
            async with budget.reserve(10) as reservation:
                order.append((number, reservation is not None))
                await asyncio.sleep(0.01)
                if reservation is not None:
                    reservation.used = used

        await asyncio.gather(call(1, 1.0), call(2, 1.5), call(3, 9.0), call(4, 1.0))
        return order

    assert asyncio.run(both()) == [(1, True), (2, True), (3, False), (4, False)]


def test_an_endpoint_that_counts_more_raises_the_worst_case(tmp_path, server):
    """Three times our estimate: the next reservations are three times as large, so the cap holds all the same."""

    async def reserved():
        budget = Budget(settings(server, price_in=1e6, max_tokens=1, max_spend=100.0), spent=0.0)
        budget.learn(10, 30)
        async with budget.reserve(10) as reservation:
            return reservation.most

    assert asyncio.run(reserved()) == 30


def test_lost_and_uncounted_replies_count_as_the_worst_case(tmp_path, server):
    """They may have been paid for: within the cap, and told apart from what is known."""
    server.script = lambda call: HANG if "in 0?" in call.text else Say('{"regions": []}', usage=None)
    data = write_data(tmp_path, 2)
    given = {"price_in": 1.0, "price_out": 1.0, "recheck": False, "max_retries": 0, "timeout": 2.0}
    summary, _ = run(server, data, **given)
    assert summary.fates == {"dropped:endpoint gave up": 1, "dropped:no local evidence": 1}
    assert summary.spent == 0 and 2 * 2048 / MILLION < summary.uncertain < 2 * 6000 / MILLION
    calls = len(server.calls)
    assert run(server, data, **given, max_spend=summary.uncertain)[0].fates["not asked:spend cap"] == 1
    assert len(server.calls) == calls


def test_a_dry_run_sends_and_writes_nothing_and_is_not_exceeded(tmp_path, server):
    """Calls, tokens and cost at most; what is kept costs nothing; rows that will not be asked are told."""
    data = write_data(tmp_path, 3)
    data.write_text(data.read_text() + json.dumps({"question": "q", "answer": "a"}) + "\n")
    prices = {"price_in": 2.0, "price_out": 8.0, "probe": True}
    before = sorted(tmp_path.rglob("*"))
    planned, _ = run(server, data, dry_run=True, **prices)
    assert not server.calls and sorted(tmp_path.rglob("*")) == before
    assert planned.fates == {"planned": 3, "dropped:no image": 1} and planned.calls == 3 + 6
    assert "estimate" in "\n".join(planned.lines())
    made, _ = run(server, data, **prices)
    assert made.calls == planned.calls and 0 < made.cost <= planned.cost and made.tokens_out <= planned.tokens_out
    assert run(server, data, dry_run=True, **prices)[0].calls == 0
