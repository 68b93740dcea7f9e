"""A small Qwen3-VL pair with random weights for measuring: real classes, real vocabulary, real image geometry.

Width and depth are those of Qwen3-VL-2B and 8B made smaller, the vocabulary (151,936) is not: the LM head is a larger
part of the work here than in the real pair. Images are not resized: 448×448 are 196 tokens, as in Qwen3-VL.
The end-of-sequence id of this pair is one that is never sampled, so that every response has the full length.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, GenerationConfig, Qwen3VLConfig, Qwen3VLForConditionalGeneration

BUNDLED = Path(__file__).resolve().parents[2] / "assets" / "student"
NEVER_SAMPLED = "<|video_pad|>"
PIXELS = {"shortest_edge": 65_536, "longest_edge": 16_777_216}
"""Qwen3-VL's own limits of an image's area."""


@dataclass(frozen=True, kw_only=True)
class Tower:
    """Sizes of one model. Heads are 64 wide in the text model, 32 or more in the vision tower."""

    hidden: int
    layers: int
    vision_hidden: int
    vision_layers: int
    tied: bool


@dataclass(frozen=True, kw_only=True)
class Size:
    student: Tower
    teacher: Tower
    vocabulary: int = 151_936


BENCH = Size(
    student=Tower(hidden=512, layers=8, vision_hidden=256, vision_layers=8, tied=True),
    teacher=Tower(hidden=768, layers=10, vision_hidden=288, vision_layers=9, tied=False),
)
"""A quarter of the 2B's width at a third of its depth, under a teacher half as wide again: a minute a step at most."""
TINY = Size(
    student=Tower(hidden=64, layers=2, vision_hidden=64, vision_layers=2, tied=True),
    teacher=Tower(hidden=128, layers=2, vision_hidden=64, vision_layers=2, tied=False),
    vocabulary=2_048,
)
"""To try the machinery in seconds; its figures mean nothing."""
SIZES = {"bench": BENCH, "tiny": TINY}


def save_pair(folder: Path, size: Size) -> None:
    """`folder`/student and `folder`/teacher as checkpoints with one processor."""
    _save_processor(folder, size.vocabulary)
    processor = AutoProcessor.from_pretrained(folder / "student")
    for seed, (name, tower) in enumerate((("student", size.student), ("teacher", size.teacher))):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(_config(tower, size.vocabulary, processor.tokenizer)).float()
        ids = {"eos_token_id": processor.tokenizer.eos_token_id, "pad_token_id": processor.tokenizer.pad_token_id}
        model.generation_config = GenerationConfig(**ids)
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)


def save_questions(folder: Path, images: list[tuple[int, int]]) -> Path:
    """One question a row about one picture each (width, height), with four boxes as p. Returns the data file."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    rows = []
    for number, size in enumerate(images):
        coarse = generator.integers(0, 255, (14, 14, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        corners = generator.integers(0, [size[0] - 64, size[1] - 64], (4, 2)).tolist()
        regions = [
            {"id": f"r{i}", "image": 0, "label": f"red {i}", "box": [x, y, x + 60, y + 60]}
            for i, (x, y) in enumerate(corners)
        ]
        record = {"schema": "privileged/1", "sample_id": f"q{number}", "regions": regions}
        row = {"id": f"q{number}", "question": "What is red in this picture, and where is it?", "answer": "4"}
        rows.append(row | {"images": [f"{number}.png"], "privileged": json.dumps(record)})
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def _save_processor(folder: Path, vocabulary: int) -> None:
    """The bundled processor with real image sizes, and words that no text contains up to `vocabulary`."""
    student = folder / "student"
    AutoProcessor.from_pretrained(BUNDLED).save_pretrained(student)
    tokenizer = json.loads((student / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words |= {token["content"]: token["id"] for token in tokenizer["added_tokens"]}  # they keep their ids only in there
    words |= {f"<unused {i}>": i for i in set(range(vocabulary)) - set(words.values())}
    (student / "tokenizer.json").write_text(json.dumps(tokenizer))
    for file, section, changes in (
        ("tokenizer_config.json", None, {"eos_token": NEVER_SAMPLED, "model_max_length": 1_000_000}),
        ("processor_config.json", "image_processor", {"size": PIXELS}),
    ):
        settings = json.loads((student / file).read_text())
        (settings[section] if section else settings).update(changes)
        (student / file).write_text(json.dumps(settings))


def _config(tower: Tower, vocabulary: int, tokenizer: Any) -> Qwen3VLConfig:
    shipped = Qwen3VLConfig.from_pretrained(BUNDLED)
    text, vision = shipped.text_config.to_dict(), shipped.vision_config.to_dict()
    heads = tower.hidden // 64
    text |= {"hidden_size": tower.hidden, "intermediate_size": 3 * tower.hidden, "num_hidden_layers": tower.layers}
    text |= {"num_attention_heads": heads, "num_key_value_heads": max(heads // 2, 1), "head_dim": 64}
    text |= {"vocab_size": vocabulary, "tie_word_embeddings": tower.tied, "initializer_range": 0.02}
    text |= {"eos_token_id": tokenizer.eos_token_id, "max_position_embeddings": 32_768}
    text["rope_parameters"] = text["rope_parameters"] | {"mrope_section": [12, 10, 10]}
    vision |= {"hidden_size": tower.vision_hidden, "intermediate_size": 4 * tower.vision_hidden}
    vision |= {"depth": tower.vision_layers, "num_heads": tower.vision_hidden // 32, "out_hidden_size": tower.hidden}
    # Three levels of the tower reach the language model, at a quarter, a half and three quarters, as in Qwen3-VL.
    levels = sorted({tower.vision_layers * part // 4 for part in (1, 2, 3)})[: tower.layers]
    vision |= {"deepstack_visual_indexes": levels, "num_position_embeddings": 2_304, "initializer_range": 0.02}
    ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "pad_token_id")
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=tower.tied,
        eos_token_id=tokenizer.eos_token_id,
        **{name: getattr(shipped, name) for name in ids},
    )
