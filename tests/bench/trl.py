"""(c) DOPD of ours against plain OPD of TRL's `DistillationTrainer` on the same pair, pictures and token counts.

TRL gives a prompt one response, so G siblings are G rows of its data set. It samples with `generate`, scores twice
(student with gradient, teacher) and takes the full-vocabulary reverse KL in chunks (`beta=1`, its default). Ours scores
three times and routes.

Left alone, TRL trains in bfloat16 with gradient checkpointing. The comparison is in float32 without it, as ours runs;
`trl, checkpointed` has it. All freeze the vision tower and use the same AdamW.
TRL is the extra `bench`, or lives in an environment of its own: `--trl-python PATH`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.measure import Child, Metronome, Worker, interleaved
from tests.bench.step import Spec, ratios, same_tokens, train_settings, worker


def measure(spec: Spec, steps: int, python: str) -> dict[str, Any]:
    """(c)"""
    makers = {"ours, DOPD": partial(worker, spec)}
    for name in ("trl", "trl, checkpointed"):
        makers[name] = partial(Worker, "tests.bench.trl", asdict(replace(spec, variant=name)), python)
    measured = interleaved(makers, steps)
    same_tokens(measured)
    return {**measured, **ratios(measured["ours, DOPD"], measured["trl"])}


def run(spec: Spec, child: Child) -> None:
    import torch
    from datasets import Dataset, Image
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import DistillationConfig, DistillationTrainer

    student, teacher = (
        AutoModelForImageTextToText.from_pretrained(f"{spec.folder}/{name}", dtype=torch.float32)
        for name in ("student", "teacher")
    )
    student.model.visual.requires_grad_(False)
    teacher.requires_grad_(False)
    processor = AutoProcessor.from_pretrained(f"{spec.folder}/student", padding_side="left")
    settings = DistillationConfig(
        output_dir=str(Path(spec.data).parent / "trl"),
        **train_settings(spec),
        per_device_train_batch_size=spec.prompts * spec.siblings,
        bf16=False,
        gradient_checkpointing=spec.variant == "trl, checkpointed",
        max_completion_length=spec.response,
        shuffle_dataset=False,
        beta=1.0,
        # no end of sequence and no placeholder of an image: every response has the full length
        generation_kwargs={"suppress_tokens": _never(student.config, processor)},
    )
    tokens = 0

    class Counted(DistillationTrainer):
        def _compute_loss(self, student: Any, inputs: Any, count: Any) -> Any:
            nonlocal tokens
            tokens = int(inputs["completion_mask"].sum())
            return super()._compute_loss(student, inputs, count)

    trainer = Counted(
        model=student,
        teacher_model=teacher,
        args=settings,
        train_dataset=Dataset.from_list(_rows(spec)).cast_column("image", Image()),
        processing_class=processor,
    )
    trainer.add_callback(Metronome(child, [student, teacher], lambda: {"response_tokens": tokens}))
    trainer.train()


def _rows(spec: Spec) -> list[dict[str, Any]]:
    """Every question G times; TRL puts the picture before the text, as ours does."""
    file = Path(spec.data)
    rows = []
    for line in file.read_text().splitlines():
        question = json.loads(line)
        (picture,) = question["images"]
        prompt = [{"role": "user", "content": question["question"]}]
        rows += [{"prompt": prompt, "image": str(file.parent / picture)}] * spec.siblings
    return rows


def _never(config: Any, processor: Any) -> list[int]:
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    return sorted({*(getattr(config, name) for name in names), processor.tokenizer.eos_token_id})


def main() -> None:
    child = Child()
    run(Spec(**json.loads(sys.argv[1])), child)
    child.stop()


if __name__ == "__main__":
    main()
