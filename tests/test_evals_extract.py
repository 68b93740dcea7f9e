"""What counts as an answer, and when two answers are the same."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.extract import final_answer, last_box, normalise, trim
from evals.scorers import exact_match, same

stable = settings(deadline=None, derandomize=True)

REPLIES = [
    # plain forms
    ("Answer: 7", "7", "as our models write it"),
    ("There are 3 + 4 of them.\nAnswer: 7", "7", "after reasoning"),
    ("answer: seven", "seven", "lower case"),
    ("ANSWER: YES", "YES", "upper case; the answer keeps its case"),
    ("The final answer: blue", "blue", "inside a sentence"),
    ("Answer : 7", "7", "space before the colon"),
    ("Answer:7", "7", "no space"),
    ("Answer：７", "7", "full-width colon and digit"),
    ("Ａｎｓｗｅｒ: C", "C", "full-width letters"),
    ("最终答案：红色", "红色", "Chinese marker"),
    ("Answer:\u200b \u200b7\ufeff", "7", "invisible characters"),
    # which declaration
    ("Answer: 3\nWait, no.\nAnswer: 4", "4", "the last marker wins"),
    ("End with 'Answer: <answer>'.\n\nAnswer: red", "red", "echoed instruction first"),
    ("Answer: 7\nI counted them twice, 8 is wrong.", "7", "later lines are not the answer"),
    ("Answer:\n7", "7", "on the next line"),
    ("**Answer:**\n\n**7**\n", "7", "markdown heading, then the next line with content"),
    ("Answer: 7\nAnswer:", None, "an empty last declaration is not replaced by an earlier one"),
    ("\\boxed{3}\nAnswer: 4", "4", "marker before box"),
    ("Answer: 4\n\\boxed{3}", "4", "marker before box, in either order"),
    ("So \\boxed{3}, or rather \\boxed{4}.", "4", "the last box"),
    ("\\boxed{3} and \\boxed{4", "3", "the last balanced box"),
    ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}", "braces inside a box"),
    ("\\boxed{\\boxed{7}}", "7", "box in a box"),
    ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}", "escaped braces"),
    ("\\boxed {7}", "7", "space before the brace"),
    ("\\boxed{}", None, "empty box"),
    ("Answer: the sum is \\boxed{12}, as shown.", "12", "box on the answer line"),
    ("Answer:\n$$\n\\boxed{7}\n$$", "7", "display maths"),
    # decoration
    ("**Answer:** 7", "7", "bold marker"),
    ("**Answer**: **7**", "7", "bold marker and answer"),
    ("__Answer: 7__", "7", "underscores"),
    ("Answer: `cat`.", "cat", "code"),
    ('Answer: "cat"', "cat", "quotes"),
    ("Answer: «cat»!", "cat", "other quotes"),
    ("Answer: $7$", "7", "inline maths"),
    ("Answer: \\(7\\).", "7", "LaTeX parentheses"),
    ("Answer: \\text{blue}", "blue", "LaTeX text"),
    ("Answer: \\boxed{\\text{blue}}", "blue", "text in a box"),
    ("Answer: (B)", "B", "bracketed letter"),
    ("Answer: B)", "B", "half a bracket"),
    ("(Answer: B)", "B", "marker inside brackets"),
    ("Answer: 【B】。", "B", "full-width brackets and stop"),
    ("Answer: <red>", "red", "angle brackets copied from the instruction"),
    ("Answer: = 7", "7", "equals sign"),
    ("Answer: 7 .", "7", "space before the stop"),
    # what belongs to the answer
    ("Answer: .5", ".5", "leading point"),
    ("Answer: -3", "-3", "minus"),
    ("Answer: −3", "-3", "typographic minus"),
    ("Answer: (3, 4)", "(3, 4)", "a tuple keeps its brackets"),
    ("Answer: [0, 1)", "[0, 1)", "a half-open interval"),
    ("Answer: f(x)(y)", "f(x)(y)", "brackets that do not enclose"),
    ("Answer: (a)(b)", "(a)(b)", "brackets that only look as if they enclose"),
    ("Answer: 5 m²", "5 m^2", "a superscript is not a digit"),
    ("Answer: 2½", "2 1/2", "a vulgar fraction is not 21/2"),
    ("Answer: 10:30", "10:30", "a colon inside"),
    # what other toolkits misread
    ("Because the sign is red, the answer is C", None, "lmms-eval: B, from the first letter"),
    ("A person stands left, so the answer is B", None, "lmms-eval: A, the article"),
    ("Definitely B.", None, "lmms-eval: D, from the first letter"),
    ("The answer is a matter of taste", None, "VLMEvalKit: A"),
    ("answer is based on the picture", None, "VLMEvalKit: B"),
    ("NASA is", None, "lmms-eval: A, from 'A '"),
    ("3 in view 1, so 4", None, "lmms-eval: 3, the first number"),
    ("and so on", None, "MMStar: A, the first letter"),
    # nothing declared
    ("", None, "empty reply"),
    ("   \n\t", None, "only spaces"),
    ("7", None, "a bare number is no declaration"),
    ("I cannot see the image.", None, "refusal"),
    ("Answer: **", None, "only decoration"),
    ("Possible answers: 3 or 4", None, "plural"),
    ("Unanswered: 4", None, "inside a word"),
    # thinking
    ("<think>Answer: 3</think>\nAnswer: 4", "4", "closed thinking"),
    ("Answer: 3</think>\n\nAnswer: 4", "4", "thinking opened by the template"),
    ("<think>Answer: 3</think>\nFour.", None, "an answer that was only thought"),
    ("<think>Answer: 3", None, "thinking that never ended"),
]


@pytest.mark.parametrize(("reply", "expected"), [row[:2] for row in REPLIES], ids=[row[2] for row in REPLIES])
def test_final_answer(reply, expected):
    assert final_answer(reply) == expected


@stable
@given(st.text(), st.from_regex(r"[A-Za-z0-9]{1,12}", fullmatch=True))
def test_a_declared_answer_is_read_after_whatever_came_before(before, answer):
    reply = f"{before.replace('<think>', '')}\nAnswer: {answer}"
    assert final_answer(reply) == answer


@stable
@given(st.text(alphabet=st.sampled_from("aAnswer:boxed\\{}()<>think/ \n*$7.,：²½")))
def test_reading_never_fails_and_never_returns_an_empty_answer(reply):
    answer = final_answer(reply)
    assert answer is None or answer
    assert final_answer(reply) == answer


@stable
@given(st.text())
def test_trim_and_normalise_are_idempotent(text):
    assert trim(trim(text)) == trim(text)
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize("unit", ["\\boxed{", "{", "}", "(", "Answer: ", "\\boxed{7} "])
def test_a_reply_that_loops_is_read_in_linear_time(unit):
    # A quadratic reader would take minutes.
    assert final_answer(unit * 20_000) in (None, "7")


def test_last_box_ignores_braces_that_close_nothing():
    assert last_box("} \\boxed{7} }") == "7"


EQUAL = [
    ("7", "7.0", True, "integer and decimal"),
    ("7", "7.", True, "final point"),
    ("1,000", "1000", True, "thousands"),
    ("1,234,567.50", "1234567.5", True, "thousands and decimals"),
    (".5", "0.5", True, "no leading zero"),
    ("+3", "3", True, "plus"),
    ("-0", "0", True, "negative zero"),
    ("1e3", "1000", True, "scientific"),
    ("７", "7", True, "full-width digit"),
    ("−3", "-3", True, "typographic minus"),
    ("$7$", "7", True, "decorated gold"),
    ("Blue", "blue", True, "case"),
    ("light  blue", "light\tblue", True, "spacing"),
    ("STRASSE", "straße", True, "casefold"),
    ("m²", "m^2", True, "superscript"),
    ("711", "11", False, "no suffix"),
    ("11", "711", False, "no suffix, the other way"),
    ("1,00", "100", False, "not thousands"),
    ("10,000", "10", False, "a thousands comma does not end the number"),
    ("7 apples", "7", False, "number and unit"),
    ("60%", "60", False, "percent"),
    ("5²", "52", False, "a power is not a digit"),
    ("0.1", "0.10000000000000001", False, "decimals are compared exactly"),
    ("1/2", "0.5", False, "fractions are text"),
    ("Sep", "e", False, "no containment (VLMEvalKit DynaMath)"),
    ("A, C", "A", False, "no part of a list (lmms-eval)"),
    ("(3, 4)", "[3, 4]", False, "kind of bracket of a list"),
    ("nan", "0", False, "a word that floats know"),
    ("inf", "infinity", False, "two of them"),
    (".", "0", False, "a point alone is no number"),
]


@pytest.mark.parametrize(("a", "b", "expected"), [row[:3] for row in EQUAL], ids=[row[3] for row in EQUAL])
def test_same(a, b, expected):
    assert same(a, b) is expected
    assert same(b, a) is expected


@stable
@given(st.integers(-(10**9), 10**9))
def test_a_number_is_the_same_however_it_is_written(number):
    assert same(f"{number:,}", str(number)) and same(f"{number}.00", f"{number:,}")
    assert not same(str(number), str(number + 1))


def test_exact_match_gives_each_reply_one_fate():
    assert exact_match("7", "Answer: 7.0", truncated=False).fate == "parsed"
    assert exact_match("7", "Answer: 8", truncated=False).fate == "parsed"
    assert exact_match("7", "Seven.", truncated=False).fate == "unparsed"
    assert exact_match("1", "Answer: 1", truncated=True).fate == "truncated"  # it may have been about to say 12
    assert [exact_match("7", f"Answer: {n}", truncated=False).score for n in (7, 8)] == [1, 0]
    assert exact_match("7", "Answer: 8", truncated=False).parsed == "8"
