"""Items, verdicts and rows: what cannot be said cannot be made, and a row survives its file."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from evals import Item, Prediction, Verdict

from .predicted import predicted

stable = settings(deadline=None, derandomize=True)
ANY_TEXT = st.text(st.characters(), min_size=1)  # halves of surrogate pairs too, as servers may send


def item(number, question="How many?"):
    message = {"role": "user", "content": [{"type": "text", "text": f"{question} ({number})"}]}
    return Item(id=f"q{number}", messages=(message,), answer=str(number))


def picture(shade):
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many? (0)"}]}
    return Item(id="q0", messages=(message,), images=(Image.new("RGB", (4, 4), shade),), answer="0")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"id": ""}, "id: expected a non-empty string"),
        ({"answer": " "}, "answer: expected a non-empty string"),
        ({"images": (Image.new("RGB", (4, 4)),)}, "got 0 for 1"),
        ({"messages": ({"role": "user", "content": [{"type": "image"}]},)}, "got 1 for 0"),
        (
            {
                "messages": ({"role": "system", "content": [{"type": "image"}]}, {"role": "user", "content": "?"}),
                "images": (Image.new("RGB", (4, 4)),),
            },
            "outside system turns",
        ),
    ],
    ids=["no id", "no answer", "image without a place", "place without an image", "image in a system turn"],
)
def test_items_are_checked_when_made(fields, reason):
    whole = {"id": "a", "messages": ({"role": "user", "content": "?"},), "answer": "7"}
    with pytest.raises(ValueError, match=reason):
        Item(**{**whole, **fields})


def test_a_score_cannot_contradict_itself():
    with pytest.raises(ValueError, match="a reply that is unparsed cannot have '7'"):
        Verdict(parsed="7", score=0, fate="unparsed")
    with pytest.raises(ValueError, match="a reply that is parsed cannot have None with 1"):
        dataclasses.replace(predicted("q0"), parsed=None)
    with pytest.raises(ValueError, match="expected one of parsed, unparsed, truncated, error, got 'maybe'"):
        Verdict(parsed="7", score=0, fate="maybe")


@stable
@given(ANY_TEXT, ANY_TEXT, ANY_TEXT)
def test_a_row_survives_the_file(response, answer, parsed):
    row = predicted(answer, "wrong", response=response, answer=answer, parsed=parsed, group={"kind": parsed}, run="r")
    line = row.to_json()
    assert "\n" not in line
    assert Prediction.from_json(line.encode()) == row


def test_the_digest_is_of_the_question_not_of_the_item_name():
    assert item(0).digest == item(0).digest
    assert picture("red").digest == picture("red").digest != picture("blue").digest
    moved = Item(id="other", messages=item(0).messages, answer="0", group={"kind": "elsewhere"})
    assert moved.digest == item(0).digest
