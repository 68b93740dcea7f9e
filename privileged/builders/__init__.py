"""Builders: one file a rendering. `get_builder("boxes", style="lines")` imports `builders/boxes.py`.

A builder file has two names: `BUILDER`, a frozen dataclass whose fields are the options, and `EXAMPLE`, the facts of
one sample (question, image size, record) to show it with. Outside the tree the same file is found through the
entry-point group `vlm_dopd.builders`.

Every builder declares what its blocks give away by their nature, as `discloses`:

| grade | what a block holds |
|---|---|
| `none` | nothing |
| `cue` | where to look: places, and the names of what is there |
| `derivable` | facts from which the answer may follow: captions, text, relations, steps, whatever a user writes |
| `answer` | the answer, on purpose: only such a builder is handed `sample.answer` |

Whether a cue gives one sample's answer away (three boxes when the question is how many) is for a leak audit to say.
"""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any, ClassVar, Literal, Protocol

from PIL import Image

from ..plugins import Plugins
from ..records import PrivilegedRecord, Sample

ENTRY_POINTS = "vlm_dopd.builders"

Disclosure = Literal["none", "cue", "derivable", "answer"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrivilegedBlock:
    """What a builder made of one record: text and images, in the order in which the policy shall see them."""

    parts: tuple[str | Image.Image, ...] = ()
    audit_text: tuple[str, ...] = ()
    """The fields of the record that the parts disclose, without coordinates: what a leak audit reads."""
    replace_images: tuple[Image.Image, ...] | None = None
    """What the privileged view shows instead of the sample's images, before the parts; None: the images themselves."""
    left_out: int = 0
    """How many regions, or points, or relations, a limit of the builder left out."""

    @property
    def empty(self) -> bool:
        """Nothing to say: the sample is then trained without p."""
        return not self.parts and self.replace_images is None


class Builder(Protocol):
    """A pure function of sample and record. It never sees the network or another sample, and the answer only if it
    `discloses` it: for all others `sample.answer` is None.
    """

    discloses: ClassVar[Disclosure]

    def build(self, sample: Sample, record: PrivilegedRecord) -> PrivilegedBlock:
        """p of one sample as text and images; an empty block if there is nothing to say. Raises DataError."""
        ...


def discloses(builder: Builder) -> Disclosure:
    """What `builder` declares; `derivable`, which is what users write, for one that declares nothing."""
    return getattr(builder, "discloses", "derivable")


_PLUGINS = Plugins(kind="builder", package=__name__, path=__path__, group=ENTRY_POINTS)


def available() -> list[str]:
    """Names of all builders, those of other packages included."""
    return _PLUGINS.available()


def find(name: str) -> ModuleType:
    """The module of builder `name`. Raises DataError with the close matches if there is none."""
    return _PLUGINS.find(name)


def get_builder(name: str, **options: Any) -> Builder:
    """Builder `name` with its options. Raises DataError if the name or an option is unknown.

    >>> get_builder("boxes", style="lines").style
    'lines'
    >>> get_builder("crops").discloses, get_builder("answer").discloses
    ('cue', 'answer')
    """
    return _PLUGINS.get(name, options)
