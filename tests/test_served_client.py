"""A rank's line to a server: images once, two runs at a time, what is lost is sent again, what is wrong is told.

What is locked: 1) scores equal a local policy's to the bit, in float32, bfloat16 and under autocast; 2) an image is
sent once a window and encoded once, whatever shows it, and again only where a server has lost it; 3) two clients may
ask at once; 4) requests are sent before the first answer is waited for, and not all at one time; 5) a request that
kills the server is not sent for ever, and replies that are no answer end the run in one line.
"""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch

from privileged import build_views, get_builder
from tests import served_case, tiny
from vlm_dopd.collate import Encoder
from vlm_dopd.errors import TrainingError
from vlm_dopd.roles import Policy, with_merged_stops
from vlm_dopd.scoring import score, submit
from vlm_dopd.served import wire
from vlm_dopd.served.client import AHEAD, RESTARTS, Client
from vlm_dopd.served.policy import connect
from vlm_dopd.served.server import Teacher, fingerprint


@pytest.fixture(scope="module")
def prompts(processor):
    """By sample: the plain and the privileged prompt share images, as in training."""
    encoder = Encoder(processor, tiny.vision_model(1))
    views = [(build_views(sample, get_builder("overlay")), {}) for sample in tiny.mixed_samples()]
    return [encoder.encode(view, seen) for pair, seen in views for view in (pair.plain, pair.privileged)]


@pytest.fixture
def teacher(pair):
    return served_case.teacher(pair[1])


@pytest.fixture
def line(teacher):
    with served_case.in_thread(teacher.answer) as server:
        yield server


def connected(line, processor, dtype="float32"):
    return connect(line.address, processor, {"dtype": dtype, "load": "full"}, "cpu")


def same(served, local):
    for name in ("hidden_NH", "logp_N", "entropy_N"):
        mine, other = getattr(served, name), getattr(local, name)
        assert mine.dtype == other.dtype and torch.equal(mine, other), name


def test_scores_are_those_of_a_local_policy(teacher, line, processor, prompts):
    """Several passes; and the head gives what the local head gives, at any temperature."""
    served = connected(line, processor)
    passes = served_case.rows(prompts, max_tokens=400)
    assert len(passes) > 1
    same(score(served, passes), score(teacher.policy, passes))
    mine, other = served.head(0.7), teacher.policy.head(0.7)
    assert torch.equal(mine.weight_VH, other.weight_VH)
    assert replace(mine, weight_UH=0) == replace(other, weight_UH=0)


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_and_autocast(teacher, processor, prompts, autocast):
    """Hidden states travel in the dtype they have; a float32 teacher under the trainer's autocast is under it there."""
    if not autocast:
        teacher.policy.model.bfloat16()
    teacher = Teacher(teacher.policy, processor, "t")
    passes = served_case.rows(prompts)
    with served_case.in_thread(teacher.answer) as line, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        served = connected(line, processor, "float32" if autocast else "bfloat16")
        mine = score(served, passes)
        teacher.policy.forget()
        same(mine, score(teacher.policy, passes))
    whole = score(tiny_float32(teacher), passes)
    assert not torch.equal(mine.logp_N, whole.logp_N)


def tiny_float32(teacher):
    teacher.policy.forget()
    return replace(teacher.policy, model=teacher.policy.model.float())


def test_merged_stops_are_those_of_both(pair, teacher, line, processor, prompts):
    """Ids that end a response for either are one token, with a served teacher as with a local one."""
    student = Policy(tiny.vision_model(1), len(processor.tokenizer))
    teacher.stops = [*teacher.stops, 77]
    teacher.policy.model.generation_config.eos_token_id = teacher.stops
    served, local = (
        with_merged_stops({"student": student, "teacher": one}, processor.tokenizer)
        for one in (connected(line, processor), teacher.policy)
    )
    assert served["student"].merged == local["student"].merged and 77 in served["student"].merged
    passes = served_case.rows(prompts)
    same(score(served["teacher"], passes), score(local["teacher"], passes))


def count_encoded(teacher) -> list[int]:
    encoded: list[int] = []
    tower = teacher.policy.model.base_model.visual
    tower.register_forward_pre_hook(lambda _, args, kwargs: encoded.append(len(kwargs["grid_thw"])), with_kwargs=True)
    return encoded


def test_an_image_is_sent_once_a_window_and_encoded_once(teacher, line, processor, prompts):
    """Two views, two passes, two micro-batches and a second window show it; its features stay with the server."""
    encoded = count_encoded(teacher)
    served = connected(line, processor)
    distinct = len({str(i.pixel_values.tolist()) for prompt in prompts for i in prompt.images})
    shown = sum(len(prompt.images) for prompt in prompts)
    assert distinct < shown
    for window in (1, 2):
        served.forget()
        for seed in (1, 2):
            score(served, served_case.rows(prompts, seed, max_tokens=400))
        assert served.client.images_sent == window * distinct
    assert sum(encoded) == distinct


def test_images_that_a_server_has_lost_are_sent_again(teacher, line, processor, prompts):
    served = connected(line, processor)
    passes = served_case.rows(prompts)
    first = score(served, passes)
    sent = served.client.images_sent
    for name in list(teacher.images._images)[:2]:
        teacher.policy.vision.drop(teacher.images._images.pop(name))
    same(score(served, passes), first)
    assert served.client.images_sent == sent + 2


def test_a_store_too_small_for_a_request_is_told(pair, processor, prompts):
    teacher = served_case.teacher(pair[1], image_bytes=1)
    with served_case.in_thread(teacher.answer) as line, pytest.raises(TrainingError, match="larger --image-store"):
        score(connected(line, processor), served_case.rows(prompts))


def test_two_runs_at_once(teacher, line, processor, prompts):
    """Each gets its own answers, whatever the other asks; images of one serve the other."""
    local = {seed: score(teacher.policy, served_case.rows(prompts, seed)) for seed in range(6)}
    teacher.policy.forget()
    wrong = []

    def ask(first):
        served = connected(line, processor)
        for seed in range(first, 6, 2):
            mine = score(served, served_case.rows(prompts, seed))
            wrong.append((mine.hidden_NH - local[seed].hidden_NH).abs().max().item())

    threads = [threading.Thread(target=ask, args=[first]) for first in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(wrong) == 6 and max(wrong) < 1e-5
    assert teacher.work.requests == 6


def test_requests_are_under_way_before_an_answer_is_waited_for(teacher, processor, prompts):
    """All are submitted at once; not more than AHEAD wait at the server, and answers may be fetched in any order."""
    go, came = threading.Event(), []

    def answer(frames):
        kind = wire.decode(frames)[0]["kind"]
        if kind == "score":
            came.append(kind)
            go.wait(timeout=30)
        return teacher.answer(frames)

    every = [served_case.rows(prompts, seed) for seed in range(4)]
    with served_case.in_thread(answer) as line:
        served = connected(line, processor)
        answers = [submit(served, passes) for passes in every]
        assert len(served.client._flying) == AHEAD and len(served.client._queue) == 4 - AHEAD
        go.set()
        for passes, collect in reversed(list(zip(every, answers, strict=True))):
            same(collect(), score(teacher.policy, passes))
    assert len(came) == 4


def test_a_request_that_kills_the_server_is_not_sent_for_ever(teacher, processor, prompts):
    """The connection breaks whenever it comes; the server is back each time."""
    asked = []

    def answer(frames):
        if wire.decode(frames)[0]["kind"] != "score":
            return teacher.answer(frames)
        asked.append(threading.Thread(target=restart))
        asked[-1].start()
        return None

    def restart():
        server.kill()
        server.start(answer)

    with served_case.in_thread(answer) as server:
        served = connected(server, processor)
        with pytest.raises(TrainingError, match=rf"lost the connection {RESTARTS + 1} times over one request"):
            score(served, served_case.rows(prompts[:2]))
        for restarted in asked:
            restarted.join(timeout=30)
        assert 1 < len(asked) <= RESTARTS + 1


def reply_of(kind, number, hidden_NH=None, **header):
    tensors = None if hidden_NH is None else {"hidden_NH": hidden_NH}
    return wire.encode({"kind": kind, "version": 1, "id": number, **header}, tensors)


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        pytest.param(lambda n: [b"HTTP/1.1 400"], "is it of the same version", id="not ours"),
        pytest.param(lambda n: reply_of("error", n, message="no"), "refused: no", id="error"),
        pytest.param(lambda n: reply_of("hidden", n, torch.ones(1, 48)), "hidden states of the shape", id="too few"),
        pytest.param(lambda n: reply_of("hidden", n), r"got None", id="no tensors"),
    ],
)
def test_replies_that_are_no_answer_end_the_run(teacher, processor, prompts, reply, says):
    def answer(frames):
        header, _ = wire.decode(frames)
        return reply(header["id"]) if header["kind"] == "score" else teacher.answer(frames)

    with served_case.in_thread(answer) as line, pytest.raises(TrainingError, match=says) as told:
        score(connected(line, processor), served_case.rows(prompts[:4]))
    assert "\n" not in str(told.value)


def test_an_answer_to_another_request_is_not_taken():
    """One that comes after its request was sent again has the old number."""

    def answer(frames):
        return wire.encode({"kind": "hello", "version": 1, "id": wire.decode(frames)[0]["id"] - 1})

    with served_case.in_thread(answer) as line:
        client = Client(line.address, timeout=3.0)
        with pytest.raises(TrainingError, match="it is connected and hangs"):
            client.ask("hello")
        client.close()


def test_a_fingerprint_is_of_every_weight(teacher):
    """One number of any tensor, or what turns weights into logits; not the object or the dtype of the sums."""
    whole = fingerprint(teacher.policy)
    assert fingerprint(teacher.policy) == whole
    assert fingerprint(replace(teacher.policy, vocab_size=teacher.policy.vocab_size - 1)) != whole
    for name, parameter in teacher.policy.model.named_parameters():
        place = parameter.data.view(-1)[-1:]
        kept = place.clone()
        place.add_(place.abs() * 1e-3 + 1e-6)
        assert fingerprint(teacher.policy) != whole, name
        place.copy_(kept)
    assert fingerprint(teacher.policy) == whole
