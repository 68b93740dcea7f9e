"""What became of every row: exactly one fate each, and what it did cost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ..checks import EXAMPLES, Report
from . import replies

FATES = {
    "kept": "has p now",
    "fixed": "has p now, without the parts that the re-check found bad",
    "already": "had a record before; left as it was",
    "planned": "would be asked (dry run)",
}
REASONS = replies.REASONS | {
    "bad row": "not a sample: no question, or a column of another type",
    "bad image": "an image that cannot be opened; the row cannot be trained on either",
    "no image": "boxes were asked for, and the row has no image",
    "no answer": "the re-check needs the reference answer, and the row has none",
    "rejected": "the endpoint does not take this request",
    "endpoint gave up": "no reply after all attempts; the next run asks again",
    "re-check unreadable": "its reply was refused, cut off or of another form: what is not known is not kept",
    "re-check: states the answer": "the answer is written in p",
    "re-check: implies the answer": "the answer follows from p alone",
    "re-check: incomplete": "something that is needed is missing",
    "re-check: drop": "the verdict was drop, or nothing good was left",
}
"""Why a row has no p (`dropped:<reason>`). It is in the output all the same, and is trained without p."""
NOT_ASKED = {
    "spend cap": "asking could have taken the spend above max_spend",
    "endpoint down": "max_failures calls in a row had no reply",
    "endpoint refused": "the endpoint takes no requests",
}


@dataclass(kw_only=True)
class Summary:
    """Figures of one run over one shard. `fates` adds up to `rows`."""

    rows: int = 0
    fates: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    """The first places of each fate but `kept`, in the order of the rows."""
    boxes: Report = field(default_factory=Report)
    """What became of every box of every reply."""
    calls: int = 0
    """Replies that came in this run, the probe's among them; in a dry run: calls that would be made at most."""
    cached: int = 0
    """Replies that were there already."""
    retries: int = 0
    """Further attempts, by the SDK, of calls that got a reply in the end."""
    failures: int = 0
    """Calls that got none."""
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0
    """Of this run. In a dry run: at most."""
    spent: float = 0.0
    """By all replies that are kept, earlier runs included: what `max_spend` is held against, with `uncertain`."""
    uncertain: float = 0.0
    """At most: for calls that were lost on the way, or whose reply did not say its tokens."""
    stopped: str = ""
    """Why asking ended before the last row; empty if it did not."""
    dry_run: bool = False
    probe: str = ""
    """What the probe found."""

    def count(self, fate: str, place: str) -> None:
        """One row has this fate."""
        self.rows += 1
        self.fates[fate] += 1
        if fate != "kept" and len(places := self.examples.setdefault(fate, [])) < EXAMPLES:
            places.append(place)

    def lines(self) -> list[str]:
        """For people: a line a fate, its first places below it."""
        lines = [f"rows: {self.rows}"]
        for fate, number in sorted(self.fates.items()):
            name = fate.partition(":")[2]
            why = FATES.get(fate) or REASONS.get(name) or NOT_ASKED.get(name, "")
            lines.append(f"  {fate}: {number}" + (f" ({why})" if why else ""))
            lines += [f"    {place}" for place in self.examples.get(fate, []) if place]
        lines += [line for line in self.boxes.lines() if self.boxes.objects]
        lines += [self.probe] if self.probe else []
        most = "at most " if self.dry_run else ""
        lines.append(
            f"{most}{self.calls} calls, {self.cached} replies kept from before, {self.retries} retries, "
            f"{self.failures} without reply"
        )
        lines.append(
            f"{most}{self.tokens_in:,} tokens in, {self.tokens_out:,} out, cost {self.cost:.4f}; all runs: "
            f"{self.spent:.4f}" + (f" and up to {self.uncertain:.4f} uncertain" if self.uncertain else "")
        )
        if self.dry_run:
            lines.append("an estimate: bytes of text, 32 x 32 px of image a token, and the longest replies")
        return [*lines, f"stopped: {self.stopped}"] if self.stopped else lines

    def to_json(self) -> dict[str, Any]:
        """The same for programs."""
        return vars(self) | {"fates": dict(self.fates), "boxes": {k: dict(v) for k, v in vars(self.boxes).items()}}
