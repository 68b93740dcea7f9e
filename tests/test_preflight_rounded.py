"""Preflight of a run in bfloat16, as real ones are: rounding is no defect, and defects are not rounding.

What is locked, for a bfloat16 teacher and a student under autocast: 1) the sound pair passes, each figure at most half
of its limit; 2) what `test_preflight_models.py` plants is found all the same, but for rollout weights that differ by
less than rounding does; 3) the limits are the wider ones for each reason there is, and for no other.
"""

import pytest

from tests.preflight_case import (
    found,
    plant_causal_rows,
    plant_drift,
    plant_dropout,
    plant_positions,
    plant_temperature,
    trial,
)
from vlm_dopd.preflight.scores import EXACT, ROUNDED

BFLOAT16 = ("train.bf16=true", "model.teacher_dtype=bfloat16")
SCORES = ("equal policies", "packed rows", "rollout scores")
LIMIT = {"equal policies": ROUNDED**2}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    made = trial(tmp_path_factory.mktemp("sound"), *BFLOAT16)
    _ = made.responses
    return made


@pytest.fixture
def spoilt(tmp_path):
    return trial(tmp_path, *BFLOAT16)


def figures(finding):
    """The numbers a finding tells before it says of what: nats or loss."""
    words = finding.figure.split(" nats")[0].replace(",", "").split()
    return [abs(float(word)) for word in words if word.lstrip("-")[0].isdigit()]


@pytest.mark.parametrize("name", SCORES)
def test_rounding_is_no_defect(sound, name):
    finding = found(name, sound)
    limit = LIMIT.get(name, ROUNDED)
    assert finding.status == "PASS" and f"at most {limit:g}" in finding.expected
    assert figures(finding) and max(figures(finding)) < limit / 2, finding.figure


@pytest.mark.parametrize("why", [("train.bf16=true",), ("model.teacher_dtype=bfloat16",), ()], ids=lambda why: why)
def test_limits_are_as_wide_as_numbers_are_coarse(tmp_path, why):
    finding = found("rollout scores", trial(tmp_path, *why))
    assert f"at most {ROUNDED if why else EXACT:g}" in finding.expected and finding.status == "PASS"


def test_dropout(spoilt):
    plant_dropout(spoilt)
    assert found("equal policies", spoilt).status == "FAIL"


def test_another_temperature(spoilt, monkeypatch):
    plant_temperature(spoilt, monkeypatch)
    assert found("equal policies", spoilt).status == "FAIL"


@pytest.mark.parametrize("plant", [plant_causal_rows, plant_positions], ids=lambda plant: plant.__name__)
def test_rows_that_are_not_those_of_single_responses(sound, monkeypatch, plant):
    plant(monkeypatch)
    assert found("packed rows", sound).status == "FAIL"


def test_rollouts_of_another_model(spoilt):
    plant_drift(spoilt, 3.0)
    finding = found("rollout scores", spoilt)
    assert finding.status == "FAIL" and min(figures(finding)[:1]) > 2 * ROUNDED, finding.figure
