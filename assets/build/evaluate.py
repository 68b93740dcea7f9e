"""Greedy accuracy on the held-out questions, plain and with p, per kind."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from .processing import view_messages
from .scenes import Example

BATCH = 60
ANSWER = re.compile(r"Answer: (.+)$")


def measure(model: PreTrainedModel, processor: ProcessorMixin, examples: Sequence[Example]) -> dict[str, dict]:
    """Accuracy in per cent of both views: `{"plain": {"all": 52.3, "which": ...}, "privileged": {...}}`."""
    report = {}
    for view in ("plain", "privileged"):
        answers = answer(model, processor, examples, privileged=view == "privileged")
        hits: dict[str, list[bool]] = defaultdict(list)
        for example, text in zip(examples, answers, strict=True):
            hits["all"].append(is_correct(text, example))
            hits[example.kind].append(hits["all"][-1])
        report[view] = {kind: round(100 * sum(right) / len(right), 1) for kind, right in hits.items()}
    return report


@torch.no_grad()
def answer(
    model: PreTrainedModel, processor: ProcessorMixin, examples: Sequence[Example], privileged: bool
) -> list[str]:
    """Greedy responses, through the public interface of processor and model only."""
    processor.tokenizer.padding_side = "left"
    responses = []
    for start in tqdm(range(0, len(examples), BATCH), desc="privileged" if privileged else "plain"):
        batch = examples[start : start + BATCH]
        text = [
            processor.apply_chat_template(view_messages(e.sample, privileged), add_generation_prompt=True)
            for e in batch
        ]
        images = [image for example in batch for image in example.sample.images] or None
        inputs = processor(text=text, images=images, padding=True, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=64, do_sample=False)
        responses += processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return responses


def is_correct(response: str, example: Example) -> bool:
    """Exact match of what follows `Answer: ` at the end of `response`."""
    found = ANSWER.search(response)
    return bool(found) and found.group(1) == example.sample.answer
