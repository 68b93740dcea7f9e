"""A text as the leak rules read it: words, numbers in any spelling, and no markup. Every pass is linear in its length.

Regular expressions use possessive quantifiers wherever a run could be tried again: a hostile field of 100,000
characters must cost milliseconds.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import ClassVar

TOLERANCE = 1e-6
"""Relative: numbers closer than this are the same."""

# Thai, Lao, Tibetan, Myanmar, Khmer, kana, Han; and Hangul, which writes particles onto its words.
_UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff"
    "\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
)
UNSPACED = re.compile(f"[{_UNSPACED}]")

_COMPATIBLE = {"<super>": "^", "<fraction>": " "}
_SEPARATORS = str.maketrans({"\u2212": "-", "\u066b": ".", "\u066c": ",", "\u2044": "/", "\u2215": "/", "\u00d7": "x"})
_THIN = re.compile(r"(?<=\d)(?:[\u00a0\u2009\u202f'’_]|\\[,;!]|\{,\})(?=\d{3}(?!\d))")
_LATEX = (
    (re.compile(r"\\[dt]?frac\s?\{([^{}\\]{1,20})\}\s?\{([^{}\\]{1,20})\}"), r" \1/\2 "),
    (re.compile(r"\\[dt]?frac\s?(\d)\s?(\d)"), r" \1/\2 "),
    (re.compile(r"\^\s?\{?\s?\\circ\s?\}?"), " "),
    (re.compile(r"\^\s?\{([+-]?\d{1,4})\}"), r"^\1"),
    (re.compile(r"\\(?:boxed|fbox|text(?:bf|it|rm)?|math(?:rm|bf|it|sf)|operatorname)\s?(?=\{)"), " "),
    (re.compile(r"\\(?:times|cdot)\b"), " x "),
    (re.compile(r"\\(?:left|right|displaystyle|quad|qquad)\b|\\[,;:!()\[\] ]|[{}$]"), " "),
    (re.compile(r"\\(?=[%#&_])"), ""),
)  # fmt: skip
_ARTICLE = re.compile(r"(?<!\w)(?:(?:the|an|The|An|THE|AN|a)|^A)\s+(?=\w)")

_TOKEN = re.compile(
    rf"""
    (?P<word>[^\W\d_{_UNSPACED}](?:(?![{_UNSPACED}_])\w)*+
      | \d++(?:[./:-]\d++){{2,}}                       # a version, a date
      | \d++(?::\d++)+                                 # a time, a score
      | (?:\d++(?:\.\d++)?)?+\^[+-]?\d++                # a power
      | \d++(?:st|nd|rd|th)(?!\w))
    | (?P<run>[{_UNSPACED}]++)
    | (?:(?<![\w)\]])(?P<sign>[+-])\s?)?
      (?:(?:(?P<whole>\d++)\s(?=\d++\s?/\s?\d))?(?P<top>\d++)\s?/\s?(?P<bottom>\d++)(?![/\d])
      | (?P<digits>(?:\d{{1,3}}+(?:,\d{{3}}(?!\d))++|\d++)(?:\.\d++)?|\.\d++)
        (?P<exponent>e[+-]?\d{{1,3}}(?!\w)|\s{{0,3}}[x*·]\s{{0,3}}10\^[+-]?\d{{1,3}})?)
      (?P<percent>\s?%|\s?per\s?cent\b)?
    """,
    re.VERBOSE,
)
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENTHS = "twenty thirty forty fifty sixty seventy eighty ninety"
_SMALL = {word: number for number, word in enumerate(_ONES.split())}
_TENS = {word: 10 * number for number, word in enumerate(_TENTHS.split(), start=2)}
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_NUMBER_WORDS = {*_SMALL, *_TENS, *_SCALES, "half"}
_HAN = {"零": 0, "〇": 0} | {c: i for i, c in enumerate("一二三四五六七八九", start=1)} | {"两": 2, "兩": 2, "十": 10}
_HAN_COUNT = re.compile(
    r"([零〇一二三四五六七八九两兩]?十?[一二三四五六七八九]?)[个個只隻条條张張辆輛本位名块塊片杯匹枚台]"
)


@dataclass(frozen=True)
class Number:
    """A number of a text; `percent` if it is written with the sign or the words."""

    value: float
    percent: bool = False

    def equals(self, value: float, percent: bool = False) -> bool:
        """50 % equals 0.5 and 50, whichever of the two is written with the sign."""
        mine = (self.value, self.value / 100) if self.percent else (self.value,)
        others = (value, value / 100) if percent else (value,)
        return any(math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=1e-12) for a in mine for b in others)


@dataclass(frozen=True)
class Text:
    """One text, read once. `plain` keeps case and lines; nothing of it is lost but markup and invisible characters."""

    BOX: ClassVar[re.Pattern[str]] = re.compile(r"[(\[]\s?(?:-?\d++(?:\.\d++)?\s?,\s?){3}-?\d++(?:\.\d++)?\s?[)\]]")

    given: str
    plain: str

    @classmethod
    def of(cls, text: str, keep_boxes: bool = False) -> Text:
        """`text` cleaned. Boxes in it, four numbers in brackets, are left out unless told otherwise."""
        return _read(text, keep_boxes)

    @cached_property
    def folded(self) -> str:
        """`plain` without case."""
        return self.plain.casefold()

    @cached_property
    def dense(self) -> str:
        """Folded, without any white space."""
        return "".join(self.folded.split())

    @cached_property
    def _lexed(self) -> tuple[tuple[str, ...], tuple[Number, ...]]:
        tokens, numbers = [], []
        for match in _TOKEN.finditer(_ARTICLE.sub("", self.plain).casefold()):
            tokens.append(match["word"] or match["run"] or _spelling(match))
            if match["word"] is None and match["run"] is None and (number := _number(match)) is not None:
                numbers.append(number)
        written = [Number(value) for value in (*_spelled(tokens), *_han(tokens))]
        return tuple(tokens), (*numbers, *written)

    @property
    def tokens(self) -> tuple[str, ...]:
        """Words without articles and punctuation, numbers without thousands separators, runs of unspaced scripts."""
        return self._lexed[0]

    @cached_property
    def words(self) -> str:
        """The tokens with one space between them: a run of words is a substring of it."""
        return " ".join(self.tokens)

    @property
    def numbers(self) -> tuple[Number, ...]:
        """All numbers, in figures, words or Chinese counts; none out of a word, a version, a date or a power."""
        return self._lexed[1]

    @property
    def percent(self) -> bool:
        """Whether any of the numbers is a percentage."""
        return any(number.percent for number in self.numbers)


def value_of(text: Text) -> float | None:
    """The number that `text` is as a whole, a name (`x = 5`) and a unit of up to two words aside; else None."""
    if len(text.numbers) != 1 or len(text.plain) > 200:
        return None
    tokens = Text.of(text.plain.partition("=")[2]).tokens if re.match(r"\s*\w\s?=", text.plain) else text.tokens
    head = next((i for i, token in enumerate(tokens) if not _is_number(token)), len(tokens))
    units = tokens[head:]
    if not head or len(units) > 2 or any(_is_number(unit) or unit[0].isdigit() for unit in units):
        return text.numbers[0].value if len(tokens) == 1 and UNSPACED.match(tokens[0]) else None
    return text.numbers[0].value


def _is_number(token: str) -> bool:
    return token in _NUMBER_WORDS or re.fullmatch(r"-?[\d.]+(?:/\d+)?(?:e[+-]?\d+)?%?", token) is not None


@lru_cache(maxsize=512)
def _read(text: str, keep_boxes: bool) -> Text:
    plain = text if keep_boxes else Text.BOX.sub(" ", text)
    plain = _THIN.sub(",", plain)
    if not plain.isascii():
        plain = _THIN.sub(",", "".join(map(_compatible, plain)))
        plain = unicodedata.normalize("NFKC", plain).translate(_SEPARATORS)
    if any(c in plain for c in "\\{}$"):
        for pattern, by in _LATEX:
            plain = pattern.sub(by, plain)
    return Text(text, plain)


def _compatible(c: str) -> str:
    """One character before NFKC: digits of all scripts as ASCII, 5² as 5^2, 2½ as 2 1/2, no invisible ones."""
    if c.isascii():
        return c
    category = unicodedata.category(c)
    if category == "Cf":
        return ""
    if category == "Nd":
        return str(unicodedata.digit(c))
    return _COMPATIBLE.get(unicodedata.decomposition(c).partition(" ")[0], "") + c


def _exponent(match: re.Match[str]) -> str:
    return re.sub(r"[^e]{2,8}\^", "e", match["exponent"] or "")


def _spelling(match: re.Match[str]) -> str:
    sign = "-" if match["sign"] == "-" else ""
    if match["top"]:
        return f"{sign}{match['whole'] + ' ' if match['whole'] else ''}{match['top']}/{match['bottom']}"
    return f"{sign}{match['digits'].replace(',', '')}{_exponent(match)}" + ("%" if match["percent"] else "")


def _number(match: re.Match[str]) -> Number | None:
    """None for division by nothing, and for more digits than a float tells apart from infinity."""
    if match["top"]:
        if not float(match["bottom"]):
            return None
        value = float(match["whole"] or 0) + float(match["top"]) / float(match["bottom"])
    else:
        value = float(match["digits"].replace(",", "") + _exponent(match))
    value = -value if match["sign"] == "-" else value
    return Number(value, percent=match["percent"] is not None) if math.isfinite(value) else None


def _spelled(tokens: Iterable[str]) -> Iterator[float]:
    """Numbers in English words: `twenty one`, `two hundred and five`, `half`; `two three` are two numbers."""
    total, current, last = 0.0, None, ""
    for token in (*tokens, ""):
        if token == "and" and last in _SCALES:
            continue
        if token in _SCALES:
            current = (1.0 if current is None else current) * _SCALES[token]
            if _SCALES[token] >= 1000:
                total, current = total + current, 0.0
        elif token in _SMALL and current is not None and (last in _SCALES or (last in _TENS and _SMALL[token] < 10)):
            current += _SMALL[token]
        elif token in _TENS and current is not None and last in _SCALES:
            current += _TENS[token]
        else:
            if current is not None and math.isfinite(total + current):
                yield total + current
            total, current = 0.0, {**_SMALL, **_TENS, "half": 0.5}.get(token)
        last = token


def _han(tokens: Iterable[str]) -> Iterator[float]:
    """Chinese numerals below a hundred in front of a measure word; elsewhere they are parts of words."""
    for token in tokens:
        for match in _HAN_COUNT.finditer(token) if UNSPACED.match(token) else ():
            tens, ten, ones = match[1].rpartition("十")
            if match[1]:
                yield float((_HAN.get(tens, 1) * 10 if ten else 0) + _HAN.get(ones, 0))
