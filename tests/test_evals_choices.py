"""Readers of the toolkit protocols: which option, which number, which formula. Rows are what models write."""

import ast
import math
import operator
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals import careful
from evals.choices import read_choice, read_choices
from evals.maths import agrees, evaluate, evaluate_plain
from evals.quantities import read_number
from evals.questions import Record

stable = settings(deadline=None, derandomize=True)

OPTIONS = {"A": "a cat", "B": "two dogs", "C": "vitamin K", "D": "none of these", "I": "north-east"}

CHOICES = [
    # declared
    ("**Final Answer**\n\n**B. two dogs**", "B", "heading, then label and text"),
    ("\\[ \\boxed{\\text{(C)}} \\]", "C", "display maths"),
    ("Looking at it, A or B.\nAnswer: Option C", "C", "declared after prose"),
    ("I picked B first. <answer>the answer is D</answer>", "D", "tag"),
    ("<answer>B</answer> no, <answer>C</answer>", "C", "last tag"),
    ("<answer>B</answer>\nAnswer: C", "B", "tags come before markers"),
    ("The answer is B.\nAnswer:", None, "an empty declaration is no answer"),
    ("The answer is B.\nAnswer: unclear", None, "a declaration that names no option"),
    ("Answer: A or B", None, "two options declared"),
    ("Answer: B-shaped", "B", "label with a hyphen"),
    # concluding sentences
    ("The correct option is **C**, because A and B are wrong.", "C", "reasons name others"),
    ("So it is C, since B has a cat", "C", "a reason that names another option"),
    ("The answer isn't A but B", "B", "negated, then stated"),
    ("Therefore, it is D. I looked at B for long.", "D", "conclusion, then more prose"),
    ("So it is A. No, wait. So it is B.", "B", "the last conclusion"),
    ("The answer is B, no, C", "C", "corrected on the way"),
    ("So A or C.", None, "conclusion with two"),
    ("I would go with (b)", "B", "lower case in brackets"),
    ("The figure shows that AB = BC, so D.", "D", "names of lines"),
    ("Die Antwort ist B", "B", "German"),
    ("答案选C", "C", "Chinese without spaces"),
    # nothing but options
    ("A is incorrect. C", "C", "one negated, one alone"),
    ("B\nBecause it has two dogs and a cat", "B", "answer first"),
    ("B\nC", None, "two lines"),
    ("(A)(C)", None, "two labels"),
    ("B, C", None, "a list"),
    ("BC", None, "run together"),
    ("E", None, "not an option"),
    # openings
    ("C) since it has no letter", "C", "label and reason"),
    ("B because A has none", "B", "because"),
    ("B. C. D.", None, "a list of labels"),
    # the only option named
    ("I am sure A is wrong, and B is wrong. That leaves D.", "D", "ruled out"),
    ("It is not A or B. It is D", "D", "two ruled out at once"),
    ("All of A, B and C are false", None, "all ruled out"),
    ("neither A nor B", None, "neither"),
    ("We can eliminate A and B. Between C and D, C is better.", None, "no clear statement"),
    ("Is it B?", None, "a question"),
    ("B?", None, "an unsure letter"),
    ("It shows option I", "I", "the option I"),
    # what is no option
    ("I see nothing", None, "pronoun"),
    ("I would say that it is the two dogs", "B", "pronoun, and a text"),
    ("A person is there", None, "article"),
    ("It contains vitamin C.", None, "a name"),
    ("The distance to point B is 5", None, "a point"),
    ("The triangle has vertices A, B and C.", None, "vertices"),
    ("N/A", None, "abbreviation"),
    ("I D E A", None, "spelled out"),
    ("f(a) is positive", None, "an argument"),
    ("the a", None, "lower-case article at the end"),
    ("DVD", None, "part of a word"),
    ("B's car", None, "possessive"),
    # texts
    ("a cat.", "A", "the text of an option"),
    ("A cat is sitting there", "A", "text in a sentence"),
    ("It is not a cat, it is two dogs", "B", "text negated, text stated"),
    ("a cat and two dogs", None, "two texts"),
    ("north", None, "part of a text"),
    ("<think>B</think>", None, "only thought"),
]


@pytest.mark.parametrize(("reply", "letter"), [row[:2] for row in CHOICES], ids=[row[2] for row in CHOICES])
def test_read_choice(reply, letter):
    assert read_choice(reply, OPTIONS).letters == letter


@pytest.mark.parametrize(
    ("reply", "letters"),
    [
        ("A, C", "AC"),
        ("Answer: C and A", "AC"),
        ("CA", "AC"),
        ("[A, C]", "AC"),
        ("A/C", "AC"),
        ("Diagrams A and C have a cross", "AC"),
        ("The answer is B.", "B"),
        ("Answer: B, not C", "B"),
        ("CC", None),
        ("no idea", None),
    ],
)
def test_read_choices(reply, letters):
    assert read_choices(reply, OPTIONS).letters == letters


@stable
@given(st.text(), st.sampled_from("ABCD"))
def test_a_declared_letter_is_read_whatever_came_before(before, letter):
    reply = f"{before.replace('<', '')}\nAnswer: ({letter})"
    assert read_choice(reply, OPTIONS).letters == letter


@stable
@given(st.text(alphabet=st.characters(exclude_categories=["L"])))
def test_without_letters_there_is_no_letter(reply):
    assert read_choice(reply, dict.fromkeys("ABCD", "")).letters is None


NUMBERS = [
    ("4.", 4, "final point"),
    ("There are 3 in view 1, and one more, so 4", 4, "the last one"),
    ("four (4)", 4, "word and digit"),
    ("eighty-seven", 87, "compound word"),
    ("two hundred", 200, "hundred"),
    ("thirty-three point four", None, "a decimal in words"),
    ("minus 141", -141, "minus in words"),
    ("−34", -34, "typographic minus"),
    ("4-5", None, "a range"),
    ("20-25", None, "a range is no minus"),
    ("4 or 5", None, "an alternative"),
    ("from 3 to 5", None, "a range in words"),
    ("1,6", None, "a decimal comma, or two numbers"),
    ("12,345.5 dollars", 12345.5, "thousands"),
    ("20m2", 20, "unit with a digit"),
    ("1.5 m^2", 1.5, "unit with a power"),
    ("Answer: 60 degrees (from 59.6)", 60, "a declared answer opens with it"),
    ("Answer: about 20 square metres", 20, "declared with words before"),
    ("Answer: 4 or 5", None, "declared alternative"),
    ("Answer: none", None, "declared without a number"),
    ("3 * 4 = 12", 12, "after the equals sign"),
    ("5 3/4", Fraction(23, 4), "mixed number"),
    ("2π/3", 2 * math.pi / 3, "multiple of pi"),
    ("1.0π cm", None, "part of a formula"),
    ("8.7e1", 87, "scientific"),
    ("5/8 inch", None, "a fraction with a unit"),
    ("3 * 4 apples", None, "a product with a unit"),
    ("10:30", None, "a time"),
    ("v2", None, "part of a word"),
    ("First 3.\nThen 4 of them.\nThat is all.", 4, "the last line with a number"),
    ("<think>3</think>", None, "only thought"),
    ("<think>3", None, "thinking never ended"),
    ("9" * 500, None, "no number that anybody means"),
]


@pytest.mark.parametrize(("reply", "value"), [row[:2] for row in NUMBERS], ids=[row[2] for row in NUMBERS])
def test_read_number(reply, value):
    assert read_number(reply)[0] == (value if value is None else pytest.approx(value))


@stable
@given(st.integers(-(10**6), 10**6))
def test_a_number_is_read_however_it_is_written(number):
    for reply in (f"{number}", f"{number:,}", f"Answer: {number}.", f"It is about {number} cm", f"${number}.0$"):
        assert read_number(reply)[0] == number


FORMULAS = [
    ("\\frac{1}{2}", Fraction(1, 2)),
    ("-2^2", -4),
    ("5--2", 7),
    ("--2", 2),
    ("2^{-1}", Fraction(1, 2)),
    ("2^3^2", 512),
    ("5\\sqrt{3}", 5 * math.sqrt(3)),
    ("\\sqrt[3]{8}", 2),
    ("\\frac{\\sqrt{3}}{2}\\pi", math.sqrt(3) / 2 * math.pi),
    ("(3)(4)", 12),
    ("1,000", 1000),
    ("1:2", Fraction(1, 2)),
    ("3!", 6),
    ("50\\%", Fraction(1, 2)),
    ("|-3|", 3),
    ("6-2\\cdot2", 2),
    ("\\sin{0}+\\cos(0)", 1),
    ("1 000", None),
    ("2x", None),
    ("3,2", None),
    ("\\frac12", None),
    ("25π", None),
    ("1/0", None),
    ("0^{-1}", None),
    ("\\sqrt{-1}", None),
    ("(-8)^{0.5}", None),
    ("\\ln(0)", None),
    ("(1", None),
    ("1)", None),
    ("", None),
    ("9^9^9", None),
    ("2^{300}^{300}", None),
    ("51!", None),
    ("1.5!", None),
    ("(" * 60 + "1" + ")" * 60, None),
    ("1+" * 300 + "1", None),
    ("9" * 61, None),
]


@pytest.mark.parametrize(("formula", "value"), FORMULAS)
def test_evaluate(formula, value):
    assert evaluate(formula) == (value if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("25π", 25 * math.pi),
        ("2*pi", 2 * math.pi),
        ("5sqrt(3)", 5 * math.sqrt(3)),
        ("√3", math.sqrt(3)),
        ("\\frac12", 0.5),
        ("2**3", 8),
        ("48^{\\circ}", 48),
        ("-5 3/4", -5.75),
        ("pip", None),
        ("9**9**9", None),
    ],
)
def test_evaluate_plain(text, value):
    assert evaluate_plain(text) == (value if value is None else pytest.approx(value))


@stable
@given(
    st.recursive(
        st.integers(0, 20).map(str),
        lambda x: st.tuples(x, st.sampled_from("+-*"), x).map("({0[0]}{0[1]}{0[2]})".format),
    )
)
def test_evaluate_follows_arithmetic(formula):
    """Against Python's own parser, walked by hand."""
    operators = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}

    def value(node):
        return (
            node.value
            if isinstance(node, ast.Constant)
            else operators[type(node.op)](value(node.left), value(node.right))
        )

    ours = evaluate(formula)
    assert ours is None or ours == value(ast.parse(formula, mode="eval").body)


AGREE = [
    ("8.66", "5\\sqrt{3}", True),
    ("8.67", "5\\sqrt{3}", False),
    ("0.33", "\\frac{1}{3}", True),
    ("0.3", "\\frac{1}{3}", False),
    ("0.499", "\\frac{1}{2}", False),
    ("12.968", "12.97", True),
    ("12.96", "12.97", False),
    ("1000000.5", "1000000", True),
    ("x", "1", False),
]


@pytest.mark.parametrize(("given_text", "gold", "same"), AGREE)
def test_agrees(given_text, gold, same):
    assert agrees(given_text, gold) is same


def record(answer, answer_type="open"):
    return Record(id="x", benchmark="b", split="t", question="?", answer=answer, answer_type=answer_type, cluster="x")


WORDS = [
    ("The answer is Tampa", ("Tampa", "Florida"), 1),
    ("Tampa, or maybe Miami", ("Tampa",), 0),
    ("not Tampa", ("Tampa",), 0),
    ("It could be the embryonic period", "embryonic", 1),
    ("embryos", "embryonic", 0),
    ("Tampa would fit at first sight but the palms look nothing like those of Florida", "Tampa", 0),
    ("September", "Sep", 0),
    ("MgSO4", "MgS", 0),
    ("the line y = 4", "y = 4", 1),
    ("(0.000, 6.000)", "(0, 6)", 1),
    ("[0, 6]", "(0, 6)", 0),
    ("(6, 0)", "(0, 6)", 0),
    ("24/70", "24/7", 0),
    ("three", "3", 1),
    ("3 people", "3", 1),
    ("33", "3", 0),
    ("", "3", 0),
]


@pytest.mark.parametrize(("reply", "answer", "score"), WORDS)
def test_words(reply, answer, score):
    assert careful.words(record(answer), reply).score == score


@pytest.mark.parametrize(
    ("reply", "answer", "score"),
    [
        ("x = 60", "60", 1),
        ("The answer is 60 cm", "60", 1),
        ("\\boxed{60\\,\\text{cm}^2}", "60", 1),
        ("48 degrees", "48^{\\circ}", 1),
        ("3,-4", "(3,-4)", 0),
        ("\\left(3,-4\\right)", "(3,-4)", 1),
        ("2 < x < 5", "2<x<5", 1),
        ("59", "60", 0),
        ("", "60", 0),
    ],
)
def test_formula(reply, answer, score):
    assert careful.formula(record(answer), reply).score == score
