"""The sentences around p. Ours: the paper's prompts are pictures.

They do not call the notes true, because a policy that is told so trusts wrong boxes; and they ask the policy not to
cite the notes, because the deployed student cannot.
"""

from __future__ import annotations

BOXES = "[x1, y1, x2, y2]"
POINTS = "[x, y]"


def header(many: bool, coordinates: str = "") -> str:
    """The line above the notes, for one image or `many`; `coordinates` is their form, if the notes hold any."""
    images = "these images" if many else "this image"
    scale = "relative to each image" if many else "relative"
    return f"Visual notes for {images}{f' (coordinates are {scale}, 0-1000, {coordinates})' if coordinates else ''}:"


def footer(things: str) -> str:
    """The line below the notes; `things` must not be mentioned in the answer."""
    return (
        "Use them to look at the right places. Answer the question as if you had only seen the image; "
        f"do not mention {things}."
    )


FOOTER = footer("these notes, boxes or coordinates")
