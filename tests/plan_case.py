"""Small models and windows for `vlm_dopd.plan`: what it predicts, beside the trainer's own functions doing it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from tests import tiny
from vlm_dopd.attention import ATTENTION
from vlm_dopd.collate import Prompt
from vlm_dopd.lora import LoraConfig, add_adapter
from vlm_dopd.methods import find
from vlm_dopd.packing import Packed, pack
from vlm_dopd.plan.job import Job, Work
from vlm_dopd.plan.shapes import shape_of
from vlm_dopd.roles import Policy, freeze_vision
from vlm_dopd.vision import EncodedImage

aten: Any = torch.ops.aten
CPU_FORMULAS = {
    aten.addmm_: lambda out, left, right, *_, **__: 2 * left[0] * left[1] * right[1],
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(
        g, q, k, v
    ),
}
"""Of operations that torch's counter knows from other devices only."""


def counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=CPU_FORMULAS)


@dataclass(frozen=True)
class Case:
    """A student, a window of one pass, and the job that describes them."""

    job: Job
    model: Any

    @cached_property
    def policy(self) -> Policy:
        return Policy(self.model, self.job.student.text.vocabulary, "sdpa")

    def packed(self, view: str = "plain") -> list[Packed]:
        """The window's passes: prompts of one length, responses of full length, images of noise."""
        job, text = self.job, self.job.student.text
        generator = torch.Generator().manual_seed(0)
        image_id = getattr(self.model.config, "image_token_id", 0)
        extra = job.work.privileged_tokens if view == "privileged" else 0
        prompts = []
        for _ in range(job.window):
            shown = job.images * job.work.image_tokens
            words = torch.randint(30, 200, (job.work.text_tokens + extra,), generator=generator)
            ids = torch.cat([torch.full((shown,), image_id), words])
            channels = 3 if job.student.vision else 1
            images = tuple(self.image(generator) for _ in range(job.images))
            prompts.append(Prompt(ids, (ids == image_id).long(), torch.arange(len(ids)).expand(channels, -1), images))
        assert text.vocabulary > 200
        responses = [
            [torch.randint(30, 200, (job.max_new_tokens,), generator=generator) for _ in range(job.siblings)]
            for _ in prompts
        ]
        return pack(prompts, responses, 0, job.pass_tokens)

    def image(self, generator: torch.Generator) -> EncodedImage:
        vision = self.job.student.vision
        assert vision is not None
        patches = self.job.work.image_tokens * vision.merge
        grid = torch.tensor([1, 2, patches // 2])
        return EncodedImage(torch.randn(patches, vision.patch, generator=generator), grid)


def case(
    *, images: int = 1, hidden: int = 64, layers: int = 3, tied: bool = True, method: str = "opd", bf16: bool = False,
    checkpointing: bool = False, freeze: bool = True, base: torch.dtype = torch.float32, **changes: Any,
) -> Case:  # fmt: skip
    model = tiny.vision_model(1, hidden=hidden, layers=layers, tied=tied) if images else tiny.text_model(1, hidden)
    model.set_attn_implementation(ATTENTION)
    if images and freeze:
        freeze_vision(model)
    if rank := changes.get("lora_rank"):
        add_adapter(model.to(base), LoraConfig(r=rank))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    shape = shape_of(model.config, "student")
    own = find(method)()
    work = Work(text_tokens=9, image_tokens=24, images=images, privileged_tokens=7, response_tokens=11)
    job = Job(
        student=shape, frozen={"teacher": replace(shape, name="teacher")}, method=own, work=work, micro=3, siblings=2,
        max_new_tokens=11, flex=False, cpu=True, frozen_bytes=4, bf16=bf16, checkpointing=checkpointing,
        freeze_vision=freeze, base_bytes=base.itemsize,
    )  # fmt: skip
    return Case(replace(job, **changes), model)
