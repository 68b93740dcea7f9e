"""Preflight of a run in bfloat16, as real ones are: rounding is no defect, and defects are not rounding.

What is locked, for a bfloat16 teacher and a student under autocast: 1) the sound pair passes, each figure at most half
of its limit; 2) what `test_preflight_models.py` plants is found all the same, but for rollout weights that differ by
less than rounding does; 3) the limits are the wider ones for each reason there is, and for no other.
"""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from tests.preflight_case import found
from tests.test_preflight_models import _hotter, trial
from vlm_dopd import scoring
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
    for layer in spoilt.student.model.base_model.language_model.layers:
        layer.self_attn.attention_dropout = 0.3
    assert found("equal policies", spoilt).status == "FAIL"


def test_another_temperature(spoilt, monkeypatch):
    monkeypatch.setattr(type(spoilt.student), "head", _hotter(type(spoilt.student).head))
    assert found("equal policies", spoilt).status == "FAIL"


def test_siblings_that_see_each_other(sound, monkeypatch):
    whole = scoring.shared_prefix_mask
    monkeypatch.setattr(scoring, "shared_prefix_mask", lambda g, s, flex: whole(g, torch.zeros_like(s), flex))
    assert found("packed rows", sound).status == "FAIL"


def test_positions_that_go_on_after_the_first_sibling(sound, monkeypatch):
    whole = scoring._hidden

    def shifted(policy, packed):
        position = packed.inputs["position_ids"] + packed.segment_BL.clamp(max=1) * 7
        return whole(policy, replace(packed, inputs=packed.inputs | {"position_ids": position}))

    monkeypatch.setattr(scoring, "_hidden", shifted)
    assert found("packed rows", sound).status == "FAIL"


def test_rollouts_of_another_model(spoilt):
    """Its matrices are three standard deviations away."""
    engine = spoilt.completions.engine
    other = deepcopy(engine.policy.model)
    with torch.no_grad():
        torch.manual_seed(0)
        for layer in other.base_model.language_model.layers:
            weight = layer.mlp.down_proj.weight
            weight.add_(3 * weight.std() * torch.randn_like(weight))
    engine.policy = replace(engine.policy, model=other)
    finding = found("rollout scores", spoilt)
    assert finding.status == "FAIL" and min(figures(finding)[:1]) > 2 * ROUNDED, finding.figure
