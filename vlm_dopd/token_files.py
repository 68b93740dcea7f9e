"""The files of `token_samples.py` in the run folder: one of JSON lines a saved step, and the pictures they name.

tokens/000020.jsonl   one response a line, as it was after 20 steps; `Row` says what it holds
tokens/3f2a….png      a picture, named by its content: as small as it is, or at most SIDE px wide and high
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from privileged import Sample, build_views
from privileged.builders import Builder
from privileged.geometry import check_box, clamp_box
from privileged.views import View

from .collate import Group
from .rollout import Response

SIDE = 768
LOSSLESS = 2**17
"""Pictures of more pixels are stored as JPEG."""


class TokenFiles:
    """Writes rows into `folder`. `builder` and `placement` are those of the run, to show p as its prompts do."""

    def __init__(self, folder: Path, tokenizer: Any, builder: Builder, placement: str) -> None:
        self.folder, self.tokenizer, self.builder, self.placement = folder, tokenizer, builder, placement

    def forget_after(self, step: int) -> None:
        """Remove the rows of later windows than that of `step`: a resumed run will write them again."""
        for path in self.folder.glob("*.jsonl"):
            if path.stem.isdigit() and int(path.stem) >= step:
                path.unlink()

    def write(self, step: int, found: Sequence[tuple[Group, Response, dict[str, Any]]]) -> None:
        """The rows of one step; the file appears when it is complete."""
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = [self._row(step, group, response, figures) for group, response, figures in found]
        text = "".join(json.dumps(_rounded(row), allow_nan=False) + "\n" for row in rows)
        part = self.folder / f"{step:06d}.jsonl.part"
        part.write_text(text, encoding="utf-8")
        part.replace(part.with_suffix(""))

    def _row(self, step: int, group: Group, response: Response, figures: dict[str, Any]) -> dict[str, Any]:
        ids = response.id_T.tolist()
        names: dict[int, str] = {}

        def text(number: int) -> str:
            if number not in names:
                names[number] = self.tokenizer.decode([number], clean_up_tokenization_spaces=False)
            return names[number]

        return {
            "step": step,
            "sample": group.sample_id,
            **self._shown(group),
            "truncated": response.truncated,
            "reference": response.reference,
            "reward": response.reward,
            "token": pieces(self.tokenizer, ids),
            **figures,
            "candidates": [[[text(number), *values] for number, values in one] for one in figures["candidates"]],
        }

    def _shown(self, group: Group) -> dict[str, Any]:
        """Question, answer, p and pictures of a sample."""
        sample = group.sample
        assert sample is not None  # `run.py` tells the collator to keep it
        views = build_views(sample, self.builder, self.placement)
        view = views.privileged if group.has_privilege else views.plain
        return {
            "question": sample.question,
            "answer": sample.answer,
            "has_privilege": group.has_privilege,
            "p": _section(views.plain, view),
            "pictures": self._pictures(sample, view),
        }

    def _pictures(self, sample: Sample, view: View) -> list[dict[str, Any]]:
        """Those of the sample with the boxes of its record, then those that only the privileged prompt shows."""
        regions = sample.privileged.regions if sample.privileged else ()
        found = [
            self._picture(image, "sample")
            | {
                "boxes": [
                    {"label": region.label, "box": clamp_box(region.box, *image.size)}
                    for region in regions
                    if region.image == index and check_box(region.box, *image.size) is None
                ]
            }
            for index, image in enumerate(sample.images)
        ]
        own = {id(image) for image in sample.images}
        return found + [self._picture(image, "p") | {"boxes": []} for image in view.images if id(image) not in own]

    def _picture(self, image: Image.Image, origin: str) -> dict[str, Any]:
        small = image.convert("RGB")
        small.thumbnail((SIDE, SIDE))
        stream = io.BytesIO()
        kind = "png" if small.width * small.height <= LOSSLESS else "jpeg"
        small.save(stream, format=kind, **({"quality": 85} if kind == "jpeg" else {}))
        name = f"{hashlib.sha256(stream.getvalue()).hexdigest()[:20]}.{kind.replace('jpeg', 'jpg')}"
        path = self.folder / name
        if not path.is_file():
            path.write_bytes(stream.getvalue())
        return {"file": name, "origin": origin, "width": image.width, "height": image.height}


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of every token; together they are the response.

    Some tokens are a part of a character: the last of them has it, those before it are empty.
    """
    found: list[str] = []
    start = 0
    for stop in range(1, len(ids) + 1):
        text = tokenizer.decode(list(ids[start:stop]), clean_up_tokenization_spaces=False)
        whole = not text.endswith("\ufffd") or stop == len(ids) or stop - start == 4
        found.append(text if whole else "")
        start = stop if whole else start
    return found


def _section(plain: View, privileged: View) -> str:
    """The text that only the privileged prompt has."""
    same = {part["text"] for message in plain.messages for part in message["content"] if part["type"] == "text"}
    parts = [part for message in privileged.messages for part in message["content"] if part["type"] == "text"]
    return "\n\n".join(part["text"].strip() for part in parts if part["text"] not in same)


def _rounded(value: Any) -> Any:
    """Four decimals are what a page can show; what is not finite becomes null."""
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value
