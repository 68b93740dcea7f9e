"""What every benchmark promises, on its own synthetic rows: row to record to prompt to score to numbers."""

import sys
import types
from dataclasses import replace
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals import benchmarks
from evals.benchmarks import available, example, find
from evals.benchmarks.mmmu import DOMAIN_OF, candidates, parse_letter
from evals.benchmarks.vsibench import DIRECTIONS, NUMERIC, mra
from evals.questions import Media, Record, interleave, options_in
from evals.records import FATES, Verdict, count_fates

from .predicted import Scored

stable = settings(deadline=None, derandomize=True, max_examples=25)

NAMES = available()
CASES = [(name, case) for name in NAMES for case in example(name)]
PATHS = [(name, case, protocol) for name, case in CASES for protocol in find(name).protocols]
COUNTS = {
    "realworldqa": 765,
    "mmstar": 1500,
    "mathvision": 3040,
    "dynamath": 5010,
    "logicvista": 448,
    "mmmu": 900,
    "mmmu_pro": 3 * 1730,
    "vsibench": 5130,
}


def record_of(name, case):
    benchmark = find(name)
    return benchmark.record(case.row, benchmark.sources[case.source], index=7)


def label(value):
    return value if isinstance(value, str) else None


def test_the_eight_are_there_with_their_sizes():
    assert {name: find(name).count for name in NAMES} == COUNTS
    assert len(find("mmmu").sources) == 30 == len(DOMAIN_OF)
    assert {source.count for source in find("dynamath").sources} == {501}


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_says_what_it_is(name):
    benchmark = find(name)
    assert benchmark.name == name and "/" in benchmark.hub and benchmark.licence and benchmark.title
    assert benchmark.reproduced == "", "say in README.md which number was reproduced, and how"
    assert {"official", "toolkit"} <= set(benchmark.protocols)
    assert set(benchmark.scored_by) <= set(benchmark.columns)
    for protocol in benchmark.protocols.values():
        assert protocol.max_new_tokens > 0 and protocol.origin
        assert (protocol.frames is not None) == benchmark.needs_video


@pytest.mark.parametrize(("name", "case", "protocol"), PATHS, ids=label)
def test_row_to_numbers(name, case, protocol):
    benchmark = find(name)
    record = record_of(name, case)
    prompt = benchmark.prompt(record, protocol)
    media = [part for part in prompt if isinstance(part, Media)]
    assert sorted(item.number for item in media) == sorted(item.number for item in record.media) and media
    assert any(isinstance(part, str) and part.strip() for part in prompt)

    judge = benchmark.protocol(protocol).judge
    good = benchmark.score(record, case.good, protocol)
    if judge is None:
        assert (good.score, good.fate) == (1, "parsed"), good
    else:
        assert good.fate == "unparsed" and judge(record, case.judged).score == 1
    bad, junk = (benchmark.score(record, reply, protocol) for reply in (case.bad, case.junk))
    assert bad.score == 0 and bad.fate == ("parsed" if judge is None else "unparsed")
    assert (junk.score, junk.fate, junk.parsed) == (0, "unparsed", None)

    numbers = benchmark.aggregate([Scored(record, 1.0)])
    assert numbers.n == 1
    assert set(numbers.headline.values()) <= {1.0, None, 1 / 1500}
    assert all(0 <= value <= 1 for group in numbers.groups.values() for value in group.values())


@pytest.mark.parametrize(("name", "case"), CASES, ids=label)
def test_a_record_is_whole(name, case):
    record = record_of(name, case)
    assert record.benchmark == name and record.id and record.cluster and record.group
    assert record.id == record_of(name, case).id
    assert record.segments == interleave(record.question, record.media)
    mcq = record.answer_type in ("mcq", "multi_mcq")
    assert not mcq or set(record.answer) <= set(record.choices)


@pytest.mark.parametrize(("name", "case"), CASES, ids=label)
def test_a_missing_column_is_one_clear_line(name, case):
    benchmark = find(name)
    source = benchmark.sources[case.source]
    required = [column for column, kind in benchmark.columns.items() if not kind.endswith("?")]
    for column in required:
        row = {key: value for key, value in case.row.items() if key != column}
        with pytest.raises(ValueError, match=f"{name}: row .*column '{column}': expected .*no such column") as error:
            benchmark.record(row, source)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "case"), CASES, ids=label)
@pytest.mark.parametrize("value", [3.5, True, None, object()])
def test_a_wrong_type_is_one_clear_line(name, case, value):
    benchmark = find(name)
    for column, kind in benchmark.columns.items():
        if value is None and kind.endswith("?"):
            continue
        with pytest.raises(ValueError, match=f"column '{column}': expected") as error:
            benchmark.record({**case.row, column: value}, benchmark.sources[case.source])
        assert "\n" not in str(error.value) and len(str(error.value)) < 300


WRONG_ROWS = [
    ("mmstar", 0, {"answer": "E"}, "one of A, B, C, D, got 'E'"),
    ("mathvision", 0, {"answer": "F"}, "letter of an option, got 'F'"),
    ("dynamath", 0, {"answer_type": "choice"}, "one of multiple choice, float, text"),
    ("dynamath", 1, {"ground_truth": "two"}, "expected a number, got 'two'"),
    ("dynamath", 2, {"ground_truth": " "}, "empty text"),
    ("logicvista", 0, {"skill": ["visual"]}, "one of inductive"),
    ("logicvista", 0, {"skill": []}, "one of inductive"),
    ("mmmu", 0, {"answer": "E"}, "letter of an option, got 'E'"),
    ("mmmu", 0, {"options": "__import__('os')"}, "text of a list"),
    ("mmmu", 0, {"options": "[" * 100_000}, "text of a list"),
    ("mmmu", 0, {"id": "validation_Alchemy_1"}, "validation_<subject>_<number>"),
    ("mmmu_pro", 0, {"question": None}, "expected one in setting 'standard"),
    ("mmmu_pro", 1, {"image": None}, "expected one in setting 'vision'"),
    ("mmmu_pro", 0, {"answer": "K"}, "letter of an option"),
    ("vsibench", 0, {"ground_truth": "0"}, "number above 0"),
    ("vsibench", 0, {"question_type": "object_colour"}, "one of object_counting"),
    ("vsibench", 1, {"ground_truth": "D"}, "letter of an option"),
    ("vsibench", 1, {"options": None}, "letter of an option"),
    ("realworldqa", 1, {"answer": " "}, "empty text"),
]


@pytest.mark.parametrize(("name", "at", "change", "message"), WRONG_ROWS)
def test_a_row_that_breaks_a_promise(name, at, change, message):
    case = example(name)[at]
    benchmark = find(name)
    with pytest.raises(ValueError, match=f"{name}: row .*{message.replace('(', '.')}"):
        benchmark.record({**case.row, **change}, benchmark.sources[case.source])


def test_unknown_names_give_the_close_one():
    with pytest.raises(ValueError, match=r"'mmstarr' is unknown: did you mean 'mmstar'.*vsibench"):
        find("mmstarr")
    with pytest.raises(ValueError, match="mmmu: protocol 'offical' is unknown: did you mean 'official'"):
        find("mmmu").protocol("offical")
    with pytest.raises(ValueError, match="'__init__' is unknown"):
        find("__init__")


def test_a_benchmark_of_another_package(monkeypatch):
    own = types.ModuleType("elsewhere")
    own.BENCHMARK, own.EXAMPLE = find("mmstar"), example("mmstar")
    monkeypatch.setitem(sys.modules, "elsewhere", own)
    monkeypatch.setitem(sys.modules, "hollow", types.ModuleType("hollow"))
    points = [EntryPoint(name, name, benchmarks.ENTRY_POINTS) for name in ("elsewhere", "hollow", "absent")]
    monkeypatch.setattr(
        benchmarks, "entry_points", lambda group, name=None: [p for p in points if name in (None, p.name)]
    )
    assert "elsewhere" in available() and find("elsewhere") is own.BENCHMARK
    with pytest.raises(ValueError, match="'absent' of 'absent' cannot be loaded"):
        find("absent")
    with pytest.raises(ValueError, match="expected a Benchmark named BENCHMARK in its file, got None"):
        find("hollow")


def test_fingerprints_tell_protocols_apart_and_stay():
    prints = {(name, protocol): find(name).fingerprint(protocol) for name in NAMES for protocol in find(name).protocols}
    assert len(set(prints.values())) == len(prints)
    benchmark = find("mmstar")
    for change in ({"max_new_tokens": 1}, {"version": 9}, {"frames": 1}, {"prompt": lambda record: "?"}):
        protocols = {"official": replace(benchmark.protocols["official"], **change)}
        assert replace(benchmark, protocols=protocols).fingerprint("official") != prints["mmstar", "official"]


def test_fates_sum_to_n():
    benchmark, record = find("mmstar"), record_of("mmstar", example("mmstar")[0])
    verdicts = [
        benchmark.score(record, "B", "toolkit"),
        benchmark.score(record, "hm", "toolkit"),
        benchmark.score(record, "B", "toolkit", truncated=True),
        benchmark.score(record, None, "toolkit"),
        benchmark.score(record, "B", "official", truncated=True),  # the official code cannot know
        benchmark.score(record, "hm", "official", truncated=True),
    ]
    assert [verdict.fate for verdict in verdicts] == ["parsed", "unparsed", "truncated", "error", "parsed", "truncated"]
    assert [verdict.score for verdict in verdicts] == [1, 0, 0, 0, 1, 0]
    counts = count_fates(verdicts)
    assert counts == {"parsed": 2, "unparsed": 1, "truncated": 2, "error": 1} and tuple(counts) == FATES


CONTRADICTIONS = [("A", 1.5, "parsed"), (None, 1.0, "unparsed"), ("A", 0.0, "unparsed"), (None, 0.0, "parsed")]


@pytest.mark.parametrize(("parsed", "score", "fate"), [*CONTRADICTIONS, ("A", 1.0, "right")])
def test_a_verdict_cannot_contradict_itself(parsed, score, fate):
    with pytest.raises(ValueError, match="verdict"):
        Verdict(parsed=parsed, score=score, fate=fate)


PIECES = [
    "A",
    "B",
    "(C)",
    "answer",
    "Answer:",
    "is ",
    "\\boxed{",
    "}",
    "{",
    "$",
    "1",
    "2.5",
    "/",
    "^",
    "π",
    "\n",
    " ",
    "=",
]
PIECES += [
    "\\frac",
    "\\sqrt",
    "<answer>",
    "</think>",
    "<think>",
    '"short answer":',
    "not ",
    "or ",
    ",",
    "-",
    "．",
    "答案",
]
REPLY = st.text() | st.lists(st.sampled_from(PIECES), max_size=30).map("".join)


@pytest.mark.parametrize(("name", "case", "protocol"), PATHS, ids=label)
@stable
@given(reply=REPLY)
def test_scoring_any_text_never_fails_and_is_a_function(name, case, protocol, reply):
    benchmark, record = find(name), record_of(name, case)
    verdict = benchmark.score(record, reply, protocol)
    assert 0 <= verdict.score <= 1
    assert verdict == benchmark.score(record, reply, protocol)
    assert benchmark.score(record, None, protocol).fate == "error"


@pytest.mark.parametrize(("name", "case"), CASES, ids=label)
@stable
@given(
    around=st.sampled_from([("", ""), ("**", "**"), ("  ", "\n"), ("\n\n", "  "), ("`", "`"), ("__", "__")]),
    spaces=st.text(alphabet=" \n\t", max_size=4),
)
def test_toolkit_reads_through_spacing_and_markdown(name, case, around, spaces):
    benchmark, record = find(name), record_of(name, case)
    reply = spaces + around[0] + case.good + around[1] + spaces
    assert benchmark.score(record, reply, "toolkit").score == 1


@pytest.mark.parametrize(("name", "case"), CASES, ids=label)
def test_toolkit_does_not_read_thoughts(name, case):
    benchmark, record = find(name), record_of(name, case)
    assert benchmark.score(record, f"<think>{case.good}", "toolkit").parsed is None
    assert benchmark.score(record, f"<think>{case.bad}</think>\n{case.good}", "toolkit").score == 1


def test_mra_edges_are_those_of_numpy():
    assert mra(16, 20) == 0.6  # 0.7 by arithmetic
    assert mra(50.1, 33.4) == 0.0  # 0.1 by arithmetic
    assert mra(20, 20) == 1.0 and mra(30, 20) == 0.1 and mra(31, 20) == 0.0 and mra(-20, 20) == 0.0
    assert mra(float("inf"), 20) == mra(float("nan"), 20) == 0.0


@stable
@given(st.floats(0.01, 1000), st.floats(-1000, 1000))
def test_mra_is_the_mean_over_thresholds(gold, given_value):
    thresholds = np.linspace(0.5, 0.95, 10)
    reference = np.mean([abs(given_value - gold) / gold <= 1 - t for t in thresholds])
    assert mra(given_value, gold) == pytest.approx(reference)


def vsi(task, score):
    gold = {"answer": "1", "answer_type": "number"}
    return Scored(
        Record(id=task, benchmark="v", split="t", question="", group={"task": task}, cluster="s", **gold), score
    )


def test_vsibench_needs_all_three_directions():
    aggregate = find("vsibench").aggregate
    whole = aggregate([vsi(DIRECTIONS[0], 1), vsi(DIRECTIONS[1], 0), vsi(DIRECTIONS[2], 0), vsi(NUMERIC[0], 1)])
    assert whole.headline["mean of tasks"] == pytest.approx((1 / 3 + 1) / 2)
    assert whole.headline["mean over questions"] == 0.5
    part = aggregate([vsi(DIRECTIONS[0], 1), vsi(DIRECTIONS[1], 0), vsi(NUMERIC[0], 1)])
    assert part.headline["mean of tasks"] is None
    assert any("object_rel_direction_hard" in note for note in part.notes)
    only = aggregate([vsi(DIRECTIONS[0], 1)])
    assert only.headline["mean of tasks"] is None


def test_mmmu_pro_overall_is_the_mean_of_ten_options_and_vision():
    benchmark, cases = find("mmmu_pro"), example("mmmu_pro")
    ten, vision = (record_of("mmmu_pro", case) for case in cases)
    numbers = benchmark.aggregate([Scored(ten, 1.0), Scored(vision, 0.0), Scored(vision, 1.0), Scored(vision, 0.0)])
    assert numbers.headline["overall"] == pytest.approx((1 + 1 / 3) / 2)
    assert next(iter(numbers.headline)) == "overall"
    assert ten.cluster == vision.cluster and ten.id != vision.id


@pytest.mark.parametrize("name", NAMES)
@stable
@given(scores=st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=6))
def test_numbers_of_a_subset_stay_shares(name, scores):
    with pytest.raises(ValueError, match="at least one"):
        find(name).aggregate([])
    record = record_of(name, example(name)[0])
    numbers = find(name).aggregate([Scored(record, score) for score in scores])
    assert numbers.n == len(scores)
    values = [value for value in numbers.headline.values() if value is not None]
    assert all(0 <= value <= 1 for value in values)


def test_images_go_where_they_are_named():
    one, two, three = (Media("image", f"{k}.png", k) for k in (1, 2, 3))
    assert interleave("a <image 2> b <image 1> c", [one, two]) == ("a ", two, " b ", one, " c")
    assert interleave("a <image1>", [one, two, three]) == (two, three, "a ", one)
    assert interleave("<image 1> and <image 1>", [one]) == (one, " and <image 1>")
    assert interleave("<image 9>", []) == ("<image 9>",)
    with pytest.raises(ValueError, match="different numbers"):
        interleave("", [one, one])


def test_shuffled_options_name_images_by_number():
    case = example("mmmu")[0]
    row = {**case.row, "question": "Which?", "options": "['<image 2>', '<image 1>', 'x', 'y']"}
    prompt = find("mmmu").prompt(find("mmmu").record(row), "official")
    assert [part.number for part in prompt if isinstance(part, Media)] == [2, 1]
    assert [part.ref.size for part in prompt if isinstance(part, Media)] == [(48, 48), (64, 48)]


OPTIONS = [
    ("Q?\n\nA. one\nB. two, three\nC. four\nPlease answer.", {"A": "one", "B": "two, three", "C": "four"}),
    ("Q?\nOptions: A: In a box, B: On it, C: A, D: none", {"A": "In a box", "B": "On it", "C": "A", "D": "none"}),
    ("Q? Choices: (A) yes (B) no", {"A": "yes", "B": "no"}),
    ("Is A bigger than B?", None),
    ("Choose A. or nothing", None),
]


@pytest.mark.parametrize(("question", "options"), OPTIONS)
def test_options_in_a_question(question, options):
    assert options_in(question) == options


def test_mathvision_pictures_come_first_and_tags_stay():
    record = record_of("mathvision", example("mathvision")[0])
    picture, text = find("mathvision").prompt(record, "toolkit")
    assert picture.ref.size == (64, 48) and "<image1>" in text and "(C)" in text


def test_the_blank_gold_of_logicvista_is_never_met():
    case = example("logicvista")[0]
    benchmark = find("logicvista")
    record = benchmark.record({**case.row, "answer": ""})
    for reply in ("", " ", "A", "None"):
        assert benchmark.score(record, reply, "toolkit").score == 0
        assert benchmark.score(record, reply, "official").score == 0
    judge = benchmark.protocol("official").judge
    assert judge(record, [""]).score == judge(record, []).score == 0


def test_mmmu_forms():
    assert candidates("The result is 1,000 dollars.") == ["1,000 dollars", 1000.0, 0.0]
    choices = {"A": "left", "B": "right"}
    assert [parse_letter("Surely B.5 then", choices, pro) for pro in (False, True)] == [None, "B"]
    assert [parse_letter("NASA is it", choices, pro) for pro in (False, True)] == [None, "A"]


def test_dynamath_official_forms():
    record = record_of("dynamath", example("dynamath")[0])
    for short, score in (("xxB", 1), ("xxxB", 0), ("b", 0)):
        reply = f'{{"solution": "25\\pi", "short answer": "{short}"}}'  # no JSON before backslashes go
        assert find("dynamath").score(record, reply, "official").score == score
