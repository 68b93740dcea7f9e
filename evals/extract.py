"""Reading the final answer of a reply, or None. Never a guess.

An answer counts only where the reply says that it is one: after `Answer:`, else in a `\\boxed{}`. Toolkits that also
look for a letter or number anywhere read "Because the sign is red, the answer is C" as B, and 711 as 11.
"""

from __future__ import annotations

import re
import unicodedata

_MARKER = re.compile(r"(?:(?<![a-z0-9])answer|答案)[*_`\s]*:", flags=re.IGNORECASE)
_ANSWER_TAG = re.compile(r"<answer>(.*?)(?=</answer>|<answer>|\Z)", flags=re.IGNORECASE | re.DOTALL)
_KEPT_APART = {"<super>": "^", "<fraction>": " "}
_DECORATION = " \t\r\n*_`$\"'“”‘’«»"
_FINAL = ".,;:!?。、"
_WRAPPERS = {"(": ")", "[": "]", "{": "}", "<": ">", "【": "】", "\\(": "\\)", "\\[": "\\]"}
_MAX_ANSWER = 2000
_COMMANDS = ("\\boxed{", "\\text{", "\\textbf{", "\\mathrm{", "\\mathbf{")
_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", flags=re.DOTALL)


def final_answer(reply: str) -> str | None:
    """The answer that `reply` declares to be final, trimmed, or None if it declares none.

    That is the first line with content after the last `Answer:` (any case, spaces, markdown or a full-width colon
    around it; also `答案:`); if that line holds a `\\boxed{}`, its content. Without a marker: the content of the last
    balanced `\\boxed{}` of the reply. The last declaration decides even if it is empty, because going back to an
    earlier one would be a guess. What stands in a `<think>` block is not part of the reply; one that never closes
    leaves no reply.

    >>> final_answer("Perhaps Answer: 7? No. **Answer:** 42.")
    '42'
    >>> final_answer("It is 711.") is None
    True
    """
    text = visible(reply)
    return None if text is None else _declared(text) or None


def declared_answer(text: str) -> str | None:
    """What `text` (a `visible` one) declares: `final_answer`'s rules after `<answer>` tags, the last of which decides.

    Empty if the last declaration is: a caller that reads prose too must not look for another answer then. None if
    nothing is declared.
    """
    tags = _ANSWER_TAG.findall(text)
    if not tags:
        return _declared(text)
    inside = _declared(tags[-1])
    return trim(tags[-1]) if inside is None else inside


def visible(reply: str) -> str | None:
    """The reply without its thinking, normalised; None if a `<think>` block never closes."""
    text = normalise(reply).rpartition("</think>")[2]
    return None if "<think>" in text else text


def _declared(text: str) -> str | None:
    """As `final_answer`, but empty where the last declaration is."""
    markers = list(_MARKER.finditer(text))
    if not markers:
        box = last_box(text)
        return None if box is None else trim(box)
    for line in text[markers[-1].end() :].splitlines():
        box = last_box(line)
        if answer := trim(line if box is None else box):
            return answer
    return ""


def normalise(text: str) -> str:
    """NFKC without invisible characters, except that 5² becomes 5^2 (not 52) and 2½ becomes 2 1/2 (not 21/2)."""
    if text.isascii():
        return text
    seen = (c for c in text.replace("−", "-") if unicodedata.category(c) != "Cf")
    marked = "".join(_KEPT_APART.get(unicodedata.decomposition(c).partition(" ")[0], "") + c for c in seen)
    return unicodedata.normalize("NFKC", marked).replace("\N{FRACTION SLASH}", "/")


def trim(text: str) -> str:
    """`text` without markdown, quotes, brackets and LaTeX around it, and without final punctuation. Idempotent.

    A leading point or minus belongs to the answer (.5, -3), and so do brackets around a list: (3, 4) is not [3, 4].
    A text longer than any answer keeps its brackets: thousands of nested ones would take quadratic time.
    """
    while True:
        before = text
        text = text.lstrip(_DECORATION + "=:").rstrip(_DECORATION + _FINAL)
        text = _unwrap(text) if len(text) <= _MAX_ANSWER else text
        if text == before:
            return text


def last_box(text: str) -> str | None:
    """Content of the balanced `\\boxed{}` that starts last, None if there is none. Escaped braces do not count."""
    found: tuple[int, str] | None = None
    opened: list[tuple[bool, int]] = []
    for match in _BRACES.finditer(text):
        token = match[0]
        boxed = token.startswith("\\boxed")
        if boxed or token == "{":
            opened.append((boxed, match.end()))
        elif token == "}" and opened:
            boxed, start = opened.pop()
            if boxed and (found is None or start > found[0]):
                found = start, text[start : match.start()]
    return None if found is None else found[1]


def _unwrap(text: str) -> str:
    for command in _COMMANDS:
        if text.startswith(command) and _closes_at_end(text[len(command) - 1 :], "{", "}"):
            return text[len(command) : -1]
    for left, right in _WRAPPERS.items():
        inside = text[len(left) : -len(right)]
        if text.startswith(left) and _closes_at_end(text, left, right) and "," not in inside:
            return inside
    # What is left of "B)" and of "(Answer: 7)": a bracket that closes what the answer never opened.
    return text[:-1] if text.endswith((")", "]", "}")) and not any(c in text for c in "([{") else text


def _closes_at_end(text: str, left: str, right: str) -> bool:
    """Whether the bracket that opens `text` is closed by its very end: true of (a(b)), false of (a)(b)."""
    if len(text) < len(left) + len(right) or not text.endswith(right):
        return False
    depth = 0
    for match in re.finditer(f"{re.escape(left)}|{re.escape(right)}", text):
        depth += 1 if match[0] == left else -1
        if depth == 0:
            return match.end() == len(text)
    return False
