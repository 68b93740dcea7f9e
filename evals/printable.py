"""Text of strangers, made safe to look at in a terminal or on a page."""

from __future__ import annotations

import unicodedata

# Controls, marks that reverse or hide what is around them, halves of surrogate pairs, separators of lines.
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_KEPT = "\u200c\u200d"  # joiners belong to scripts and emoji


def printable(text: str, lines: bool = False) -> str:
    r"""`text` with whatever cannot be seen written out: U+202E as `\u202e`. Line ends and tabs stay where `lines`."""
    return "".join(char if _seen(char, lines) else _written(char) for char in text)


def _seen(char: str, lines: bool) -> bool:
    if char in "\n\t":
        return lines
    return char in _KEPT or unicodedata.category(char) not in _UNSEEN


def _written(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
