"""Docstrings: there, true in what can be checked, and readable with `python -m pydoc`.

What is locked: 1) every module, every public class and function at the top of one, and every public method and
property has a docstring, with two exceptions: what overrides a documented member of a base class of ours (pydoc shows
that one), and the class that a plug-in file exports as READER, BUILDER or METHOD (the file's own docstring is about
nothing else, and pydoc shows it first); 2) every example is run, and its output is as written to the digit; 3) a name
with shape letters in a function's docstring (`logp_N`) is one of its module; 4) pydoc renders every module without the
optional extras.
"""

import ast
import doctest
import functools
import importlib
import inspect
import pydoc
import re
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("privileged", "evals", "vlm_dopd")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PLUGIN = {"READER", "BUILDER", "METHOD"}
IMPORT_NAMES = {"scikit-learn": "sklearn", "pyzmq": "zmq", "lm-eval": "lm_eval"}
SHAPED = re.compile(r"\b[a-z]\w*_[A-Z0-9]*[A-Z][A-Z0-9]*\b")
MEMBER = FunctionType | property | functools.cached_property | classmethod | staticmethod
EXAMPLE = re.compile(r"^ *(?:>>>|\.\.\.) .*$", re.MULTILINE)
PAPER = {"q_S", "q_T"}
"""Symbols of the paper that look like names with a shape."""
DEFINITION = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = [name_of(path) for path in FILES if path.name != "__main__.py"]  # that one runs the program
WITH_EXAMPLES = [name_of(path) for path in FILES if ">>> " in path.read_text(encoding="utf-8")]


def public(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, DEFINITION]]:
    """Public definitions in `node` by their dotted names, those of public classes included."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, DEFINITION) and not child.name.startswith("_"):
            yield prefix + child.name, child
            if isinstance(child, ast.ClassDef):
                yield from public(child, f"{prefix}{child.name}.")


def exported(tree: ast.Module) -> set[str]:
    """Classes that a plug-in file exports."""
    return {
        node.value.id
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name)
        if any(isinstance(target, ast.Name) and target.id in PLUGIN for target in node.targets)
    }


def inherited(module: ModuleType, dotted: str) -> bool:
    """Whether a base class of ours documents this member."""
    owner, _, member = dotted.rpartition(".")
    bases = getattr(module, owner).__mro__[1:] if owner else ()
    ours = (base for base in bases if base.__module__.split(".")[0] in (*PACKAGES, module.__name__))
    return any(inspect.getdoc(vars(base)[member]) for base in ours if isinstance(vars(base).get(member), MEMBER))


def undocumented(source: str, module: ModuleType) -> list[str]:
    tree = ast.parse(source)
    missing = [] if ast.get_docstring(tree) else ["the module"]
    plugins = exported(tree)
    for name, node in public(tree):
        if not ast.get_docstring(node) and name not in plugins and not inherited(module, name):
            missing.append(name)
    return missing


def phantoms(source: str) -> list[str]:
    """Names with shape letters in docstrings of functions that are no name of the module."""
    tree = ast.parse(source)
    known = PAPER | {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg | ast.keyword)}
    known |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    known |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return [
        f"{node.name}: {name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for name in SHAPED.findall(EXAMPLE.sub("", ast.get_docstring(node) or ""))
        if name not in known
    ]


def examples_of(module: ModuleType) -> list[doctest.DocTest]:
    return [test for test in doctest.DocTestFinder().find(module) if test.examples]


@pytest.mark.parametrize("path", FILES, ids=[path.relative_to(ROOT).as_posix() for path in FILES])
def test_everything_public_is_documented(path: Path):
    source = path.read_text(encoding="utf-8")
    module = sys if path.name == "__main__.py" else importlib.import_module(name_of(path))
    assert undocumented(source, module) == []
    assert phantoms(source) == []


def test_what_is_missing_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = (
        "class Base:\n    'd'\n    word = 'd'\n    def told(self):\n        'd'\n    def bare(self): ...\n"
        "class Child(Base):\n    'd'\n    def told(self): ...\n    def bare(self): ...\n    def _own(self): ...\n"
        "    def word(self): ...\n"
        "class Exported(Base): ...\nREADER = Exported\nclass Other: ...\ndef free(): ...\nasync def later(): ...\n"
    )
    (tmp_path / "planted_docstrings.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("planted_docstrings")
    found = ["the module", "Base.bare", "Child.bare", "Child.word", "Other", "free", "later"]
    assert undocumented(source, module) == found


def test_a_name_that_is_no_argument_is_found():
    text = "`x_NH`, `x_HN`, y_N2, z_K, q_S, NAME_N, a_b.\n\n    >>> own_N = 1"
    source = f'def f(x_NH, self):\n    """{text}"""\n    return self.z_K\n'
    assert phantoms(source) == ["f: x_HN", "f: y_N2"]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_are_as_written(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # an example that writes files leaves none behind
    complaints: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    for test in examples_of(importlib.import_module(name)):
        runner.run(test, out=complaints.append)
    assert not runner.failures, "".join(complaints)


def test_every_example_is_one_that_runs():
    # doctest looks at docstrings alone: an example below a constant or in a comment would never run.
    for name in WITH_EXAMPLES:
        module = importlib.import_module(name)
        written = Path(str(module.__file__)).read_text(encoding="utf-8").count(">>> ")
        assert sum(len(test.examples) for test in examples_of(module)) == written, name
    assert len(WITH_EXAMPLES) >= 12


def imported_at_once(node: ast.AST) -> Iterator[str]:
    """What importing the module imports, by full name: all but what functions import when they are called."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from ("." * child.level + f"{child.module or ''}.{alias.name}" for alias in child.names)
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imported_at_once(child)


@pytest.mark.parametrize("name", MODULES)
def test_pydoc_shows_every_module(name: str):
    module = importlib.import_module(name)
    text = pydoc.plain(pydoc.render_doc(module))
    assert (module.__doc__ or "").splitlines()[0] in text


def test_pydoc_needs_no_optional_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = [re.match(r"[\w-]+", word) for words in project["optional-dependencies"].values() for word in words]
    distributions = {match[0] for match in listed if match} - {"vlm-dopd"}
    extras = {IMPORT_NAMES.get(name, name) for name in distributions} | {"vllm"}
    assert {"openai", "peft", "zmq"} <= extras
    found = set()
    for path in FILES:
        for target in imported_at_once(ast.parse(path.read_text(encoding="utf-8"))):
            if target.split(".")[0] in extras or re.match(r"(vlm_dopd|\.*)\.?served\.(client|server|policy)", target):
                found.add((name_of(path), target.lstrip(".").split(".")[0]))
    # The two ends of the wire are the extra `serve` themselves; nothing imports them before a teacher is served.
    assert found == {("vlm_dopd.served.client", "zmq"), ("vlm_dopd.served.server", "zmq")}


def test_an_import_inside_a_function_is_not_at_once():
    source = "import a.b\nfrom .c import d\ntry:\n    import e\nexcept ImportError: ...\ndef f():\n    import g\n"
    assert list(imported_at_once(ast.parse(source))) == ["a.b", ".c.d", "e"]
