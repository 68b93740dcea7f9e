"""The rules that tell whether the words of p give the answer away.

What is locked: 1) the sixteen cases every implementation should pass, word by word; 2) each rule on spellings users
have (scripts without spaces, digits of other scripts, LaTeX, units, percent, words), and what it must not match;
3) grades: candidates among others are a cue, weak hits stay weak unless another kind of evidence agrees;
4) coordinates never matter; 5) no text raises, and hostile ones take linear time.
"""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privileged import PrivilegedRecord, Region
from privileged.leaks import RULES, Grade, find_leaks, form, grade

OPEN = "What is it?"
SIGNS = "Which sign is it?\nA. yield sign\nB. stop sign\nC. no entry"


def record(*labels, boxes=None):
    places = boxes or [(4.0, 10 * i + 0.0, 44.0, 10 * i + 4.0) for i in range(len(labels))]
    regions = (
        Region(id=f"r{i}", label=label, box=box) for i, (label, box) in enumerate(zip(labels, places, strict=True))
    )
    return PrivilegedRecord(sample_id="s", regions=tuple(regions))


def rules(answer, *texts, question=OPEN, **options):
    return {hit.rule for hit in find_leaks(question, answer, texts, **options)}


def graded(answer, *texts, question=OPEN, **options):
    return grade(find_leaks(question, answer, texts, **options))


SIXTEEN = {
    "coordinates are not text": ("4", ["car", "car"], "How many dogs?", record("car", "car"), set()),
    "so many boxes": ("4", ["car"] * 4, "How many cars?", record(*["car"] * 4), {"count"}),
    "word of a label": ("Red", ["red traffic light"], OPEN, None, {"verbatim"}),
    "text of the option": ("B", ["stop sign"], SIGNS, None, {"option text"}),
    "the article is no letter": ("A", ["A man walks a dog"], SIGNS, None, set()),
    "boxed": (r"\boxed{17}", ["angle of 17 degrees"], OPEN, None, {"verbatim", "numeric"}),
    "fraction": ("0.5", ["1/2 of the pie"], OPEN, None, {"numeric"}),
    "thousands": ("1000", ["price 1,000"], OPEN, None, {"verbatim", "numeric"}),
    "number word": ("3", ["three cups"], OPEN, None, {"numeric"}),
    "inside a number": ("2", ["route 12"], OPEN, None, set()),
    "inside a decimal": ("3", ["value 3.14"], OPEN, None, set()),
    "inside a word": ("art", ["cart"], OPEN, None, set()),
    "absent": ("blue", ["left door", "sofa"], OPEN, None, set()),
    "letter and phrase": ("C", ["The answer is (C)."], OPEN, None, {"option letter", "phrase"}),
    "full-width digits": ("12", ["１２"], OPEN, None, {"verbatim", "numeric"}),
    "digits of another script": ("12", ["١٢"], OPEN, None, {"verbatim", "numeric"}),  # not one of the sixteen
    "inside a CJK label": ("红色", ["一个红色交通灯"], OPEN, None, {"verbatim"}),
}  # fmt: skip


@pytest.mark.parametrize("case", SIXTEEN)
def test_the_sixteen_cases(case):
    answer, texts, question, boxes, expected = SIXTEEN[case]
    assert rules(answer, *texts, question=question, record=boxes) == expected


def test_cars_in_coordinates_do_not_count():
    """Two cars, 4 in every coordinate, and the question asks for cars: still nothing."""
    boxes = record("car", "car", boxes=[(4, 4, 40, 44), (44, 4, 84, 44)])
    assert rules("4", "car", "car", question="How many cars are there?", record=boxes) == set()


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("50%", "half of it"), ("0.5", "50 %"), ("50", "50 percent of them"), ("1/2", "0.5 l"),
        (r"\frac{1}{2}", "0.50"),
        (r"\dfrac12", "½ cup"), ("2.5", "2½ pies"), ("2.5", "2 1/2 pies"), ("205", "two hundred and five"),
        ("21", "twenty-one cups"), ("24", "two dozen eggs"), ("1500000", "1.5 million: 1,500,000"),
        ("-3", "at −3 °C"),
        ("-3", "(-3)"), ("1500", "1.5 x 10^3"), ("1500", r"$1.5\times 10^{3}$"), ("1500", "1.5×10³"),
        ("1500", "1.5e3"),
        ("12", "١٢ سيارة"), ("12", "१२"), ("3.5", "٣٫٥"), ("3", "三个杯子"), ("12", "十二辆车"), ("20", "二十个"),
        ("1234567", "1\u202f234\u202f567 people"), ("12345", "12'345"), ("1000", r"1{,}000"), ("17", "17cm wide"),
        ("17 cm", "seventeen"), ("x = 5", "five"), (r"\$5", "costs 5 dollars"), ("$1,000.00", "1000"),
        ("90^\\circ", "90"),
        ("90°", "an angle of 90"), ("0.333333333", "1/3"), ("3 cups", "three"), ("7", "在7号"), ("3个", "有3个"),
        ("10", "**10**"),
        ("5", "3-5 cups"), (".5", "0.5"), ("1e-3", "0.001"), ("30", "30%"),
    ],
)  # fmt: skip
def test_the_same_number_is_found(answer, text):
    assert "numeric" in rules(answer, text)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("2", "1/2"), ("2", "2nd floor"), ("5", "5²"), ("5", "x^5"), ("3", "at -3"), ("-3", "5-3"), ("2", "v1.2.3"),
        ("11", "2020-11-22"), ("30", "at 3:30"), ("4", "A4 paper"), ("12", "120"), ("0.33", "1/3"),
        ("20", "twenty one"),
        ("1", "1,000"), ("3", "第三代"), ("1", "24/7/1"), ("2", "B2"), ("100", "10 0"), ("12", "1 2"), ("7", "7/0"),
        ("three and 4", "3"), ("1-2", "12"), ("20 5 3", "3"), ("3", "[12, 3, 45, 60] cup"), ("3", "(3, 3, 4, 4)"),
    ],
)  # fmt: skip
def test_another_number_is_not(answer, text):
    assert not rules(answer, text) & {"numeric", "verbatim"}


def test_a_box_is_evidence_where_a_box_is_the_answer():
    """The one question whose answer the coordinates of a field do state."""
    assert "verbatim" in rules("[12, 3, 45, 60]", "cup [12, 3, 45, 60]", question="Where is the cup?")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("stop sign", "a STOP  sign."), ("the cup on the left", "cup on left of it"), ("สีแดง", "รถสีแดงคันใหญ่"),
        ("빨간색", "빨간색이 보인다"), ("あか", "あかい車"),
        ("红", "红灯"), ("café", "cafe\u0301 sign"), ("STRASSE", "straße"),
        ("red", "r\u200bed light"), ("red", "\u202ered\u202c light"), ("ｒｅｄ", "red light"),
        (r"\text{red}", "red light"),
        ("ﬁre", "fire truck"), ("красный", "КРАСНЫЙ свет"), ("أحمر", "ضوء أحمر"), ("dog", "the dog's bone"),
        ("**red**", "red"),
        ("$\\sqrt{3}$", "side sqrt(3)"), ("10:30", "clock at 10:30"), ("2020-11-22", "dated 2020-11-22"), 
        ("vitamin A", "vitamin A pills"), ("red", "red_light"), ("red, blue", "red blue"),
    ],
)  # fmt: skip
def test_the_same_words_are_found(answer, text):
    assert rules(answer, text) == {"verbatim"}


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("red", "bored"), ("sign stop", "stop sign"), ("3个", "13个"),
        ("vitamin A", "vitamin B"), ("?", "what?"), ("", "anything"), ("  ", " "), ("the", "the cup"),
        ("c", "c major"),
        ("\\boxed{}", "{}"), ("$", "$"), ("red", ""),
    ],
)  # fmt: skip
def test_other_words_are_not(answer, text):
    assert rules(answer, text) == set()


@pytest.mark.parametrize(
    "question",
    [
        "Which?\nA. tree\nB. stop sign\nC. cup", "Which? (A) tree (B) stop sign (C) cup",
        "Which?\nA) tree\nB) stop sign",
        "Which? A: tree, B: stop sign", "选择：A．tree B．stop sign", "Which? a) tree b) stop sign",
        "A、tree\nB、stop sign",
        "Point A. is left of B. Which?\n(A) tree\n(B) stop sign\n(C) cup",
    ],
)  # fmt: skip
@pytest.mark.parametrize("answer", ["B", "b", "(B)", "B.", "Option B", r"\boxed{B}", "B. stop sign", "Stop sign"])
def test_options_in_every_spelling(question, answer):
    """The answer is a letter or the option's text; p may hold either."""
    assert rules(answer, "stop sign", question=question) & {"option text", "verbatim"}
    assert "option letter" in rules(answer, "so it is option B", question=question)
    assert rules(answer, "plan B for a cup", question=question) <= {"option text"} - {"option text"}
    assert form(question, answer) == "choice"


@pytest.mark.parametrize(
    ("text", "hit"),
    [
        ("(B)", True), ("( b )", True), ("choice b", True), ("option: B", True), ("answer is **B**", True),
        ("选B", True),
        ("答案是B", True), ("the answer is B because", True), ("B", False), ("plan B", False),
        ("optional B-side", False),
        ("answer: before", False), ("Bob", False), ("(BB)", False),
    ],
)  # fmt: skip
def test_a_letter_counts_in_an_answer_only(text, hit):
    assert ("option letter" in rules("B", text, question=SIGNS)) is hit


@pytest.mark.parametrize(
    ("text", "hit"),
    [("answer: a red car", False), ("Answer: A red car", False), ("the answer is A because", True),
     ("answer: A", True),
     ("(a)", True), ("option A", True), ("an option a man has", False)],
)  # fmt: skip
def test_the_article_is_told_from_option_a(text, hit):
    assert ("option letter" in rules("A", text, question=SIGNS)) is hit


def test_yes_and_no_count_only_when_asserted():
    for text in ("no parking", "No. 7", "yes-man", "a yes vote", "know", "dog"):
        assert rules("yes", text) | rules("no", text) == set(), text
    assert rules("yes", "Yes, there is a dog.") == {"assertion"}
    assert graded("yes", "Yes, there is a dog.") == Grade.CUE  # weak: a short common answer
    assert rules("no", "Yes, there is a dog.") == set()
    assert graded("no", "So the answer is no") == Grade.STATED
    assert rules("\\boxed{Yes}", "yes") == {"assertion"}


def test_a_candidate_among_others_is_a_cue():
    """Labels of all that the answer could be say where to look, not which it is."""
    which = "Which is taller, the cup or the bottle?"
    assert graded("cup", "cup", "bottle", "table", question=which) == Grade.CUE
    assert graded("cup", "cup", "table", question=which) == Grade.STATED
    assert graded("cup", "the cup is taller", "bottle", question=which) == Grade.STATED
    assert graded("green 6", "orange 2", "green 6", question="What is at the center?") == Grade.CUE
    assert graded("stop sign", "stop sign", "tree", question="What is behind the tree?") == Grade.STATED
    assert graded("27", "25", "27", question="Which number is on the left shirt?") == Grade.CUE
    assert graded("B", "stop sign", "yield sign", question=SIGNS) == Grade.CUE
    assert graded("B", "stop sign", "pole", question=SIGNS) == Grade.STATED
    assert graded("B", "black cat", question="A. cat\nB. black cat") == Grade.STATED


def test_the_only_boxed_option():
    lone, both = record("stop sign", "tree"), record("stop sign", "no entry")
    assert "sole candidate" in rules("B", question=SIGNS, record=lone)
    assert graded("B", question=SIGNS, record=lone) == Grade.DERIVABLE
    for boxes, answer in ((both, "B"), (lone, "A"), (record("stop sign", "stop sign"), "B"), (record("tree"), "B")):
        assert "sole candidate" not in rules(answer, question=SIGNS, record=boxes)


@pytest.mark.parametrize(
    ("question", "answer", "labels", "hit"),
    [
        ("How many cars?", "3", ["car", "dog", "car"], True), ("How many cars?", "2", ["car", "dog", "car"], True),
        ("How many cars?", "two", ["car", "dog", "car"], True), ("How many cars?", "2.0", ["car", "car"], True),
        ("What number is red?", "2", ["car", "car"], False), ("图中有多少辆车？", "2", ["车", "车"], True),
        ("Wie viele Autos?", "2", ["Auto", "Auto"], True), ("How many?", "0", [], False),
        ("How many?", "many", ["a"], False),
        ("How many? A. 2\nB. 3", "B", ["car"] * 3, True), ("Is the country large?", "1", ["car"], False),
    ],
)  # fmt: skip
def test_boxes_that_count_the_answer_out(question, answer, labels, hit):
    found = find_leaks(question, answer, [], record(*labels))
    assert ("count" in {h.rule for h in found}) is hit
    assert grade(found) == (Grade.DERIVABLE if hit else Grade.NONE)


@pytest.mark.parametrize(
    ("text", "hit"),
    [("Therefore look left", True), ("the answer is near", True), ("Answer: see below", True), ("x = 42", True),
     ("=-3", True),
     ("correct option", True), ("所以答案在左边", True), ("let x = 5", False), ("Look at the answer sheet", False),
     ("a = b", False), ("", False)],
)  # fmt: skip
def test_phrases_that_conclude(text, hit):
    """An equation that the question itself gives is not one."""
    assert ("phrase" in rules(None, text, question="Let x = 5. What is y?")) is hit


def test_overlap_with_a_reference():
    solution = "First we add the two numbers and then we divide them by seven"
    assert rules(None, "Then add two numbers and then we divide them.", reference=solution) == {"overlap"}
    assert rules(None, "Add two numbers and then we divide", reference=solution) == set()
    assert rules(None, solution, question=solution, reference=solution) == set()
    assert "overlap" in rules(solution + " exactly", solution[6:])
    assert "overlap" in rules(None, "先把两个数字相加然后除以", reference="先把两个数字相加然后除以七")


def test_weak_hits_need_another_kind_of_evidence():
    """Verbatim and numeric read the same digit, so together they are one."""
    (verbatim, numeric) = find_leaks(OPEN, "3", ["3 cups"])
    assert verbatim.weak and numeric.weak and grade([verbatim, numeric]) == Grade.CUE
    assert graded("3", "therefore 3 cups") == Grade.STATED
    assert graded("3", "three cups", question="How many?", record=record("cup", "cup", "cup")) == Grade.STATED
    assert not any(hit.weak for hit in find_leaks(OPEN, "17", ["17 cups"]))
    assert graded("left", "left door") == graded("K", "K") == Grade.CUE
    assert graded("红", "红灯") == Grade.STATED


def test_what_is_asked_for():
    assert form("Is it red?", "Yes.") == "yes/no"
    assert form("How many?", "3") == "count"
    assert form("What is x?", r"\boxed{3}") == "number"
    assert form("What is it?", "cup") == form("What?", None) == "open"


TEXTS = st.text(max_size=40) | st.sampled_from(
    ["", "A. x\nB. y", "(A)", "\\boxed{", "\\frac{1}{0}", "1/0", "\ud800", "9" * 400]
)
BOX = st.tuples(*[st.floats(0, 90), st.floats(0, 90), st.floats(91, 200), st.floats(91, 200)])


@given(question=TEXTS, answer=st.none() | TEXTS, texts=st.lists(TEXTS, max_size=3), reference=st.none() | TEXTS)
def test_no_text_raises(question, answer, texts, reference):
    hits = find_leaks(question, answer, texts, record("cup", "x"), reference)
    assert len({hit.rule for hit in hits}) == len(hits)
    assert all(hit.rule in RULES and hit.grade > Grade.NONE and len(hit.text) <= 120 for hit in hits)


@given(answer=TEXTS, boxes=st.lists(BOX, min_size=3, max_size=3))
def test_coordinates_change_nothing(answer, boxes):
    labels = ("cup", "4 cars", "x")
    here = find_leaks("How many?", answer, labels, record(*labels))
    assert here == find_leaks("How many?", answer, labels, record(*labels, boxes=boxes))


@given(word=st.text("bcdfgh", min_size=3, max_size=8), others=st.lists(st.text("klmnp ", min_size=1), max_size=4))
def test_an_answer_that_is_not_there_is_not_stated(word, others):
    assert graded(word, *others) < Grade.STATED
    assert graded(word, *others, f"a {word} there") == Grade.STATED


@given(number=st.integers(11, 10**6), other=st.integers(11, 10**6))
def test_numbers_match_as_numbers(number, other):
    assert ("numeric" in rules(str(number), f"sign {other:,}")) is (number == other)
    assert "numeric" in rules(f"{number}/1000", f"{number / 1000}")


@pytest.mark.parametrize(
    "piece",
    [
        "1,",
        "(A",
        "1/",
        "1.1",
        "\\frac{",
        "的",
        "一十",
        "hundred ",
        "A. B. ",
        " ",
        "(1,2,",
        "^",
        "a the ",
        "1 1/1 ",
        "1:1:",
        "½",
    ],
)
def test_hostile_fields_take_linear_time(piece):
    """30,000 characters in any place: quadratic time would be minutes, and is felt."""
    long = piece * (30_000 // len(piece))
    find_leaks(long, "12", [long], record("cup"))
    find_leaks("How many?", long, ["12 cups"], reference=long)


def test_hits_are_plain_values():
    (hit,) = find_leaks(OPEN, "red", ["x" * 500 + " red\nlight"])
    assert dataclasses.asdict(hit)["rule"] == "verbatim" and len(hit.text) == 120
