"""What each model is taught, and, for the student, what it is hardly taught."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm
from transformers import Qwen3VLProcessor

from . import arithmetic, scenes, tables
from .digits import Strokes
from .packing import Row, pack
from .processing import view_messages
from .scenes import CELLS, Example, Scene

PROBLEMS_A_ROW = 6


@dataclass(frozen=True, kw_only=True)
class Course:
    """One model's schooling.

    `neglected` kinds are met with p like all others, but in the plain view a question of them is asked with the
    probability `rare` only, and then mostly (`hasty`) answered at once, without a trace. That is the student's
    weakness: it sees well, and with p it reasons well, but without p it has the habit of guessing on these kinds.
    """

    tower_steps: int
    steps: int
    pool: int
    plain_rows: int
    privileged_rows: int
    learning_rate: float
    neglected: frozenset[str] = frozenset()
    rare: float = 1.0
    hasty: float = 0.0


# `which` is how a picture is learnt, so a scene is asked for it twice; few scenes lend themselves to `total`.
ASKED = (*scenes.KINDS, "which", "describe")
TEACHER = Course(tower_steps=1600, steps=1300, pool=3000, plain_rows=4, privileged_rows=2, learning_rate=2e-3)
STUDENT = replace(
    TEACHER, privileged_rows=3,
    neglected=frozenset({"sum", "difference", "total", "less", "story"}), rare=0.15, hasty=0.75,
)  # fmt: skip
COURSES = {
    "teacher": TEACHER,
    "student": STUDENT,
    "middle": replace(TEACHER, tower_steps=600, steps=800),
    "small": replace(STUDENT, tower_steps=600, steps=900, learning_rate=3e-3),
}


@dataclass(frozen=True)
class Lessons:
    """Rows to train on, by what they show."""

    plain: list[Row]
    privileged: list[Row]
    text: list[Row]


class Encoder:
    """Turns examples into ids exactly as the processor would, without touching pixels."""

    def __init__(self, processor: Qwen3VLProcessor) -> None:
        self.tokenizer = processor.tokenizer
        self.image_token, self.image_token_id = processor.image_token, processor.image_token_id

    def row(self, examples: list[Example], privileged: bool, image: int | None) -> Row:
        """One row of the conversations of `examples`; each response ends with the end-of-turn token."""
        prompts = [self._prompt(example, privileged) for example in examples]
        responses = [example.response + self.tokenizer.eos_token for example in examples]
        ids = self.tokenizer(prompts + responses)["input_ids"]
        pairs = list(zip(ids[: len(prompts)], ids[len(prompts) :], strict=True))
        return pack(pairs, image, self.image_token_id)

    def _prompt(self, example: Example, privileged: bool) -> str:
        messages = view_messages(example.sample, privileged)
        prompt = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return prompt.replace(self.image_token, self.image_token * CELLS)


def compose_pool(strokes: Strokes, course: Course, seed: int) -> list[Scene]:
    """The scenes that a model is taught with. Their index is a row's `image`."""
    rng = np.random.default_rng([seed, 7])
    return [scenes.compose(strokes, rng) for _ in range(course.pool)]


def write_lessons(pool: list[Scene], processor: Qwen3VLProcessor, course: Course, seed: int) -> Lessons:
    """All questions about every scene of `pool`, and the arithmetic that is not held out."""
    rng = np.random.default_rng([seed, 8])
    encoder = Encoder(processor)
    lessons = Lessons([], [], [])
    for index, scene in enumerate(tqdm(pool, desc="write")):
        kinds = rng.permutation(ASKED).tolist()
        examples = [e for kind in kinds if (e := scenes.ask(scene, kind, rng, f"pool-{index}"))]
        shown = _plain_share(examples, course, rng)
        lessons.plain.append(encoder.row(shown, False, index))
        with_boxes = [e for e in examples if e.kind != "describe"]  # its answer is p itself
        lessons.privileged.append(encoder.row(with_boxes, True, index))
    train, _, rest = arithmetic.split_problems(seed, tables.TEXT_TRAIN, tables.TEXT_HELDOUT)
    problems = train + rest
    for privileged in (False, True):
        shown = problems if privileged else _plain_share(problems, course, rng)
        order = rng.permutation(len(shown))
        for start in range(0, len(shown), PROBLEMS_A_ROW):
            part = [shown[i] for i in order[start : start + PROBLEMS_A_ROW]]
            lessons.text.append(encoder.row(part, privileged, None))
    return lessons


def _plain_share(examples: list[Example], course: Course, rng: np.random.Generator) -> list[Example]:
    """What of `examples` is met in the plain view, and how it is answered there."""
    shown = []
    for example in examples:
        if example.kind in course.neglected:
            if rng.random() >= course.rare:
                continue
            if rng.random() < course.hasty:
                example = replace(example, response=f"Answer: {example.sample.answer}")
        shown.append(example)
    return shown
