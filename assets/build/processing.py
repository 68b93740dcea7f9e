"""The shared processor: a small byte-level BPE with Qwen's rules, Qwen3-VL's image processor, a chat template."""

from __future__ import annotations

import json

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AddedToken, Qwen2Tokenizer, Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from privileged.builders import get_builder
from privileged.records import Sample
from privileged.views import build_views

from .arithmetic import all_problems
from .digits import split_strokes
from .scenes import KINDS, Example, ask, compose

VOCABULARY = 640  # an upper limit: the corpus runs out of pairs near 507, when each of its words is one token
PATCH = 16

# The 26 added tokens of the Qwen3 family, in their order. The last ones are ordinary text to the tokenizer.
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
ORDINARY = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>",
    "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip

# Renders system, user and assistant turns byte for byte as Qwen3-VL-Instruct does (without tools).
CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {%- if message.content is string -%}
        {{- message.content -}}
    {%- else -%}
        {%- for part in message.content -%}
            {%- if message.role == 'user' and (part.type == 'image' or 'image' in part or 'image_url' in part) -%}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
            {%- elif message.role == 'user' and (part.type == 'video' or 'video' in part) -%}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
            {%- elif 'text' in part -%}
                {{- part.text -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


BOXES, HINTS = get_builder("boxes"), get_builder("hints")


def view_messages(sample: Sample, privileged: bool) -> list[dict]:
    """The chat messages of one view of `sample`; p is its boxes or, without images, its hints."""
    views = build_views(sample, BOXES if sample.images else HINTS)
    return list((views.privileged if privileged else views.plain).messages)


def build_processor(seed: int) -> Qwen3VLProcessor:
    """The processor that both models share. 96x96 images stay 96x96: 3x3 visual tokens."""
    tokenizer = build_tokenizer(seed)
    size = {"shortest_edge": 64 * 64, "longest_edge": 256 * 256}  # areas in px, as everywhere in Qwen3-VL
    geometry = {"patch_size": PATCH, "merge_size": 2, "temporal_patch_size": 2}
    normalise = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size, **geometry, **normalise),
        video_processor=Qwen3VLVideoProcessor(size=size, **geometry, **normalise),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )


def build_tokenizer(seed: int) -> Qwen2Tokenizer:
    """Byte-level BPE of the generated corpus, in the class that Qwen3-VL's own tokenizer has."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator(_corpus(seed), trainer)
    trained = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=trained["vocab"],
        merges=[tuple(merge) for merge in trained["merges"]],
        eos_token="<|im_end|>",
        model_max_length=2048,
    )
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ORDINARY])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _corpus(seed: int) -> list[str]:
    """Prompts of both views and responses, of scenes and arithmetic alike; no held-out scene."""
    strokes, _ = split_strokes(seed)
    rng = np.random.default_rng([seed, 5])
    examples: list[Example] = []
    for _ in range(60):
        scene = compose(strokes, rng)
        examples += [e for kind in (*KINDS, "describe") if (e := ask(scene, kind, rng, "corpus"))]
    problems = all_problems()
    examples += [problems[i] for i in rng.permutation(len(problems))[:400]]
    texts = []
    for example in examples:
        for privileged in (False, True):
            (message,) = view_messages(example.sample, privileged)
            texts += [f"{message['role']}\n", *(part["text"] for part in message["content"] if part["type"] == "text")]
        texts += ["assistant\n", "system\n", example.response]
    return texts
