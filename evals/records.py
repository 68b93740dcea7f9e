"""What is asked, what came back, how it was judged, and what a whole run says.

Every reply has exactly one fate, and the fates of a run sum to its n: a reply that could not be read is counted as
such and never guessed. All rates are shares in 0..1; a "point" elsewhere is a hundredth of that.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from PIL import Image

Fate = Literal["correct", "wrong", "unparsed", "truncated"]
FATES: tuple[Fate, ...] = get_args(Fate)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question ready to be asked.

    `messages` have the form of `apply_chat_template`, with one `{"type": "image"}` for each of `images` (upright RGB,
    possibly none). `kind` is the group that the item is reported under. Raises ValueError for an empty id or answer,
    and where placeholders and images differ in number.
    """

    id: str
    messages: tuple[dict[str, Any], ...]
    images: tuple[Image.Image, ...] = ()
    answer: str
    kind: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise ValueError(f"item {self.id!r}: id: expected a non-empty string")
        if not isinstance(self.answer, str) or not self.answer.strip():
            # LogicVista has such an item: with an empty gold, an empty reply scores 1.
            raise ValueError(f"item {self.id!r}: answer: expected a non-empty string, got {self.answer!r}")
        # Qwen3-VL's template renders only the text of a system turn, so an image there would have no place.
        holes = sum(
            part["type"] == "image"
            for message in self.messages
            if message["role"] != "system" and not isinstance(message["content"], str)
            for part in message["content"]
        )
        if holes != len(self.images):
            raise ValueError(
                f"item {self.id!r}: expected one image placeholder (outside system turns) for each image, "
                f"got {holes} for {len(self.images)}"
            )

    @property
    def digest(self) -> str:
        """Hash of all that decides what is asked and what is right: messages, pixels and answer."""
        text = json.dumps([self.messages, self.answer], sort_keys=True)
        digest = hashlib.sha256(text.encode())
        for image in self.images:
            digest.update(f"{image.mode} {image.size}".encode())
            digest.update(image.tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Reply:
    """What a model wrote. `truncated`: it was cut off by the token limit, so its last words mean nothing."""

    text: str
    truncated: bool


@dataclass(frozen=True, kw_only=True)
class Score:
    """The judgement of one reply: the answer that was read in it, None if none was, and the fate that follows."""

    parsed: str | None
    fate: Fate

    def __post_init__(self) -> None:
        _check_fate("score", self.parsed, self.fate)

    @property
    def value(self) -> int:
        """1 if correct, else 0."""
        return int(self.fate == "correct")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One item of a run: one JSONL row. The raw reply is kept, so that a run can be scored again offline."""

    id: str
    kind: str
    reply: str
    answer: str
    parsed: str | None
    fate: Fate
    digest: str
    """`Item.digest` of the question that was asked."""
    run: str = ""
    """Who was asked and how, in the caller's words."""

    def __post_init__(self) -> None:
        _check_fate(f"prediction {self.id!r}", self.parsed, self.fate)

    @property
    def correct(self) -> bool:
        """Whether the fate is `correct`. Written to the row for people and scripts that read the file."""
        return self.fate == "correct"

    @classmethod
    def from_json(cls, line: str | bytes) -> Prediction:
        """Inverse of `to_json`. Raises ValueError if `line` is not such a row."""
        try:
            row = json.loads(line)
            row.pop("correct")
            return cls(**row)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"expected a prediction as written by evals, got {line[:60]!r} ({error})") from None

    def to_json(self) -> str:
        """One line of JSON, without the newline."""
        return json.dumps({**dataclasses.asdict(self), "correct": self.correct}, ensure_ascii=False)


@dataclass(frozen=True, kw_only=True)
class Result:
    """A run in numbers. Unparsed and truncated replies count as not correct: `accuracy` is over all n."""

    n: int
    fates: dict[Fate, int]
    """How many replies met each fate. They sum to n; every fate has an entry."""
    accuracy: float
    interval: tuple[float, float]
    """95 % Wilson interval of `accuracy`."""
    parse_rate: float
    """Share of replies in which an answer was found: correct or wrong."""
    kinds: dict[str, Result] = field(default_factory=dict)
    """The same for each kind of item, in alphabetical order; empty inside."""

    def __str__(self) -> str:
        low, high = self.interval
        lost = ", ".join(f"{self.fates[fate]} {fate}" for fate in ("unparsed", "truncated"))
        return f"accuracy {self.accuracy:.1%} [{low:.1%}, {high:.1%}] of n={self.n} ({lost})"


def _check_fate(where: str, parsed: str | None, fate: str) -> None:
    if fate not in FATES:
        raise ValueError(f"{where}: fate: expected one of {', '.join(FATES)}, got {fate!r}")
    if (parsed is None) != (fate in ("unparsed", "truncated")):
        raise ValueError(f"{where}: a {fate} reply cannot have the parsed answer {parsed!r}")
