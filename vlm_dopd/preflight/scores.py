"""Do those who score agree? Equal policies give no loss; rows agree with plain passes; the engine with the trainer."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace

import torch
from torch import Tensor
from transformers import LogitsProcessor

from ..collate import Group, Prompt
from ..completions import HEADERS
from ..roles import Policy, banned_ids
from ..rollout import Response
from ..rollout.hf import HFRollout
from ..rollout.mismatch import MismatchCheck
from .finding import Check, Finding, judged, skipped
from .trial import Trial

EXACT = 1e-4
"""Nats between two float32 computations of one number; kernels differ by some 1e-6."""
ROUNDED = 0.05
"""The same where a model or autocast rounds to bfloat16, as a mean over tokens: over twice what is seen with nothing
wrong. Rollout weights that are a few steps old differ by less, and no comparison of rounded numbers can tell."""
SIBLINGS = 2
"""Responses that are scored once more on their own."""
WATCHED, TOKENS = 4, 64
"""Prompts that are answered once more, and tokens of such an answer, where an engine gives no log-probabilities."""


def equal_policies(trial: Trial) -> Finding:
    """The smoke test of every distillation: the student as its own teacher, p empty, has nothing to learn.

    Routing, rows, both passes and the loss are training's, in the mode of training: dropout would show here.
    """
    method = trial.method
    views = {role.view for role in method.roles} | {c.student_view for c in method.components}
    if shown := sorted(views & set(HEADERS)):
        return skipped(f"the target's prompt shows a response ({shown[0]})")
    if method.needs_reward or any(component.target is None for component in method.components):
        return skipped(f"{trial.wiring.config.method['name']} learns from more than a teacher")
    builder = copy(trial.builder)
    builder.policies = dict.fromkeys(trial.policies, trial.student)
    builder.state = dict(builder.state)
    own = {g.sample_id: r for g, r in zip(trial.batch.groups, trial.responses, strict=True)}
    builder.completions = replace(
        trial.completions, engine=_Replay(own, reference=False), references=_Replay(own, reference=True)
    )
    groups = tuple(  # half of them as if they had p, so that every regime's path is taken
        replace(g, privileged=g.plain, has_privilege=i % 2 == 0, probes=dict.fromkeys(g.probes, g.plain))
        for i, g in enumerate(trial.batch.groups)
    )
    window = builder.build([replace(trial.batch, groups=groups)], 0)
    trainer, model, loss = trial.trainer, trial.model, 0.0
    was_training, lora = model.training, trial.wiring.config.model.lora
    model.train(not (lora and lora.dropout))  # dropout that is asked for is no defect
    try:
        with torch.no_grad(), trainer.accelerator.autocast():
            for batch in window.batches[0]:
                denominator = window.denominator
                loss += trainer.compute_loss(model, {"batch": batch}, num_items_in_batch=denominator).item()
    finally:
        model.train(was_training)
    limit = EXACT if trial.exact else ROUNDED**2  # a divergence grows with the square of a difference
    fix = "the pass with gradient and the scoring pass differ: dropout, masks, positions or the LM head's scale?"
    return judged(f"loss {loss:.2g}", f"0, at most {limit:g}", fail=not abs(loss) <= limit, fix=fix)


def rows_agree(trial: Trial) -> Finding:
    """Shared-prefix rows against plain forward passes, one response each, with pixels and the model's own positions."""
    whole = [i for i, group in enumerate(trial.batch.groups) if group.plain.images] or [0]
    place = min(whole, key=lambda i: sum(map(len, trial.ids[i])))
    group, ids = trial.batch.groups[place], trial.ids[place][:SIBLINGS]
    worst: dict[str, float] = {}
    names = dict.fromkeys(("student", *(role.weights for role in trial.method.roles)))
    for name in [name for name in names if name in trial.local]:
        policy = replace(trial.local[name], merged=())
        for prompt in dict.fromkeys((id(group.plain), id(group.privileged))):
            shown = group.plain if prompt == id(group.plain) else group.privileged
            rows_N = trial.score(policy, [shown], [ids]).logp_N.float().cpu()
            plain_N = torch.cat([_plain_logp(trial, policy, shown, id_T) for id_T in ids])
            worst[name] = max(worst.get(name, 0.0), (rows_N - plain_N).abs().mean().item())
    limit = EXACT if trial.exact else ROUNDED
    figure = ", ".join(f"{name} {value:.2g}" for name, value in worst.items()) + " nats a token apart"
    fix = "attention mask, positions, deepstack features or LM head of packed rows: try model.attention=sdpa"
    fail = not all(value <= limit for value in worst.values())
    return judged(figure, f"at most {limit:g} on average", fail=fail, fix=fix)


def engine_agrees(trial: Trial) -> Finding:
    """Log-probabilities of the rollout engine against the trainer's, of the same tokens: the check of training."""
    rollout, builder, groups = trial.wiring.config.rollout, trial.builder, trial.batch.groups
    banned = banned_ids(trial.student.model, trial.tokenizer)
    view = trial.method.rollout_view
    check = MismatchCheck(trial.student, rollout, banned, builder.pad_id, view, builder.max_tokens)
    engine, own = trial.completions.engine, trial.responses
    told = any(response.logp_T is not None for siblings in own for response in siblings)
    limit = rollout.vllm.tolerance if told else EXACT if trial.exact else ROUNDED
    trial.student.forget()
    with trial.trainer.accelerator.autocast():
        if told:
            apart_N = check.differences(groups, own).processed_N
        elif not isinstance(engine, HFRollout):
            return skipped(f"{type(engine).__name__} gives no log-probabilities")
        else:
            asked = groups[:WATCHED]
            apart_N = check.differences(asked, [[_watched(trial, engine, group)] for group in asked]).unprocessed_N
    mean = apart_N.mean().item()
    fix = "the engine samples from other weights, another prompt or at another temperature than the trainer scores"
    figure = f"engine and trainer {mean:.2g} nats a token apart on {apart_N.numel()} tokens"
    return judged(figure, f"at most {limit:g} on average", fail=not mean <= limit, fix=fix)


class _Watch(LogitsProcessor):
    """Log-probabilities of the tokens of one sequence, as generate with its cache has them before any filter."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.logp: list[Tensor] = []
        self._last: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._last is not None:
            self.logp.append(self._last[0, input_ids[0, -1]].cpu())
        self._last = scores[:, : self.vocab_size].float().log_softmax(-1)
        return scores


def _watched(trial: Trial, engine: HFRollout, group: Group) -> Response:
    """A short response, but for its last token."""
    watch = _Watch(trial.student.vocab_size)
    ((response,),) = engine.watched(watch, TOKENS)([group], 0)
    logp_T = torch.stack(watch.logp) if watch.logp else torch.zeros(0)
    return replace(response, id_T=response.id_T[: len(watch.logp)], logp_T=logp_T)


class _Replay:
    """An engine whose responses exist already."""

    def __init__(self, responses: dict[str, list[Response]], reference: bool) -> None:
        self.responses, self.reference = responses, reference

    def __call__(self, groups: Sequence[Group], step: int) -> list[list[Response]]:
        return [[r for r in self.responses[group.sample_id] if r.reference == self.reference] for group in groups]


@torch.no_grad()
def _plain_logp(trial: Trial, policy: Policy, prompt: Prompt, id_T: Tensor) -> Tensor:
    """[T], by the model's own forward: logits, pixels, positions that it finds itself."""
    model, device = policy.model, policy.device
    inputs = {"input_ids": torch.cat([prompt.id_P, id_T])[None].to(device)}
    if prompt.images:
        inputs["mm_token_type_ids"] = torch.cat([prompt.type_P, torch.zeros_like(id_T)])[None].to(device)
        inputs["pixel_values"] = torch.cat([image.pixel_values for image in prompt.images]).to(device)
        inputs["image_grid_thw"] = torch.stack([image.grid_thw for image in prompt.images]).to(device)
    if hasattr(model.base_model, "rope_deltas"):
        model.base_model.rope_deltas = None  # of the last rollout
    was_training = model.training
    model.eval()
    try:
        with trial.trainer.accelerator.autocast():
            logits_TU = model(**inputs, use_cache=False, logits_to_keep=id_T.numel() + 1).logits[0, :-1]
    finally:
        model.train(was_training)
    logp_TV = logits_TU[:, : policy.vocab_size].float().log_softmax(-1)
    return logp_TV.gather(-1, id_T.to(device)[:, None])[:, 0].cpu()


CHECKS = (
    Check("equal policies", "model", equal_policies),
    Check("packed rows", "model", rows_agree),
    Check("rollout scores", "model", engine_agrees),
)
