"""The plan's operations against torch's own count of what the trainer's functions do, within 5 %.

1) student forward and backward, with and without checkpointing and frozen tower; 2) scoring; 3) the vision tower;
4) the loss; 5) tokens, pairs and rows of the passes, against packed windows and masks.
"""

import dataclasses

import pytest
import torch

from tests.plan_case import case, counter
from vlm_dopd.attention import shared_prefix_mask
from vlm_dopd.chunked_loss import Scored, Term, routed_loss
from vlm_dopd.divergences import Divergence
from vlm_dopd.methods import TEACHER_PLAIN
from vlm_dopd.plan import flops
from vlm_dopd.scoring import score, student_hidden

WITHIN = 0.05
CASES = {
    "vision": {},
    "text": {"images": 0},
    "two images, wide, long responses": {"images": 2, "hidden": 128, "max_new_tokens": 60},
    "checkpointing": {"checkpointing": True, "images": 0},
    "trained tower": {"freeze": False},
    "one long group": {"micro": 1, "max_new_tokens": 200, "layers": 4},
}


def full_length(made):
    """The mean response is as long as the longest."""
    job = made.job
    work = dataclasses.replace(job.work, response_tokens=job.max_new_tokens)
    return dataclasses.replace(made, job=dataclasses.replace(job, work=work))


@pytest.fixture(params=CASES, scope="module")
def made(request):
    return full_length(case(**CASES[request.param]))


def test_student_forward_and_backward(made):
    made.model.train()
    passes = made.packed()
    for packed in passes:
        made.policy.vision.inputs(packed.images)  # of a frozen tower, features are there before
    with counter() as counted:
        for packed in passes:
            student_hidden(made.model, made.policy, packed).sum().backward()
    assert flops.training(made.job) == pytest.approx(counted.get_total_flops(), rel=WITHIN)


@pytest.mark.parametrize("view", ["plain", "privileged"])
def test_scoring(made, view):
    role = TEACHER_PLAIN._replace(view=view)
    passes = made.packed(view)
    for packed in passes:
        made.policy.vision.inputs(packed.images)
    with counter() as counted:
        score(made.policy, passes)
    planned = flops.scoring(made.job, role) + flops.score_head(made.job, role)
    assert planned == pytest.approx(counted.get_total_flops(), rel=WITHIN)


def test_vision_tower(made):
    images = [image for packed in made.packed() for image in packed.images]
    with counter() as counted, torch.no_grad():
        made.policy.vision.inputs(images)
    assert flops.encoding(made.job, "student") == pytest.approx(counted.get_total_flops(), rel=WITHIN)


@pytest.mark.parametrize("responses", [40, 900])
def test_loss(responses):
    made = full_length(case(images=0, micro=1, siblings=2, max_new_tokens=responses))
    hidden_NH = torch.randn(2 * responses, made.job.student.text.hidden, requires_grad=True)
    head = made.policy.head()
    target = Scored(hidden_NH.detach(), head.detach(), torch.zeros(2 * responses), torch.zeros(2 * responses))
    token_N = torch.randint(30, 200, (2 * responses,))
    with counter() as counted:
        routed_loss(hidden_NH, head, token_N, [Term(Divergence(k=8), torch.ones(2 * responses), target)])
    planned = flops.student_head(made.job) + sum(flops.target_heads(made.job).values())
    assert planned == pytest.approx(counted.get_total_flops(), rel=WITHIN)


@pytest.mark.parametrize("view", ["plain", "privileged"])
@pytest.mark.parametrize("flex", [False, True])
def test_passes_are_those_that_are_packed(view, flex):
    made = full_length(case(flex=flex))
    planned = flops.passes(made.job, view)
    packed = made.packed(view)
    assert planned.tokens == sum(p.inputs["input_ids"].numel() for p in packed)
    assert planned.responses == sum(len(p.token_N) for p in packed)
    assert planned.rows == sum(len(p.group_BL) for p in packed)
    seen = sum(shared_prefix_mask(p.group_BL, p.segment_BL) for p in packed)
    assert planned.pairs == (int(seen.sum()) if flex else sum(p.inputs["input_ids"].shape[1] ** 2 for p in packed) * 3)


def test_methods_cost_what_they_ask_for():
    opd, dopd = case(images=0).job, case(images=0, method="dopd").job
    assert len(dopd.targets) == 2 and len(opd.targets) == 1
    assert sum(flops.target_heads(dopd).values()) == pytest.approx(sum(flops.target_heads(opd).values()))
    compared = case(images=0, method="ta_opd").job
    pair = compared.method.statistics[0].first
    assert flops.score_head(compared, pair) > flops.score_head(opd, TEACHER_PLAIN)


def test_lora_pays_no_gradient_of_frozen_matrices():
    full = case(images=0).job
    lora = dataclasses.replace(full, lora_rank=2)
    assert flops.training(lora) < flops.training(full)
    assert flops.student_head(lora) == pytest.approx(flops.student_head(full) * 2 / 3)
