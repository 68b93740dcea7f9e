"""What goes over the line, and what a server lets in.

What is locked: 1) rows and images come out as they went in; 2) no bytes, however wrong, raise anything but WireError
when decoded, or stop a server; 3) whatever a model would use as an index or a size is refused before it sees it.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from privileged import build_views, get_builder
from tests import served_case, tiny
from vlm_dopd.collate import Encoder
from vlm_dopd.served import wire
from vlm_dopd.served.requests import (
    autocast_of,
    digest,
    image_from_tensors,
    image_to_tensors,
    rows_from_tensors,
    rows_to_tensors,
)
from vlm_dopd.served.wire import WireError, decode, encode
from vlm_dopd.vision import EncodedImage, VisionOnce


@pytest.fixture(scope="module")
def teacher(pair):
    return served_case.teacher(pair[1])


@pytest.fixture(scope="module")
def prompts(teacher, processor):
    encoder = Encoder(processor, teacher.policy.model)
    views = [build_views(sample, get_builder("overlay")) for sample in tiny.mixed_samples()]
    return [encoder.encode(view, {}) for pair in views for view in (pair.plain, pair.privileged)]


@pytest.fixture(scope="module")
def good(teacher, prompts):
    """A request for scores that is answered, its images already there."""
    passes = served_case.rows(prompts)
    for image in {image for packed in passes for image in packed.images}:
        send(teacher, {"kind": "image"}, image_to_tensors(image, torch.float32))
    names = [[digest(image_to_tensors(i, torch.float32), None) for i in packed.images] for packed in passes]
    header = {"kind": "score", "images": names, "autocast": None}
    assert send(teacher, header, rows_to_tensors(passes))[0]["kind"] == "hidden"
    return header, rows_to_tensors(passes)


def send(teacher, header, tensors=None):
    frames = encode({"version": 1, "id": 7, "fingerprint": teacher.fingerprint, **header}, tensors)
    reply = teacher.answer(frames)
    return None if reply is None else decode(reply)


def refused(teacher, header, tensors=None) -> str:
    answer, _ = send(teacher, header, tensors)
    assert answer["kind"] == "error" and answer["id"] == 7
    return answer["message"]


def same(one, other) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


@given(st.integers(0, 20), st.none() | st.integers(1, 900))
def test_rows_come_out_as_they_went_in(prompts, teacher, seed, max_tokens):
    passes = served_case.rows(prompts, seed, max_tokens)
    _, tensors = decode(encode({"kind": "score", "version": 1}, rows_to_tensors(passes)))
    again = rows_from_tensors(tensors, [packed.images for packed in passes], teacher.limits)
    for mine, other in zip(again, passes, strict=True):
        assert mine.images == other.images and mine.inputs.keys() == other.inputs.keys()
        assert all(same(mine.inputs[name], other.inputs[name]) for name in mine.inputs)
        for name in ("group_BL", "segment_BL", "row_N", "column_N", "token_N", "place_N"):
            assert same(getattr(mine, name), getattr(other, name)), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_images_come_out_as_they_went_in_and_have_names_of_their_own(prompts, teacher, dtype):
    """One name an image, dtype and autocast: features depend on all three."""
    shown = [image for prompt in prompts for image in prompt.images]
    images = {str(image.pixel_values.tolist()): image for image in shown}.values()  # two views show equal ones
    assert len(images) < len(shown)
    names = [digest(image_to_tensors(image, getattr(torch, dtype)), None) for image in shown]
    assert len(set(names)) == len(images)
    for image in images:
        _, sent = decode(encode({"kind": "image", "version": 1}, image_to_tensors(image, getattr(torch, dtype))))
        again = image_from_tensors(sent, teacher.limits)
        assert same(again.grid_thw, image.grid_thw)
        assert same(again.pixel_values, image.pixel_values.to(getattr(torch, dtype)))
        turned = {**sent, "grid_thw": torch.tensor([1, image.grid_thw[1] * image.grid_thw[2] // 2, 2])}
        names += [digest(sent, "bfloat16"), digest(turned, None)]
    assert len(set(names)) == 3 * len(images)


frame = st.binary(max_size=60) | st.sampled_from(encode({"kind": "hello", "version": 1}, {"a": torch.ones(3)}))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(frame, max_size=4))
def test_any_frames_decode_or_are_refused(frames):
    try:
        header, tensors = decode(frames)
    except WireError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
    else:
        assert isinstance(header["kind"], str) and all(isinstance(t, torch.Tensor) for t in tensors.values())


@given(st.binary(min_size=1, max_size=12), st.integers(0, 400))
def test_broken_tensors_are_refused(noise, place):
    """The real thing with a few bytes overwritten, or cut: other numbers, or WireError."""
    whole = encode({"kind": "score", "version": 1}, {"a": torch.arange(12), "b": torch.ones(2, 3)})
    broken = bytearray(whole[1])
    place %= len(broken)
    broken[place : place + len(noise)] = noise
    for data in (bytes(broken), whole[1][:place]):
        try:
            _, tensors = decode([whole[0], data])
        except WireError:
            continue
        assert all(tensor.numel() <= len(data) for tensor in tensors.values())


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([], id="nothing"),
        pytest.param([b"{}"], id="one frame"),
        pytest.param([b"[" * 100_000, b""], id="deep"),
        pytest.param([b"1" * 10_000, b""], id="long number"),
        pytest.param([b" " * (wire.MAX_HEADER + 1), b""], id="huge header"),
        pytest.param([b'{"kind": "hello", "version": 1}', b""], id="no tensors"),
        pytest.param([b'{"kind": "hello", "version": 1}', b"\x80\x04\x95"], id="pickle"),
        pytest.param([b'{"kind": "hello", "version": 1}', (2**62).to_bytes(8, "little") + b"{}"], id="huge tensors"),
        pytest.param([b'{"kind": "hello", "version": 2}', safetensors.torch.save({})], id="newer"),
        pytest.param([b'{"kind": 3, "version": 1}', safetensors.torch.save({})], id="no kind"),
        pytest.param([b'["hello"]', safetensors.torch.save({})], id="a list"),
    ],
)
def test_a_server_answers_nonsense_and_goes_on(teacher, frames):
    assert decode(teacher.answer(frames))[0]["kind"] == "error"
    assert send(teacher, {"kind": "hello"})[0]["kind"] == "hello"


@given(values, values, values)
def test_no_header_stops_a_server(teacher, good, images, autocast, kind):
    """Whatever JSON stands where digests, dtypes and kinds should."""
    for header in (
        {"kind": "score", "images": images, "autocast": None},
        {**good[0], "autocast": autocast},
        {"kind": "x", "images": kind},
    ):
        answer, _ = send(teacher, header, good[1])
        assert answer["kind"] in ("error", "missing", "hidden")


def changed(good, name, change):
    header, tensors = good
    return header, {**tensors, f"0.{name}": change(tensors[f"0.{name}"].clone())}


def put(value, where=0):
    def change(tensor):
        tensor.view(-1)[where] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        pytest.param("input_ids", put(-1), "input_ids: expected 0 to", id="negative id"),
        pytest.param("input_ids", put(10**6), "input_ids: expected 0 to", id="id beyond the embedding"),
        pytest.param("input_ids", lambda t: t[:, :0], "1 to 131072 tokens", id="no tokens"),
        pytest.param("input_ids", lambda t: t.expand(2**12, *t.shape).flatten(0, 1), "1 to 131072", id="too many"),
        pytest.param("input_ids", lambda t: t[0], "1 to 131072 tokens in rows", id="one row"),
        pytest.param("input_ids", lambda t: t.double(), "whole numbers", id="floats"),
        pytest.param("position_ids", lambda t: t[:2], "position_ids: expected the shape", id="channels"),
        pytest.param("position_ids", put(2**40), "position_ids: expected 0 to", id="position"),
        pytest.param("row_N", put(99), "row_N: expected 0 to", id="row"),
        pytest.param("column_N", put(-1), "column_N: expected 0 to", id="negative column"),
        pytest.param("column_N", put(10**9), "column_N: expected 0 to", id="column"),
        pytest.param("column_N", lambda t: t[1:], "column_N: expected the shape", id="fewer columns"),
        pytest.param("place_N", put(0, where=-1), "place_N: expected every response token once", id="place"),
        pytest.param("segment_BL", put(-5), "segment_BL: expected 0 to", id="segment"),
        pytest.param("group_BL", lambda t: t[:, 1:], "group_BL: expected the shape", id="groups"),
        pytest.param("mm_token_type_ids", lambda t: t[:1, :3], "mm_token_type_ids: expected the shape", id="types"),
    ],
)
def test_rows_that_a_model_would_stumble_over_are_refused(teacher, good, name, change, says):
    assert says in refused(teacher, *changed(good, name, change))
    assert send(teacher, *good)[0]["kind"] == "hidden"


def test_images_that_do_not_fit_the_rows_are_refused(teacher, good):
    header, tensors = good
    image_id = teacher.limits.image_id
    text = {**tensors, "0.input_ids": tensors["0.input_ids"].masked_fill(tensors["0.input_ids"] == image_id, 40)}
    assert "images: expected 0 image tokens" in refused(teacher, header, text)
    assert "as many as placeholders" in refused(teacher, {**header, "images": [[] for _ in header["images"]]}, tensors)
    assert "at least one pass" in refused(teacher, {**header, "images": []}, tensors)
    assert "expected the tensors" in refused(teacher, {**header, "images": [*header["images"], []]}, tensors)
    assert send(teacher, {**header, "images": [["never sent"]]}, tensors)[0]["images"] == ["never sent"]


def test_broken_images_are_refused(teacher, prompts):
    image = next(image for prompt in prompts for image in prompt.images)
    pixels, (t, h, w) = image.pixel_values, image.grid_thw.tolist()
    for grid, values, says in (
        ([t, h, w + 2], pixels, "expected floats of the shape"),
        ([t, h, w], pixels[1:], "expected floats of the shape"),
        ([t, h, w], pixels[:, :8], "expected floats of the shape"),
        ([t, h, w], pixels.long(), "expected floats of the shape"),
        ([t, 1, h * w], pixels, "multiples of 2"),
        ([t, 0, w], pixels[:0], "patches along"),
        ([t, h], pixels, "patches along"),
        ([t, 2**40, w], pixels, "patches along"),
    ):
        assert says in refused(teacher, {"kind": "image"}, {"pixel_values": values, "grid_thw": torch.tensor(grid)})
    assert "expected pixel_values" in refused(teacher, {"kind": "image"}, {"a": pixels})
    text = replace(teacher.limits, patch_numbers=0)
    with pytest.raises(WireError, match="text-only"):
        image_from_tensors(image_to_tensors(image, torch.float32), text)


def test_requests_name_their_model_and_their_kind(teacher, good):
    assert "expected requests for" in refused(teacher, {**good[0], "fingerprint": "0" * 64}, good[1])
    assert "expected hello, head, image or score" in refused(teacher, {"kind": "open", "path": "/etc/passwd"})
    with pytest.raises(WireError, match="autocast: expected"):
        autocast_of({"autocast": ["bfloat16"]})


def test_a_failing_model_is_an_answer(teacher, good, monkeypatch):
    """Out of memory in one request does not end the server."""

    def fails(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    with monkeypatch.context() as patched:
        patched.setattr("vlm_dopd.served.server.response_hidden", fails)
        assert refused(teacher, *good) == "OutOfMemoryError: CUDA out of memory. Tried to allocate"
    assert send(teacher, *good)[0]["kind"] == "hidden"


def test_messages_hold_no_more_than_json_and_tensors(teacher, good):
    """Nothing of vocabulary size in an answer: hidden states alone, and the head's rows without padding."""
    _, tensors = send(teacher, *good)
    assert list(tensors) == ["hidden_NH"] and tensors["hidden_NH"].shape[1] == 48
    head = send(teacher, {"kind": "head"})[1]
    assert list(head["weight_VH"].shape) == [teacher.policy.vocab_size, 48]
    hello = send(teacher, {"kind": "hello"})[0]
    assert json.loads(json.dumps(hello)) == hello and hello["vocab_size"] == teacher.policy.vocab_size


def test_the_store_forgets_the_least_lately_used(teacher, monkeypatch):
    """And its features with it, which lie on the device."""
    dropped = []
    monkeypatch.setattr(VisionOnce, "drop", lambda self, image: dropped.append(image))
    store = type(teacher.images)(teacher.policy, limit=3 * 400)
    images = {name: EncodedImage(torch.zeros(10, 10), torch.tensor([1, 2, 2])) for name in "abcd"}
    for name in "abc":
        store.put(name, images[name])
    store.put("a", images["b"])  # again: the first stays
    assert store.get(["a"]) == (images["a"],) and store.held == 1200
    store.put("d", images["d"])
    assert store.missing([*"abcdd", "e"]) == ["b", "e"] and store.held == 1200
    assert dropped == [images["b"]]
    store.put("large", EncodedImage(torch.zeros(100, 100), torch.tensor([1, 2, 2])))
    assert store.missing([*"abcd", "large"]) == [*"abcd"]  # one that is larger than all room is kept alone
