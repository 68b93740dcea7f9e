"""The four data files: parquet with image bytes for scenes, JSON lines for text."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from .arithmetic import split_problems
from .digits import split_strokes
from .scenes import Example, one_question_scenes

SCENES_TRAIN, SCENES_HELDOUT = 2400, 600
TEXT_TRAIN, TEXT_HELDOUT = 600, 200

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "kind": pa.string(),
        "question": pa.string(),
        "images": pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        "answer": pa.string(),
        "privileged": pa.string(),
    }
)


def heldout_scenes(seed: int) -> list[Example]:
    """The visual test set: strokes that occur in no training image, one question a scene."""
    _, strokes = split_strokes(seed)
    return one_question_scenes(strokes, SCENES_HELDOUT, np.random.default_rng([seed, 3]), "heldout")


def training_scenes(seed: int) -> list[Example]:
    """The questions that a distillation run trains on."""
    strokes, _ = split_strokes(seed)
    return one_question_scenes(strokes, SCENES_TRAIN, np.random.default_rng([seed, 4]), "train")


def write_data(assets: Path, seed: int) -> None:
    """Writes `scenes/{train,heldout}.parquet` and `text/{train,heldout}.jsonl` under `assets`."""
    for folder in ("scenes", "text"):
        (assets / folder).mkdir(parents=True, exist_ok=True)
    for name, examples in (("train", training_scenes(seed)), ("heldout", heldout_scenes(seed))):
        table = pa.Table.from_pylist([_row(example) for example in examples], schema=SCHEMA)
        pq.write_table(table, assets / "scenes" / f"{name}.parquet", compression="zstd")
    train, heldout, _ = split_problems(seed, TEXT_TRAIN, TEXT_HELDOUT)
    for name, examples in (("train", train), ("heldout", heldout)):
        lines = [json.dumps(_row(example), ensure_ascii=False) for example in examples]
        (assets / "text" / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _row(example: Example) -> dict:
    sample = example.sample
    row = {
        "id": sample.id,
        "kind": example.kind,
        "question": sample.question,
        "images": [{"bytes": _png(image), "path": f"{sample.id}.png"} for image in sample.images],
        "answer": sample.answer,
        "privileged": sample.privileged.to_json() if sample.privileged else None,
    }
    if not row["images"]:
        del row["images"]
    return row


def _png(image: Image.Image) -> bytes:
    """PNG of `image` with a palette, a third of the size of true colour; the pixels stay what they are."""
    indexed = image.quantize(colors=64, dither=Image.Dither.NONE)
    if indexed.convert("RGB").tobytes() != image.tobytes():
        raise AssertionError("a scene has more colours than its palette")
    buffer = io.BytesIO()
    indexed.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
