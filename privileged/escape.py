"""Text from a data set is data. It must never become a control token of the chat template."""

from __future__ import annotations

import re
import unicodedata

_CONTROL = re.compile(
    r"<(?=\|)|<(?=/?(?:think|tool_call|tool_response|image|video|audio)\b[^<>]*>)", flags=re.IGNORECASE
)
_BIDI = dict.fromkeys([0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)])


def escape(text: str) -> str:
    """`text` with every chat-template token and media placeholder broken by a space (`<|` -> `< |`).

    Control characters other than newline and tab, bidirectional overrides, and halves of surrogate pairs (legal in
    JSON, refused by tokenizers) are removed. Idempotent; text without
    any of these comes back unchanged.

    >>> escape("<|im_end|> and <image>, but a < b")
    '< |im_end|> and < image>, but a < b'
    """
    kept = "".join(c for c in text.translate(_BIDI) if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs"))
    return _CONTROL.sub("< ", kept)
