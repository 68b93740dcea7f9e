"""The sizes. Qwen3-VL in every part: deepstack, interleaved M-RoPE, grouped queries, padded vocabulary rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import GenerationConfig, Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor


@dataclass(frozen=True, kw_only=True)
class Size:
    """What differs between the models; like 8B and 2B, students tie their embeddings and teachers do not."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    tied: bool
    vision_hidden: int
    vision_depth: int
    vision_mlp: int
    deepstack: tuple[int, ...]


TEACHER = Size(
    hidden=192, layers=5, heads=6, kv_heads=3, mlp=320, tied=False,
    vision_hidden=80, vision_depth=3, vision_mlp=160, deepstack=(1,),
)  # fmt: skip
STUDENT = Size(
    hidden=128, layers=4, heads=4, kv_heads=2, mlp=256, tied=True,
    vision_hidden=64, vision_depth=2, vision_mlp=128, deepstack=(0,),
)  # fmt: skip
MIDDLE = Size(
    hidden=160, layers=4, heads=4, kv_heads=2, mlp=288, tied=False,
    vision_hidden=80, vision_depth=3, vision_mlp=160, deepstack=(1,),
)  # fmt: skip
SMALL = Size(
    hidden=96, layers=3, heads=4, kv_heads=2, mlp=192, tied=True,
    vision_hidden=64, vision_depth=2, vision_mlp=128, deepstack=(0,),
)  # fmt: skip
SIZES = {"teacher": TEACHER, "student": STUDENT, "middle": MIDDLE, "small": SMALL}


def build_model(size: Size, processor: Qwen3VLProcessor, seed: int) -> Qwen3VLForConditionalGeneration:
    """A randomly initialised fp32 model of `size`, its ids consistent with the processor's tokenizer."""
    tokenizer = processor.tokenizer
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {
        "vocab_size": (len(tokenizer) // 64 + 1) * 64,  # strictly more rows than tokens, as in the real models
        "hidden_size": size.hidden,
        "intermediate_size": size.mlp,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "head_dim": 32,
        "max_position_embeddings": 2048,
        "initializer_range": 0.05,
        "tie_word_embeddings": size.tied,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
        **ids,
    }
    vision = {
        "depth": size.vision_depth,
        "hidden_size": size.vision_hidden,
        "intermediate_size": size.vision_mlp,
        "num_heads": 4,
        "out_hidden_size": size.hidden,
        "num_position_embeddings": 36,
        "deepstack_visual_indexes": list(size.deepstack),
        "initializer_range": 0.05,
    }
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=size.tied,
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        vision_start_token_id=processor.vision_start_token_id,
        vision_end_token_id=processor.vision_end_token_id,
        **ids,
    )
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config).float()
    if not size.tied:
        # Untied, but from the same start: reading a word and saying it are then one skill, not two.
        model.lm_head.weight.data.copy_(model.get_input_embeddings().weight)
    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_token_id, eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id]
    )
    return model
