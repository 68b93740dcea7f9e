"""Values of short formulas as benchmarks and models write them: LaTeX or plain, never executed.

A grammar of numbers, the four operations, powers, roots, fractions and a few functions is read by recursive descent.
Length, depth, digits and exponents are bounded, so that 9**9**9 or a thousand brackets cost nothing: what exceeds a
bound has no value. Rationals stay exact.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction

Value = Fraction | float

_MAX_LENGTH = 400
_MAX_DEPTH = 40
_MAX_DIGITS = 60
_MAX_POWER = 300

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+)|(?P<command>\\[a-zA-Z]+)|(?P<sign>[-+*/:^!%()\[\]{}|]))",
    flags=re.ASCII,
)
_IGNORED = re.compile(r"\\left|\\right|\\[,;!: ]|\\displaystyle|\$|~")
_ALIASES = {"\\dfrac": "\\frac", "\\tfrac": "\\frac", "\\cdot": "*", "\\times": "*", "\\div": "/"}
_FUNCTIONS: dict[str, Callable[[float], float]] = {
    "\\sin": math.sin,
    "\\cos": math.cos,
    "\\tan": math.tan,
    "\\arcsin": math.asin,
    "\\arccos": math.acos,
    "\\arctan": math.atan,
    "\\ln": math.log,
    "\\log": math.log,
    "\\exp": math.exp,
}
_PAIRS = {"(": ")", "[": "]", "{": "}", "|": "|"}
_PLAIN = (
    (re.compile(r"\^?\{?\\circ\}?|°"), ""),
    (re.compile(r"π|(?<![a-zA-Z\\])pi(?![a-zA-Z])", re.IGNORECASE), r"\\pi "),
    (re.compile(r"√|(?<![a-zA-Z\\])sqrt(?![a-zA-Z])"), r"\\sqrt "),
    (re.compile(r"\\[dt]?frac\s*(\d)\s*(\d)", re.ASCII), r"\\frac{\1}{\2}"),
    (re.compile(r"\\sqrt\s*(\d+)", re.ASCII), r"\\sqrt{\1}"),
    (re.compile(r"[×·⋅]"), "*"),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"÷"), "/"),
    (re.compile(r"(?<=[\d.])[eE](?=[-+]?\d{1,2}$)", re.ASCII), "*10^"),
)


class _Unreadable(Exception):
    pass


def evaluate(formula: str) -> Value | None:
    """The value of a LaTeX formula without letters, or None: `\\frac{1}{2}`, `5\\sqrt{3}`, `1:2`, `1,000`, `2^{10}`.

    Plain words (sqrt, π, units) are no LaTeX: see `evaluate_plain`.
    """
    if len(formula) > _MAX_LENGTH:
        return None
    try:
        reader = _Reader(_tokens(_IGNORED.sub(" ", formula).replace("\\%", "%")))
        value = reader.sum(0)
        if reader.next is not None:
            return None
        return value if math.isfinite(value) else None
    except (_Unreadable, ArithmeticError, ValueError):
        return None


def evaluate_plain(text: str) -> Value | None:
    """As `evaluate`, and also of what people type: π, sqrt(3), \\frac12, 2**3, 8.7e1, 5 3/4 as a mixed number."""
    if len(text) > _MAX_LENGTH:
        return None
    mixed = re.fullmatch(r"\s*(-?)\s*(\d{1,9})\s+(\d{1,9}/\d{1,9})\s*", text, flags=re.ASCII)
    if mixed:
        text = f"{mixed[1]}({mixed[2]}+{mixed[3]})"
    for pattern, replacement in _PLAIN:
        text = pattern.sub(replacement, text)
    return evaluate(text)


def agrees(given: str, gold: str) -> bool:
    """Whether two formulas state one value: the same up to 1e-6, or one is the other rounded to 2 decimals or more.

    8.66 states 5√3, and 12.968 a gold of 12.97; 0.499 does not state a half.
    """
    value, wanted = evaluate_plain(given), evaluate_plain(gold)
    if value is None or wanted is None:
        return False
    difference = abs(float(value) - float(wanted))
    tolerances = [1e-6 * max(1.0, abs(float(wanted)))]
    for text in (given, gold):
        if decimals := re.fullmatch(r"\D*[\d,]*\.(\d{2,15})\D*", text, flags=re.ASCII):
            tolerances.append(0.5 * 10.0 ** -len(decimals[1]) * (1 + 1e-9))
    return difference <= max(tolerances)


def _tokens(text: str) -> list[str]:
    tokens, at = [], 0
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise _Unreadable
        at = match.end()
        token = match[match.lastgroup or 0]
        tokens.append(_ALIASES.get(token, token))
    return tokens


class _Reader:
    """Recursive descent over tokens; `depth` counts open calls."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.at = 0

    @property
    def next(self) -> str | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def take(self, expected: str | None = None) -> str:
        token = self.next
        if token is None or (expected is not None and token != expected):
            raise _Unreadable
        self.at += 1
        return token

    def sum(self, depth: int) -> Value:
        if depth > _MAX_DEPTH:
            raise _Unreadable
        value = self.product(depth + 1)
        while self.next in ("+", "-"):
            value = value + self.product(depth + 1) if self.take() == "+" else value - self.product(depth + 1)
        return value

    def product(self, depth: int) -> Value:
        value = self.signed(depth)
        while self.next is not None:
            if self.next == "*":
                self.take()
                value = value * self.signed(depth)
            elif self.next in ("/", ":"):
                self.take()
                value = value / self.signed(depth)
            elif self._starts_factor(self.next):
                value = value * self.power(depth)  # 5\sqrt{3}, (3)(4)
            else:
                break
        return value

    def signed(self, depth: int) -> Value:
        negative = False
        while self.next in ("+", "-"):
            negative ^= self.take() == "-"
        value = self.power(depth)
        return -value if negative else value

    def power(self, depth: int) -> Value:
        value = self.atom(depth)
        while self.next in ("!", "%", "^"):
            token = self.take()
            if token == "^":
                value = _power(value, self.exponent(depth))
            else:
                value = value / 100 if token == "%" else _factorial(value)
        return value

    def exponent(self, depth: int) -> Value:
        negative = self.next == "-" and bool(self.take())
        value = self.power(depth + 1) if depth < _MAX_DEPTH else None
        if value is None:
            raise _Unreadable
        return -value if negative else value

    def atom(self, depth: int) -> Value:
        token = self.take()
        if token in ("(", "[", "{", "|"):
            value = self.sum(depth + 1)
            self.take(_PAIRS[token])
            return -value if token == "|" and value < 0 else value
        if token == "\\pi":
            return math.pi
        if token == "\\frac":
            return self.argument(depth) / self.argument(depth)
        if token == "\\sqrt":
            degree: Value = Fraction(2)
            if self.next == "[":
                degree = self.atom(depth)
            return _root(self.argument(depth), degree)
        if token in _FUNCTIONS:
            return _FUNCTIONS[token](float(self.power(depth + 1)))
        return _number(token)

    def argument(self, depth: int) -> Value:
        """A group in brackets. latex2sympy knows no `\\frac12` either."""
        if depth > _MAX_DEPTH or self.next not in ("{", "("):
            raise _Unreadable
        return self.atom(depth + 1)

    def _starts_factor(self, token: str) -> bool:
        is_number, after_number = (word[0].isdigit() or word[0] == "." for word in (token, self.tokens[self.at - 1]))
        return token[0] in "\\([{" or (is_number and not after_number)  # "1 000" is no product


def _number(token: str) -> Fraction:
    digits = token.replace(",", "")
    if digits[0] not in ".0123456789" or len(digits) > _MAX_DIGITS:
        raise _Unreadable
    return Fraction(digits + "0" if digits.endswith(".") else digits)


def _power(base: Value, exponent: Value) -> Value:
    if not -_MAX_POWER <= exponent <= _MAX_POWER:
        raise _Unreadable
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        if max(base.numerator.bit_length(), base.denominator.bit_length()) * abs(exponent) > 20 * _MAX_POWER:
            raise _Unreadable
        return Fraction(base ** int(exponent))
    result = float(base) ** float(exponent)
    if isinstance(result, complex):
        raise _Unreadable
    return result


def _root(value: Value, degree: Value) -> Value:
    if degree == 2:
        return math.sqrt(value)
    if degree == 3:
        return math.cbrt(value)
    return _power(value, 1 / degree)


def _factorial(value: Value) -> Value:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= 50:
        raise _Unreadable
    return Fraction(math.factorial(int(value)))
