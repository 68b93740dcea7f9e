"""Teaches a vision tower to see, before the language model exists for it.

A tiny Qwen3-VL does not learn to see from the language-model loss alone. A dense target does it in two minutes:
every merged token predicts the digit, the colour, the row and the column of its 32-px cell. The place is in the
target because finding a thing by its place is what the language model would otherwise learn last. Digit and colour
are read off along the embeddings of the words `7` and ` red`: what the tower says is then in the language model's
own terms, and finding "the 7" in the picture takes no more than finding it in a text.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from .digits import Strokes
from .scenes import CELLS, COLOURS, GRID, Scene, paint

EMPTY_DIGIT, EMPTY_COLOUR = 10, len(COLOURS)
ATTRIBUTES = ("digit", "colour", "row", "column")
PATCHES = 4 * CELLS
POOL, BATCH = 4000, 24
FEATURE_RMS = 0.5  # of what the tower hands over: large beside a fresh embedding (0.05), small beside RMSNorm's 1


class CellHead(nn.Module):
    """Reads a cell off one level of the tower. Only the head of the places has weights, and it is thrown away."""

    def __init__(self, model: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor) -> None:
        super().__init__()
        embeddings = model.get_input_embeddings().weight.detach()
        for name, words in (("digit", [str(digit) for digit in range(10)]), ("colour", [f" {c}" for c in COLOURS])):
            ids = [token for word in words for token in processor.tokenizer(word)["input_ids"]]
            self.register_buffer(name, F.normalize(embeddings[ids], dim=-1))
        self.place = nn.Linear(embeddings.shape[1], 2 * GRID)

    def forward(self, level: Tensor) -> tuple[Tensor, ...]:
        """Logits of each of ATTRIBUTES for `level` [cells, H]. An empty cell is the class with the constant logit 0."""
        none = level.new_zeros(len(level), 1)
        named = (torch.cat([level @ words.T, none], dim=-1) for words in (self.digit, self.colour))
        return (*named, *self.place(level).split(GRID, dim=-1))


def train_tower(
    model: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor, strokes: Strokes, steps: int, seed: int
) -> dict[str, float]:
    """Trains `model.model.visual` in place and rescales its output. Returns the last cell accuracies."""
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 6])
    visual = model.model.visual
    # One head for the output, one for each deepstack level.
    heads = nn.ModuleList(CellHead(model, processor) for _ in range(1 + len(visual.deepstack_merger_list)))
    parameters = [*visual.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps, pct_start=0.1)
    pool, targets = _crowded_pool(processor, strokes, POOL, rng)
    right = torch.zeros(len(ATTRIBUTES))
    for _ in (bar := tqdm(range(steps), desc="tower")):
        chosen = torch.from_numpy(rng.choice(POOL, BATCH, replace=False))
        target = targets[chosen].flatten(0, 1)
        levels = _levels(_see(model, pool[chosen].float()))
        logits = [head(level) for head, level in zip(heads, levels, strict=True)]
        loss = sum(F.cross_entropy(part, target[:, i]) for level in logits for i, part in enumerate(level)) / len(
            logits
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        hits = torch.stack([(part.argmax(-1) == target[:, i]).float().mean() for i, part in enumerate(logits[0])])
        right = 0.98 * right + 0.02 * hits
        bar.set_postfix(loss=f"{loss.item():.3f}", digit=f"{hits[0]:.3f}")
    _rescale(model, pool[:200].float())
    return dict(zip(ATTRIBUTES, (right / (1 - 0.98**steps)).tolist(), strict=True))


@torch.no_grad()
def encode_all(model: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor, scenes: list[Scene]) -> Tensor:
    """Features of all `scenes`, [levels, scenes, 9, H], level 0 being the merger's output."""
    parts = []
    for start in tqdm(range(0, len(scenes), 200), desc="encode"):
        patches = preprocess(processor, scenes[start : start + 200])
        levels = _levels(_see(model, patches))
        parts.append(torch.stack([level.view(-1, CELLS, level.shape[-1]) for level in levels]))
    return torch.cat(parts, dim=1)


def preprocess(processor: Qwen3VLProcessor, scenes: list[Scene]) -> Tensor:
    """`pixel_values` of `scenes`, [scenes, 36, 1536]."""
    images = [torch.from_numpy(scene.pixels).permute(2, 0, 1) for scene in scenes]
    pixels = processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
    return pixels.view(len(scenes), PATCHES, -1)


def as_encoder_output(features: Tensor) -> dict[str, BaseModelOutputWithDeepstackFeatures]:
    """`mm_encoder_outputs` of a forward pass, from features [levels, images, 9, H]."""
    output = BaseModelOutputWithDeepstackFeatures(
        pooler_output=tuple(features[0]), deepstack_features=[tuple(level) for level in features[1:]]
    )
    return {"image": output}


def cell_targets(scene: Scene) -> np.ndarray:
    """[9, 4]: digit, colour, row and column of every cell, in reading order."""
    target = np.array([(EMPTY_DIGIT, EMPTY_COLOUR, cell // GRID, cell % GRID) for cell in range(CELLS)])
    for item in scene.items:
        target[item.cell, :2] = item.digit, COLOURS.index(item.colour)
    return target


def _crowded_pool(
    processor: Qwen3VLProcessor, strokes: Strokes, count: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Pixels [count, 36, 1536] in half precision and targets [count, 9, 4] of scenes for the tower.

    Two thirds of the cells are full, with repeated digits: more to learn from than a real scene.
    """
    pixels, targets = [], []
    for _ in tqdm(range(0, count, 100), desc="draw"):
        scenes = [paint(strokes, _crowded_layout(rng), rng, wild=True) for _ in range(100)]
        pixels.append(preprocess(processor, scenes).half())
        targets.extend(cell_targets(scene) for scene in scenes)
    return torch.cat(pixels), torch.from_numpy(np.stack(targets))


def _crowded_layout(rng: np.random.Generator) -> list[tuple[int, int, str]]:
    cells = np.flatnonzero(rng.random(CELLS) < 0.67).tolist()
    return [(cell, int(rng.integers(10)), str(rng.choice(COLOURS))) for cell in cells]


def _see(model: Qwen3VLForConditionalGeneration, patches: Tensor) -> BaseModelOutputWithDeepstackFeatures:
    """The tower's output for `patches` [images, 36, 1536]: per image [9, H], of merger and deepstack levels."""
    grid = torch.tensor([[1, 2 * GRID, 2 * GRID]]).expand(len(patches), 3)
    return model.model.get_image_features(patches.flatten(0, 1), grid, return_dict=True)


def _levels(output: BaseModelOutputWithDeepstackFeatures) -> list[Tensor]:
    return [torch.cat(tuple(level)) for level in (output.pooler_output, *output.deepstack_features)]


@torch.no_grad()
def _rescale(model: Qwen3VLForConditionalGeneration, patches: Tensor) -> None:
    """Scales the last linear map of every merger so that its output for `patches` has the RMS `FEATURE_RMS`."""
    mergers = [model.model.visual.merger, *model.model.visual.deepstack_merger_list]
    for merger, level in zip(mergers, _levels(_see(model, patches)), strict=True):
        factor = FEATURE_RMS / level.pow(2).mean().sqrt()
        merger.linear_fc2.weight.mul_(factor)
        merger.linear_fc2.bias.mul_(factor)
