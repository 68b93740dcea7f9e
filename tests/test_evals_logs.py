"""Sample logs of lmms-eval, VLMEvalKit and evalscope, in the forms that their writers give them, scored by our scorers.

Each log is made from the EXAMPLE rows of a benchmark as that toolkit would ask and write them. What is read back must
give the same gold, options and verdicts as the row of the data set itself.
"""

import csv
import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.benchmarks import example, find
from evals.logs import read
from evals.logs.files import listed
from evals.rescore import rescore, rescore_file

from .toolkit_logs import kit_row, lmms_row, save_json, save_json_lines, save_tsv, scope_row, sheet

# ---------------------------------------------------------------------------------------------------------------------

TOOLKITS = {
    "lmms-eval": (lmms_row, save_json_lines),
    "vlmevalkit-json": (kit_row, save_json),
    "vlmevalkit-tsv": (kit_row, save_tsv),
    "evalscope": (scope_row, save_json_lines),
}
ALL = ["dynamath", "logicvista", "mathvision", "mmmu", "mmmu_pro", "mmstar", "realworldqa", "vsibench"]
# lmms-eval's log has no answer type; evalscope has neither benchmark.
ABSENT = {("lmms-eval", "dynamath"), ("evalscope", "dynamath"), ("evalscope", "vsibench")}
PAIRS = [(toolkit, name) for toolkit in TOOLKITS for name in ALL if (toolkit, name) not in ABSENT]


def cases_of(name, toolkit):
    """Cases whose log holds their options: in MMMU-Pro's vision setting they stand in the picture only."""
    return [case for case in example(name) if toolkit.startswith("vlm") or case.row.get("question")]


@pytest.mark.parametrize(("toolkit", "name"), PAIRS)
def test_a_log_gives_the_verdicts_of_the_data_set(toolkit, name, tmp_path):
    make, save = TOOLKITS[toolkit]
    benchmark = find(name)
    asked = [(case, reply) for case in cases_of(name, toolkit) for reply in (case.good, case.bad, 'Zz\u2028\t"ä')]
    rows = [make(name, number, case.row, reply) for number, (case, reply) in enumerate(asked)]
    logged = list(read(save(tmp_path / "log", rows), name))
    assert [str(row["id"]) for row in logged] == [str(number) for number in range(len(asked))]
    assert [row["response"] for row in logged] == [reply for _, reply in asked]
    for protocol in benchmark.protocols:
        got = list(rescore(logged, name, protocol))
        for (case, reply), verdict in zip(asked, got, strict=True):
            record = benchmark.record(case.row, benchmark.sources[case.source])
            wanted = benchmark.score(record, reply, protocol)
            assert (verdict["score"], verdict["fate"], verdict["parsed"]) == (
                wanted.score, wanted.fate, wanted.parsed,
            )  # fmt: skip


@pytest.mark.parametrize(("toolkit", "name"), PAIRS)
def test_gold_and_options_are_those_of_the_data_set(toolkit, name, tmp_path):
    make, save = TOOLKITS[toolkit]
    benchmark, cases = find(name), cases_of(name, toolkit)
    rows = [make(name, number, case.row, case.good) for number, case in enumerate(cases)]
    blank = dict(example(name)[0].row)
    for case, logged in zip(cases, read(save(tmp_path / "log", rows), name), strict=True):
        wanted = benchmark.record(case.row, benchmark.sources[case.source])
        got = benchmark.record({**blank, **logged["record"]})
        assert got.answer_type == wanted.answer_type
        assert got.choices == wanted.choices
        lower = toolkit == "evalscope" and name == "realworldqa" and wanted.answer_type != "mcq"
        assert got.answer == (wanted.answer.lower() if lower else wanted.answer)


def refused(path, name, message):
    with pytest.raises(ValueError, match=message) as error:
        list(read(path, name))
    assert "\n" not in str(error.value)


def one(tmp_path, row):
    return save_json_lines(tmp_path / "log", [row])


LACKING = [
    ("dynamath", lmms_row, 0, "column 'answer_type', which decides what is right, is not in this log of lmms-eval"),
    ("mmmu_pro", lmms_row, 1, "column 'options', which decides what is right, is not in this log of lmms-eval"),
    ("mmmu_pro", scope_row, 1, "column 'options', which decides what is right, is not in this log of evalscope"),
]


@pytest.mark.parametrize(("name", "make", "number", "message"), LACKING)
def test_what_a_log_lacks_is_said(tmp_path, name, make, number, message):
    refused(one(tmp_path, make(name, 0, example(name)[number].row, "B")), name, message)


def test_old_logs_of_lmms_eval_hold_the_row_itself(tmp_path):
    case = example("dynamath")[0]
    row = lmms_row("dynamath", 4, case.row, case.good)
    row["doc"] = {name: value for name, value in case.row.items() if isinstance(value, str)}
    del row["dynamath_average"], row["input"]
    (logged,) = read(one(tmp_path, row), "dynamath")
    assert next(rescore([logged], "dynamath", "official"))["score"] == 1


def test_the_raw_reply_is_taken_where_a_filter_changed_it(tmp_path):
    row = lmms_row("mmstar", 0, example("mmstar")[0].row, "B")
    for raw in ("<think>C</think>B", ["<think>C</think>B"], [["<think>C</think>B"]]):
        (logged,) = read(one(tmp_path, {**row, "resps": raw}), "mmstar")
        assert logged["response"] == "<think>C</think>B"
    for several in (["A", "B"], [["A", "B"]], [], 3, None):
        refused(one(tmp_path, {**row, "resps": several}), "mmstar", "row 0: resps: expected the text of one reply")


def test_an_instruction_right_behind_the_last_option_is_not_part_of_it(tmp_path):
    row = lmms_row("mmstar", 0, example("mmstar")[0].row, "B")
    row["input"] = "Question: " + example("mmstar")[0].row["question"] + "Answer with the option letter only."
    (logged,) = read(one(tmp_path, row), "mmstar")
    record = find("mmstar").record({**example("mmstar")[0].row, **logged["record"]})
    assert record.choices["D"] == "Nothing"


OTHERS = [(lmms_row, made, asked) for made in ALL for asked in ALL if made != asked] + [
    (scope_row, made, asked)
    for made in ("mmstar", "mmmu", "mathvision", "mmmu_pro", "realworldqa", "logicvista")
    for asked in ALL
    if made != asked
]


@pytest.mark.parametrize(("make", "made", "asked"), OTHERS)
def test_a_log_of_another_benchmark_is_refused(tmp_path, make, made, asked):
    row = make(made, 0, example(made)[0].row, "B")
    refused(one(tmp_path, row), asked, f"row 0: expected .*{asked}.*got|row 0: column .* is not in this log of")


@pytest.mark.parametrize(
    ("made", "asked"),
    [("mmstar", "mathvision"), ("mmstar", "dynamath"), ("mmmu", "logicvista"), ("mmstar", "vsibench")],
)
def test_a_table_of_another_benchmark_lacks_columns(tmp_path, made, asked):
    path = save_tsv(tmp_path / "log", [kit_row(made, 0, example(made)[0].row, "B")])
    refused(path, asked, "row '0': column .* is not in this log of VLMEvalKit")


def test_predictions_of_evalscope_are_sent_to_the_reviews(tmp_path):
    row = {"index": 0, "model": "m", "model_output": {"choices": []}, "messages": [], "metadata": {}}
    refused(one(tmp_path, row), "mmstar", "hold no gold: read the file of this name under reviews/")


def test_a_question_that_evalscope_asked_again_counts_once(tmp_path):
    case = example("mmstar")[0]
    rows = [scope_row("mmstar", number, case.row, reply) for number, reply in [(0, "A"), (1, "C"), (0, "B")]]
    logged = list(read(save_json_lines(tmp_path / "log", rows), "mmstar"))
    assert [(row["id"], row["response"]) for row in logged] == [(0, "B"), (1, "C")]


def test_evalscope_rows_of_old_releases_and_without_the_raw_reply(tmp_path):
    row = scope_row("mmstar", 0, example("mmstar")[0].row, "so B")
    row["sample_score"]["score"]["prediction"] = None
    assert next(read(one(tmp_path, row), "mmstar"))["response"] == "so B"
    row["messages"] = row["messages"][:1]
    assert next(read(one(tmp_path, row), "mmstar"))["response"] is None
    old = {**row, "messages": None, "input": example("mmstar")[0].row["question"], "target": "B"}
    (logged,) = read(one(tmp_path, old), "mmstar")
    assert logged["record"] == {"question": example("mmstar")[0].row["question"], "answer": "B"}


@pytest.mark.parametrize("make", [lmms_row, kit_row])
def test_two_replies_to_one_question_are_refused(tmp_path, make):
    case = example("mmstar")[0]
    rows = [make("mmstar", 0, case.row, reply) for reply in ("A", "A")]
    assert len(list(read(save_json_lines(tmp_path / "log", rows), "mmstar"))) == 1
    rows.append(make("mmstar", 0, case.row, "B"))
    refused(save_json_lines(tmp_path / "log", rows), "mmstar", "expected one reply a question, got another one")


def test_open_mmmu_questions_that_vlmevalkit_turned_into_choices(tmp_path):
    row = kit_row("mmmu", 0, example("mmmu")[1].row, "The answer is 7.25")
    gold = row["answer"]
    row |= {"A": gold, "B": "Other Answers", "answer": "A", "hit": 0, "log": "…"}
    (logged,) = read(save_json(tmp_path / "log", [row]), "mmmu")
    assert logged["record"] == {"answer": gold, "options": [], "question_type": "open"}
    assert next(rescore([logged], "mmmu", "official"))["score"] == 1


def test_development_questions_of_mmmu_are_left_out(tmp_path):
    rows = [kit_row("mmmu", number, example("mmmu")[0].row, "C") for number in range(3)]
    rows[1]["split"] = "dev"
    assert [row["id"] for row in read(save_json(tmp_path / "log", rows), "mmmu")] == ["0", "2"]


def test_a_failed_request_is_an_error_and_an_empty_reply_is_not(tmp_path):
    case = example("mmstar")[0]
    replies = ["Failed to obtain answer via API. quota", None, "B"]
    rows = [kit_row("mmstar", number, case.row, reply) for number, reply in enumerate(replies)]
    logged = list(read(save_json(tmp_path / "log", rows), "mmstar"))
    assert [row["response"] for row in logged] == [None, "", "B"]
    assert [row["fate"] for row in rescore(logged, "mmstar", "toolkit")] == ["error", "unparsed", "parsed"]


def test_the_blank_gold_of_logicvista_is_kept(tmp_path):
    row = {**kit_row("logicvista", 0, example("logicvista")[0].row, "A"), "answer": None}
    assert next(read(save_json(tmp_path / "log", [row]), "logicvista"))["record"] == {"answer": ""}


def test_numbers_in_cells_are_text(tmp_path):
    row = {**kit_row("mathvision", 7, example("mathvision")[1].row, 12.0), "answer": 12, "index": 7.0}
    (logged,) = read(save_json(tmp_path / "log", [row]), "mathvision")
    assert logged == {"id": "7", "record": {"answer": "12", "options": []}, "response": "12"}


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("Who, (A) or (B)?", {"A": "x", "B": "y"}),
        ("Who of A. Smith, B. Jones?", {"A": "see (A)", "B": "one", "C": "none"}),
    ],
)
def test_labels_in_a_question_are_not_its_options(tmp_path, question, options):
    row = {"index": 0, "question": question, **options, "answer": "B", "prediction": "B"}
    (logged,) = read(save_json(tmp_path / "log", [row]), "realworldqa")
    assert find("realworldqa").record({**example("realworldqa")[0].row, **logged["record"]}).choices == options


def test_a_free_question_of_evalscope_has_no_options(tmp_path):
    row = scope_row("mathvision", 0, {**example("mathvision")[1].row, "question": "Which?\nA) x\nB) y"}, "3")
    (logged,) = read(one(tmp_path, row), "mathvision")
    assert logged["record"]["options"] == []


def test_spreadsheets(tmp_path):
    pytest.importorskip("openpyxl", reason="reads VLMEvalKit's .xlsx")
    row = kit_row("mmstar", 3, example("mmstar")[0].row, "B < & ä")
    path = tmp_path / "log"
    path.write_bytes(sheet([list(row), list(row.values())]))
    assert [(row["id"], row["response"]) for row in read(path, "mmstar")] == [("3", "B < & ä")]
    path.write_bytes(path.read_bytes()[:300])
    refused(path, "mmstar", "expected a spreadsheet, got a damaged file")


def test_a_spreadsheet_without_its_library_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    path = tmp_path / "log"
    path.write_bytes(sheet([["index", "prediction"]]))
    refused(path, "mmstar", "needs openpyxl: `pip install openpyxl`")


@pytest.mark.parametrize("key", [None, [], {}, 1.5])
def test_a_row_needs_a_key(tmp_path, key):
    row = {**lmms_row("mmstar", 0, example("mmstar")[0].row, "B"), "doc_id": key}
    refused(one(tmp_path, row), "mmstar", "expected rows of lmms-eval with a number or text as their key")


def test_torn_last_lines(tmp_path):
    case = example("mmstar")[0]
    for make in (lmms_row, scope_row):
        path = save_json_lines(tmp_path / "log", [make("mmstar", number, case.row, "B") for number in range(3)])
        path.write_bytes(path.read_bytes()[:-40])
        assert [row["id"] for row in read(path, "mmstar")] == [0, 1]
    table = save_tsv(tmp_path / "log", [kit_row("mmstar", number, case.row, "B\n\n") for number in range(3)])
    table.write_bytes(table.read_bytes()[:-3])
    refused(table, "mmstar", "got one that ends in the middle of a row")
    table.write_bytes(table.read_bytes() + b"\n")
    refused(table, "mmstar", "got a damaged one")


def test_long_cells(tmp_path):
    csv.field_size_limit(131_072)
    path = save_tsv(tmp_path / "log", [kit_row("mmstar", 0, example("mmstar")[0].row, "B " * 100_000)])
    assert len(next(read(path, "mmstar"))["response"]) == 200_000
    assert csv.field_size_limit() == 131_072


UNKNOWN = [
    (b"", None),
    (b'{"foo": 1}\n', "sample log of lmms-eval, VLMEvalKit, evalscope; got rows with foo"),
    (b"a,b\n1,2\n", "line 1: expected a JSON object"),
    (b"index\tpred\n1\tA\n", "got rows with index, pred"),
    (b"[1]\n", "line 1: expected a JSON object"),
    (b"[[[[" * 30_000, None),
    (b"\x80\x04\x95pickle\n.", "line 1: expected a JSON object"),
    (b"index\tprediction\n1\tA", "ends in the middle of a row"),
    (b"index\tprediction\n1\t\xff\n", "expected a table of tab-separated values in UTF-8"),
    (b"index\tprediction\n1\tA\tB\n", "row 1: expected 2 cells, got another number"),
    (b"PK\x03\x04", "needs openpyxl|damaged file"),
]


@pytest.mark.parametrize(("data", "message"), UNKNOWN, ids=lambda value: str(value)[:20])
def test_other_files_are_refused_in_one_line(tmp_path, data, message):
    path = tmp_path / "log"
    path.write_bytes(data)
    if message is None:
        assert list(read(path, "mmstar")) == []
        return
    refused(path, "mmstar", message)
    with pytest.raises(ValueError, match=f"{path}: "):
        rescore_file(path, "mmstar", "official", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_row_of_another_kind_in_the_middle_is_refused(tmp_path):
    rows = [lmms_row("mmstar", 0, example("mmstar")[0].row, "B"), {"id": 1, "record": {}, "response": "B"}]
    refused(save_json_lines(tmp_path / "log", rows), "mmstar", "expected every row to be of lmms-eval, got one with id")


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just([]), st.just({}), st.just([[]]),
    st.just({"id": []}), st.just([{}]), st.just("A\nB. x\nA. y"), st.just("[" * 50),
)  # fmt: skip


@pytest.mark.parametrize("make", [lmms_row, kit_row, scope_row])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_hostile_values_give_rows_or_one_line(tmp_path_factory, make, data):
    name = data.draw(st.sampled_from(ALL if make is not scope_row else ["mmstar", "mmmu", "mathvision", "realworldqa"]))
    row = make(name, 0, example(name)[0].row, "B")
    row = json.loads(json.dumps(row, default=str))
    place = row
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(JUNK)
    path = save_json_lines(tmp_path_factory.mktemp("junk") / "log", [row])
    try:
        verdicts = list(rescore(read(path, name), name, "official"))
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert len(verdicts) <= 1


def test_options_of_evalscope_that_are_pictures(tmp_path):
    row = scope_row("mmmu", 0, example("mmmu")[0].row, "B")
    parts = [
        ("text", "Which?\n\nA) "),
        ("image", "…"),
        ("text", "\nB) a "),
        ("image", "…"),
        ("text", " b\nC) "),
        ("image", ""),
    ]
    row["messages"][0]["content"] = [{"type": kind, kind: value} for kind, value in parts]
    (logged,) = read(one(tmp_path, row), "mmmu")
    assert logged["record"]["options"] == ["<image>", "a <image> b", "<image>"]


def test_lists_of_options():
    assert listed("Who? A. Smith\nA. x\nB. y\nmore\nC. z\n\nAnswer", ".") == ["x", "y\nmore", "z"]
    assert listed("A. old\nB. older\nquestion\nA. new\nB. newer", ".") == ["new", "newer"]
    assert listed("A.\nB. <image 2>", ".") == ["", "<image 2>"]
    assert listed("A) x\nB) y", ".") == [] and listed("", ".") == [] and listed("B. x", ".") == []
    assert listed("A) x\nB) y", ")") == ["x", "y"]
    assert listed("A. x\nC. y\nB. z", ".") == ["x\nC. y", "z"]
