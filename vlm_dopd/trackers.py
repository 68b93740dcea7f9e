"""Token samples and pictures for the trackers of `train.report_to`; Trainer itself sends them all figures.

A step's file of `token_files.py` becomes one table, a response a row, and one picture a question with the boxes of p.
A further tracker is one function in SENDERS.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import TrainerCallback, TrainerState
from transformers.integrations import TensorBoardCallback

from evals.printable import printable
from privileged.draw import draw_boxes

logger = logging.getLogger(__name__)

GAPS = 5
"""Tokens of a response that are named, those with the largest gap."""
TABLE, PICTURE = "samples/responses", "samples/picture"
AXIS = "train/global_step"
"""Of figures in trackers whose own count of steps Trainer leaves to them."""


@dataclass(frozen=True)
class Shown:
    """What a tracker is sent after a step."""

    step: int
    columns: dict[str, list[str]]
    """The same number of entries in each, one a response."""
    pictures: list[tuple[str, Image.Image]]
    """Caption and picture, one a question that has any."""


class TrackerSamples(TrainerCallback):
    """Sends what `TokenSamples` has written into `folder` at this step; on the first process.

    `callbacks` are the trainer's: TensorBoard's writer is in one of them.
    """

    def __init__(self, folder: Path, report_to: Sequence[str], callbacks: Sequence[TrainerCallback]) -> None:
        self.folder, self.callbacks = folder, callbacks
        self.names = [name for name in report_to if name in SENDERS]
        if unknown := sorted(set(report_to) - set(SENDERS)):
            others, these = ", ".join(unknown), ", ".join(SENDERS)
            logger.info("train.report_to=%s: figures only; %s get token samples too", others, these)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """What fails on the way, here or in a tracker, is a line in the log and no reason to lose a run."""
        path = self.folder / f"{state.global_step - 1:06d}.jsonl"
        if not state.is_world_process_zero or not self.names or not path.is_file():
            return
        shown: Shown | None = None
        for name in self.names:
            try:
                shown = shown or self._shown(path, state.global_step)
                SENDERS[name](shown, self.callbacks)
            except Exception as error:  # of a server, a network, a disk: each tracker has its own
                said = " ".join(f"{type(error).__name__}: {error}".split())
                logger.warning("train.report_to=%s took no token samples of step %d: %s", name, state.global_step, said)

    def _shown(self, path: Path, step: int) -> Shown:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return Shown(step, columns_of(rows), pictures_of(rows, self.folder))


def columns_of(rows: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Name -> entries. Marks that hide or reverse text are written out; a tracker escapes what is markup to it."""
    entries = [
        {
            "sample": row["sample"],
            "question": row["question"],
            "answer": row["answer"] or "",
            "response": "".join(row["token"]),
            "reward": "" if row["reward"] is None else f"{row['reward']:g}",
            "regimes": _regimes(row),
            "largest gaps": _gaps(row),
        }
        for row in rows
    ]
    return {name: [printable(entry[name], lines=True) for entry in entries] for name in entries[0]} if entries else {}


def _regimes(row: dict[str, Any]) -> str:
    counts = Counter(name or "no loss" for name in row["component"])
    return ", ".join(f"{name} {count / counts.total():.0%}" for name, count in counts.most_common())


def _gaps(row: dict[str, Any]) -> str:
    """Teacher's log-probability less the student's, nats: above 0 the teacher is surer of the token."""
    if not row["gap_of"]:
        return ""
    student, teacher = (row["logp"][role] for role in row["gap_of"])
    gaps = [(t - s, number) for number, (s, t) in enumerate(zip(student, teacher, strict=True)) if None not in (s, t)]
    largest = sorted(gaps, key=lambda one: -abs(one[0]))[:GAPS]
    return ", ".join(f"{json.dumps(row['token'][number], ensure_ascii=False)} {gap:+.2f}" for gap, number in largest)


def pictures_of(rows: Sequence[dict[str, Any]], folder: Path) -> list[tuple[str, Image.Image]]:
    """The first picture of every question, with the numbered boxes of p that are on it."""
    found: dict[str, tuple[str, Image.Image]] = {}
    for row in rows:
        if row["sample"] in found or not row["pictures"]:
            continue
        picture = row["pictures"][0]
        with Image.open(folder / picture["file"]) as image:
            scale = image.width / picture["width"]
            boxes = [tuple(edge * scale for edge in one["box"]) for one in picture["boxes"]]
            drawn = draw_boxes(image, boxes, range(1, len(boxes) + 1))
        found[row["sample"]] = (printable(f"{row['sample']}: {row['question']}"), drawn)
    return list(found.values())


def _tensorboard(shown: Shown, callbacks: Sequence[TrainerCallback]) -> None:
    writer = next(one for one in callbacks if isinstance(one, TensorBoardCallback)).tb_writer
    cells = [list(shown.columns), ["---"] * len(shown.columns)]
    cells += [[markdown(cell) for cell in row] for row in zip(*shown.columns.values(), strict=True)]
    writer.add_text(TABLE, "\n".join(f"| {' | '.join(row)} |" for row in cells), shown.step)
    for number, (_, picture) in enumerate(shown.pictures, 1):
        writer.add_image(f"{PICTURE}_{number}", np.asarray(picture), shown.step, dataformats="HWC")


def markdown(text: str) -> str:
    """`text` as itself in a cell: no link, picture, tag or new column comes of it."""
    named = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"}
    escaped = "".join(named.get(char, char) for char in re.sub(r"([\\`*_{}\[\]()#+\-.!])", r"\\\1", text))
    return escaped.replace("\n", "<br>").replace("://", "&#58;//")


def _wandb(shown: Shown, callbacks: Sequence[TrainerCallback]) -> None:
    import wandb

    rows = [list(row) for row in zip(*shown.columns.values(), strict=True)]
    pictures = [wandb.Image(picture, caption=caption) for caption, picture in shown.pictures]
    told = {TABLE: wandb.Table(columns=list(shown.columns), data=rows), AXIS: shown.step}
    wandb.log(told | ({PICTURE: pictures} if pictures else {}))


def _mlflow(shown: Shown, callbacks: Sequence[TrainerCallback]) -> None:
    import mlflow

    mlflow.log_table(shown.columns, f"{TABLE}_{shown.step:06d}.json")
    for number, (_, picture) in enumerate(shown.pictures, 1):
        mlflow.log_image(picture, key=f"{PICTURE}_{number}".replace("/", "."), step=shown.step)


def _trackio(shown: Shown, callbacks: Sequence[TrainerCallback]) -> None:
    import pandas as pd
    import trackio

    pictures = {
        f"{PICTURE}_{number}": trackio.Image(picture, caption=caption)
        for number, (caption, picture) in enumerate(shown.pictures, 1)
    }
    trackio.log({TABLE: trackio.Table(dataframe=pd.DataFrame(shown.columns)), **pictures, AXIS: shown.step})


def _swanlab(shown: Shown, callbacks: Sequence[TrainerCallback]) -> None:
    import swanlab

    responses = zip(*shown.columns.values(), strict=True)
    texts = [
        swanlab.Text("\n".join(f"{name}: {cell}" for name, cell in zip(shown.columns, row, strict=True)))
        for row in responses
    ]
    pictures = [swanlab.Image(picture, caption=caption) for caption, picture in shown.pictures]
    swanlab.log({TABLE: texts} | ({PICTURE: pictures} if pictures else {}), step=shown.step)


SENDERS: dict[str, Callable[[Shown, Sequence[TrainerCallback]], None]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
    "swanlab": _swanlab,
}
