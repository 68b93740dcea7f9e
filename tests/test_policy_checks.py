"""The checks that need a model: does p give answers away without the images, and do replies talk about p.

What is locked: 1) a policy that reads the answer out of p has a gap of 1, one that cannot has 0, and p of another
sample helps neither; 2) blind prompts hold no image and, apart from p, the same text; 3) samples that cannot be asked
are counted; 4) replies that cite p are found by name, replies that do not are left alone; 5) a killed check goes on
without asking again; 6) it all runs on a real model.
"""

from __future__ import annotations

import re

import pytest

import evals
from evals.model import HFModel
from privileged import Note, PrivilegedRecord, Sample, get_builder
from tests import tiny
from vlm_dopd.annotate.policy_checks import CITATIONS, blind_test, choose, citation_check, citations

HINTS = get_builder("hints")


def asked(item):
    """All the text of an item."""
    return "".join(part.get("text", "") for message in item.messages for part in message["content"])


class Policy:
    """Answers with what `read` finds in the prompt; remembers what it was asked."""

    def __init__(self, read):
        self.read, self.items = read, []

    def generate(self, items):
        self.items += items
        return [evals.Reply(self.read(asked(item)), truncated=False) for item in items]


def oracle(text):
    """Repeats the secret of p; without one it has no idea."""
    found = re.search(r"secret (\w+)", text)
    return f"Answer: {found[1] if found else 'unknown'}"


def samples(count, **changes):
    """Sample i has the answer wi, and p says so."""
    made = []
    for i in range(count):
        record = PrivilegedRecord(sample_id=f"s{i}", notes=(Note(text=f"The secret w{i} is here."),))
        fields = {"id": f"s{i}", "question": f"Question {i}?", "answer": f"w{i}", "privileged": record}
        made.append(Sample(**(fields | changes)))
    return made


def test_an_oracle_that_reads_p_has_a_gap_of_one():
    result = blind_test(Policy(oracle), samples(20), HINTS)
    assert (result["n"], result["skipped"]) == (20, 0)
    assert (result["question"]["accuracy"], result["p"]["accuracy"], result["shuffled"]["accuracy"]) == (0, 1, 0)
    assert result["gap"]["difference"] == 1 and result["gap"]["interval"] == (1, 1)
    assert result["control"]["difference"] == 0


def test_a_policy_that_does_not_read_p_has_none():
    """It knows half of the answers by itself, whatever it is shown."""

    def knows(text):
        number = int(re.search(r"Question (\d+)", text)[1])
        return f"Answer: {'w' * (number % 2)}{number}"

    result = blind_test(Policy(knows), samples(20), HINTS)
    assert result["question"]["accuracy"] == result["p"]["accuracy"] == 0.5
    assert result["gap"]["difference"] == result["control"]["difference"] == 0
    assert result["gap"]["p_value"] == 1


def test_blind_prompts_hold_no_image_and_the_right_p():
    scenes = tiny.scenes(8)
    policy = Policy(lambda text: "Answer: 1")
    result = blind_test(policy, scenes, get_builder("boxes"), kinds=["a"] * 4 + ["b"] * 4, instruction=" Be brief.")
    question, own, shuffled = policy.items[:8], policy.items[8:16], policy.items[16:]
    assert not any(item.images for item in policy.items)
    assert [asked(item) for item in question] == [f"{scene.question} Be brief." for scene in scenes]
    for scene, mine, other in zip(scenes, own, shuffled, strict=True):
        labels = [region.label for region in scene.privileged.regions]
        assert all(label in asked(mine) for label in labels)
        assert asked(mine).endswith(f"{scene.question} Be brief.") and asked(other).endswith(
            f"{scene.question} Be brief."
        )
        assert asked(mine) != asked(other)
    assert {kind: one["n"] for kind, one in result["p"]["kinds"].items()} == {"a": 4, "b": 4}


def test_shuffled_p_is_a_permutation_without_fixed_points():
    policy = Policy(oracle)
    blind_test(policy, samples(7), HINTS, seed=3)
    given = [re.search(r"secret w(\d)", asked(item))[1] for item in policy.items[14:]]
    assert sorted(given) == [str(i) for i in range(7)]
    assert all(other != str(i) for i, other in enumerate(given))


def test_samples_that_cannot_be_asked_are_counted():
    """No answer, an answer no reply could match, no p."""
    rows = [*samples(3), *samples(1, id="x", answer=None, privileged=None), *samples(1, id="y", privileged=None)]
    rows += samples(1, id="z", answer="?!", privileged=None)
    result = blind_test(Policy(oracle), rows, HINTS)
    assert (result["n"], result["skipped"]) == (3, 3)
    assert blind_test(Policy(oracle), rows[:1], HINTS) == {"n": 1, "skipped": 0}
    assert citation_check(Policy(oracle), rows[-2:], HINTS) == {"n": 0, "skipped": 2}


@pytest.mark.parametrize(
    ("reply", "names"),
    [
        ("The bounding box shows a cup.", {"bounding box"}), ("Its coordinates are far left.", {"coordinates"}),
        ("It lies at [220, 255, 260, 345].", {"numbers in brackets"}), ("at (12,40)", {"numbers in brackets"}),
        ("According to the notes, it is red.", {"according to the notes"}),
        ("Based on the visual notes it is red", {"according to the notes"}),
        ("the provided region", {"provided region"}),
        ("Region 2 is larger.", {"region 1"}), ("Inside the red box is a dog", {"marked box"}),
        ("A cardboard box on the table.", set()), ("The region of France.", set()), ("[5]", set()), ("", set()),
        ("Take note: it is red.", set()), ("coordinated dance", set()),
    ],
)  # fmt: skip
def test_citations_are_found_by_name(reply, names):
    assert set(citations(reply)) == names


def test_citations_are_counted_against_the_plain_view():
    """It always says "coordinates", and cites the box only when it was given one."""

    def cites(text):
        return "See coordinates." + (" The bounding box says so." if "secret" in text else "")

    result = citation_check(Policy(cites), samples(6), HINTS)
    assert (result["n"], result["privileged"], result["plain"]) == (6, 6, 6)
    assert result["patterns"]["coordinates"] == {"plain": 6, "privileged": 6}
    assert result["patterns"]["bounding box"] == {"plain": 0, "privileged": 6}
    assert set(result["patterns"]) == set(CITATIONS)
    assert len(result["examples"]) == 5 and result["examples"][0]["id"] == "s0"
    assert "bounding box" in result["examples"][0]["reply"]


def test_the_privileged_view_keeps_its_images():
    scenes = tiny.scenes(3)
    policy = Policy(lambda text: "a cup")
    result = citation_check(policy, scenes, get_builder("boxes"))
    assert [len(item.images) for item in policy.items] == [1] * 6
    assert result["privileged"] == result["plain"] == 0 and result["examples"] == []


def test_a_killed_check_goes_on(tmp_path):
    class Dies(Policy):
        def generate(self, items):
            if len(self.items) >= 64:
                raise KeyboardInterrupt
            return super().generate(items)

    rows = samples(70)
    whole = blind_test(Policy(oracle), rows, HINTS)
    first = Dies(oracle)
    with pytest.raises(KeyboardInterrupt):
        blind_test(first, rows, HINTS, out=tmp_path, run="m")
    second = Policy(oracle)
    assert blind_test(second, rows, HINTS, out=tmp_path, run="m") == whole
    assert len(first.items) == 64 and len(second.items) == 3 * 70 - 64
    third = Policy(oracle)
    assert blind_test(third, rows, HINTS, out=tmp_path, run="m") == whole and third.items == []
    with pytest.raises(ValueError, match="another run"):
        blind_test(third, rows, HINTS, out=tmp_path, run="other")


def test_rows_are_drawn_by_seed():
    assert choose(10, 20) == list(range(10))
    assert choose(1000, 50, seed=1) == choose(1000, 50, seed=1) != choose(1000, 50, seed=2)
    assert len(set(choose(1000, 50))) == 50 and choose(1000, 50) == sorted(choose(1000, 50))


def test_a_real_model_takes_both_checks(processor, tmp_path):
    """Random weights: nothing is right, but prompts with and without images and p all pass the real processor."""
    model = HFModel(tiny.vision_model(0), processor, max_new_tokens=4, batch_size=4)
    scenes, builder = tiny.scenes(4), get_builder("boxes")
    blind = blind_test(model, scenes, builder, out=tmp_path)
    assert blind["n"] == 4 and blind["gap"]["difference"] == 0
    cited = citation_check(model, scenes, builder, out=tmp_path)
    assert cited["n"] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "blind-p.jsonl", "blind-question.jsonl", "blind-shuffled.jsonl", "citation-plain.jsonl",
        "citation-privileged.jsonl",
    ]  # fmt: skip
