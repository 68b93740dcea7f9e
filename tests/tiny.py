"""Tiny models with random weights, of the real classes, and samples from the bundled data. Seconds, not minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoProcessor,
    GenerationConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from privileged import Note, PrivilegedRecord, Region, Sample
from vlm_dopd.data import SampleDataset

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "assets"
SCENES = ASSETS / "scenes" / "train.parquet"
TEXT = ASSETS / "text" / "train.jsonl"


def processor() -> Any:
    """The bundled pair's processor: a real one, with a vocabulary of a few hundred."""
    return AutoProcessor.from_pretrained(ASSETS / "student")


def vision_model(seed: int, hidden: int = 32, layers: int = 2, tied: bool = True) -> Any:
    """A random Qwen3-VL with deepstack, grouped queries, M-RoPE and padded vocabulary rows."""
    shipped = Qwen3VLConfig.from_pretrained(ASSETS / "student")
    text, vision = shipped.text_config.to_dict(), shipped.vision_config.to_dict()
    text |= {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers}
    text |= {"tie_word_embeddings": tied, "initializer_range": 0.3}
    vision |= {"hidden_size": 32, "intermediate_size": 32, "depth": 2, "deepstack_visual_indexes": [0]}
    vision |= {"out_hidden_size": hidden, "initializer_range": 0.3}
    ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "pad_token_id")
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=tied,
        eos_token_id=text["eos_token_id"],
        **{name: getattr(shipped, name) for name in ids},
    )
    return _initialised(Qwen3VLForConditionalGeneration, config, seed)


def text_model(seed: int, hidden: int = 32) -> Any:
    """A random text-only Qwen3 with the same vocabulary."""
    shipped = Qwen3VLConfig.from_pretrained(ASSETS / "student").text_config
    config = Qwen3Config(
        vocab_size=shipped.vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        initializer_range=0.3,
        tie_word_embeddings=True,
        eos_token_id=shipped.eos_token_id,
        pad_token_id=shipped.pad_token_id,
    )
    return _initialised(Qwen3ForCausalLM, config, seed)


def save_pair(folder: Path) -> tuple[Path, Path]:
    """A random student and teacher as checkpoints with processors."""
    tools = processor()
    for name, model in (("student", vision_model(1)), ("teacher", vision_model(2, hidden=48, tied=False))):
        model.save_pretrained(folder / name)
        tools.save_pretrained(folder / name)
    return folder / "student", folder / "teacher"


def save_text_pair(folder: Path) -> tuple[Path, Path]:
    """The same of text-only Qwen3, with tokenizers."""
    for name, model in (("student", text_model(1)), ("teacher", text_model(2, hidden=48))):
        model.save_pretrained(folder / name)
        processor().tokenizer.save_pretrained(folder / name)
    return folder / "student", folder / "teacher"


def scenes(count: int) -> list[Sample]:
    data = SampleDataset(SCENES, limit=count)
    return [data[i] for i in range(count)]


def mixed_samples() -> list[Sample]:
    """One image, no image, two images of different sizes, one image without p."""
    first, second, third = scenes(3)
    wide = first.images[0].resize((160, 96))
    two = PrivilegedRecord(sample_id="two", regions=(Region(label="blue 3", box=(8, 8, 90, 60), image=1, id="r1"),))
    hint = PrivilegedRecord(sample_id="text", notes=(Note(text="Add the digits."),))
    return [
        first,
        Sample(id="text", question="What is 4 plus 3?", answer="7", privileged=hint),
        Sample(id="two", question="What is blue?", images=(second.images[0], wide), answer="3", privileged=two),
        Sample(id="bare", question=third.question, images=third.images, answer=third.answer),
    ]


def _initialised(cls: Any, config: Any, seed: int) -> Any:
    config._attn_implementation = "sdpa"
    torch.manual_seed(seed)
    model = cls(config).float().eval()
    model.generation_config = GenerationConfig(eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id)
    return model
