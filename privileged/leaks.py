"""Does p give the answer away? Rules on the words of p, each hit with a grade; nothing here needs a model.

Only the text fields are read (labels, captions, notes: `PrivilegedBlock.audit_text`), never the rendered block: with
five boxes, 99.7 % of one-digit answers and 34.6 % of two-digit ones occur somewhere in the coordinates. A box written
out inside a field, four numbers in brackets, is skipped for the same reason.

| grade | what it says |
|---|---|
| `NONE` | nothing found |
| `CUE` | the answer is named, but as one of several candidates; or a weak hit |
| `DERIVABLE` | the answer follows: so many boxes, a lone candidate, a conclusion, a copied solution |
| `STATED` | the answer itself |

Rules find words, not meaning: synonyms, spelling mistakes and look-alike letters pass. The blind test (question and p,
without the images) is the measure; the rules say where to look.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from ._words import UNSPACED, Text, value_of
from .records import PrivilegedRecord

NGRAM = 8
"""Tokens in a row that p may not share with a reference solution, unless the question has them too."""
COMMON = frozenset({"yes", "no", "true", "false", "none", "left", "right", "both", "same", *"是否有无对错一"})
"""Answers that occur by chance: a hit on them alone is weak. So are single digits and letters."""

RULES = {
    "verbatim": "the answer is in a field, word by word",
    "numeric": "a number in a field equals the answer",
    "option text": "a field holds the text of the correct option",
    "option letter": "a field names the letter of the correct option as an answer",
    "assertion": "a field says yes or no outright",
    "count": "the question asks how many, and there are so many boxes",
    "sole candidate": "the correct option is the only one with a box",
    "phrase": "a field draws a conclusion or carries a calculation out",
    "overlap": f"{NGRAM} words in a row are those of the reference solution",
}
_SAME_EVIDENCE = {"numeric": "verbatim", "option text": "verbatim"}
"""Rules that read the same words: their agreement proves no more than one of them."""


class Grade(IntEnum):
    """How much of the answer a field gives away; larger is worse. Builders declare theirs as `discloses`."""

    NONE = 0
    CUE = 1
    DERIVABLE = 2
    STATED = 3


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One of RULES and where it fired. `weak`: on a short common answer, and no other rule agrees."""

    rule: str
    grade: Grade
    text: str
    """The field that gave it away, shortened; empty if the boxes did."""
    detail: str
    weak: bool = False


def find_leaks(
    question: str,
    answer: str | None,
    texts: Sequence[str],
    record: PrivilegedRecord | None = None,
    reference: str | None = None,
) -> tuple[Hit, ...]:
    """What in `texts` (fields of p without coordinates) gives `answer` away: at most one hit a rule, the worst.

    `record` holds the regions that p discloses; only their number and labels are used. `reference` is a worked
    solution, if there is one; a long answer serves as one too. Without an answer only `phrase` and `overlap` apply.

    >>> [hit] = find_leaks("What is it? (A) a cup (B) a dog", "B", ["A dog lies on the floor."])
    >>> hit.rule, hit.grade.name, hit.detail
    ('option text', 'STATED', "'a dog' is in 1 of 1 fields")
    >>> find_leaks("What is it? (A) a cup (B) a dog", "B", ["Something lies on the floor."])
    ()
    """
    asked, right = Text.of(question), Text.of(answer or "", keep_boxes=True)
    boxed = Text.BOX.search(answer or "") is not None
    fields = [Text.of(text, keep_boxes=boxed) for text in texts]
    options = _options(asked.plain)
    letter = _letter(right, options)
    target = options.get(letter, right) if letter else right
    hits = [
        *(_letters(letter, fields) if letter else ()),
        *_statements(asked, target, fields, options, lettered=bool(letter and target is not right)),
        *_counts(asked, target, record),
        *_sole_candidate(target, options, record),
        *_phrases(asked, fields),
        *_overlaps(asked, fields, [Text.of(reference or ""), right]),
    ]
    families = {_SAME_EVIDENCE.get(hit.rule, hit.rule) for hit in hits if hit.grade >= Grade.DERIVABLE}
    return tuple(replace(hit, weak=False) if hit.weak and len(families) > 1 else hit for hit in hits)


def grade(hits: Sequence[Hit]) -> Grade:
    """The worst of `hits`; a weak one counts as a cue."""
    return max((Grade.CUE if hit.weak else hit.grade for hit in hits), default=Grade.NONE)


def form(question: str, answer: str | None) -> str:
    """What kind of answer is asked for: `choice`, `yes/no`, `count`, `number` or `open`."""
    asked, right = Text.of(question), Text.of(answer or "")
    if _options(asked.plain):
        return "choice"
    if _YES_NO.fullmatch(right.words):
        return "yes/no"
    if _COUNTING.search(asked.folded):
        return "count"
    return "open" if value_of(right) is None else "number"


_YES_NO = re.compile(r"yes|no|true|false")
_ASSERTED = re.compile(
    r"^\s*(yes|no|true|false)\s*(?:$|[,;!:—–]|-\s|\.\s*+(?!\d))|\banswer\W{0,4}(?:is|=|:)?\W{0,4}(yes|no|true|false)\b"
)
_COUNTING = re.compile(
    r"\bhow many\b|\bnumber of\b|\bcount\b|\bwie viele\b|\bcombien\b|\bcu[aá]nt[oa]s\b|\bquant[ie]\b|\bсколько\b"
    r"|多少|几[个個只条張张辆本位名块片杯匹]|幾|何[個人本台匹枚]|몇"
)
_PHRASE = re.compile(
    r"\banswer (?:is|are|would be|will be|must be|should be)\b|\banswer\s?[:=]|\b(?:therefore|hence|thus)\b"
    r"|\bcorrect (?:option|choice|answer)\b|答案|因此|所以选|故选|正确选项|=\s?[+-]?\s?\$?\s?\.?\d[\d.,]*+"
)
_OPTION = re.compile(r"(?<![\w(])\(?(?:([A-J])\s?[).:、]|([a-j])\))(?!\w\.)\s*+")
_ONE_LETTER = re.compile(
    r"\W{0,3}(?:(?:option|choice|answer)\W{1,3})?([A-Z])(?:\W{0,3}|[).:、]{1,2}\s(.{1,200}))", re.I | re.S
)


def _options(question: str) -> dict[str, Text]:
    """The lettered options of a question, A onwards; empty if there are not at least two in a row."""
    run: list[re.Match[str]] = []
    best: list[re.Match[str]] = []
    for match in _OPTION.finditer(question):
        place = ord((match[1] or match[2]).upper()) - ord("A")
        if place == len(run):
            run = [*run, match]
        elif place == 0:
            run = [match]
        best = run if len(run) >= max(2, len(best)) else best
    ends = [match.start() for match in best[1:]] + [len(question)] * bool(best)
    found = {}
    for match, end in zip(best, ends, strict=True):
        lines = question[match.end() : end].strip().splitlines()
        found[(match[1] or match[2]).upper()] = Text.of(lines[0] if lines else "")
    return found


def _letter(right: Text, options: dict[str, Text]) -> str | None:
    """The letter that the answer is: written as one, or because it is the text of that option."""
    if match := _ONE_LETTER.fullmatch(right.plain.strip()):
        letter, rest = match[1].upper(), Text.of(match[2] or "")
        if not rest.tokens or (letter in options and rest.tokens == options[letter].tokens):
            return letter
    return next((key for key, text in options.items() if text.tokens and text.tokens == right.tokens), None)


def _letters(letter: str, fields: Sequence[Text]) -> list[Hit]:
    """The letter where it can only be an answer: (B), option B, answer: B. "A man" is no option A."""
    either = f"[{letter}{letter.lower()}]"
    # "Answer: a red car" and "answer: A red car" hold an article, "the answer is A because" does not.
    bare = rf"(?<=is\s){letter}(?![\w'’])|{either}(?![\w'’])" + (r"(?!\s+\w)" if letter in "AI" else "")
    named = re.compile(
        rf"\(\s?{either}\s?\)|(?:\b(?i:option|choice|answer)|选项|答案|[故应]?选)\W{{0,4}}(?:is\b|是|为)?\W{{0,4}}(?:{bare})"
    )
    for field in fields:
        if match := named.search(field.plain):
            return [_hit("option letter", Grade.STATED, field, f"answer {letter} in {match[0]!r}")]
    return []


def _statements(
    asked: Text, target: Text, fields: Sequence[Text], options: dict[str, Text], lettered: bool
) -> list[Hit]:
    """The answer in so many words, or the same number in another form."""
    if _YES_NO.fullmatch(target.words):
        return _assertions(target.words, fields)
    if not target.tokens:
        return []
    hits = []
    single = len(target.words) == 1 and target.words.isascii() and target.words.isalpha()
    value = value_of(target)
    weak = single or target.words in COMMON or (value is not None and value in range(10))
    for rule, same in (("verbatim", _verbatim), ("numeric", _numeric)):
        found = [field for field in fields if same(target, field)]
        if single:  # the article, a point of a figure: only a field that is nothing else
            found = [field for field in found if field.words == target.words]
        if found:
            grade, detail = _among_candidates(asked, target, found, fields, options)
            name = "option text" if lettered else rule
            hits.append(_hit(name, grade, found[0], detail, weak=weak and grade == Grade.STATED))
    return hits[:1] if lettered else hits


def _among_candidates(
    asked: Text, target: Text, found: Sequence[Text], fields: Sequence[Text], options: dict[str, Text]
) -> tuple[Grade, str]:
    """STATED, or CUE if p names the answer only as it names others that could be it just as well.

    With options, these are the other options. Without, they are the other fields as a whole (labels, say) if the answer
    is a field as a whole: those the question mentions if it mentions the answer ("the cup or the bottle?"), else those
    it does not.
    """
    stated = Grade.STATED, f"{target.plain.strip()[:60]!r} is in {len(found)} of {len(fields)} fields"
    if options:
        others = [text for text in options.values() if text.tokens and not _verbatim(text, target)]
        named = sum(any(_verbatim(text, field) or _numeric(text, field) for field in fields) for text in others)
        return (Grade.CUE, f"named with {named} of the other options") if named else stated
    if any(field.words != target.words for field in found):
        return stated
    mentioned = _verbatim(target, asked)
    rivals = {f.words for f in fields if f.tokens and f.words != target.words and _verbatim(f, asked) == mentioned}
    return (Grade.CUE, f"one of {len(rivals) + 1} fields that could be the answer") if rivals else stated


def _assertions(word: str, fields: Sequence[Text]) -> list[Hit]:
    for field in fields:
        match = _ASSERTED.search(field.folded)
        if match and (match[1] or match[2]) == word:
            weak = match[2] is None
            return [_hit("assertion", Grade.STATED, field, f"says {match[0].strip()!r}", weak=weak)]
    return []


def _counts(asked: Text, target: Text, record: PrivilegedRecord | None) -> list[Hit]:
    value = value_of(target)
    if record is None or not record.regions or value is None or not _COUNTING.search(asked.folded):
        return []
    if value == len(record.regions):
        return [Hit(rule="count", grade=Grade.DERIVABLE, text="", detail=f"boxes in all: {len(record.regions)}")]
    counts = Counter(region.label for region in record.regions)
    for label in sorted(counts, key=lambda label: (not _verbatim(Text.of(label), asked), label)):
        if value == counts[label]:
            return [
                Hit(rule="count", grade=Grade.DERIVABLE, text=label[:120], detail=f"{counts[label]} × {label[:60]!r}")
            ]
    return []


def _sole_candidate(target: Text, options: dict[str, Text], record: PrivilegedRecord | None) -> list[Hit]:
    if record is None or not target.tokens:
        return []
    labels = [Text.of(region.label) for region in record.regions]
    named = {text.words for text in options.values()} & {label.words for label in labels}
    boxes = [label for label in labels if label.words == target.words]
    if named != {target.words} or len(boxes) != 1:
        return []
    return [_hit("sole candidate", Grade.DERIVABLE, boxes[0], f"the only one of {len(options)} options with a box")]


def _phrases(asked: Text, fields: Sequence[Text]) -> list[Hit]:
    for field in fields:
        for match in _PHRASE.finditer(field.folded):
            # What the question itself says ("let x = 5") is no conclusion.
            if not match[0].startswith("=") or "".join(match[0].split()) not in asked.dense:
                return [_hit("phrase", Grade.DERIVABLE, field, f"says {match[0]!r}")]
    return []


def _overlaps(asked: Text, fields: Sequence[Text], references: Sequence[Text]) -> list[Hit]:
    known = set().union(*(_ngrams(text) for text in references)) - _ngrams(asked)
    for field in fields:
        if known and (shared := _ngrams(field) & known):
            return [_hit("overlap", Grade.DERIVABLE, field, f"shares {' '.join(min(shared))[:60]!r}")]
    return []


def _ngrams(text: Text) -> set[tuple[str, ...]]:
    tokens = [part for token in text.tokens for part in (token if UNSPACED.match(token) else (token,))]
    return {tuple(tokens[i : i + NGRAM]) for i in range(len(tokens) - NGRAM + 1)}


def _verbatim(target: Text, field: Text) -> bool:
    """Whether `target` is in `field` as a run of whole words; in scripts without spaces, as a string."""
    if not target.tokens:
        return False
    if not UNSPACED.search(target.plain):
        return f" {target.words} " in f" {field.words} "
    before = r"(?<!\d)" if target.dense[0].isdigit() else ""
    after = r"(?!\d)" if target.dense[-1].isdigit() else ""
    return re.search(before + re.escape(target.dense) + after, field.dense) is not None


def _numeric(target: Text, field: Text) -> bool:
    value = value_of(target)
    return value is not None and any(number.equals(value, percent=target.percent) for number in field.numbers)


def _hit(rule: str, grade: Grade, field: Text, detail: str, weak: bool = False) -> Hit:
    return Hit(rule=rule, grade=grade, text=" ".join(field.given.split())[:120], detail=detail, weak=weak)
