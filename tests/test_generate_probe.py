"""Coordinates: conventions are declared, and proven on known boxes before a single row is paid for.

What is locked: 1) a model that keeps to the declared convention passes, in each profile, and rows then get boxes where
things are, also when images are shrunk or resized for it; 2) one that does not is stopped, with the convention that
fits best and its IoU; 3) no two conventions can be mistaken for each other on the probe's images; 4) the probe is paid
for once, and ends the run where there is no endpoint.
"""

import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from privileged import DataError
from privileged.generate import Settings
from privileged.generate.probe import OTHERS, _fit, probe_requests
from privileged.generate.profiles import PROFILES
from privileged.geometry import Coords
from tests.fake_endpoint import FakeEndpoint, Say, Status, boxes_of
from tests.generate_case import quick, run, samples, write_data  # noqa: F401

pytestmark = pytest.mark.usefixtures("quick")


def served(tmp_path, convention, coords, count=2, script=None, **changes):
    """(endpoint, summary, rows) of a run with the probe."""
    with FakeEndpoint(script, convention).serving() as server:
        return server, *run(server, write_data(tmp_path, count), probe=True, coords=coords, **changes)


def refused(tmp_path, convention, coords, script=None, **changes):
    """(endpoint, message) of a run that the probe stops."""
    with FakeEndpoint(script, convention).serving() as server:
        with pytest.raises(DataError) as caught:
            run(server, write_data(tmp_path, 3), probe=True, coords=coords, **changes)
        assert "\n" not in str(caught.value) and not (tmp_path / "out.jsonl").exists()
        return server, str(caught.value)


@pytest.mark.parametrize("name", PROFILES)
def test_a_model_of_the_declared_convention_passes(tmp_path, name):
    """Three calls for the probe, and the boxes of the rows lie on the rectangles."""
    image = Image.new("RGB", (1000, 620), "white")
    image.paste((255, 0, 0), (600, 60, 900, 260))
    image.save(tmp_path / "wide.png")
    row = {"question": "Where is red?", "answer": "there", "images": ["wide.png"]}
    (tmp_path / "data.jsonl").write_text(json.dumps(row))
    with FakeEndpoint(convention=name).serving() as server:
        summary, rows = run(server, tmp_path / "data.jsonl", probe=True, coords=name, max_side=300)
    assert summary.fates == {"kept": 1} and summary.calls == 5 and len(server.of("probe")) == 3
    assert re.search(r"mean IoU of (0\.9|1\.0)", summary.probe) and repr(name) in summary.probe
    (sample,) = samples(rows, tmp_path)
    assert np.allclose(sample.privileged.regions[0].box, (600, 60, 900, 260), atol=7)  # 1000 px were sent as 300
    assert all(max(image.size) <= 300 for call in server.calls for image in call.images)


@pytest.mark.parametrize(("speaks", "declared"), [*itertools.permutations(["qwen3", "gemini", "px", "rel1"], 2)])
def test_another_convention_is_caught_and_named(tmp_path, speaks, declared):
    """Before any row: the y-first boxes of Gemini under Qwen3's name, pixels, fractions."""
    server, message = refused(tmp_path, speaks, declared)
    assert len(server.calls) == 3 and not server.of("generate")
    found, best = re.search(r"IoU of ([\d.]+) .* best fits '(\w+)' with ([\d.]+); set coords='\2'", message).group(1, 2)
    assert best == speaks and float(found) < 0.3 and f"read as {declared!r}" in message


@pytest.mark.parametrize(("text", "said"), [("no boxes", "not usable"), ('{"regions": []}', "not usable")])
def test_a_model_that_gives_no_boxes_is_caught(tmp_path, text, said):
    """Three replies that are no boxes are not a convention."""
    _, message = refused(tmp_path, "qwen3", "qwen3", lambda call: Say(text))
    assert said in message


def test_a_model_that_guesses_is_caught(tmp_path):
    """The same box everywhere fits no convention."""
    item = {"label": "rectangle", "bbox_2d": [400, 400, 480, 480]}
    _, message = refused(tmp_path, "qwen3", "qwen3", lambda call: Say(json.dumps({"regions": [item], "reason": ""})))
    assert "no other convention fits" in message


@pytest.mark.parametrize("kind", ["[x, y, width, height]", "y first"])
def test_conventions_without_a_profile_are_named_too(tmp_path, kind):
    """Without the advice to declare what cannot be declared."""
    unit, order = ("rel1000", "xywh") if "width" in kind else ("rel1", "yxyx")

    def script(call):
        (image,) = call.images
        colour = re.search("red|green|blue", call.question)[0]
        boxes = [Coords(unit=unit, order=order).from_px(box, *image.size) for box in boxes_of(image, colour)]
        return Say(json.dumps({"regions": [{"label": "a", "bbox_2d": box} for box in boxes], "reason": ""}))

    _, message = refused(tmp_path, "qwen3", "qwen3", script)
    assert kind in message and "best fits" in message and "set coords" not in message


def test_the_probe_is_paid_for_once(tmp_path):
    """Kept as other replies are, and left out where it is not wanted."""
    server, summary, _ = served(tmp_path, "qwen3", "qwen3")
    assert (summary.calls, len(server.of("probe"))) == (7, 3)
    with FakeEndpoint().serving() as again:
        summary, _ = run(again, write_data(tmp_path, 2), probe=True)
    assert not again.calls and summary.cached == 7 and "mean IoU" in summary.probe
    server, _, _ = served(tmp_path / "other", "gemini", "gemini", count=1)
    assert len(server.of("probe")) == 3


@pytest.mark.parametrize("action", [Status(503), Status(400)])
def test_an_endpoint_without_replies_is_found_out_by_the_probe(tmp_path, action):
    """One line, no row asked."""
    server, message = refused(tmp_path, "qwen3", "qwen3", lambda call: action, max_retries=0, structured=False)
    assert message.startswith("probe: expected a reply") and len(server.calls) == 1


def test_a_wrong_key_costs_one_request(tmp_path):
    """The first of the probe."""
    server, message = refused(tmp_path, "qwen3", "qwen3", lambda call: Status(401))
    assert len(server.calls) == 1 and "OPENAI_API_KEY" in message


def conventions():
    for name, profile in PROFILES.items():
        if name != "qwen2_5":  # pixels, too
            yield name, profile.unit, profile.order
    for name, (unit, order) in OTHERS.items():
        yield name, unit, order


@pytest.mark.parametrize(("name", "unit", "order"), [*conventions()])
def test_no_convention_is_taken_for_another_on_these_images(name, unit, order):
    """Perfect boxes of each, read as each other one: far from the limit."""
    replies = []
    for request, size, boxes in probe_requests(Settings(base_url="http://127.0.0.1/v1", model="m")):
        coords = Coords(unit=unit, order=order, resized=size if unit == "resized" else None)
        items = [{"label": "a", "box": list(coords.from_px(box, *size))} for box in boxes]
        replies.append((items, size, request.pictures[0].size, boxes))
    fits = {other: _fit(other, replies) for other, *_ in conventions()}
    assert fits.pop(name) > 0.99 and max(fits.values()) < 0.4


def test_what_is_no_box_fits_nothing():
    """Items of any type."""
    items = [None, 3, "box", [], {}, {"box": None}, {"box": [1, 2, 3]}, {"b": ["x"] * 4}]
    items += [{"box": [float("nan")] * 4}, {"box": [1e308 * 10] * 4}, {"box": [True] * 4}]
    assert all(_fit(name, [(items, (90, 90), (90, 90), [(1, 1, 9, 9)])]) == 0 for name in (*PROFILES, *OTHERS))


@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(56, 4096), st.sampled_from([*PROFILES]))
def test_the_size_an_image_is_sent_in(width, height, most, name):
    """Within the limit, of the multiples that leave a model nothing to resize, never empty, its shape kept."""
    profile = PROFILES[name]
    across, down = profile.sent_size((width, height), most)
    assert 1 <= across <= most and 1 <= down <= most
    assert across % profile.multiple == 0 and down % profile.multiple == 0
    if profile.multiple == 1:
        assert across <= width and down <= height
        scale = min(1, most / max(width, height))
        assert abs(across - width * scale) <= 1 and abs(down - height * scale) <= 1
        assert (across, down) == (width, height) or max(across, down) == most
