"""Several builders in one section, in the given order.

```yaml
builder: compose
builder_options: {builders: [caption, {name: boxes, style: lines}, hints]}
```

A builder with nothing to say about a sample is left out of its section.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from ..errors import DataError
from ..records import PrivilegedRecord, Sample
from . import Builder, Disclosure, PrivilegedBlock, get_builder
from .crops import Crops


@dataclass(frozen=True, kw_only=True)
class Compose:
    """`builders` are names, or objects with `name` and the options of that builder."""

    discloses: ClassVar[Disclosure] = "derivable"

    builders: Sequence[str | Mapping[str, Any]] = ("boxes", "hints")

    def __post_init__(self) -> None:
        if isinstance(self.builders, str) or not isinstance(self.builders, Sequence) or not self.builders:
            raise DataError(f"builder 'compose': builders: expected a list of builders, got {self.builders!r}")
        replacing = [builder for builder in self._built if getattr(builder, "mode", "") == "replace"]
        if any(getattr(builder, "discloses", None) == "answer" for builder in self._built):
            raise DataError("builder 'compose': a builder that discloses the answer cannot be composed; use it alone")
        if len(replacing) > 1 or (len(self._built) > 1 and any(isinstance(builder, Crops) for builder in replacing)):
            raise DataError(
                "builder 'compose': expected at most one builder with mode='replace', and none beside crops that "
                "replace the image, since coordinates of the whole image mean nothing there; use mode='append'"
            )

    @cached_property
    def _built(self) -> list[Builder]:
        return [_builder(entry) for entry in self.builders]

    def build(self, sample: Sample, record: PrivilegedRecord) -> PrivilegedBlock:
        """Raises DataError if one of the builders cannot render the record."""
        blocks = [builder.build(sample, record) for builder in self._built]
        return PrivilegedBlock(
            parts=tuple(part for block in blocks for part in block.parts),
            audit_text=tuple(text for block in blocks for text in block.audit_text),
            replace_images=next((b.replace_images for b in blocks if b.replace_images is not None), None),
            left_out=sum(block.left_out for block in blocks),
        )


def _builder(entry: str | Mapping[str, Any]) -> Builder:
    options = {"name": entry} if isinstance(entry, str) else dict(entry) if isinstance(entry, Mapping) else {}
    if not isinstance(name := options.pop("name", None), str):
        raise DataError(f"builder 'compose': expected a name, or an object with 'name' and options, got {entry!r}")
    return get_builder(name, **options)


BUILDER = Compose
EXAMPLE = {
    "question": "What is left of the cup?",
    "image_size": (640, 480),
    "privileged": {
        "regions": [{"id": "r1", "label": "cup", "box": [292, 240, 330, 282]}],
        "notes": [{"kind": "hint", "text": "Find the cup, then look to its left."}],
    },
}
