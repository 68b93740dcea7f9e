"""The rungs with a model: each finds the defect that is planted in the real pair, by its name.

What is locked: 1) the bundled pair passes the whole ladder, with and without images; 2) blind towers, lost levels of
features, dropped pixels, p that does not arrive, views exchanged, dropout, masks, positions and drifted weights are
each found by the check that is for them; 3) nothing of it moves a weight.
"""

import json
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from tests.preflight_case import (
    config,
    found,
    plant_causal_rows,
    plant_drift,
    plant_dropout,
    plant_positions,
    plant_temperature,
    trial,
)
from vlm_dopd import completions, preflight, scoring
from vlm_dopd.config import load_config
from vlm_dopd.preflight.ladder import CHEAP, MODEL
from vlm_dopd.preflight.trial import Trial
from vlm_dopd.rollout import Response
from vlm_dopd.run import build_trainer
from vlm_dopd.vision import VisionOnce


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """One that is not spoiled: tests that must change it take a copy."""
    made = trial(tmp_path_factory.mktemp("sound"))
    _ = made.responses
    return made


@pytest.fixture
def spoilt(tmp_path):
    return trial(tmp_path)


@pytest.mark.parametrize("recipe", ["demo", "text"])
def test_the_bundled_pair_passes_the_whole_ladder(recipe, tmp_path):
    given = load_config(recipe, [f"output_dir={tmp_path / 'run'}", "train.per_device_train_batch_size=2"])
    rungs = preflight.show(preflight.climb(given, build_trainer), Console(quiet=True))
    assert [rung.number for rung in rungs] == list(range(1, len(CHEAP) + len(MODEL) + 2))
    by_name = {rung.name: rung.finding.status for rung in rungs}
    assert {name for name, status in by_name.items() if status == "FAIL"} == set(), [r.sentence for r in rungs]
    # The rules on leaks guess, and the bundled teacher needs no p: it reads digits as it is.
    assert {name for name, status in by_name.items() if status == "WARN"} <= {"leaks", "p helps"}
    blind = {"student sees", "teacher sees"} if recipe == "text" else set()
    assert {name for name, status in by_name.items() if status == "SKIP"} == {"references", *blind}
    assert not list(tmp_path.iterdir())


def test_no_weight_moves(spoilt):
    before = deepcopy(spoilt.student.model.state_dict())
    for check in MODEL:
        check.find(spoilt)
    assert all(torch.equal(before[name], value) for name, value in spoilt.student.model.state_dict().items())
    assert all(parameter.grad is None for parameter in spoilt.student.model.parameters())


# Images


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_broken_projector(spoilt, who):
    """Features that are the same for every image, as of a tower whose last matrix is not in the checkpoint."""
    with torch.no_grad():
        spoilt.policies[who].model.base_model.visual.merger.linear_fc2.weight.zero_()
    finding = found(f"{who} sees", spoilt)
    assert finding.status == "FAIL" and "merger gives the same for every image" in finding.fix
    other = "teacher" if who == "student" else "student"
    assert found(f"{other} sees", spoilt).status == "PASS"


def test_a_lost_deepstack_level(spoilt):
    """The scores still change with the image: the other level carries it."""
    with torch.no_grad():
        spoilt.student.model.base_model.visual.deepstack_merger_list[0].linear_fc2.weight.zero_()
    finding = found("student sees", spoilt)
    assert finding.status == "FAIL" and "deepstack level 1 gives the same" in finding.fix


def test_dropped_pixels(sound, monkeypatch):
    """Scoring that forgets to pass images on: placeholders are read as words."""
    whole = scoring._hidden
    monkeypatch.setattr(scoring, "_hidden", lambda policy, packed: whole(policy, replace(packed, images=())))
    for who in ("student", "teacher"):
        finding = found(f"{who} sees", sound)
        assert finding.status == "FAIL" and f"the {who} is blind" in finding.fix
    assert found("packed rows", sound).status == "FAIL"


def test_deepstack_features_that_do_not_arrive(sound, monkeypatch):
    """Rows are given the first level only; the model's own forward has all of them."""
    whole = VisionOnce.inputs

    def flat(self, images):
        given = whole(self, images)
        for encoded in given.get("mm_encoder_outputs", {}).values():
            encoded.deepstack_features = [[0 * f for f in level] for level in encoded.deepstack_features]
        return given

    monkeypatch.setattr(VisionOnce, "inputs", flat)
    assert found("packed rows", sound).status == "FAIL"


# p


def test_p_that_does_not_arrive(sound, monkeypatch):
    """Both views show the plain prompt."""
    monkeypatch.setattr(completions, "prompt_of", lambda group, view: group.plain)
    made = Trial(sound.wiring, sound.trainer)
    made.__dict__["responses"] = sound.responses
    made.__dict__["lent_p"] = [group.plain for group in made.batch.groups]
    finding = found("p is read", made)
    assert finding.status == "FAIL" and "p does not reach the student and the teacher" in finding.fix


def test_p_that_misleads_is_told(sound):
    """Every row is told another row's p; its own would have been better."""
    made = Trial(sound.wiring, sound.trainer)
    made.__dict__["responses"] = sound.responses
    own = [group.privileged for group in made.batch.groups]
    lent = sound.lent_p
    made.__dict__["batch"] = replace(
        made.batch,
        groups=tuple(replace(g, privileged=p or g.privileged) for g, p in zip(made.batch.groups, lent, strict=True)),
    )
    made.__dict__["lent_p"] = own
    finding = found("p helps", made)
    assert finding.status == "WARN" and "against another's p" in finding.figure


# Scores


def test_dropout_in_the_pass_with_gradient(spoilt):
    """Live in training, off in scoring: the student is not its own teacher any more."""
    plant_dropout(spoilt)
    finding = found("equal policies", spoilt)
    assert finding.status == "FAIL" and "dropout" in finding.fix


def test_another_temperature_of_the_pass_with_gradient(spoilt, monkeypatch):
    plant_temperature(spoilt, monkeypatch)
    assert found("equal policies", spoilt).status == "FAIL"


def test_siblings_that_see_each_other(sound, monkeypatch):
    """A causal mask over the whole row: the second response reads the first."""
    plant_causal_rows(monkeypatch)
    finding = found("packed rows", sound)
    assert finding.status == "FAIL" and "attention mask" in finding.fix


def test_positions_that_go_on_after_the_first_sibling(sound, monkeypatch):
    plant_positions(monkeypatch)
    assert found("packed rows", sound).status == "FAIL"


def test_drifted_rollout_weights(spoilt):
    """The engine samples from weights that are not the trainer's any more; it gives no log-probabilities."""
    assert found("rollout scores", spoilt).status == "PASS"
    plant_drift(spoilt, 0.5)
    finding = found("rollout scores", spoilt)
    assert finding.status == "FAIL" and "other weights" in finding.fix


@pytest.mark.parametrize("off, status", [(0.0, "PASS"), (0.02, "PASS"), (0.2, "FAIL")])
def test_log_probabilities_of_an_engine(sound, off, status):
    """Those that the engine gives are compared with the trainer's own."""
    made = Trial(sound.wiring, sound.trainer)
    logp = sound.logp_N("student", [group.plain for group in sound.batch.groups])
    parts = iter(logp.split([id_T.numel() for ids in sound.ids for id_T in ids]))
    made.__dict__["responses"] = [[replace(r, logp_T=next(parts) - off) for r in own] for own in sound.responses]
    finding = found("rollout scores", made)
    assert finding.status == status and "nats a token apart" in finding.figure


# Answers


def test_responses_that_do_not_end(sound):
    made = Trial(sound.wiring, sound.trainer)
    cut = [[replace(r, truncated=True) for r in own] for own in sound.responses]
    made.__dict__["responses"] = cut
    assert found("responses end", made).status == "FAIL"
    made.__dict__["responses"] = [cut[0], *sound.responses[1:]]
    assert found("responses end", made).status == "WARN"
    assert found("responses end", sound).status == "PASS"
    made.__dict__["responses"] = [[replace(r, reference=True) for r in own] for own in sound.responses]
    assert found("responses end", made).status == "SKIP"  # as under `sft`: none is the student's own


def test_a_student_that_is_never_right(sound):
    made = Trial(sound.wiring, sound.trainer)
    empty = Response(torch.tensor([501]), truncated=False)
    made.__dict__["responses"] = [[empty for _ in own] for own in sound.responses]
    finding = found("answers", made)
    assert finding.status == "WARN" and "0 of 20 responses" in finding.figure and "✗ (answer:" in finding.shown[0]


# Cost


def test_memory_that_there_is_not(sound):
    made = Trial(sound.wiring, sound.trainer)
    made.__dict__["measured"] = sound.measured
    assert found("memory", made).status == "PASS"
    for share, status in ((0.5, "FAIL"), (1.05, "WARN"), (1.2, "PASS")):
        needed = _needed(made)
        made.__dict__["measured"] = replace(sound.measured, room=share * needed)
        assert found("memory", made).status == status


def _needed(made):
    from vlm_dopd.preflight.cost import _jobs, _peak

    small, full = _jobs(made)
    return made.measured.peak + _peak(full) - _peak(small, optimizer=False)


def test_time_is_that_of_the_whole_run(sound):
    made = Trial(sound.wiring, sound.trainer)
    seconds = {"rollout": 2.0, "score": 1.0, "loss": 1.0}
    made.__dict__["measured"] = replace(sound.measured, seconds=seconds, tokens=400)
    figure = found("time", made).figure
    assert "100 tokens/s" in figure and "120 steps of 4 s: 8 min" in figure


def test_a_pair_that_cannot_be_built_is_told_once(tmp_path):
    def broken(_):
        raise ValueError("no device")

    rungs = list(preflight.climb(config(tmp_path), broken))
    assert [r.finding.figure for r in rungs if r.finding.status == "FAIL"] == ["ValueError: no device"]
    after = [rung.finding for rung in rungs[len(CHEAP) + 1 :]]
    assert {finding.status for finding in after} == {"SKIP"} and len(after) == len(MODEL)
    json.dumps([rung.sentence for rung in rungs])
