"""The questions of the synthetic data sets, in the exact columns of each benchmark; images are PIL images.

Questions and pictures are ours and drawn here; nothing of a real benchmark is in them. Every group that a benchmark
reports by occurs where it decides a headline number: the ten question types of VSI-Bench, six categories, 30 subjects,
ten variants, three settings.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from PIL import Image, ImageDraw

from .benchmarks import Source, example, find

Row = dict[str, Any]

COLOURS = ("red", "green", "blue", "orange", "purple", "brown", "black", "teal")
SHAPES = ("circle", "square", "triangle", "bar")


def picture(number: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """Drawing `number`: one to four equal shapes of one colour on white."""
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    colour, shape = COLOURS[number % len(COLOURS)], SHAPES[number // 2 % len(SHAPES)]
    for i in range(1 + number % 4):
        x, y = 6 + 22 * i, 10 + (number * 7 + i * 11) % 30
        box = (x, y, x + 16, y + 16)
        if shape == "circle":
            draw.ellipse(box, fill=colour)
        elif shape == "triangle":
            draw.polygon([(x, y + 16), (x + 8, y), (x + 16, y + 16)], fill=colour)
        else:
            draw.rectangle(box if shape == "square" else (x, y, x + 6, y + 24), fill=colour)
    return image


def _realworldqa() -> Iterator[tuple[int, Row]]:
    asked = "Please answer directly with only the letter of the correct option and nothing else."
    for i in range(8):
        colour, count = COLOURS[i], 1 + i % 4
        if i % 2:
            question, answer = f"How many {colour} shapes are there? Please answer with a single number.", str(count)
        else:
            texts = [COLOURS[(i + k) % 8] for k in (2, 0, 5)]
            options = "\n".join(f"{letter}. {text}" for letter, text in zip("ABC", texts, strict=True))
            question, answer = f"Which colour are the shapes?\n\n{options}\n{asked}", "B"
        yield 0, {"image": picture(i), "question": question, "answer": answer}


_MMSTAR = {
    "coarse perception": ("image scene and topic", "image emotion"),
    "fine-grained perception": ("recognition", "localization"),
    "instance reasoning": ("single-instance reasoning", "cross-instance attribute reasoning"),
    "logical reasoning": ("diagram reasoning", "common reasoning"),
    "science & technology": ("biology & chemistry & physics", "electronics & energy & mechanical eng."),
    "math": ("geometry", "statistical reasoning"),
}


def _mmstar() -> Iterator[tuple[int, Row]]:
    pairs = [(category, inner) for category, inners in _MMSTAR.items() for inner in inners]
    for i, (category, inner) in enumerate(pairs):
        texts = [COLOURS[(i + k - i % 4) % 8] for k in range(4)]
        options = ", ".join(f"{letter}: {text}" for letter, text in zip("ABCD", texts, strict=True))
        hint = "<image 1>\n" if i == 1 else ""
        yield (
            0,
            {
                "index": i,
                "question": f"{hint}Which colour are the shapes?\nOptions: {options}",
                "image": picture(i),
                "answer": "ABCD"[i % 4],
                "category": category,
                "l2_category": inner,
                "meta_info": {"source": "ours", "split": "val", "image_path": f"images/{i}.png"},
            },
        )


def _mathvision() -> Iterator[tuple[int, Row]]:
    subjects = ("arithmetic", "counting", "algebra", "metric geometry - area")
    free = ("3", "0.5", "\\frac{3}{4}", "2\\sqrt{2}")
    for i in range(8):
        letters = i == 4  # options that are only in the picture
        options = [] if i % 2 else list("ABCDE") if letters else [f"${i + k}$" for k in range(5)]
        yield (
            0,
            {
                "id": str(i + 1),
                "question": f"<image1> What is the value of picture {i}?" + (" <image2>" if i == 3 else ""),
                "options": options,
                "image": f"images/{i + 1}.png",
                "decoded_image": picture(i),
                "answer": free[i // 2] if i % 2 else "ABCDE"[i % 5],
                "solution": None,
                "level": 1 + i % 5,
                "subject": subjects[i % 4],
            },
        )


def _dynamath() -> Iterator[tuple[int, Row]]:
    for variant in range(10):
        shown = {"image": "images/0.png", "knowledge_level": "high school"}
        yield (
            variant,
            {
                "id": "1",
                "question": f"Is f(x) = {variant + 1}x even? Choices: (A) Yes (B) No",
                **shown,
                "decoded_image": picture(variant),
                "ground_truth": "B",
                "answer_type": "multiple choice",
                "subject": "algebra",
            },
        )
        yield (
            variant,
            {
                "id": "2",
                "question": f"What is {variant} plus a half?",
                **shown,
                "decoded_image": picture(variant + 1),
                "ground_truth": f"{variant}.5",
                "answer_type": "float",
                "subject": "arithmetic",
            },
        )
        yield (
            variant,
            {
                "id": "3",
                "question": "Which colour has the highest bar?",
                **shown,
                "decoded_image": picture(variant + 2),
                "ground_truth": COLOURS[(variant + 2) % 8],
                "answer_type": "text",
                "subject": "statistics",
            },
        )


def _logicvista() -> Iterator[tuple[int, Row]]:
    skills = ("inductive", "deductive", "numerical", "spatial", "mechanical")
    golds = ("D", "B", "3", "A, C", "A", "I", "B, D", "C")
    for i, gold in enumerate(golds):
        yield (
            0,
            {
                "question": f"Which option continues row {i}?",
                "answer": gold,
                "reasoning": "It is drawn so.",
                "skill": [skills[i % 5]],
                "capability": ["diagram"],
                "image": picture(i),
            },
        )


def _mmmu() -> Iterator[tuple[int, Row]]:
    for place, source in enumerate(find("mmmu").sources):
        images: Row = dict.fromkeys(f"image_{k}" for k in range(1, 8))
        images["image_1"] = picture(place)
        question, options, answer, kind = f"<image 1> What is shown in {source.config}?", "[]", "", "open"
        if place % 6 == 5:
            answer = "['7.25', '29/4']" if place == 5 else str(1 + place % 4)
        else:
            texts = [COLOURS[(place + k) % 8] for k in range(4 + place % 3)]
            options, answer, kind = repr(texts), "ABCD"[place % 4], "multiple-choice"
        if place % 3 == 1:
            question = "Compare <image 2> with <image 1>, then choose."
            images["image_2"] = picture(place + 1, (64, 96))
        if place == 3:  # images as options, named out of order
            question, options, answer = (
                "Which picture fits <image 1>?",
                "['<image 3>', '<image 2>', 'both', 'none']",
                "B",
            )
            images |= {"image_2": picture(8), "image_3": picture(9)}
        yield (
            place,
            {
                "id": f"validation_{source.config}_{place + 901}",
                "question": question,
                "options": options,
                "explanation": "",
                **images,
                "img_type": "['Diagrams']",
                "answer": answer,
                "topic_difficulty": ("Easy", "Medium", "Hard")[place % 3],
                "question_type": kind,
                "subfield": "Drawn",
            },
        )


def _mmmu_pro() -> Iterator[tuple[int, Row]]:
    subjects = ("Art", "Finance", "Physics", "Geography")
    for setting in range(3):
        for i, subject in enumerate(subjects):
            texts = [f"{COLOURS[k % 8]} {SHAPES[k // 8]}" for k in range(4 if setting == 1 else 10)]
            row: Row = {"id": f"test_{subject}_{i + 901}", "options": repr(texts), "subject": subject}
            if setting == 2:
                yield setting, row | {"image": picture(i), "answer": "ABIJ"[i]}
                continue
            images: Row = dict.fromkeys(f"image_{k}" for k in range(1, 8))
            images["image_1"] = picture(i)
            if i == 1:
                images["image_2"] = picture(i + 4)
            yield (
                setting,
                row
                | images
                | {
                    "question": "<image 2> or <image 1>: which is it?" if i == 1 else "<image 1> What is shown?",
                    "explanation": "",
                    "img_type": "['Photographs']",
                    "answer": "ABCD"[i] if setting == 1 else "ABIJ"[i],
                    "topic_difficulty": "Medium",
                },
            )


SCENES = (("scannet", "scene0000_00"), ("arkitscenes", "41069021"), ("scannetpp", "0a7cc12c0e"))
_VSI = {
    "object_counting": ("How many boxes are in this room?", "4", None),
    "object_abs_distance": ("How far is the box from the lamp, in metres?", "1.7", None),
    "object_size_estimation": ("How long is the longest side of the box, in centimetres?", "60", None),
    "room_size_estimation": ("How large is this room, in square metres?", "23.4", None),
    "object_rel_distance": ("Which is closest to the lamp?", "C", ("box", "rug", "door")),
    "object_rel_direction_easy": ("Facing the lamp, is the box to my left or right?", "A", ("left", "right")),
    "object_rel_direction_medium": ("Facing the lamp, where is the box?", "B", ("left", "right", "back")),
    "object_rel_direction_hard": (
        "Facing the lamp, in which quadrant is the box?",
        "D",
        ("front-left", "front-right", "back-left", "back-right"),
    ),
    "route_planning": ("You face the lamp. Which turns lead to the door?", "A", ("left, right", "right, right")),
    "obj_appearance_order": ("In which order do they first appear?", "B", ("box, rug, lamp", "lamp, box, rug")),
}


def _vsibench() -> Iterator[tuple[int, Row]]:
    for i, (task, (question, gold, texts)) in enumerate(_VSI.items()):
        dataset, scene = SCENES[i % 3]
        options = None if texts is None else [f"{a}. {b}" for a, b in zip("ABCD", texts, strict=False)]
        yield (
            0,
            {
                "id": i,
                "dataset": dataset,
                "scene_name": scene,
                "question_type": task,
                "question": question,
                "ground_truth": gold,
                "options": options,
            },
        )


_ROWS = {
    "realworldqa": _realworldqa,
    "mmstar": _mmstar,
    "mathvision": _mathvision,
    "dynamath": _dynamath,
    "logicvista": _logicvista,
    "mmmu": _mmmu,
    "mmmu_pro": _mmmu_pro,
    "vsibench": _vsibench,
}


def rows(name: str) -> dict[Source, list[Row]]:
    """The rows of the fixture by source; images in them are PIL images."""
    benchmark = find(name)
    made = _ROWS[name]() if name in _ROWS else ((case.source, dict(case.row)) for case in example(name))
    by_source: dict[Source, list[Row]] = {}
    for place, row in made:
        by_source.setdefault(benchmark.sources[place], []).append(row)
    return by_source
