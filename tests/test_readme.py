"""The README is about this repository: what it names exists."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import evals
from evals import suite
from evals.text import TASKS
from privileged import PrivilegedRecord, Sample, build_views, readers
from privileged.audit import audit_row
from privileged.builders import discloses
from privileged.images import load_image
from privileged.readers import write_example
from privileged.records import SCHEMA
from tests.test_trainer import finished, settings
from vlm_dopd import methods
from vlm_dopd.callbacks import read_metrics
from vlm_dopd.cli import app

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
TOP = "assets|evals|privileged|tests|vlm_dopd|docs|dev|shared|\\.ci"
PLACEHOLDER = re.compile(
    r"[A-Z]{2,}|\.\.\.|…|\bmy|\byour|<|\{"
)  # NAME, my_builder.py, <run>: for the reader to fill in


@pytest.fixture(scope="module")
def text():
    assert README.is_file(), "README.md is missing: pyproject.toml names it, and the wheel cannot be built without it"
    return README.read_text(encoding="utf-8")


def code(text):
    """Fenced blocks and inline code: what a reader may copy."""
    fenced = re.findall(r"^```[^\n]*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [*fenced, *re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))]


def test_every_path_exists(text):
    """Anything in code that starts with one of our folders is a file, a folder or a pattern that matches some."""
    found = {m for c in code(text) for m in re.findall(rf"(?<![\w/.-])(?:\./)?((?:{TOP})/[\w./*-]*)", c)}
    paths = {path.rstrip(".") for path in found if not PLACEHOLDER.search(path)} - {SCHEMA}
    missing = sorted(path for path in paths if not list(ROOT.glob(path.rstrip("/"))))
    assert not missing, f"README.md names what is not there: {missing}"


def test_every_python_file_of_the_tree_listing_exists(text):
    """Names like `routing.py` occur somewhere in the repository."""
    names = {m for c in code(text) for m in re.findall(r"(?<![\w/.-])(\w+\.py)\b", c)}
    folders = ("assets", "evals", "privileged", "tests", "vlm_dopd")
    present = {path.name for folder in folders for path in (ROOT / folder).rglob("*.py")}
    missing = sorted(name for name in names - present if not PLACEHOLDER.search(name))
    assert not missing, f"README.md names what is not there: {missing}"


def test_every_link_leads_somewhere(text):
    """Relative links and pictures point at files of the repository, anchors at headings."""
    links = re.findall(r"\]\(([^)\s]+)[^)]*\)|(?:src|href)=\"([^\"]+)\"", text)
    headings = re.findall(r"^#+ +(.*)$", text, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for link in (first or second for first, second in links):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        assert (ROOT / path).exists(), f"README.md links to {path}, which is not there"
        assert path or anchor in anchors, f"README.md links to the heading #{anchor}, which is not there"


def test_every_make_target_exists(text):
    """`make X` in code is a target of the Makefile; demo and test are shown."""
    targets = set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    mentioned = {m for c in code(text) for m in re.findall(r"(?:^|[\s;&(])make ([a-z][\w-]*)", c)}
    assert mentioned <= targets, f"README.md names targets that the Makefile lacks: {sorted(mentioned - targets)}"
    assert {"demo", "test"} <= mentioned


def options_of(command, prefix=""):
    """`name` or `group name` -> the options of the command."""
    if hasattr(command, "commands"):
        return {k: v for name, c in command.commands.items() for k, v in options_of(c, f"{prefix} {name}").items()}
    return {prefix.strip(): {text for parameter in command.params for text in parameter.opts} | {"--help"}}


def test_every_sub_command_and_option_exists(text):
    """`vlm-dopd X --y` in code: X is a command, --y is one of its options; every command is shown."""
    commands = options_of(get_command(app))
    pattern = r"(?:vlm-dopd|-m vlm_dopd)[ \t]+((?:annotate )?[a-z][\w-]*)((?:[^\n`#\\]|\\\n)*)"
    calls = [m for c in code(text) for m in re.findall(pattern, c)]
    groups = {name.split()[0] for name in commands if " " in name}
    calls = [(name, rest) for name, rest in calls if name not in groups]
    mentioned = {name for name, _ in calls}
    assert mentioned <= set(commands), f"README.md names commands that do not exist: {mentioned - set(commands)}"
    assert mentioned == set(commands), f"README.md does not show: {set(commands) - mentioned}"
    for name, rest in calls:
        wrong = set(re.findall(r"(?<!\S)--?[a-z][\w-]*", rest)) - commands[name]
        assert not wrong, f"README.md gives `vlm-dopd {name}` options it does not have: {sorted(wrong)}"


def test_every_builder_and_method_is_named(text):
    """A user learns what there is to choose from."""
    from privileged import available

    missing = [name for name in [*available(), *methods.available()] if not re.search(rf"\b{name}\b", text)]
    assert not missing, f"README.md does not name: {missing}"


def python_block(text, word):
    """The one fenced Python block that holds `word`."""
    (block,) = [b for b in re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE) if word in b]
    return block


def test_the_builder_of_the_readme_works(text, tmp_path):
    """A reader who copies it has a builder: at most 25 lines, and its example renders."""
    block = python_block(text, "BUILDER")
    assert len(block.splitlines()) <= 25
    (tmp_path / "labels.py").write_text(block)
    module = runpy.run_path(str(tmp_path / "labels.py"))
    example = module["EXAMPLE"]
    record = PrivilegedRecord.from_json({"schema": SCHEMA, "sample_id": "s", **example["privileged"]})
    views = build_views(Sample(id="s", question=example["question"], privileged=record), module["BUILDER"]())
    assert views.has_privilege
    row = {"question": example["question"], "privileged": {"schema": SCHEMA, "sample_id": "s", **example["privileged"]}}
    assert audit_row(row, "s", tmp_path, builder=module["BUILDER"]())["error"] is None
    assert discloses(module["BUILDER"]()) == "derivable"
    assert "In the picture: red 7" in views.privileged.messages[0]["content"][0]["text"]


def test_the_format_of_the_readme_works(text, tmp_path, monkeypatch):
    """A reader who copies it reads its annotations and sees them in the preview, with the two commands below it."""
    block = python_block(text, "READER = Shelf")
    assert len(block.splitlines()) <= 25
    (tmp_path / "shelf.py").write_text(block)
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"^vlm-dopd (annotate (?:read shelf|preview train).*?)(?: {2,}#.*)?$", text, flags=re.MULTILINE)
    assert len(lines) == 2
    folders = readers.__path__
    folders.append(str(tmp_path))
    try:
        write_example("shelf", tmp_path)
        (tmp_path / "images").rename(tmp_path / "photos")
        for line in lines:
            result = CliRunner().invoke(app, shlex.split(line), catch_exceptions=False)
            assert result.exit_code == 0, result.output
    finally:
        folders.remove(str(tmp_path))
        sys.modules.pop("privileged.readers.shelf", None)
    page = (tmp_path / "preview" / "preview.html").read_text()
    assert "red cup" in page and "150, 200, 250, 400" in page and "What is on it?" in page


def test_the_method_of_the_readme_works(text, tmp_path, pair):
    """A reader who copies it has a method: at most 25 lines, found by its file's name, and it trains."""
    block = python_block(text, "METHOD")
    assert len(block.splitlines()) <= 25
    (tmp_path / "surest.py").write_text(block)
    folders = methods.__path__
    folders.append(str(tmp_path))
    try:
        finished(settings(pair, tmp_path / "run", **{"method.name": "surest", "method.share": 0.25}))
    finally:
        folders.remove(str(tmp_path))
        sys.modules.pop("vlm_dopd.methods.surest", None)
    logged = read_metrics(tmp_path / "run" / "run" / "metrics.jsonl")[0]
    assert 0.2 < logged["share/kept"] < 0.35 and logged["loss/sure"] > 0


def test_the_benchmark_of_the_readme_works(text, tmp_path):
    """A reader who copies it has a benchmark: at most 25 lines of code, asked, scored and summed up."""
    block = python_block(text, "BENCHMARK")
    assert len([line for line in block.splitlines() if line]) <= 25
    (tmp_path / "signs.py").write_text(block)
    folders = evals.benchmarks.__path__
    folders.append(str(tmp_path))

    class Sure:
        def generate(self, items):
            return [evals.Reply("The answer is B.", False) for _ in items]

    try:
        plan = suite.plan(["signs"], "toolkit", "fixture", load_image)
        figures = suite.run_all(plan, lambda tokens: Sure(), tmp_path / "run", who="sure")
        assert "signs" in evals.benchmarks.available()
    finally:
        folders.remove(str(tmp_path))
        sys.modules.pop("evals.benchmarks.signs", None)
    assert figures["benchmarks"]["signs"]["headlines"]["accuracy"]["run"]["value"] == 1
    (row,) = evals.read(tmp_path / "run" / "signs.jsonl")
    assert row.question == "<image>Which?\nA. stop\nB. yield" and row.parsed == "B"


def test_every_benchmark_is_named(text):
    """A user learns what there is to choose from."""
    assert not [name for name in [*evals.benchmarks.available(), *TASKS] if f"`{name}`" not in text]


def test_the_reader_lines_of_the_readme_work(text, tmp_path, monkeypatch, capsys):
    """On the COCO reader's own example."""
    _, path = write_example("coco", tmp_path)
    path.rename(tmp_path / "instances.json")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lines.py").write_text(python_block(text, "get_reader"))
    module = runpy.run_path(str(tmp_path / "lines.py"))
    assert module["records"] and module["records"][0].regions
    assert "kept" in capsys.readouterr().out
