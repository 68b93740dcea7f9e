"""A transformers model that answers items. The only module of `evals` that needs torch."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from tqdm import tqdm
from transformers.video_utils import VideoMetadata

from .decoded import Video
from .records import Item, Reply

_GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "use_cache": True,
    # Checkpoints bring sampling settings of their own, and the penalty would change greedy replies too.
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 50,
}


@dataclass(frozen=True)
class HFModel:
    """Greedy replies of a chat model: a vision-language model with its processor, or a text model with its tokenizer.

    The model may be in the middle of its training: the mode of each module, the processor and the global random state
    are left as they were.
    """

    model: Any
    processor: Any
    max_new_tokens: int
    batch_size: int
    desc: str = "generate"

    whole_chunks: ClassVar[bool] = True
    """See `runner.Model`."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")

    def generate(self, items: Sequence[Item]) -> list[Reply]:
        """One reply for each item, in the order of `items`, without special tokens.

        Truncated means that no end-of-turn token came within `max_new_tokens`. Raises ValueError for an item with
        images if the model has only a tokenizer.
        """
        prompts = [self._prompt(item) for item in items]
        # Long prompts first: neighbours need little padding, and a batch that does not fit memory shows at once.
        order = sorted(range(len(items)), key=lambda i: -_length(prompts[i], items[i]))
        replies: dict[int, Reply] = {}
        with _evaluating(self.model), torch.no_grad(), tqdm(
            total=len(items), desc=self.desc, leave=False, disable=None
        ) as bar:  # fmt: skip
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                answers = self._answer([prompts[i] for i in batch], [items[i] for i in batch])
                replies.update(zip(batch, answers, strict=True))
                bar.update(len(batch))
        return [replies[i] for i in range(len(items))]

    @property
    def _tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", self.processor)

    def _prompt(self, item: Item) -> str:
        if self._tokenizer is not self.processor:
            # transformers rewrites the parts of the messages it is given.
            messages = copy.deepcopy(list(item.messages))
            return self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        if item.images or item.videos:
            raise ValueError(f"item {item.id!r} has images, but the model has only a tokenizer: pass a processor")
        messages = [{**message, "content": _joined(message["content"])} for message in item.messages]
        # Templates of text-only hybrids think by default; templates without the switch ignore it.
        return self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )

    def _answer(self, prompts: list[str], items: list[Item]) -> list[Reply]:
        """One batch. The padding side goes with the call, so the shared tokenizer is not touched."""
        images = [image for item in items for image in item.images]
        videos: list[Any] = [video for item in items for video in item.videos]
        inputs = self.processor(
            text=prompts,
            **({"images": images} if images else {}),
            **(_videos(videos) if videos else {}),
            padding=True,
            padding_side="left",
            add_special_tokens=False,  # the template has written them
            return_tensors="pt",
        ).to(self.model.device)
        ends = self._ends()
        output = self.model.generate(
            **inputs,
            **_GREEDY,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=sorted(ends),
            pad_token_id=self._tokenizer.pad_token_id,
        )
        return [self._reply(ids, ends) for ids in output[:, inputs["input_ids"].shape[1] :].tolist()]

    def _ends(self) -> set[int]:
        """Ids that end a reply: those of the checkpoint, and the tokenizer's, which closes a turn of the template."""
        known = self.model.generation_config.eos_token_id
        known = [] if known is None else known if isinstance(known, list) else [known]
        return {*known, self._tokenizer.eos_token_id}

    def _reply(self, ids: list[int], ends: set[int]) -> Reply:
        # The padding behind a reply can be an end token itself, so the first one counts.
        end = next((i for i, token in enumerate(ids) if token in ends), None)
        return Reply(self._tokenizer.decode(ids[:end], skip_special_tokens=True), truncated=end is None)


def _joined(content: str | list[dict[str, Any]]) -> str:
    """The text of a message's content: templates of text models print a list as Python would."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _videos(videos: list[Video]) -> dict[str, Any]:
    """Frames that were chosen already, with their times: Qwen3-VL writes them into the prompt."""
    # The vision tower takes frames by twos, and its processor refuses a single one.
    shown = [video.frames * 2 if len(video.frames) == 1 else video.frames for video in videos]
    return {
        "videos": [np.stack([np.asarray(frame.convert("RGB")) for frame in frames]) for frames in shown],
        "video_metadata": [
            VideoMetadata(
                total_num_frames=len(frames),
                fps=video.fps,
                frames_indices=[round(second * video.fps) for second in video.seconds]
                * (len(frames) // len(video.frames)),
            )
            for frames, video in zip(shown, videos, strict=True)
        ],
        "do_sample_frames": False,
        "cap_pixels_per_frame": True,  # as in Qwen's own code (qwen-vl-utils); transformers' default is changing
    }


def _length(prompt: str, item: Item) -> float:
    """Roughly the prompt's tokens (4 characters or 32x32 pixels each), cheaply: it only has to put prompts in order."""
    videos: Any = item.videos
    frames = [*item.images, *(frame for video in videos for frame in video.frames)]
    return len(prompt) / 4 + sum(frame.width * frame.height for frame in frames) / 32**2


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode; afterwards each module is back in its own mode (a frozen tower may have differed)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
