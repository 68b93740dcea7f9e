"""The command line as a user meets it, in fresh processes.

What is locked: 1) help is instant; 2) an error that is the user's to fix is exit code 2 and one line on stderr that
names the fix, without a traceback and with nothing on stdout; 3) nothing is written before the error.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
STUDENT = ROOT / "assets" / "student"
COMMANDS = {
    "demo": ("--out", "--seed", "KEY=VALUE"),
    "train": ("CONFIG", "KEY=VALUE"),
    "eval": ("--limit", "--benchmarks"),
    "compare": ("--teacher",),
    "report": ("RUN",),
    "watch": ("--once",),
    "rescore": ("--protocol",),
    "study": ("--report-only", "KEY=VALUE"),
    "plan": ("--gpus", "KEY=VALUE"),
    "preflight": ("--cheap", "--json", "KEY=VALUE"),
}
ENV = {
    **os.environ,
    **{"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "120", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    "PYTHONPATH": str(ROOT),
}

# What -> words of the command and what its one line must say; {0} is a folder that `outcomes` fills.
REFUSED = {
    "no such config": (["train", "{0}/nowhere.yaml"], r"nowhere\.yaml: no such config file"),
    "config is no YAML": (["train", "{0}/bad.yaml"], r"bad\.yaml: expected YAML"),
    "unknown setting": (["train", "{0}/run.yaml", "rollout.sibling=8"], r"rollout\.sibling: .*did you mean 'siblings'"),
    "wrong type": (["train", "{0}/run.yaml", "rollout.siblings=x"], r"rollout\.siblings: .*'x'"),
    "not an override": (["train", "{0}/run.yaml", "siblings"], r"'siblings': expected key=value"),
    "no such student": (["train", "{0}/run.yaml"], r"no-student: no such folder.*model\.allow_download"),
    "no such model": (["eval", "{0}/missing", "{0}/data.jsonl"], r"missing: no such folder"),
    "an empty folder": (["eval", "{0}/empty", "{0}/data.jsonl"], r"empty: expected a transformers checkpoint"),
    "weights torn": (["eval", "{0}/torn-model", "{0}/data.jsonl"], r"torn-model: expected a transformers checkpoint"),
    "no such data": (["eval", "{student}", "{0}/nope.jsonl"], r"nope\.jsonl: no such data file"),
    "torn data": (["eval", "{student}", "{0}/torn.jsonl"], r"torn\.jsonl line 2: expected jsonl"),
    "no answer": (["eval", "{student}", "{0}/open.jsonl"], r"open\.jsonl row 0: answer"),
    "no such builder": (
        ["eval", "{student}", "{0}/data.jsonl", "--view", "privileged", "--builder", "boxs"],
        r"did you mean 'boxes'",
    ),
    "neither questions nor benchmarks": (["eval", "{student}"], r"expected a file of questions, or --benchmarks"),
    "no such benchmark": (["eval", "{student}", "fixture", "--benchmarks", "mmstr"], r"did you mean 'mmstar'"),
    "no such protocol": (
        ["eval", "{student}", "fixture", "--benchmarks", "mmstar", "--protocol", "offical"],
        r"protocol 'offical' is unknown: did you mean 'official'",
    ),
    "no such rows": (["eval", "{student}", "{0}/nowhere", "--benchmarks", "mmstar"], r"mmstar: expected 'fixture'"),
    "a column is missing": (["eval", "{student}", "{0}/data.jsonl", "--benchmarks", "mmstar"], r"expected a column"),
    "torn benchmark rows": (["eval", "{student}", "{0}/torn.jsonl", "--benchmarks", "mmstar"], r"torn\.jsonl"),
    "pixels of nothing": (
        ["eval", "{student}", "fixture", "--benchmarks", "mmstar", "--pixels", "9"],
        r"expected MIN,MAX",
    ),
    "no such GPU": (["plan", "qwen3vl_8b_to_2b", "--gpu", "h100-90g"], r"did you mean 'h100-80g'"),
    "nothing to compare": (["compare", "{0}/empty", "{0}/empty"], r"expected a file of predictions or the folder"),
    "rows of another benchmark": (
        ["rescore", "{0}/data.jsonl", "--benchmark", "mmstar", "--protocol", "toolkit", "--out", "{0}/scored.jsonl"],
        r"data\.jsonl",
    ),
    "demo into a used folder": (["demo", "--out", "{0}/used"], r"used is not empty.*--out.*resume=true"),
    "demo of no method": (["demo", "--method", "dopdd", "--out", "{0}/new"], r"did you mean 'dopd'"),
}

DRIVER = """
import json, os, sys, tempfile, traceback
from vlm_dopd.cli import main

outcomes = []
for words in json.load(sys.stdin):
    sys.argv, code = ["vlm-dopd", *words], 0
    files, saved = [tempfile.TemporaryFile() for _ in "12"], [os.dup(1), os.dup(2)]
    for number, file in enumerate(files, 1):
        os.dup2(file.fileno(), number)
    try:
        main()
    except SystemExit as exit:
        code = exit.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush(), sys.stderr.flush()
    for number, old in enumerate(saved, 1):
        os.dup2(old, number)
    texts = [(file.seek(0), file.read().decode())[1] for file in files]
    outcomes.append([code, *texts])
json.dump(outcomes, sys.stdout)
"""


def call(*words, cwd=ROOT):
    """`python -m vlm_dopd` with these words: exit code, stdout and stderr."""
    command = [sys.executable, "-m", "vlm_dopd", *map(str, words)]
    run = subprocess.run(command, cwd=cwd, env=ENV, capture_output=True, text=True, timeout=900)
    return run.returncode, run.stdout, run.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files to get wrong: a configuration without models, broken models, bad data."""
    folder = tmp_path_factory.mktemp("cli")
    for name in ("empty", "used", "torn-model"):
        (folder / name).mkdir()
    (folder / "used" / "mine.txt").write_text("mine")
    (folder / "data.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    (folder / "torn.jsonl").write_text('{"question": "q", "answer": "a"}\n{"question": "q", "ans')
    (folder / "open.jsonl").write_text('{"question": "q"}\n')
    (folder / "bad.yaml").write_text("model: [")
    for file in STUDENT.glob("*"):
        data = file.read_bytes()
        (folder / "torn-model" / file.name).write_bytes(data[:1000] if file.suffix == ".safetensors" else data)
    values = {
        "model": {"student": f"{folder}/no-student", "teacher": f"{folder}/no-teacher"},
        "data": {"train": f"{folder}/data.jsonl"},
        "train": {"use_cpu": True, "max_steps": 1},
        "output_dir": f"{folder}/run",
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    return folder


@pytest.fixture(scope="module")
def outcomes(folder):
    """All commands of REFUSED, one after the other in one fresh process, whose imports take longer than all of them.

    What the imports themselves write to stderr counts against the first."""
    words = [[word.format(folder, student=STUDENT) for word in words] for words, _ in REFUSED.values()]
    command = [sys.executable, "-c", DRIVER]
    run = subprocess.run(command, input=json.dumps(words), cwd=ROOT, env=ENV, capture_output=True, text=True)
    return dict(zip(REFUSED, json.loads(run.stdout), strict=True))


@pytest.mark.parametrize("name", REFUSED)
def test_an_error_is_one_line_and_exit_code_2(outcomes, name):
    """The line names what is wrong and how to put it right."""
    code, out, err = outcomes[name]
    assert "Traceback" not in err
    assert code == 2, err
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert err.startswith("vlm-dopd: ")
    assert re.search(REFUSED[name][1], err)


@pytest.mark.usefixtures("outcomes")
def test_a_refused_command_leaves_nothing_behind(folder):
    """A used folder is as it was, and a new one was not made, or is empty."""
    assert [path.name for path in (folder / "used").iterdir()] == ["mine.txt"]
    assert not (folder / "new").exists()
    assert not (folder / "run").exists() or not any((folder / "run").iterdir())


@pytest.mark.parametrize("words", [(), *((command,) for command in COMMANDS)], ids=lambda words: " ".join(words) or "-")
def test_help_is_complete_and_instant(words):
    """`--help` exits 0, names every command or option, and loads no model library."""
    code = f"import sys; from vlm_dopd.cli import main; sys.argv = ['vlm-dopd', *{list(words)!r}, '--help']\n"
    code += "try: main()\nfinally: print('HEAVY', *({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENV, capture_output=True, text=True)
    text, _, heavy = run.stdout.rpartition("HEAVY")
    assert (run.returncode, run.stderr, heavy.split()) == (0, "", [])
    assert "Usage: vlm-dopd" in text
    for word in COMMANDS[words[0]] if words else COMMANDS:
        assert word in text


def test_without_a_word_there_is_help():
    """Not an error message, and no traceback."""
    _, out, err = call()
    assert "Usage: " in out + err
    assert all(command in out + err for command in COMMANDS)


@pytest.mark.parametrize("words", [("trian",), ("train",), ("demo", "--sede", "1"), ("eval", "x", "y", "--limit", "0")])
def test_usage_errors(words):
    """A wrong word, a missing argument, an unknown option, a number out of range: exit 2 and how it is used."""
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert "Usage: " in err
