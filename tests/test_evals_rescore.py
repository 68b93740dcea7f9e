"""Saved replies scored again: what a row must hold, what becomes of a bad file, and text that would hang a scorer."""

import json
import time

import pytest

from evals import Prediction
from evals.benchmarks import available, example, find
from evals.rescore import rescore, rescore_file

from .bench import scoring
from .toolkit_logs import lmms_row, save_json_lines

NAMES = available()

HOSTILE = [
    "9**9**9",
    "\\boxed{9^{9^{9^{9}}}}",
    "\\boxed{" + "(" * 10_000 + "1" + ")" * 10_000 + "}",
    "\\boxed{" + "{" * 10_000 + "}" * 10_000 + "}",
    "[" * 10_000,
    '{"a":' * 3_000 + "1" + "}" * 3_000,
    "Answer: " + "\\frac{1}{" * 3_000,
    "\\boxed{" + "9" * 10_000 + "}",
    "\\boxed{1000000!}",
    "1e999999999",
    "A " * 5_000,
    "so B, not C, " * 1_000,
    "<answer>" * 10_000,
    "Answer:" * 10_000,
    "is " * 5_000,
    "1,2,3," * 10_000,
    "-" * 10_000,
    "\\boxed{__import__('os').getcwd()}",
    "oxed{" * 10_000,
    "is not " * 10_000 + "A",
]


@pytest.mark.parametrize("reply", HOSTILE, ids=lambda reply: reply[:24])
def test_hostile_text_is_scored_in_bounded_time(reply):
    start = time.process_time()
    for name in available():
        benchmark = find(name)
        for case in example(name):
            record = benchmark.record(case.row, benchmark.sources[case.source])
            for protocol in benchmark.protocols:
                assert 0 <= benchmark.score(record, reply, protocol).score <= 1
    # A second or two on a slow machine; backtracking or evaluation would take minutes.
    assert time.process_time() - start < 60


def saved(name, case, reply):
    columns = {key: case.row.get(key) for key in find(name).scored_by}
    return {"id": "x", "record": columns, "response": reply}


@pytest.mark.parametrize("name", NAMES)
def test_rescore_needs_only_what_decides(name, tmp_path):
    case = example(name)[0]
    rows = [saved(name, case, case.good), saved(name, case, case.bad), saved(name, case, None)]
    rows += [{**saved(name, case, case.good), "truncated": True}]
    verdicts = list(rescore(rows, name, "toolkit"))
    assert [verdict["score"] for verdict in verdicts] == [1, 0, 0, 0]
    assert [verdict["fate"] for verdict in verdicts] == ["parsed", "parsed", "error", "truncated"]
    for column in find(name).scored_by:
        row = saved(name, case, case.good)
        row["record"].pop(column)
        if not find(name).columns[column].endswith("?"):
            with pytest.raises(ValueError, match=f"row 'x': record: expected column '{column}'"):
                list(rescore([row], name, "toolkit"))


def test_rescore_file(tmp_path):
    case = example("mmstar")[0]
    source, out = tmp_path / "in.jsonl", tmp_path / "new" / "out.jsonl"
    lines = [json.dumps(saved("mmstar", case, reply), ensure_ascii=False) for reply in ("B\u2028", "C")]
    source.write_text("\n".join([*lines, '{"id": "to']), encoding="utf-8")  # torn by a kill
    verdicts = rescore_file(source, "mmstar", "official", out)
    assert [verdict["score"] for verdict in verdicts] == [1, 0]
    assert [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] == verdicts
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"]


def predicted(name, number, reply, **told):
    benchmark, case = find(name), example(name)[0]
    record = benchmark.record(case.row, benchmark.sources[case.source])
    fate = {"parsed": None, "score": 0.0, "fate": "error", "method": ""}
    return Prediction(
        id=f"{record.id}/{number}", question="", response=reply, truncated=False, answer="", digest="0", **fate,
        **{"protocol": f"{name}:official:1a2b3c4d5e6f", "record": dict(record.columns), **told},
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_run_of_ours_is_scored_again(name, tmp_path):
    case = example(name)[0]
    rows = [predicted(name, 0, case.good), predicted(name, 1, case.bad), predicted(name, 2, None)]
    source = tmp_path / "run.jsonl"
    source.write_text("".join(row.to_json() + "\n" for row in rows), encoding="utf-8")
    verdicts = rescore_file(source, name, "toolkit", tmp_path / "out.jsonl")
    assert [(verdict["id"], verdict["fate"], verdict["score"]) for verdict in verdicts] == [
        (rows[0].id, "parsed", 1.0), (rows[1].id, "parsed", 0.0), (rows[2].id, "error", 0.0),
    ]  # fmt: skip
    other = next(other for other in NAMES if other != name)
    with pytest.raises(ValueError, match=f"run.jsonl: row .*/0': expected a run of {other}, got one of '{name}'"):
        rescore_file(source, other, "toolkit", tmp_path / "out.jsonl")


def test_held_out_questions_of_training_are_no_benchmark(tmp_path):
    source = tmp_path / "run.jsonl"
    source.write_text(predicted("mmstar", 0, "B", protocol="held-out:exact:1").to_json(), encoding="utf-8")
    with pytest.raises(ValueError, match="expected a run of mmstar, got one of 'held-out'"):
        rescore_file(source, "mmstar", "toolkit", tmp_path / "out.jsonl")


def test_the_benchmark_of_scoring_counts_every_reply():
    told = scoring.measure(scoring.TINY)
    assert told["replies"] == scoring.TINY == 8 * told["replies_by_benchmark"]
    for protocol in ("official", "toolkit"):
        assert sum(told["fates"][protocol].values()) == scoring.TINY
        assert set(told["seconds_by_benchmark"][protocol]) == set(NAMES)
    assert json.dumps(told)


def test_a_log_of_another_toolkit_is_scored(tmp_path):
    case = example("mmstar")[0]
    source = save_json_lines(tmp_path / "log", [lmms_row("mmstar", 5, case.row, reply) for reply in (case.good,)])
    (verdict,) = rescore_file(source, "mmstar", "toolkit", tmp_path / "out.jsonl")
    assert verdict["id"] == 5 and verdict["score"] == 1
    assert list(verdict) == ["id", "parsed", "score", "parse_ok", "fate", "method"]


BAD_FILES = [
    ('{"id"\n{"id": 1}\n', "line 1: expected a JSON object"),
    ("[1]\n", "line 1: expected a JSON object"),
    ('{"id": 1, "record": {}}\n', "row 1: expected id, record and response, got no 'response'"),
    ('{"id": 1, "record": 3, "response": ""}\n', "row 1: record: expected an object"),
    (
        '{"id": 1, "record": {"question": "A: x, B: y", "answer": "A"}, "response": 3}\n',
        "response: expected text or null",
    ),
    ('{"id": 1, "record": {"question": "q", "answer": 3}, "response": ""}\n', "column 'answer': expected text"),
    ("", "expected rows with id, record and response, got none"),
    ('{"id": 1, "kind": "aggregate"}\n', "expected rows with id, record and response, got none"),
]


@pytest.mark.parametrize(("text", "message"), BAD_FILES)
def test_rescore_errors_are_one_line_and_write_nothing(tmp_path, text, message):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"in.jsonl: .*{message}") as error:
        rescore_file(source, "mmstar", "official", out)
    assert "\n" not in str(error.value) and not out.exists()


def test_rescore_refuses_its_own_source_and_missing_files(tmp_path):
    with pytest.raises(ValueError, match="another file than the one that is read"):
        rescore_file(tmp_path / "a", "mmstar", "official", tmp_path / "a")
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        rescore_file(tmp_path / "a", "mmstar", "official", tmp_path / "b")
    with pytest.raises(ValueError, match="protocol 'x' is unknown"):
        rescore_file(tmp_path / "a", "mmstar", "x", tmp_path / "b")
