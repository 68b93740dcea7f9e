"""What is asked, what came back, how it was judged, and what a whole run says.

Every reply has exactly one fate, and the fates of a run sum to its n: a reply that could not be read is counted as
such and never guessed. All rates are shares in 0..1; a "point" elsewhere is a hundredth of that.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from PIL import Image

from .decoded import Video
from .media import Lazy

Fate = Literal["parsed", "unparsed", "truncated", "error"]
FATES: tuple[Fate, ...] = get_args(Fate)
"""An answer was read; none was found; the reply was cut off by its budget; no reply came."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question ready to be asked.

    `messages` have the form of `apply_chat_template`, with one `{"type": "image"}` for each of `images` and one
    `{"type": "video"}` for each of `videos`, in their order. Media may be `Lazy`: decoded when they are needed.
    Raises ValueError for an empty id or answer, and where placeholders and media differ in number.
    """

    id: str
    messages: tuple[dict[str, Any], ...]
    images: tuple[Image.Image | Lazy, ...] = ()
    videos: tuple[Video | Lazy, ...] = ()
    answer: str
    """The gold, as people read it."""
    group: Mapping[str, str] = field(default_factory=dict)
    """What the item is reported under: `{"kind": "colour"}`."""
    cluster: str = ""
    """Items of one cluster are resampled as one; empty: the item is alone."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """Columns of a benchmark's row that decide what is right: enough to score the reply again."""

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise ValueError(f"item {self.id!r}: id: expected a non-empty string")
        if not isinstance(self.answer, str) or not self.answer.strip():
            # LogicVista has such an item: with an empty gold, an empty reply scores 1.
            raise ValueError(f"item {self.id!r}: answer: expected a non-empty string, got {self.answer!r}")
        # Qwen3-VL's template renders only the text of a system turn, so an image there would have no place.
        parts = [
            part["type"]
            for message in self.messages
            if message["role"] != "system" and not isinstance(message["content"], str)
            for part in message["content"]
        ]
        for kind, media in (("image", self.images), ("video", self.videos)):
            if parts.count(kind) != len(media):
                raise ValueError(
                    f"item {self.id!r}: expected one {kind} placeholder (outside system turns) for each {kind}, "
                    f"got {parts.count(kind)} for {len(media)}"
                )

    @property
    def question(self) -> str:
        """The text as it is asked, for people."""
        texts = []
        for message in self.messages:
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            texts.append("".join(part["text"] if part["type"] == "text" else f"<{part['type']}>" for part in parts))
        return "\n".join(texts)

    @property
    def digest(self) -> str:
        """Hash of all that decides what is asked and what is right: messages, media and answer."""
        digest = hashlib.sha256(json.dumps([self.messages, self.answer], sort_keys=True).encode())
        for media in (*self.images, *self.videos):
            for image in () if isinstance(media, Lazy) else media.frames if isinstance(media, Video) else (media,):
                digest.update(f"{image.mode} {image.size}".encode())
                digest.update(image.tobytes())
            if isinstance(media, Lazy):
                digest.update(media.digest.encode())
        return digest.hexdigest()[:16]

    def loaded(self) -> Item:
        """The item with its media decoded. Raises ValueError with one line if one of them cannot be."""
        images, videos = ([_decoded(media) for media in its] for its in (self.images, self.videos))
        return dataclasses.replace(self, images=tuple(images), videos=tuple(videos))


@dataclass(frozen=True)
class Reply:
    """What a model wrote. `truncated`: it was cut off by the token limit, so its last words mean nothing."""

    text: str
    truncated: bool
    error: str = ""
    """Why nothing came back for this one request."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The judgement of one reply. An unparsed, truncated or failed one scores 0; it is never guessed."""

    parsed: str | None
    score: float
    fate: Fate
    method: str = ""
    """The rule that read the answer, or why there is none."""

    def __post_init__(self) -> None:
        if not 0 <= self.score <= 1:
            raise ValueError(f"verdict: score: expected 0..1, got {self.score}")
        if self.fate not in FATES:
            raise ValueError(f"verdict: fate: expected one of {', '.join(FATES)}, got {self.fate!r}")
        if self.parse_ok != (self.parsed is not None) or (self.score and not self.parse_ok):
            raise ValueError(f"verdict: a reply that is {self.fate} cannot have {self.parsed!r} with {self.score}")

    @property
    def parse_ok(self) -> bool:
        """Whether an answer was read."""
        return self.fate == "parsed"

    @property
    def correct(self) -> bool:
        """Whether it has the full score."""
        return self.score == 1


@dataclass(frozen=True, kw_only=True)
class Prediction(Verdict):
    """One item of a run: one JSONL row. The raw reply is kept, so that a run can be scored again offline."""

    id: str
    question: str
    """`Item.question`, for people."""
    response: str | None
    """The raw reply; None: none came."""
    truncated: bool
    answer: str
    digest: str
    """`Item.digest` of the question that was asked."""
    protocol: str
    """How it was asked and scored, `benchmark:protocol:hash`. Runs with different ones are never subtracted."""
    run: str = ""
    """Who was asked, in the caller's words."""
    group: Mapping[str, str] = field(default_factory=dict)
    cluster: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The group "kind" of held-out questions; empty where there is none."""
        return self.group.get("kind", "")

    @classmethod
    def from_json(cls, line: str | bytes) -> Prediction:
        """Inverse of `to_json`. Raises ValueError if `line` is not such a row."""
        try:
            return cls(**json.loads(line))
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"expected a prediction as written by evals, got {line[:60]!r} ({error})") from None

    def to_json(self) -> str:
        """One line of JSON, without the newline, `id` first."""
        row = dataclasses.asdict(self)
        row = {"id": row.pop("id"), **row}
        line = json.dumps(row, ensure_ascii=False)
        # A server's reply may hold half a surrogate pair, which no file can but as an escape.
        return line if _encodable(line) else json.dumps(row)


@dataclass(frozen=True, kw_only=True)
class Result:
    """A run in numbers. Replies without an answer count as not correct: `accuracy` is over all n."""

    n: int
    fates: dict[Fate, int]
    """How many replies met each fate. They sum to n; every fate has an entry."""
    accuracy: float
    """Mean score."""
    interval: tuple[float, float]
    """95 % Wilson interval of `accuracy`."""
    parse_rate: float
    """Share of replies in which an answer was found."""
    kinds: dict[str, Result] = field(default_factory=dict)
    """The same for each kind of item, in alphabetical order; empty inside."""

    def __str__(self) -> str:
        low, high = self.interval
        lost = ", ".join(f"{self.fates[fate]} {fate}" for fate in FATES[1:] if self.fates[fate])
        return f"accuracy {self.accuracy:.1%} [{low:.1%}, {high:.1%}] of n={self.n}" + (f" ({lost})" if lost else "")


def _decoded(media: Any) -> Any:
    return media.load() if isinstance(media, Lazy) else media


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def count_fates(verdicts: Iterable[Verdict]) -> dict[Fate, int]:
    """How many replies met each fate. They sum to the number of verdicts; every fate has an entry."""
    counts = Counter(verdict.fate for verdict in verdicts)
    return {fate: counts[fate] for fate in FATES}
