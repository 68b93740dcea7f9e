"""Shared-prefix rows give the hidden states, scores and gradients of one row a response.

The reference is transformers' own forward on `processor` output with the response appended: its own masks, position
ids and image handling, none of ours.
"""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from privileged import build_views, get_builder
from tests import tiny
from vlm_dopd.attention import ATTENTION, shared_prefix_mask
from vlm_dopd.collate import Encoder
from vlm_dopd.packing import MAX_PADDING, pack
from vlm_dopd.roles import Policy
from vlm_dopd.scoring import _hidden, score, student_hidden

PAD = 0
BUILDER = get_builder("boxes")


@pytest.fixture(scope="module")
def vision():
    return tiny.vision_model(1)


@pytest.fixture(scope="module")
def prompts(vision, processor):
    """Plain and privileged prompts of mixed samples: no, one and two images, with and without p."""
    encoder = Encoder(processor, vision)
    views = [build_views(sample, BUILDER) for sample in tiny.mixed_samples()]
    return [encoder.encode(view) for pair in views for view in (pair.plain, pair.privileged)]


def responses(lengths: list[list[int]], seed: int = 0) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randint(30, 200, (n,), generator=generator) for n in siblings] for siblings in lengths]


def in_order(passes, values):
    """What the passes gave, in the order in which the groups were packed."""
    return torch.cat(values)[torch.cat([packed.place_N for packed in passes]).argsort()]


def packed_rows(model, passes):
    """Hidden states that predict each response token, from our passes."""
    policy = Policy(model, model.get_output_embeddings().weight.shape[0])
    hidden = [_hidden(policy, packed) for packed in passes]
    return in_order(passes, hidden)


def reference_rows(model, prompt, siblings):
    """Hidden states that predict each response token, from one plain forward a response."""
    rows = []
    for response in siblings:
        ids = torch.cat([prompt.id_P, response])[None]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if prompt.position_CP.shape[0] > 1:
            inputs["mm_token_type_ids"] = torch.cat([prompt.type_P, torch.zeros_like(response)])[None]
        if prompt.images:
            pixels = torch.cat([image.pixel_values for image in prompt.images])
            inputs |= {"pixel_values": pixels, "image_grid_thw": prompt.image_grid_thw}
        hidden = model.base_model(**inputs, use_cache=False).last_hidden_state[0]
        rows.append(hidden[prompt.id_P.numel() - 1 : -1] if response.numel() else hidden[:0])
    return torch.cat(rows)


@torch.no_grad()
def test_hidden_states_equal_separate_rows(vision, prompts):
    """Mixed batch: unequal prompts, image counts and lengths, one response empty."""
    siblings = responses([[5, 3], [2, 7], [4, 0], [1, 6], [3, 3], [9, 1], [2, 2], [5, 4]])
    passes = pack(prompts, siblings, PAD)
    ours = packed_rows(vision, passes)
    theirs = torch.cat([reference_rows(vision, *pair) for pair in zip(prompts, siblings, strict=True)])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@given(
    st.lists(st.lists(st.integers(0, 6), min_size=2, max_size=2), min_size=1, max_size=5),
    st.integers(0, 7),
    st.none() | st.integers(1, 600),
)
def test_hidden_states_equal_separate_rows_for_any_shape(vision, prompts, lengths, first, max_tokens):
    """Whatever shares a row or a pass, and whatever the budget; which the passes keep, and the limit of padding."""
    chosen = [prompts[(first + i) % len(prompts)] for i in range(len(lengths))]
    siblings = responses(lengths, seed=first)
    passes = pack(chosen, siblings, PAD, max_tokens)
    tokens = in_order(passes, [packed.token_N for packed in passes])
    assert tokens.tolist() == [int(i) for group in siblings for r in group for i in r]
    longest = max(p.id_P.numel() + sum(map(len, r)) for p, r in zip(chosen, siblings, strict=True))
    for packed in passes:
        total = packed.inputs["input_ids"].numel()
        assert packed.padding <= MAX_PADDING * total
        assert max_tokens is None or total <= max(max_tokens, longest)
    ours = packed_rows(vision, passes)
    theirs = torch.cat([reference_rows(vision, *pair) for pair in zip(chosen, siblings, strict=True)])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_text_only_model_uses_the_same_rows(processor):
    model = tiny.text_model(1)
    encoder = Encoder(processor.tokenizer, model)
    sample = tiny.mixed_samples()[1]
    views = build_views(sample, get_builder("hints"))
    texts = [encoder.encode(views.plain), encoder.encode(views.privileged)]
    siblings = responses([[4, 2], [3, 5]])
    passes = pack(texts, siblings, PAD)
    assert all(packed.inputs["position_ids"].ndim == 2 for packed in passes)
    ours = packed_rows(model, passes)
    theirs = torch.cat([reference_rows(model, *pair) for pair in zip(texts, siblings, strict=True)])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_gradients_equal_separate_rows(vision, prompts):
    """Of a loss on the hidden states, in every parameter, through the module's own forward."""
    siblings = responses([[5, 3], [2, 7], [4, 1]])
    chosen = prompts[:3]
    ours, theirs = copy.deepcopy(vision), copy.deepcopy(vision)
    rows = torch.cat([reference_rows(theirs, *pair) for pair in zip(chosen, siblings, strict=True)])
    direction = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))
    (rows * direction).sum().backward()
    passes = pack(chosen, siblings, PAD)
    hidden = in_order(passes, [student_hidden(ours, Policy(ours, 1), packed) for packed in passes])
    (hidden * direction).sum().backward()
    for (name, mine), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        if other.grad is None:  # the LM head is outside this loss
            assert mine.grad is None or not mine.grad.any(), name
            continue
        scale = other.grad.abs().max()
        assert (mine.grad - other.grad).abs().max() / scale < 1e-3, name


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_scores_equal_a_padded_batch_of_transformers(vision, prompts, processor, side):
    """All roles score the same ids: a mixed batch, padded on either side, gives the same sampled log-probabilities."""
    siblings = responses([[5], [2], [7], [4], [1], [6], [3], [2]])
    policy = Policy(vision, len(processor.tokenizer))
    ours = score(policy, pack(prompts, siblings, PAD))
    ids = [torch.cat([p.id_P, r[0]]) for p, r in zip(prompts, siblings, strict=True)]
    types = [torch.cat([p.type_P, torch.zeros_like(r[0])]) for p, r in zip(prompts, siblings, strict=True)]
    length = max(map(len, ids))

    def stack(rows: list[torch.Tensor]) -> torch.Tensor:
        pads = [torch.zeros(length - len(row), dtype=torch.long) for row in rows]
        return torch.stack([torch.cat([p, r] if side == "left" else [r, p]) for p, r in zip(pads, rows, strict=True)])

    pictures = [p for p in prompts if p.images]
    logits = vision(
        input_ids=stack(ids),
        attention_mask=stack([torch.ones_like(row) for row in ids]),
        mm_token_type_ids=stack(types),
        pixel_values=torch.cat([image.pixel_values for p in pictures for image in p.images]),
        image_grid_thw=torch.cat([p.image_grid_thw for p in pictures]),
    ).logits[..., : policy.vocab_size]
    expected = []
    for b, (prompt, siblings_b) in enumerate(zip(prompts, siblings, strict=True)):
        offset = length - len(ids[b]) if side == "left" else 0
        start = offset + len(prompt.id_P)
        logp = logits[b, start - 1 : start - 1 + len(siblings_b[0])].log_softmax(-1)
        expected.append(logp.gather(-1, siblings_b[0][:, None])[:, 0])
    torch.testing.assert_close(ours.logp_N, torch.cat(expected), rtol=1e-4, atol=1e-4)


def test_mask_by_hand():
    """Prompt of 2, responses of 2 and 1; a group of 1 and 1; one padding: who may look at whom."""
    groups, segments = torch.tensor([[0, 0, 0, 0, 0, 1, 1, -1]]), torch.tensor([[0, 0, 1, 1, 2, 0, 1, 0]])
    assert shared_prefix_mask(groups, segments).shape == (1, 1, 8, 8)
    assert shared_prefix_mask(groups, segments)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 1],
    ]


def test_block_mask_is_the_same_rule():
    """FlexAttention's mask of 500 positions, whole blocks of which nobody looks at, against the dense one."""
    generator = torch.Generator().manual_seed(0)
    lengths = [[150, 70, 0, 90], [40, 100]]
    segments = torch.cat([torch.arange(len(own)).repeat_interleave(torch.tensor(own)) for own in lengths])
    groups = torch.arange(2).repeat_interleave(torch.tensor([sum(own) for own in lengths]))
    segment_BL = torch.nn.functional.pad(segments, (0, 50)).repeat(2, 1)
    group_BL = torch.nn.functional.pad(groups, (0, 50), value=-1).repeat(2, 1)
    segment_BL[1] = torch.randint(0, 3, (500,), generator=generator)  # a second row, whose blocks differ
    dense, block = (shared_prefix_mask(group_BL, segment_BL, flex) for flex in (False, True))
    at = torch.arange(500)
    for b in range(2):
        rule = block.mask_mod(torch.tensor(b), torch.tensor(0), at[:, None], at)
        assert torch.equal(rule, dense[b, 0])
        tiles = dense[b, 0].new_zeros(512, 512)
        tiles[:500, :500] = dense[b, 0]
        assert torch.equal(block.to_dense()[b, 0].bool(), tiles.view(4, 128, 4, 128).any(1).any(-1))
    assert block.sparsity() > 20


@pytest.mark.skipif(
    shutil.which("g++") is None, reason="FlexAttention on a CPU is compiled with g++, which is not here"
)
def test_flex_attention_gives_the_scores_of_sdpa(processor, prompts):
    """The same passes with a block mask: what a GPU gets, compiled for the CPU (forward only)."""
    model = tiny.vision_model(0)
    model.set_attn_implementation(ATTENTION)
    passes = pack(prompts, responses([[5, 3], [2, 7], [4, 1], [1, 1], [6, 2], [3, 3], [2, 2], [1, 4]]), PAD)
    sdpa, flex = (score(Policy(model, len(processor.tokenizer), kind), passes) for kind in ("sdpa", "flex"))
    torch.testing.assert_close(flex.logp_N, sdpa.logp_N, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(flex.hidden_NH, sdpa.hidden_NH, rtol=1e-4, atol=1e-4)


def test_unequal_numbers_of_prompts_and_groups_are_refused(prompts):
    with pytest.raises(ValueError, match="shorter"):
        pack(prompts[:2], responses([[1]]), PAD)


@torch.no_grad()
def test_scoring_leaves_the_mode_and_ignores_dropout(vision, prompts, processor):
    """A student in training mode is scored without dropout and stays in training mode."""
    model = copy.deepcopy(vision)
    for layer in model.base_model.language_model.layers:
        layer.self_attn.attention_dropout = 0.5
    packed = pack(prompts[:2], responses([[5], [4]]), PAD)
    model.train()
    first = score(Policy(model, len(processor.tokenizer)), packed)
    assert model.training
    torch.testing.assert_close(first.logp_N, score(Policy(vision, len(processor.tokenizer)), packed).logp_N)
