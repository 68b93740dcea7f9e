"""Images are cut into patches once a sample and encoded once a model and window; prompts are computed once a group.

What is locked: 1) our encoding of a prompt is the processor's own, ids, types and patches; 2) two views share the image
they both show; 3) in a window the tower sees every image once, in the loss again only if it is trained; 4) with a
frozen and with a trained tower all gradients are those of pixels in every pass; 5) rollouts that go on from a shared
prompt are those of `generate` on each prompt alone, and compute each prompt once.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from transformers import LogitsProcessorList

from privileged import build_views, get_builder
from vlm_dopd.attention import shared_prefix_mask
from vlm_dopd.collate import Collator, Encoder
from vlm_dopd.completions import Completions
from vlm_dopd.methods import find
from vlm_dopd.packing import pack
from vlm_dopd.roles import Policy, banned_ids, eos_ids, freeze_vision
from vlm_dopd.rollout.hf import HFRollout, RolloutConfig
from vlm_dopd.scoring import student_hidden
from vlm_dopd.vision import PATCHES, VisionOnce, _blocks
from vlm_dopd.window import WindowBuilder

from . import tiny


@pytest.fixture(scope="module")
def model():
    return tiny.vision_model(1)


@pytest.fixture(scope="module")
def batch(model, processor):
    """Overlays beside the images, so that the privileged view shows more than the plain one."""
    return Collator(Encoder(processor, model), get_builder("overlay"), 4096)(tiny.mixed_samples())


class Counter:
    """Counts the images that a tower, and the tokens that a language model, is given."""

    def __init__(self, model):
        self.images, self.tokens = 0, 0
        model.base_model.visual.register_forward_pre_hook(self._tower, with_kwargs=True)
        model.get_input_embeddings().register_forward_pre_hook(self._language)

    def _tower(self, module, args, kwargs):
        self.images += len(kwargs["grid_thw"])

    def _language(self, module, args):
        self.tokens += args[0].numel()


@pytest.mark.parametrize("builder", ["boxes", "overlay", "crops", "none"])
def test_prompts_are_the_processors_own(model, processor, builder):
    """Byte for byte, for one, two and no images, in both views."""
    encoder = Encoder(processor, model)
    for sample in tiny.mixed_samples():
        views = build_views(sample, get_builder(builder))
        for view in (views.plain, views.privileged):
            prompt = encoder.encode(view)
            theirs = processor(text=[encoder.render(view)], images=list(view.images) or None, return_tensors="pt")
            assert prompt.id_P.tolist() == theirs["input_ids"][0].tolist()
            if view.images:
                assert prompt.type_P.tolist() == theirs["mm_token_type_ids"][0].tolist()
                assert torch.equal(torch.cat([i.pixel_values for i in prompt.images]), theirs["pixel_values"])
                assert torch.equal(prompt.image_grid_thw, theirs["image_grid_thw"])
            else:
                assert prompt.image_grid_thw is None and not prompt.type_P.any()


def test_views_share_their_images(batch):
    """Also after the way from a data loader's worker, which is a pickle."""
    from multiprocessing.reduction import ForkingPickler

    again = ForkingPickler.loads(ForkingPickler.dumps(batch))
    for groups in (batch.groups, again.groups):
        first = groups[0]
        assert first.plain.images[0] is first.privileged.images[0]
        assert len(first.privileged.images) == 2


def test_workers_get_no_weights(processor):
    """A collator goes to other processes by value; the student stays where it is."""
    from multiprocessing.reduction import ForkingPickler

    model = tiny.vision_model(1, hidden=512)
    collate = Collator(Encoder(processor, model), get_builder("boxes"), 4096)
    weights = sum(p.numel() * 4 for p in model.parameters())
    assert len(ForkingPickler.dumps(collate)) < weights / 4


def builder_of(student, teacher, processor, siblings=3):
    tokenizer = processor.tokenizer
    policies = [Policy(m, len(tokenizer)) for m in (student, teacher)]
    eos, banned = eos_ids(student, tokenizer), banned_ids(student, tokenizer)
    config = RolloutConfig(siblings=siblings, max_new_tokens=5)
    engine = HFRollout(policies[0], config, tokenizer.pad_token_id, eos, banned, 0)
    ranks = SimpleNamespace(process_index=0, autocast=lambda: torch.autocast("cpu", enabled=False))
    method = find("dopd")()
    by_role = dict(zip(("student", "teacher"), policies, strict=True))
    completions = Completions(method=method, engine=engine)
    return policies[0], WindowBuilder(by_role, method, completions, tokenizer.pad_token_id, [*eos, *banned], ranks)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_window_encodes_every_image_once(processor, batch, frozen):
    """Four images in plain views, and an overlay for each that has boxes; the loss encodes only what is trained."""
    student, teacher = tiny.vision_model(1), tiny.vision_model(2, hidden=48)
    if frozen:
        freeze_vision(student)
    mine, theirs = Counter(student), Counter(teacher)
    policy, windows = builder_of(student, teacher, processor)
    plain = sum(len(group.plain.images) for group in batch.groups)
    privileged = len({image for group in batch.groups for image in group.privileged.images})
    assert (plain, privileged) == (4, 6)
    for step in range(2):
        window = windows.build([batch], step)
        in_losses = 0 if frozen else step * plain
        assert mine.images == (step + 1) * privileged + in_losses
        assert theirs.images == (step + 1) * privileged
        for passed in window.batches[0]:
            student_hidden(student, policy, passed.packed).sum().backward()


@pytest.mark.parametrize("frozen", [True, False])
def test_gradients_are_those_of_pixels(processor, batch, frozen):
    """In every parameter, the tower's included where it is trained."""
    ours = tiny.vision_model(1)
    if frozen:
        freeze_vision(ours)
    theirs = copy.deepcopy(ours)
    prompts = [group.privileged for group in batch.groups]
    responses = [[torch.arange(30, 34), torch.arange(40, 42)] for _ in prompts]
    direction = torch.randn(6, ours.config.text_config.hidden_size, generator=torch.Generator().manual_seed(0))
    for prompt, siblings in zip(prompts, responses, strict=True):
        (packed,) = pack([prompt], [siblings], 0)
        (student_hidden(ours, Policy(ours, 1), packed) * direction).sum().backward()
        pixels = {}
        if packed.images:
            pixels["pixel_values"] = torch.cat([image.pixel_values for image in packed.images])
            pixels["image_grid_thw"] = torch.stack([image.grid_thw for image in packed.images])
        mask = shared_prefix_mask(packed.group_BL, packed.segment_BL)
        options = {"attention_mask": mask, "use_cache": False, "output_hidden_states": True}
        output = theirs(**packed.inputs, **pixels, **options)
        (packed.gather(output.hidden_states[-1]) * direction).sum().backward()
    trained = 0
    for (name, mine), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        if other.grad is None:
            assert mine.grad is None or not mine.grad.any(), name
            continue
        trained += ".visual." in name
        torch.testing.assert_close(
            mine.grad, other.grad, rtol=1e-4, atol=1e-5 * float(other.grad.abs().max()), msg=name
        )
    assert (trained > 0) is not frozen


def test_moved_weights_give_new_features(batch):
    """What was encoded before a step is not used after it."""
    model = tiny.vision_model(1)
    vision = VisionOnce(model)
    images = batch.groups[0].plain.images
    before = vision.inputs(images)["mm_encoder_outputs"]["image"].pooler_output[0]
    with torch.no_grad():
        model.base_model.visual.merger.linear_fc2.bias += 1
    assert vision.inputs(images)["mm_encoder_outputs"]["image"].pooler_output[0] is before
    vision.forget()
    assert not torch.allclose(vision.inputs(images)["mm_encoder_outputs"]["image"].pooler_output[0], before)


def test_many_images_are_encoded_in_blocks():
    """None is left out or split; a block has PATCHES patches at most, unless one image has more."""
    sizes = [PATCHES // 2, PATCHES // 2, 1, PATCHES * 2, 5, 6]
    images = [SimpleNamespace(pixel_values=torch.empty(n, 0)) for n in sizes]
    assert [[i.pixel_values.shape[0] for i in block] for block in _blocks(images)] == [
        [PATCHES // 2, PATCHES // 2], [1], [PATCHES * 2], [5, 6],
    ]  # fmt: skip
    assert _blocks([]) == []


def test_rollouts_are_those_of_each_prompt_alone(model, processor, batch):
    """Greedy, so that transformers' own `generate` on ids and pixels can say what is right."""
    tokenizer = processor.tokenizer
    engine = builder_of(model, tiny.vision_model(2), processor)[1].completions.engine
    engine.config.top_k, engine.config.max_new_tokens = 1, 12
    from transformers import TopKLogitsWarper

    engine.filters.append(TopKLogitsWarper(1))
    policy = engine.policy
    policy.vision.forget()
    for group, siblings in zip(batch.groups, engine(batch.groups, 0), strict=True):
        prompt = group.plain
        inputs = {"input_ids": prompt.id_P[None], "attention_mask": torch.ones_like(prompt.id_P)[None]}
        inputs |= {"mm_token_type_ids": prompt.type_P[None]}
        if prompt.images:
            pixels = torch.cat([image.pixel_values for image in prompt.images])
            inputs |= {"pixel_values": pixels, "image_grid_thw": prompt.image_grid_thw}
        ends = eos_ids(model, tokenizer)
        alone = model.generate(
            **inputs,
            max_new_tokens=12,
            do_sample=False,
            logits_processor=LogitsProcessorList(engine.filters[:1]),
            eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id,
        )[0, prompt.id_P.numel() :].tolist()
        assert [response.id_T.tolist() for response in siblings] == [alone] * 3


@pytest.mark.parametrize("siblings", [1, 4])
def test_a_prompt_is_computed_once_for_its_siblings(processor, batch, siblings):
    """Tokens that go through the language model: all prompts once, and at most one a sibling and new token."""
    student = tiny.vision_model(1)
    counter = Counter(student)
    engine = builder_of(student, tiny.vision_model(2), processor, siblings)[1].completions.engine
    engine(batch.groups, 0)
    longest = max(group.plain.id_P.numel() for group in batch.groups)
    prompts = len(batch.groups) * (longest - 1)
    assert prompts < counter.tokens <= prompts + 5 * siblings * len(batch.groups)
