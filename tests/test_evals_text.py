"""Text benchmarks through lm-eval: what it wrote is read (a recorded run), and it is driven (by a stand-in, for real).

The stand-in is a package `lm_eval` in a folder of the test, started as a child like the real one; it writes what was
recorded. The last test runs the real one where it is installed.
"""

import json
import logging
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import evals
from evals import text
from evals.logs.lm_eval import protocol_of
from evals.text import TASKS, TextAsking, read, run

RECORDED = Path(__file__).parent / "golden" / "lm_eval"
STUDENT = Path(__file__).parent.parent / "assets" / "student"


@pytest.fixture
def recorded(tmp_path):
    return shutil.copytree(RECORDED, tmp_path / "recorded")


def samples(folder):
    (path,) = folder.rglob("samples_*.jsonl")
    return path


def results(folder):
    (path,) = folder.rglob("results_*.json")
    return path


def change(path, edit):
    """Edit every row of a file of samples."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps(edit(i, row) or row) + "\n" for i, row in enumerate(rows)), encoding="utf-8")


def test_ranked_options(recorded):
    rows = read("ceval", [recorded / "ceval" / "sample-0"], "me")
    assert [(row.id, row.parsed, row.answer, row.score) for row in rows] == [
        ("ceval-0", "B", "B", 1.0), ("ceval-1", "B", "D", 0.0), ("ceval-2", "B", "C", 0.0),
    ]  # fmt: skip
    first = rows[0]
    assert (first.fate, first.response, first.truncated, first.run, first.method) == (
        "parsed", "B", False, "me", "lm-eval acc",
    )  # fmt: skip
    assert first.group == {"subject": "local_accountant"} and first.cluster == "ceval-0"
    assert "一加一等于多少" in first.question and first.digest == "8943d4a01ae05e8f"
    assert first.protocol.startswith("ceval:lm-eval:") and len(first.protocol) == len("ceval:lm-eval:") + 12


def test_the_option_with_the_highest_likelihood_is_taken(recorded):
    folder = recorded / "ceval" / "sample-0"
    change(
        samples(folder),
        lambda i, row: {**row, "filtered_resps": [["-3", "False"], ["-9", "F"], ["-1", "T"], ["-2", ""]]},
    )
    assert [row.parsed for row in read("ceval", [folder])] == ["C"] * 3


def test_samples_are_averaged_first(recorded):
    folders = [recorded / "aime25" / f"sample-{k}" for k in range(2)]
    for number, folder in enumerate(folders):
        change(samples(folder), lambda i, row, n=number: {**row, "exact_match": float(i > n)})
    rows = read("aime25", folders)
    assert [row.score for row in rows] == [0.0, 0.5, 1.0]
    assert [row.id for row in rows] == ["aime25-0", "aime25-1", "aime25-2"]
    assert [row.parsed for row in rows] == ["right 0%", "right 50%", "right 100%"]
    assert [len(json.loads(row.response)) for row in rows] == [2] * 3
    assert rows[0].method == "lm-eval exact_match, mean of 2 samples"
    alone = read("aime25", folders[:1])
    assert [(row.score, row.parsed) for row in alone] == [(0.0, "wrong"), (1.0, "right"), (1.0, "right")]
    assert alone[0].response == json.loads(rows[0].response)[0]
    difference = evals.compare(rows, rows)
    assert difference.n == 3 and difference.difference == 0
    with pytest.raises(ValueError, match="expected one protocol"):
        evals.compare(rows, alone)


def test_groups_of_subtasks_have_names_in_their_ids(recorded):
    folder = recorded / "ceval" / "sample-0"
    told = json.loads(results(folder).read_bytes())
    for part in ("configs", "n-samples", "versions", "n-shot"):
        told[part]["ceval-valid_law"] = told[part]["ceval_local_accountant"]
    results(folder).write_text(json.dumps(told))
    path = samples(folder)
    shutil.copy(path, path.with_name(path.name.replace("ceval_local_accountant", "ceval-valid_law")))
    rows = read("ceval", [folder])
    assert [row.id for row in rows][::3] == ["ceval-law-0", "ceval-local_accountant-0"]
    assert rows[0].group == {"subject": "law"} and len(rows) == 6


def set_in(*keys):
    def edit(told, value):
        place = told
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return edit


SAME = [
    set_in("config", "model_args"), set_in("config", "torch_seed"), set_in("date"), set_in("model_name"),
    set_in("config", "batch_size"), set_in("config", "limit"), set_in("results"),
]  # fmt: skip
OTHER = [
    set_in("lm_eval_version"), set_in("versions", "aime25_local"), set_in("n-shot", "aime25_local"),
    set_in("config", "gen_kwargs"), set_in("configs", "aime25_local", "generation_kwargs"),
    set_in("system_instruction"), set_in("fewshot_as_multiturn"),
]  # fmt: skip


def test_the_protocol_is_what_decides_a_score_besides_the_model(recorded):
    folder = recorded / "aime25" / "sample-0"
    path = results(folder)
    first, text_ = protocol_of("aime25", folder, "exact_match", 1), path.read_text()
    seen = {first}
    for edit, same in [(edit, True) for edit in SAME] + [(edit, False) for edit in OTHER]:
        told = json.loads(text_)
        edit(told, "changed")
        path.write_text(json.dumps(told))
        got = protocol_of("aime25", folder, "exact_match", 1)
        assert (got == first) is same
        assert same or got not in seen
        seen.add(got)
    told = json.loads(text_)
    template = told.pop("chat_template_sha")
    assert template
    path.write_text(json.dumps({**told, "chat_template_sha": "another template"}))
    assert protocol_of("aime25", folder, "exact_match", 1) == first
    path.write_text(json.dumps(told))
    assert protocol_of("aime25", folder, "exact_match", 1) not in seen
    path.write_text(text_)
    others = [("math500", "exact_match", 1), ("aime25", "acc", 1), ("aime25", "exact_match", 2)]
    assert len({first, *(protocol_of(name, folder, metric, count) for name, metric, count in others)}) == 4


def cut(path, end):
    path.write_bytes(path.read_bytes()[:end])


BROKEN = [
    (lambda folder: samples(folder).unlink(), "cannot be read: No such file"),
    (lambda folder: cut(samples(folder), -500), "line 3: expected a sample of lm-eval"),
    (lambda folder: cut(samples(folder), samples(folder).read_bytes()[:-1].rindex(b"\n")), "expected 3 questions"),
    (lambda folder: samples(folder).write_bytes(samples(folder).read_bytes() * 2), "got question '0' twice"),
    (lambda folder: change(samples(folder), lambda i, row: {"doc_id": i}), "line 1: expected a sample of lm-eval with"),
    (lambda folder: change(samples(folder), lambda i, row: row.pop("exact_match") and None), "with 'exact_match'"),
    (lambda folder: change(samples(folder), lambda i, row: {**row, "exact_match": 7}), "in 0..1, got str and 7"),
    (lambda folder: change(samples(folder), lambda i, row: {**row, "exact_match": "nan"}), "a score in 0..1"),
    (lambda folder: change(samples(folder), lambda i, row: {**row, "filtered_resps": [3]}), "got int and 0"),
    (lambda folder: change(samples(folder), lambda i, row: {**row, "arguments": []}), "expected a sample of lm-eval"),
    (lambda folder: change(samples(folder), lambda i, row: {**row, "doc": None}), "expected a sample of lm-eval"),
    (lambda folder: results(folder).unlink(), "expected one results_.*json of lm-eval, got 0"),
    (lambda folder: shutil.copy(results(folder), results(folder).with_name("results_2.json")), "lm-eval, got 2"),
    (lambda folder: results(folder).write_text("[" * 9), "expected the results of lm-eval"),
    (lambda folder: results(folder).write_text('{"configs": []}'), "expected the results of lm-eval"),
    (lambda folder: results(folder).write_text("[]"), "expected the results of lm-eval"),
]  # fmt: skip


@pytest.mark.parametrize(("harm", "message"), BROKEN)
def test_a_damaged_run_is_one_line(recorded, harm, message):
    folder = recorded / "aime25" / "sample-0"
    harm(folder)
    with pytest.raises(ValueError, match=message) as error:
        read("aime25", [folder])
    assert "\n" not in str(error.value)


def test_samples_must_be_of_the_same_questions(recorded):
    folders = [recorded / "aime25" / f"sample-{k}" for k in range(2)]
    change(samples(folders[1]), lambda i, row: {**row, "doc_hash": "f" * 64})
    with pytest.raises(ValueError, match="question '0': expected one question in all samples"):
        read("aime25", folders)
    change(samples(folders[1]), lambda i, row: {**row, "doc_id": i + 1})
    with pytest.raises(ValueError, match="expected samples of the same questions"):
        read("aime25", folders)
    told = json.loads(results(folders[1]).read_bytes())
    results(folders[1]).write_text(json.dumps({**told, "lm_eval_version": "0.4.9"}))
    with pytest.raises(ValueError, match="asked alike, got 2 protocols"):
        read("aime25", folders)


# Driving it ----------------------------------------------------------------------------------------------------------

CHILD = """
import json, os, shutil, sys
from pathlib import Path
options = sys.argv[1:]
with open({log!r}, "a") as file:
    print(json.dumps([options, os.environ.get("HF_ALLOW_CODE_EVAL"), os.getcwd() in sys.path]), file=file)
if os.path.exists({fail!r}):
    print("noise", flush=True)
    sys.exit("Traceback (most recent call last):\\n  x\\nValueError: no such model\\n\\n")
name = {{"aime25": "aime25", "ceval-valid": "ceval"}}[options[options.index("--tasks") + 1]]
out = Path(options[options.index("--output_path") + 1])
seed = options[options.index("--seed") + 1].split(",")[2]
shutil.copytree(Path({recorded!r}) / name / f"sample-{{int(seed) % 2}}" / "student", out / "student")
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Makes `lm_eval` a package that writes the recorded output; calling it gives what it was started with."""
    package = tmp_path / "fake" / "lm_eval"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    log, fail = tmp_path / "calls", tmp_path / "fail"
    program = CHILD.format(log=str(log), fail=str(fail), recorded=str(RECORDED))
    (package / "__main__.py").write_text(program)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    return lambda: [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def test_a_run(tmp_path, stand_in, caplog, monkeypatch):
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    with caplog.at_level(logging.WARNING):
        found = run(str(STUDENT), ["aime25", "ceval"], out, TextAsking(samples=2, limit=3, device="cpu"), "before")
    assert "aime25 has 30 questions: with 2 of 8 samples each" in caplog.text and "ceval has" not in caplog.text
    assert evals.read(out / "aime25.jsonl") == found["aime25"] and evals.read(out / "ceval.jsonl") == found["ceval"]
    assert found["ceval"][0].run == "before"
    assert sorted(path.name for path in out.iterdir()) == ["aime25", "aime25.jsonl", "ceval", "ceval.jsonl"]
    calls = stand_in()
    assert len(calls) == 3  # a second sample of ranked options would say nothing new
    for options, code_eval, current in calls:
        assert "--log_samples" in options and "--apply_chat_template" in options
        assert options[options.index("--model") + 1] == "hf-multimodal"
        assert json.loads(options[options.index("--model_args") + 1]) == {"pretrained": str(STUDENT), "dtype": "auto"}
        assert options[options.index("--limit") + 1] == "3" and options[options.index("--device") + 1] == "cpu"
        assert not any("trust" in option or "unsafe" in option for option in options)
        assert code_eval is None and not current
    (first, *_), (second, *_), (third, *_) = calls
    assert json.loads(first[first.index("--gen_kwargs") + 1]) == {"do_sample": True, "temperature": 0.6}
    assert [call[call.index("--seed") + 1] for call in (first, second)] == ["0,1234,1234,1234", "0,1234,1235,1234"]
    assert "--gen_kwargs" not in third and third[third.index("--tasks") + 1] == "ceval-valid"


def test_a_run_goes_on_where_it_ended(tmp_path, stand_in):
    out = tmp_path / "out"
    first = run(str(STUDENT), ["aime25"], out)
    assert run(str(STUDENT), ["aime25"], out) == first and len(stand_in()) == 1
    torn = out / "ceval" / "sample-0.part" / "student"
    torn.mkdir(parents=True)
    (torn / "results_1.json").write_text("torn")
    run(str(STUDENT), ["aime25", "ceval"], out)
    assert len(stand_in()) == 2 and not torn.exists()
    for other in (TextAsking(limit=1), TextAsking(chat=False), TextAsking(samples=2)):
        with pytest.raises(ValueError, match="holds a run with other settings; choose another folder"):
            run(str(STUDENT), ["aime25"], out, other)


def test_a_single_sample_is_asked_as_the_task_says(tmp_path, stand_in, caplog):
    run(str(STUDENT), ["aime25"], tmp_path / "out", TextAsking(chat=False))
    ((options, *_),) = stand_in()
    absent = ("--gen_kwargs", "--limit", "--device", "--include_path", "--apply_chat_template")
    assert not set(absent) & set(options)
    assert "with 1 of 8 samples each" in caplog.text


def test_lm_eval_gives_its_last_line(tmp_path, stand_in):
    (tmp_path / "fail").touch()
    with pytest.raises(
        ValueError, match=r"aime25: lm-eval ended with code 1: ValueError: no such model \(all of it: .*log\)"
    ):
        run(str(STUDENT), ["aime25"], tmp_path / "out")
    (tmp_path / "fail").unlink()
    assert len(run(str(STUDENT), ["aime25"], tmp_path / "out")["aime25"]) == 3


def test_a_comma_in_a_name_adds_no_setting(tmp_path, stand_in):
    model = shutil.copytree(STUDENT, tmp_path / "m,trust_remote_code=True")
    run(str(model), ["aime25"], tmp_path / "out")
    ((options, *_),) = stand_in()
    assert json.loads(options[options.index("--model_args") + 1])["pretrained"] == str(model)


def test_text_checkpoints_go_through_the_other_backend(tmp_path, stand_in):
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    run(str(tmp_path), ["aime25"], tmp_path / "out")
    run("owner/name", ["aime25"], tmp_path / "hub", TextAsking(vision=False))
    run("owner/name", ["aime25"], tmp_path / "hub2", TextAsking(vision=True))
    assert [options[options.index("--model") + 1] for options, *_ in stand_in()] == ["hf", "hf", "hf-multimodal"]


def refused(message, *arguments):
    with pytest.raises(ValueError, match=message) as error:
        run(*arguments)
    assert "\n" not in str(error.value)


def test_what_cannot_be_asked_is_one_line(tmp_path, stand_in, monkeypatch):
    out = tmp_path / "out"
    refused("text benchmark 'gsm8k' is unknown: known: ceval, math500, aime25", str(STUDENT), ["gsm8k"], out)
    refused("samples: expected 1 or more, got 0", str(STUDENT), ["aime25"], out, TextAsking(samples=0))
    refused("expected a checkpoint folder with config.json, or `vision` for a hub id", str(tmp_path), ["aime25"], out)
    (tmp_path / "config.json").write_text("{")
    refused("expected a checkpoint folder with config.json, or `vision` for a hub id", str(tmp_path), ["aime25"], out)
    refused("expected a folder of task files", str(STUDENT), ["aime25"], out, TextAsking(tasks=tmp_path / "none"))
    for name, line in (("utils.py", ""), ("a.yaml", "process_results: !function utils.f")):
        tasks = tmp_path / name.partition(".")[0]
        (tasks / "deep").mkdir(parents=True)
        (tasks / "deep" / name).write_text(line)
        refused("expected task files without code", str(STUDENT), ["aime25"], out, TextAsking(tasks=tasks))
    monkeypatch.setattr(text.importlib.util, "find_spec", lambda name: None)
    refused(r"need lm-eval: `pip install 'vlm-dopd\[text\]'`", str(STUDENT), ["aime25"], out)
    assert not out.exists() and not stand_in()


QUESTIONS = [{"problem": f"What is {k}+{k}?", "answer": str(2 * k)} for k in range(1, 4)]
TASK = {
    "task": "doubles", "dataset_path": "json", "output_type": "generate_until", "test_split": "test",
    "doc_to_text": "{{problem}}", "doc_to_target": "{{answer}}", "num_fewshot": 0,
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 8}, "metadata": {"version": 1.0},
}  # fmt: skip


def test_the_real_lm_eval(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="asks the bundled student for real")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    data = tasks / "doubles.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    told = {**TASK, "dataset_kwargs": {"data_files": {"test": str(data)}}}
    (tasks / "doubles.yaml").write_text(json.dumps(told))  # JSON is YAML
    monkeypatch.setitem(TASKS, "aime25", replace(TASKS["aime25"], task="doubles"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    rows = run(str(STUDENT), ["aime25"], tmp_path / "out", TextAsking(tasks=tasks, device="cpu", limit=2))["aime25"]
    assert [row.answer for row in rows] == ["2", "4"] and all(row.response for row in rows)
    assert all(row.fate == "parsed" and row.protocol == rows[0].protocol for row in rows)
