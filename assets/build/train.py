"""One model from nothing: see, then answer."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from .curriculum import Course, Lessons, compose_pool, write_lessons
from .digits import split_strokes
from .models import Size, build_model
from .packing import IGNORE, Batch, Row, collate
from .tower import as_encoder_output, encode_all, train_tower

TEXT_ROWS = 1


def make_model(
    size: Size, course: Course, processor: Qwen3VLProcessor, seed: int
) -> tuple[Qwen3VLForConditionalGeneration, dict]:
    """A schooled model of `size`, and a report with accuracies and seconds."""
    strokes, _ = split_strokes(seed)
    model = build_model(size, processor, seed)
    began = time.monotonic()
    seen = train_tower(model, processor, strokes, course.tower_steps, seed)
    model.model.visual.requires_grad_(False)
    tower_seconds = time.monotonic() - began
    pool = compose_pool(strokes, course, seed)
    lessons = write_lessons(pool, processor, course, seed)
    features = encode_all(model, processor, pool)
    _check_positions(model, lessons.privileged[0])
    began = time.monotonic()
    _train_language(model, lessons, features, course, seed)
    model.requires_grad_(True)
    report = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tower_accuracy_on_training_cells": {name: round(value, 4) for name, value in seen.items()},
        "seconds": {"tower": round(tower_seconds), "language": round(time.monotonic() - began)},
    }
    return model.eval(), report


def _train_language(
    model: Qwen3VLForConditionalGeneration, lessons: Lessons, features: Tensor, course: Course, seed: int
) -> None:
    """Supervised fine-tuning of the language model in place, on `features` [levels, scenes, 9, H] of its tower."""
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 9])
    plan = (
        _forever(lessons.plain, course.plain_rows, rng),
        _forever(lessons.privileged, course.privileged_rows, rng),
        _forever(lessons.text, TEXT_ROWS, rng),
    )
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=course.learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=course.learning_rate, total_steps=course.steps, pct_start=0.08, cycle_momentum=False
    )
    pad = model.config.text_config.pad_token_id
    model.train()
    for _ in (bar := tqdm(range(course.steps), desc="language", mininterval=2)):
        batches = [collate(next(source), pad) for source in plan]
        count = sum(int((batch.targets != IGNORE).sum()) for batch in batches)
        losses = []
        for batch in batches:
            loss = token_losses(model, batch, features).sum()
            (loss / count).backward()
            losses.append(loss.item() / int((batch.targets != IGNORE).sum()))
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        bar.set_postfix(zip(("plain", "with_p", "text"), (f"{loss:.3f}" for loss in losses), strict=True))


def token_losses(model: Qwen3VLForConditionalGeneration, batch: Batch, features: Tensor) -> Tensor:
    """Cross-entropy of every target token of `batch`, [targets]; logits are formed for these positions only."""
    hidden = model.model(
        input_ids=batch.ids,
        attention_mask=batch.mask,
        position_ids=batch.positions,
        mm_encoder_outputs=as_encoder_output(features[:, batch.images]) if batch.images else None,
        use_cache=False,
    ).last_hidden_state
    learnt = batch.targets != IGNORE
    return F.cross_entropy(model.lm_head(hidden[learnt]), batch.targets[learnt], reduction="none")


def _forever(rows: list[Row], count: int, rng: np.random.Generator) -> Iterator[list[Row]]:
    """Batches of `count` rows of similar length, in random order, epoch after epoch."""
    while True:
        shuffled = [rows[i] for i in rng.permutation(len(rows))]
        batches = []
        for start in range(0, len(shuffled), 50 * count):
            chunk = sorted(shuffled[start : start + 50 * count], key=len)
            batches += [chunk[i : i + count] for i in range(0, len(chunk) - count + 1, count)]
        yield from (batches[i] for i in rng.permutation(len(batches)))


def _check_positions(model: Qwen3VLForConditionalGeneration, row: Row) -> None:
    """Our positions of the prefix are those that the model would compute itself."""
    shared = int((row.branch == 0).sum())
    ids = row.ids[None, :shared]
    is_image = (ids == model.config.image_token_id).int()
    expected, _ = model.model.get_rope_index(ids, is_image, image_grid_thw=torch.tensor([[1, 6, 6]]))
    if not torch.equal(expected[:, 0], row.positions[:, :shared]):
        raise AssertionError("packing.mrope_positions differs from Qwen3VLModel.get_rope_index")
