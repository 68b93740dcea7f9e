"""A server that answers items, over real HTTP on loopback: one that behaves, and one that does not.

What is locked: 1) every item gets its own reply, and the server what the item says, pixel for pixel; 2) a request that
fails alone costs one item, whatever else goes wrong ends the run in one line, and nothing that was answered is asked
again; 3) no key, no picture and no detour; 4) what the server does not know is left out.
"""

import asyncio
import base64
import io
import json
import logging
import re
import threading

import numpy as np
import pytest
from PIL import Image

from evals import Item, Reply, evaluate, read
from evals.decoded import Video
from evals.server import ServerGone, ServerModel
from tests.fake_endpoint import DRIP, HANG, RESET, FakeEndpoint, Say, Status
from tests.generate_case import quick  # noqa: F401

pytestmark = pytest.mark.usefixtures("quick")

KEY = "sk-verysecret123"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def item(number, images=(), videos=(), parts=None, **changes):
    content = parts or [*({"type": "image"} for _ in images), {"type": "text", "text": f"number {number}?"}]
    given = {"messages": ({"role": "user", "content": content},), "answer": str(number)}
    return Item(id=str(number), images=tuple(images), videos=tuple(videos), **(given | changes))


def asked(call):
    """The number in a request, None for the small one."""
    found = re.search(r"number (\d+)\?", json.dumps(call.body["messages"]))
    return int(found[1]) if found else None


def right(call):
    return Say("OK") if asked(call) is None else Say(f"Answer: {asked(call)}")


def serving(script=right):
    return FakeEndpoint(script).serving()


def model(server, **changes):
    return ServerModel(server.url, "m", 64, **({"concurrency": 4, "timeout": 60.0, "max_retries": 2} | changes))


def pixels(part):
    head, _, data = part["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def noise(seed, size=(7, 5)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def test_every_item_gets_its_own_reply_in_order():
    def slow_for_even(call):
        return Say(f"Answer: {asked(call)}", after=0.03 if asked(call) % 2 == 0 else 0.0)

    with serving(slow_for_even) as server:
        replies = model(server, concurrency=3).generate([item(number) for number in range(10)])
    assert replies == [Reply(f"Answer: {number}", False) for number in range(10)]
    assert 1 < server.most_at_once <= 3
    body = server.calls[0].body
    assert {name: body[name] for name in body if name != "messages"} == {
        "model": "m", "max_tokens": 64, "temperature": 0.0, "seed": 0,
    }  # fmt: skip
    assert all(call.headers["authorization"] == f"Bearer {KEY}" for call in server.calls)


def test_no_items_no_requests():
    with serving() as server:
        assert model(server).generate([]) == [] == server.calls


def test_pictures_arrive_where_they_belong_unchanged():
    images = [noise(0), noise(1, (40, 3))]
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}, {"type": "image"}]
    messages = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "Which?"},
        {"role": "user", "content": "The second."},
    )
    with serving(lambda call: Say("x")) as server:
        model(server).generate([item(0, images, messages=messages)])
    sent = server.calls[0].body["messages"]
    assert [message["role"] for message in sent] == ["system", "user", "assistant", "user"]
    assert [sent[0]["content"], sent[2]["content"], sent[3]["content"]] == ["Be brief.", "Which?", "The second."]
    text_a, first, text_b, second = sent[1]["content"]
    assert (text_a["text"], text_b["text"]) == ("a", "b")
    for part, image in ((first, images[0]), (second, images[1])):
        assert np.array_equal(pixels(part), np.asarray(image))


def test_frames_of_a_video_follow_their_times():
    video = Video(frames=(noise(2), noise(3)), seconds=(0.0, 12.25), fps=30.0)
    parts = [{"type": "video"}, {"type": "text", "text": "How many?"}, {"type": "image"}]
    with serving(lambda call: Say("x")) as server:
        model(server).generate([item(0, [noise(4)], [video], parts=parts)])
    sent = server.calls[0].body["messages"][0]["content"]
    assert [part.get("text") for part in sent] == ["<0.0 seconds>", None, "<12.2 seconds>", None, "How many?", None]
    assert [np.array_equal(pixels(sent[at]), noise(seed)) for at, seed in ((1, 2), (3, 3), (5, 4))] == [True] * 3


CUT = {"message": {"content": None, "reasoning_content": "Let me think"}, "finish_reason": "length"}
THOUGHT = {"message": {"content": "B", "reasoning_content": "A? No."}, "finish_reason": "stop"}
IN_PARTS = {"message": {"content": [{"type": "text", "text": "B"}, {"type": "text", "text": "!"}]}}


@pytest.mark.parametrize(
    ("said", "reply"),
    [
        (Say("So the", finish="length"), Reply("So the", True)),
        (Say(None), Reply("", False)),
        (Status(200, json.dumps({"choices": [CUT]})), Reply("", True)),
        (Status(200, json.dumps({"choices": [THOUGHT]})), Reply("B", False)),
        (Status(200, json.dumps({"choices": [IN_PARTS]})), Reply("B!", False)),
        (Say("", finish="content_filter"), Reply("", False, "refused: content_filter")),
        (Say(None, refusal="I will\nnot."), Reply("", False, "refused: I will not.")),
    ],
)
def test_what_a_reply_says(said, reply):
    with serving(lambda call: said) as server:
        assert model(server).generate([item(0)]) == [reply]
    assert len(server.calls) == 1


@pytest.mark.parametrize("code", [400, 413, 422])
def test_a_request_that_is_rejected_costs_one_item(code):
    with serving(
        lambda call: Status(code, '{"error": {"message": "too\\nlong"}}') if asked(call) == 2 else right(call)
    ) as server:
        replies = model(server, concurrency=1).generate([item(number) for number in range(5)])
    assert [reply.text for reply in replies] == ["Answer: 0", "Answer: 1", "", "Answer: 3", "Answer: 4"]
    assert replies[2].error.startswith(f"{code}: ") and "too" in replies[2].error and "\n" not in replies[2].error
    assert len(server.calls) == 5, "neither asked again nor was a small request needed"


def test_a_server_that_rejects_everything_ends_the_run_at_once():
    """A budget above the context, or no pictures at all: not thousands of errors."""
    small = Status(400, '{"error": {"message": "context is 32"}}')
    with serving(lambda call: small) as server, pytest.raises(ServerGone, match=r"400: .*context is 32") as gone:
        model(server, concurrency=1).generate([item(number) for number in range(50)])
    assert len(server.calls) == 2 and gone.value.replies == [None] * 50

    def blind(call):
        return Status(400, '{"error": {"message": "no pictures"}}') if "image_url" in str(call.body) else right(call)

    with serving(blind) as server, pytest.raises(ServerGone, match="no pictures") as gone:
        model(server, concurrency=1).generate([item(0), item(1, [noise(0)]), item(2)])
    assert gone.value.replies == [Reply("Answer: 0", False), None, None]


def test_the_first_request_of_a_run_may_be_the_one_that_is_rejected():
    with serving(lambda call: Status(400) if asked(call) == 0 else right(call)) as server:
        replies = model(server, concurrency=1).generate([item(0), item(1)])
    assert replies[0].error.startswith("400") and replies[1].text == "Answer: 1" and len(server.calls) == 3


@pytest.mark.parametrize("failure", [Status(500), HANG, RESET, Status(200, "<html>busy</html>"), Status(200, "[]")])
def test_a_request_that_breaks_the_server_costs_one_item(failure):
    """The rest is answered, so it is this request: otherwise no later run would get past it."""
    limit = {"timeout": 2.0} if failure == HANG else {}
    with serving(lambda call: failure if asked(call) == 1 else right(call)) as server:
        replies = model(server, concurrency=1, max_retries=1, **limit).generate([item(n) for n in range(3)])
    assert [reply.text for reply in replies] == ["Answer: 0", "", "Answer: 2"]
    assert replies[1].error and "\n" not in replies[1].error


def test_a_server_that_was_away_for_longer_than_the_retries_costs_nothing():
    """Once it answers again, the request that failed is asked once more."""
    seen = []

    def away(call):
        seen.append(asked(call))
        return Status(500) if asked(call) == 1 and seen.count(1) <= 2 else right(call)

    with serving(away) as server:
        replies = model(server, concurrency=1, max_retries=1).generate([item(0), item(1)])
    assert [reply.text for reply in replies] == ["Answer: 0", "Answer: 1"] and seen == [0, 1, 1, None, 1]


def test_a_reply_that_only_drips_ends(monkeypatch):
    monkeypatch.setattr("evals.server._LONGEST_PAUSE", 0.0)
    with serving(lambda call: DRIP if asked(call) == 1 else right(call)) as server:
        replies = model(server, timeout=2.0, max_retries=0).generate([item(0), item(1)])
    assert replies[0].text == "Answer: 0" and "no complete reply within 2 s" in replies[1].error


def test_a_busy_server_is_asked_again_when_it_says_so():
    seen = []

    def busy_twice(call):
        seen.append(asked(call))
        return Status(429, headers={"retry-after-ms": "20"}) if seen.count(asked(call)) < 3 else right(call)

    with serving(busy_twice) as server:
        replies = model(server, concurrency=2).generate([item(0), item(1)])
    assert [reply.text for reply in replies] == ["Answer: 0", "Answer: 1"] and len(server.calls) == 6


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (Status(401, f'{{"error": {{"message": "bad key {KEY}"}}}}'), r"401: .*check the key in OPENAI_API_KEY"),
        (Status(403), "403"),
        (Status(404), r"404: .*check the address, which often ends in /v1, and the model's name"),
        (Status(402), "402"),
        (Status(429, '{"error": {"code": "insufficient_quota", "message": "no credit"}}'), "429: .*no credit"),
        (Status(307, "", {"location": "http://elsewhere.invalid/v1"}), "307"),
    ],
)
def test_what_every_request_would_get_ends_the_run_in_one_line(status, said):
    stopping = serving(lambda call: status if asked(call) >= 2 else right(call))
    with stopping as server, pytest.raises(ServerGone, match=f"{said}.*the same command goes on") as gone:
        model(server, concurrency=1, max_retries=1).generate([item(number) for number in range(6)])
    assert str(gone.value).startswith(f"{server.url}: ")
    assert "\n" not in str(gone.value) and KEY not in str(gone.value)
    assert [reply and reply.text for reply in gone.value.replies] == ["Answer: 0", "Answer: 1"] + [None] * 4
    assert max(asked(call) for call in server.calls) == 2


def test_no_server_is_one_line():
    with serving() as server:
        pass
    with pytest.raises(ServerGone, match=rf"^{server.url}: Connection error"):
        model(server, max_retries=1).generate([item(0), item(1)])


def test_a_server_that_dies_half_way_and_comes_back(tmp_path):
    """In any state: the file ends as if nothing had happened, and nothing that was answered is asked again."""
    items, answered, dies = [item(number) for number in range(80)], [], threading.Event()

    def dying(call):
        if len(answered) >= 37 or dies.is_set():
            dies.set()
            return RESET
        if asked(call) == 5:  # the one that is late
            dies.wait(5)
        answered.append(asked(call))
        return right(call)

    out, whole = tmp_path / "run.jsonl", tmp_path / "whole.jsonl"
    with serving(dying) as server, pytest.raises(ServerGone):
        evaluate(model(server, max_retries=1), items, out, run="m")
    kept = {row.id for row in read(out)}
    assert kept == set(map(str, answered)) and "5" in kept
    with serving() as server:
        evaluate(model(server), items, out, run="m")
        assert {asked(call) for call in server.calls} == set(range(80)) - set(answered)
        evaluate(model(server), items, whole, run="m")
    assert out.read_bytes() == whole.read_bytes()


def test_errors_and_logs_hold_no_key_and_no_picture(caplog):
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "openai")
    picture = noise(9, (60, 60))

    def repeats(call):
        if asked(call) != 1:
            return right(call)
        uri = call.body["messages"][0]["content"][0]["image_url"]["url"]
        said = f"{call.headers['authorization']}: {uri} is no picture"
        return Status(400, json.dumps({"error": {"message": said}}))

    with serving(repeats) as server:
        replies = model(server).generate([item(0, [picture]), item(1, [picture])])
    for text in (replies[1].error, caplog.text):
        assert KEY not in text and not re.search(r"[A-Za-z0-9+/]{60}", text)
    assert replies[1].error == "400: Bearer …: … is no picture"
    assert not logging.getLogger("openai").isEnabledFor(logging.DEBUG)


def test_no_proxy_sees_what_is_meant_for_this_machine(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving() as server:
        assert model(server).generate([item(3)])[0].text == "Answer: 3"


def test_what_the_server_does_not_know_is_left_out(caplog):
    """As newer models of OpenAI take none of the three; the limit has another name there."""

    def modern(call):
        for name in ("max_tokens", "temperature", "seed"):
            if name in call.body:
                said = {"message": f"Unsupported parameter: '{name}'.", "param": name, "code": "unsupported_parameter"}
                return Status(400, json.dumps({"error": said}))
        return right(call)

    with serving(modern) as server:
        asking = model(server, concurrency=2)
        assert [reply.text for reply in asking.generate([item(0), item(1), item(2)])] == [
            "Answer: 0", "Answer: 1", "Answer: 2",
        ]  # fmt: skip
        last = server.calls[-1].body
    assert last["max_completion_tokens"] == 64 and not {"max_tokens", "temperature", "seed"} & set(last)
    assert sorted(re.findall(r"does not take '(\w+)'", caplog.text)) == ["max_tokens", "seed", "temperature"]


WORDINGS = [
    ("seed", 400, 'Invalid JSON payload received. Unknown name "seed": Cannot find field.'),
    ("seed", 422, [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]),
    ("temperature", 400, "Unsupported value: 'temperature' does not support 0.0 with this model."),
    ("max_tokens", 400, "max_tokens is not supported, use max_completion_tokens"),
]


@pytest.mark.parametrize(("name", "code", "said"), WORDINGS)
def test_servers_say_so_in_their_own_words(name, code, said):
    body = json.dumps({"detail": said} if code == 422 else {"error": {"message": said, "param": None, "code": None}})
    with serving(lambda call: Status(code, body) if name in call.body else right(call)) as server:
        assert model(server).generate([item(0)])[0].text == "Answer: 0"
    first, last = (set(call.body) for call in server.calls)
    assert first - last == {name} and last - first <= {"max_completion_tokens"}


def test_a_rejection_that_only_mentions_a_parameter_changes_nothing():
    said = "'max_tokens' is too large for the seed of an unknown plant at this temperature"
    body = json.dumps({"error": {"message": said.replace("an unknown", "a")}})
    with serving(lambda call: Status(400, body) if asked(call) == 1 else right(call)) as server:
        replies = model(server, concurrency=1).generate([item(0), item(1), item(2)])
    assert "too large" in replies[1].error and len(server.calls) == 3
    assert all({"max_tokens", "seed", "temperature"} <= set(call.body) for call in server.calls)


def test_half_a_surrogate_pair_cannot_be_sent():
    bad = item(1, messages=({"role": "user", "content": "number \ud800"},))
    with serving() as server:
        replies = model(server).generate([item(0), bad])
    assert replies[0].text == "Answer: 0" and "surrogate" in replies[1].error


def test_in_a_notebook_too():
    async def cell():
        with serving() as server:
            return model(server).generate([item(4)])

    assert asyncio.run(cell())[0].text == "Answer: 4"
