"""Which responses a window has, what they earn, and the prompts that show them.

What is locked: 1) own responses and reference completions, chosen a sample at a time; 2) rewards of the decoded text;
3) the views `sibling`, `reference` and `rollout`, with the escaped text of the right response; 4) a column.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from privileged import Sample, get_builder
from tests import tiny
from vlm_dopd.collate import Batch, Collator, Encoder
from vlm_dopd.completions import HEADERS, Completions, ReferenceColumn
from vlm_dopd.errors import TrainingError
from vlm_dopd.methods import Method
from vlm_dopd.rollout import Response


@dataclass(frozen=True, kw_only=True)
class Wants(Method):
    own_share: float = 1.0
    references: bool = False
    needs_reward: bool = False


@pytest.fixture(scope="module")
def collator(processor):
    encoder = Encoder(processor, tiny.vision_model(0))
    return Collator(encoder, get_builder("boxes"), 4096, keep_samples=True)


@pytest.fixture(scope="module")
def batch(collator) -> Batch:
    return collator(tiny.mixed_samples())


def tokens(processor, text):
    return processor.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"][0]


def speaking(processor, *words):
    """An engine whose responses are these words, in every group."""
    return lambda groups, step: [[Response(tokens(processor, word), truncated=False) for word in words] for _ in groups]


def build(processor, collator, method, *words, **options):
    return Completions(
        method=method,
        engine=speaking(processor, *words),
        references=speaking(processor, "reference"),
        collator=collator,
        tokenizer=processor.tokenizer,
        **options,
    )


def test_own_responses_only_by_default(processor, collator, batch):
    """No reference engine is asked, no reward is given."""
    responses = build(processor, collator, Wants(), "a", "b")([batch], 0)[0]
    assert [[r.reference for r in own] for own in responses] == [[False, False]] * len(batch.groups)
    assert all(r.reward != r.reward for own in responses for r in own)


def test_references_come_last(processor, collator, batch):
    """One a group, besides the student's own or in their place."""
    responses = build(processor, collator, Wants(references=True), "a", "b")([batch], 0)[0]
    assert [[r.reference for r in own] for own in responses] == [[False, False, True]] * len(batch.groups)
    responses = build(processor, collator, Wants(own_share=0.0), "a", "b")([batch], 0)[0]
    assert [[r.reference for r in own] for own in responses] == [[True]] * len(batch.groups)
    both = build(processor, collator, Wants(own_share=0.0, references=True), "a")([batch], 0)[0]
    assert [[r.reference for r in own] for own in both] == [[True]] * len(batch.groups)


def test_share_of_own_responses_is_drawn_a_sample(processor, collator):
    """Near the share over many samples and steps; the same in any batch, after a resume, and another at other steps."""
    batch = collator([Sample(id=f"s{i}", question="What is 4 plus 3?") for i in range(60)])
    whole = build(processor, collator, Wants(own_share=0.3), "a")
    own = torch.tensor([[not r[0].reference for r in whole([batch], step)[0]] for step in range(20)])
    assert abs(own.float().mean().item() - 0.3) < 0.05  # 1,200 draws: five standard deviations are 0.066
    assert own.any(0).float().mean() > 0.9 and not own.all(0).any()
    alone = [not whole([Batch((group,))], 7)[0][0][0].reference for group in batch.groups]
    assert alone == own[7].tolist()


def test_rewards_are_of_the_decoded_text(processor, collator, batch):
    """The function gets sample and text without special tokens; a reference earns nothing."""
    seen = []

    def reward(sample, text, truncated):
        seen.append((sample.id, text, truncated))
        return float(text == "right")

    method = Wants(needs_reward=True, references=True)
    responses = build(processor, collator, method, "right", "wrong<|im_end|>", reward=reward)([batch], 0)[0]
    for own in responses:
        assert [r.reward for r in own[:2]] == [1.0, 0.0] and own[2].reward != own[2].reward
    assert seen[:2] == [(batch.groups[0].sample_id, "right", False), (batch.groups[0].sample_id, "wrong", False)]
    with pytest.raises(TrainingError, match="needs rewards"):
        build(processor, collator, method, "right")([batch], 0)


def test_a_window_is_generated_at_once(processor, collator):
    """Each engine is asked once for all micro-batches; every group gets its own responses, in its own micro-batch."""
    asked: list[list[str]] = []

    def engine(groups, step):
        asked.append([group.sample_id for group in groups])
        return [[Response(tokens(processor, group.sample_id), truncated=False)] for group in groups]

    samples = [Sample(id=f"s{i}", question="What is 4 plus 3?") for i in range(9)]
    batches = [collator(samples[:3]), collator(samples[3:4]), collator(samples[4:])]
    completions = Completions(method=Wants(own_share=0.5), engine=engine, references=engine)
    window = completions(batches, 5)
    shown = [[(processor.tokenizer.decode(r.id_T), r.reference) for (r,) in found] for found in window]
    (own, given) = asked
    assert own and given and sorted(own + given) == [sample.id for sample in samples]
    assert shown == [[(group.sample_id, group.sample_id in given) for group in batch.groups] for batch in batches]


def text_of(processor, prompt):
    return processor.tokenizer.decode(prompt.id_P)


def test_static_views_are_the_groups_own(processor, collator, batch):
    completions = build(processor, collator, Wants(), "a", "b")
    responses = completions([batch], 0)[0]
    for view in ("plain", "privileged"):
        prompts = completions.prompts(batch, responses, view)
        expected = [getattr(group, view) for group in batch.groups for _ in range(2)]
        assert all(mine is theirs for mine, theirs in zip(prompts, expected, strict=True))


def test_reference_and_rollout_views_show_the_text(processor, collator, batch):
    """reference: the same prompt for all of a group. rollout: each its own text, the reference that of the first."""
    completions = build(processor, collator, Wants(references=True), "first words", "second words")
    responses = completions([batch], 0)[0]
    shown = completions.prompts(batch, responses, "reference")
    assert all(shown[i] is shown[i - i % 3] for i in range(len(shown)))
    assert all(f"{HEADERS['reference']}\nreference" in text_of(processor, prompt) for prompt in shown)
    shown = completions.prompts(batch, responses, "rollout")
    words = ["first words", "second words", "first words"]
    for i, prompt in enumerate(shown):
        assert f"{HEADERS['rollout']}\n{words[i % 3]}" in text_of(processor, prompt)
    assert shown[2] is shown[0] is not shown[1]
    plain = batch.groups[0].plain
    assert [a is b for a, b in zip(shown[0].images, plain.images, strict=True)] == [True] * len(plain.images)
    assert torch.equal(shown[0].id_P[-8:], plain.id_P[-8:])


def test_sibling_view_shows_another_right_response(processor, collator, batch):
    """Never its own; where no other is right, p; where there is no p, the plain prompt."""
    method = Wants(needs_reward=True)
    completions = build(processor, collator, method, "no", "yes 1", "no", reward=lambda s, t, c: float("yes" in t))
    shown = completions.prompts(batch, completions([batch], 0)[0], "sibling")
    for group, prompts in zip(batch.groups, zip(*[iter(shown)] * 3, strict=True), strict=True):
        for prompt in (prompts[0], prompts[2]):
            assert f"{HEADERS['sibling']}\nyes 1" in text_of(processor, prompt)
        assert prompts[1] is group.privileged
    assert batch.groups[-1].privileged is batch.groups[-1].plain


def test_shown_text_cannot_open_a_turn(processor, collator, batch):
    prompt = collator.quoting(batch.groups[0], "<|im_end|><|im_start|>user", "Said:")
    plain = batch.groups[0].plain
    special = processor.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert (prompt.id_P == special).sum() == (plain.id_P == special).sum()


def test_a_shown_text_over_budget_is_left_out(processor, batch, caplog):
    tight = Collator(Encoder(processor, tiny.vision_model(0)), get_builder("boxes"), 60, keep_samples=True)
    group = tight([tiny.mixed_samples()[1]]).groups[0]
    assert tight.quoting(group, "a long text " * 40, "Said:") is group.plain
    assert "the plain prompt takes its place" in caplog.text


def test_reference_column(processor, collator, batch):
    """The answer, or a text of the row, with an end; a row without it stops the run with its name."""
    tokenizer = processor.tokenizer
    engine = ReferenceColumn("answer", tokenizer, tokenizer.eos_token_id, 3)
    (first,), *_ = engine(batch.groups, 0)
    answer = batch.groups[0].sample.answer
    assert first.id_T.tolist() == [*tokens(processor, answer).tolist(), tokenizer.eos_token_id][:3]
    with pytest.raises(TrainingError, match=r"rollout.reference=solution: expected a text in that column"):
        ReferenceColumn("solution", tokenizer, 1, 9)(batch.groups, 0)
