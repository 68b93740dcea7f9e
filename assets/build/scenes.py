"""Tinted handwritten digits on a 3x3 grid, and six kinds of questions about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from privileged.records import PrivilegedRecord, Region, Sample

from .digits import Strokes, draw_glyph

CELL = 32  # px; exactly one visual token of Qwen3-VL (patch 16, merge 2)
GRID = 3
CELLS = GRID * GRID
SIDE = CELL * GRID
PAPER = np.array([250, 248, 242], dtype=np.float32)
INKS = {"red": (206, 38, 44), "green": (22, 140, 62), "blue": (36, 74, 214), "orange": (238, 138, 10)}
COLOURS = tuple(INKS)
LIMIT = 12  # of every sum that is asked for
PLACES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")


@dataclass(frozen=True)
class Item:
    """One digit of a scene. `box` is its ink, px xyxy half-open."""

    digit: int
    colour: str
    cell: int
    box: tuple[int, int, int, int]

    @property
    def name(self) -> str:
        return f"{self.colour} {self.digit}"

    @property
    def place(self) -> str:
        return PLACES[self.cell]


@dataclass(frozen=True)
class Scene:
    """`pixels` [96, 96, 3] uint8; `items` in the order of their cells."""

    pixels: np.ndarray
    items: tuple[Item, ...]


@dataclass(frozen=True, kw_only=True)
class Example:
    """A sample of some kind with a model response: a short trace that ends in `Answer: X`."""

    kind: str
    sample: Sample
    response: str


def paint(strokes: Strokes, layout: list[tuple[int, int, str]], rng: np.random.Generator, wild: bool = False) -> Scene:
    """The scene with a `(cell, digit, colour)` for every entry of `layout`, each jittered inside its cell.

    `wild` draws sizes, angles and shifts from a wider range: augmentation for the vision tower.
    """
    size, degrees, shift = ((22, 28), 10.0, 3) if wild else ((24, 27), 5.0, 2)
    canvas = np.tile(PAPER, (SIDE, SIDE, 1))
    items = []
    for cell, digit, colour in sorted(layout):
        alpha = draw_glyph(strokes.pick(digit, rng), rng, size, degrees)
        height, width = alpha.shape
        x = cell % GRID * CELL + _jittered(width, shift, rng)
        y = cell // GRID * CELL + _jittered(height, shift, rng)
        patch = canvas[y : y + height, x : x + width]
        patch += alpha[..., None] * (np.array(INKS[colour], dtype=np.float32) - patch)
        items.append(Item(digit, colour, cell, (x, y, x + width, y + height)))
    return Scene(canvas.round().astype(np.uint8), tuple(items))


def compose(strokes: Strokes, rng: np.random.Generator) -> Scene:
    """A random scene of 3-5 different digits in different cells, in two or three colours."""
    count = int(rng.integers(3, 6))
    palette = rng.permutation(COLOURS)[: int(rng.integers(2, 4))]
    cells = rng.permutation(CELLS)[:count].tolist()
    digits = rng.permutation(10)[:count].tolist()
    colours = rng.choice(palette, size=count).tolist()
    return paint(strokes, list(zip(cells, digits, colours, strict=True)), rng)


# Each asker returns (question, trace, answer), or None where the scene does not lend itself to the kind.
Asked = tuple[str, str, str] | None


def _which(scene: Scene, rng: np.random.Generator) -> Asked:
    item = _any(scene, rng)
    return f"What is at the {item.place}?", f"At the {item.place} there is a {item.name}.", item.name


def _colour(scene: Scene, rng: np.random.Generator) -> Asked:
    item = _any(scene, rng)
    return f"What colour is the {item.place} digit?", f"The {item.place} digit is {item.colour}.", item.colour


def _count(scene: Scene, rng: np.random.Generator) -> Asked:
    named = join([str(item.digit) for item in scene.items])
    return "How many digits are there?", f"The digits are {named}.", str(len(scene.items))


def _sum(scene: Scene, rng: np.random.Generator) -> Asked:
    a, b = _two(scene, rng)
    if (total := a.digit + b.digit) > LIMIT:
        return None
    trace = f"The {a.place} is {a.digit} and the {b.place} is {b.digit}, and {a.digit} plus {b.digit} is {total}."
    return f"What is the {a.place} digit plus the {b.place} digit?", trace, str(total)


def _difference(scene: Scene, rng: np.random.Generator) -> Asked:
    b, a = sorted(_two(scene, rng), key=lambda item: item.digit)
    rest = a.digit - b.digit
    trace = f"The {a.place} is {a.digit} and the {b.place} is {b.digit}, and {a.digit} minus {b.digit} is {rest}."
    return f"What is the {a.place} digit minus the {b.place} digit?", trace, str(rest)


def _total(scene: Scene, rng: np.random.Generator) -> Asked:
    digits = [item.digit for item in scene.items]
    if sum(digits) > LIMIT:
        return None
    sums = [f"{sum(digits[:i])} plus {digit} is {sum(digits[: i + 1])}" for i, digit in enumerate(digits) if i]
    trace = f"The digits are {join(list(map(str, digits)))}, and {', and '.join(sums)}."
    return "What is the sum of all digits?", trace, str(sum(digits))


KINDS: dict[str, Callable[[Scene, np.random.Generator], Asked]] = {
    "which": _which,
    "colour": _colour,
    "count": _count,
    "sum": _sum,
    "difference": _difference,
    "total": _total,
}


def describe(scene: Scene, rng: np.random.Generator) -> Asked:
    """The caption task. Training only: it teaches a model to read all of a scene, as captions do for real VLMs."""
    told = "; ".join(f"{item.place} {item.name}" for item in scene.items)
    return "What is in the picture?", f"{told}.", str(len(scene.items))


def ask(scene: Scene, kind: str, rng: np.random.Generator, sample_id: str) -> Example | None:
    """A question of `kind` about `scene`, with all its digits as p; None if the scene does not lend itself to it."""
    asked = (KINDS.get(kind) or describe)(scene, rng)
    if asked is None:
        return None
    question, trace, answer = asked
    regions = tuple(
        Region(id=f"r{n}", label=item.name, box=tuple(map(float, item.box))) for n, item in enumerate(scene.items, 1)
    )
    sample = Sample(
        id=sample_id,
        question=question,
        images=(Image.fromarray(scene.pixels),),
        answer=answer,
        privileged=PrivilegedRecord(sample_id=sample_id, regions=regions),
    )
    return Example(kind=kind, sample=sample, response=f"{trace}\nAnswer: {answer}")


def one_question_scenes(strokes: Strokes, count: int, rng: np.random.Generator, prefix: str) -> list[Example]:
    """`count` independent examples, one question a scene, the kinds in turn."""
    examples = []
    kinds = list(KINDS)
    for index in range(count):
        example = None
        while example is None:
            example = ask(compose(strokes, rng), kinds[index % len(kinds)], rng, f"{prefix}-{index:04d}")
        examples.append(example)
    return examples


def join(names: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _jittered(length: int, shift: int, rng: np.random.Generator) -> int:
    """Start of an ink of `length` px in its cell: centred, give or take `shift`, never outside."""
    centred = (CELL - length) // 2 + int(rng.integers(-shift, shift + 1))
    return min(max(centred, 0), CELL - length)


def _two(scene: Scene, rng: np.random.Generator) -> tuple[Item, Item]:
    first, second = rng.permutation(len(scene.items))[:2]
    return scene.items[first], scene.items[second]


def _any(scene: Scene, rng: np.random.Generator) -> Item:
    return scene.items[int(rng.integers(len(scene.items)))]
