"""The arrows of ARCHITECTURE.md, enforced on the syntax tree.

What is locked: 1) `privileged` and `evals` are leaves; 2) inside `vlm_dopd` a file imports what its row of ARROWS
names and nothing else, nothing imports the CLI, and there is no cycle; 3) files and functions stay short; 4) light
packages stay light; 5) the wheel holds every package file; 6) no pickle, no remote code, no network.
"""

import ast
import graphlib
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("privileged", "evals", "vlm_dopd")
SHIPPED = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
BUILD = sorted((ROOT / "assets" / "build").rglob("*.py"))
TESTS = sorted((ROOT / "tests").glob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# Unit of vlm_dopd -> what its files may import, apart from the standard library and their own unit.
ARROWS = {
    "__init__": "",
    "__main__": "cli",
    "errors": "",
    "divergences": "torch",
    "routing": "torch divergences",
    "head": "torch",
    "attention": "torch transformers",
    "chunked_loss": "torch divergences head",
    "methods": "torch privileged divergences routing errors",
    "completions": "torch privileged collate errors methods rollout",
    "rewards": "evals privileged completions errors",
    "loading": "accelerate torch transformers errors sharding",
    "lora": "omegaconf peft safetensors torch errors",
    "sharding": "torch",
    "hub": "transformers errors",
    "merging": "torch transformers errors lora roles",
    "copies": "torch safetensors transformers errors lora methods roles sharding",
    "data": "torch privileged errors",
    "vision": "torch transformers",
    "roles": "torch transformers safetensors attention head loading lora vision errors",
    "collate": "torch transformers PIL privileged roles vision errors",
    "packing": "torch collate vision",
    "rollout": "torch transformers safetensors PIL requests urllib3 peft vllm "
    "collate packing roles scoring sharding errors",
    "importance": "torch methods",
    "engines": "torch config importance methods roles rollout",
    "scoring": "torch transformers attention packing roles chunked_loss sharding",
    "window": "torch chunked_loss collate completions methods packing roles rollout scoring errors importance",
    "served": "torch safetensors zmq openai __init__ chunked_loss divergences errors head loading methods packing "
    "roles scoring vision",
    "health": "",
    "plan": "rich transformers chunked_loss config copies errors loading lora methods vision served",
    "callbacks": "torch transformers evals errors health",
    "token_files": "PIL privileged collate rollout",
    "token_samples": "torch transformers collate head methods rollout token_files window",
    "trainer": "torch transformers config collate callbacks chunked_loss copies hub lora roles rollout scoring "
    "window errors token_samples sharding",
    "quiet": "datasets transformers",
    "config": "omegaconf torch transformers privileged loading lora methods rollout served errors",
    "report": "numpy PIL matplotlib jinja2 markupsafe omegaconf evals privileged errors health",
    "reporting": "transformers privileged data errors report",
    "watch": "rich evals report",
    "report_cli": "rich typer quiet report reporting watch",
    "evaluation": "torch evals privileged data errors lora roles",
    "benchmarks": "evals privileged config errors evaluation roles",
    "comparing": "PIL evals privileged data evaluation",
    "wiring": "privileged collate completions config data methods",
    "pair": "config errors lora roles served",
    "run": "transformers privileged __init__ benchmarks callbacks collate completions config copies data engines "
    "errors evaluation health methods pair preflight reporting rewards roles rollout sharding token_files "
    "token_samples trackers trainer window wiring",
    "trackers": "PIL numpy pandas evals privileged transformers mlflow swanlab trackio wandb",
    "preflight": "torch transformers safetensors PIL rich privileged collate completions config data errors health "
    "lora chunked_loss methods packing plan rewards roles rollout scoring served trainer window wiring",
    "demo": "evals privileged config data errors evaluation report roles run",
    "study": "torch transformers numpy matplotlib jinja2 markupsafe rich evals privileged callbacks config data errors "
    "evaluation report roles run",
    "annotate": "PIL matplotlib jinja2 markupsafe numpy omegaconf rich transformers typer "
    "evals privileged collate data errors evaluation report roles",
    "eval_cli": "typer evals privileged benchmarks comparing data errors evaluation quiet",
    "cli": "typer annotate eval_cli quiet report_cli",
}
# Parsers of annotation formats, in `privileged/readers` alone.
READERS_ONLY = {"yaml", "pyarrow", "pycocotools"}
# The client of external models, an optional extra.
GENERATE_ONLY = {"openai"}
LEAVES = {
    "privileged": {"numpy", "PIL", "datasets", "tqdm", *READERS_ONLY, *GENERATE_ONLY},
    "evals": {"numpy", "PIL", "tqdm"},
}
# What a file of `evals` may import besides.
EVALS_ONLY = {
    "model.py": {"torch", "transformers"},
    "server.py": {"openai"},
    "video.py": {"av"},
    "fixtures.py": {"av", "pyarrow"},
    "tables.py": {"pyarrow"},
    "sources.py": {"datasets"},
    "compare_page.py": {"jinja2", "markupsafe"},
    "logs/files.py": {"openpyxl"},
}
INSTALLED_AS = {"PIL": "pillow", "zmq": "pyzmq"}
COMES_WITH = {
    "tqdm": "transformers",
    "tokenizers": "transformers",
    "markupsafe": "jinja2",
    "pandas": "datasets",
    "pyarrow": "datasets",
    "yaml": "omegaconf",
    "urllib3": "requests",
}
NETWORK = {"requests", "urllib3", "httpx", "aiohttp", "socket", "ftplib", "smtplib", "huggingface_hub"}
FORBIDDEN = {"torch.load", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "eval", "exec", "os.system"}
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SHIPPED}


def imports(path, top_level_only=False):
    """Absolute names of everything `path` imports, submodules resolved, with line numbers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)}
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    found = []
    for node in ast.walk(tree):
        if top_level_only and node in inside:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *(node.module.split(".") if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.append((inner if inner in MODULES else base, node.lineno))
    return found


def unit(name):
    """`vlm_dopd.rollout.hf` -> `rollout`; anything else -> its top package."""
    parts = name.split(".")
    return parts[0] if parts[0] != "vlm_dopd" else (parts[1] if len(parts) > 1 else "__init__")


def relative(paths):
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in paths]


def foreign(path):
    """Imports of `path` without standard library: unit and line."""
    found = [(unit(name), line) for name, line in imports(path)]
    return [(name, line) for name, line in found if name not in sys.stdlib_module_names]


@pytest.mark.parametrize("path", relative(path for path in SHIPPED if path.is_relative_to(ROOT / "vlm_dopd")))
def test_vlm_dopd_imports_what_its_row_allows(path):
    """Every file of `vlm_dopd` stays within its row of ARROWS; the CLI may import anything, but inside a function."""
    own = unit(module_name(path)) if module_name(path) != "vlm_dopd" else "__init__"
    assert own in ARROWS, f"{path.name}: give the new unit {own!r} a row in ARROWS"
    if own == "cli":
        top = {unit(name) for name, _ in imports(path, top_level_only=True)} - set(sys.stdlib_module_names)
        late = sorted(top - {"typer", "annotate", "eval_cli", "quiet", "report_cli"})
        assert not late, f"imported before a command runs: {late}"
        return
    allowed = {own, *ARROWS[own].split()}
    wrong = [f"line {line}: {name}" for name, line in foreign(path) if name not in allowed]
    assert not wrong, f"{own} may import {sorted(allowed)}: {wrong}"


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaf_packages_import_nothing_of_ours_and_no_model(leaf):
    """`privileged` and `evals` know nothing of each other or of training; heavy libraries have one file each."""
    for path in (path for path in SHIPPED if path.is_relative_to(ROOT / leaf)):
        allowed = {leaf, *LEAVES[leaf]}
        if leaf == "evals":
            allowed |= EVALS_ONLY.get(str(path.relative_to(ROOT / "evals")), set())
        if leaf == "privileged" and not path.is_relative_to(ROOT / "privileged" / "readers"):
            allowed -= READERS_ONLY
        if leaf == "privileged" and not path.is_relative_to(ROOT / "privileged" / "generate"):
            allowed -= GENERATE_ONLY
        wrong = [f"{path.relative_to(ROOT)}:{line} {name}" for name, line in foreign(path) if name not in allowed]
        assert not wrong


@pytest.mark.parametrize("name", ["divergences", "routing", "head", "chunked_loss"])
def test_the_maths_is_pure_tensors(name):
    """The files that read like the paper import torch, each other and the standard library."""
    names = {found for found, _ in foreign(ROOT / "vlm_dopd" / f"{name}.py")}
    assert names <= {"torch", "divergences", "routing", "head"}


def test_method_files_know_no_model_and_at_most_siblings():
    """A method file imports torch, divergences, routing, errors and the methods package: no trainer, no model.

    The package itself also uses the look-up of plug-ins, which it shares with builders and readers.
    """
    for path in (ROOT / "vlm_dopd" / "methods").glob("*.py"):
        names = {name for name, _ in imports(path) if name.split(".")[0] not in sys.stdlib_module_names}
        allowed = {"torch", "vlm_dopd.divergences", "vlm_dopd.routing", "vlm_dopd.errors"}
        if path.name == "__init__.py":
            allowed |= {"privileged.errors", "privileged.plugins"}
        wrong = {n for n in names - allowed if not n.startswith(("torch.", "vlm_dopd.methods"))}
        assert not wrong, f"{path.name}: {sorted(wrong)}"


def test_nothing_imports_the_cli():
    """Only `python -m vlm_dopd` and the console script reach `cli`."""
    callers = [p for p in [*SHIPPED, *BUILD] for name, _ in imports(p) if name.startswith("vlm_dopd.cli")]
    assert [str(path.relative_to(ROOT)) for path in callers] == ["vlm_dopd/__main__.py"]
    assert PROJECT["project"]["scripts"] == {"vlm-dopd": "vlm_dopd.cli:main"}


def test_imports_have_no_cycle():
    """The modules can be read, and imported, in one order from bottom to top."""
    graph = {name: {n for n, _ in imports(p) if n in MODULES and n != name} for name, p in MODULES.items()}
    list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the cycle


def test_imported_libraries_are_declared():
    """Whatever the wheel imports is a dependency of the wheel, or comes with one by the table above."""
    extras = PROJECT["project"]["optional-dependencies"]
    needs = [
        *PROJECT["project"]["dependencies"],
        *extras["coco"],
        *extras["generate"],
        *extras["logs"],
        *extras["lora"],
        *extras["serve"],
        *extras["trackers"],
        *extras["vllm"],
    ]
    declared = {word.split(">")[0].split("=")[0].strip() for word in needs}
    used = {name for path in SHIPPED for name, _ in foreign(path)} - set(ARROWS) - set(PACKAGES)
    missing = {n for n in used if COMES_WITH.get(n, INSTALLED_AS.get(n, n)) not in declared}
    assert not missing, f"imported but not in [project] dependencies: {sorted(missing)}"


@pytest.mark.parametrize("path", relative([*SHIPPED, *BUILD, *TESTS]))
def test_files_and_functions_are_short(path):
    """No file above 400 lines, no function above 80 (tests: files only)."""
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    if path in TESTS:
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 80, f"{node.name} has {length} lines"


@pytest.mark.parametrize("module", ["privileged", "evals", "vlm_dopd", "vlm_dopd.errors", "vlm_dopd.cli"])
def test_light_modules_import_no_model_library(module):
    """Neither the leaves nor the bare package nor the CLI's module load torch, transformers or datasets."""
    heavy = "{'torch', 'torchvision', 'transformers', 'datasets', 'accelerate', 'matplotlib', 'pandas', 'pyarrow'}"
    code = f"import sys, {module}; print(*sorted({heavy} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_the_wheel_holds_every_package_file():
    """Hatch is told of exactly our packages, mypy checks the same ones, and no file of theirs is ignored by git
    (hatch leaves ignored files out)."""
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "assets"}
    assert set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == found == set(PACKAGES)
    assert set(PROJECT["tool"]["mypy"]["packages"]) == found
    for path in SHIPPED:
        assert (path.parent / "__init__.py").is_file(), f"{path.parent.relative_to(ROOT)} is not a package"
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    files = [f for p in PACKAGES for f in (ROOT / p).rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    names = [str(file.relative_to(ROOT)) for file in files]
    ignored = subprocess.run([git, "check-ignore", "--no-index", *names], cwd=ROOT, capture_output=True, text=True)
    assert ignored.stdout == ""


@pytest.mark.parametrize("path", relative([*SHIPPED, *BUILD, *TESTS]))
def test_nothing_unpickles_runs_remote_code_or_shells_out(path):
    """No pickle, `torch.load`, `yaml.load`, `eval`, `exec`, remote code or shell; tests may load tensors only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    wrong = [f"import {n}" for n, _ in imports(path) if n.split(".")[0] in PICKLES] if path not in TESTS else []
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and getattr(node.value, "value", None) is True:
            wrong += [node.arg] if node.arg in ("trust_remote_code", "allow_pickle", "shell") else []
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        tensors_only = any(k.arg == "weights_only" and getattr(k.value, "value", None) is True for k in node.keywords)
        if name in FORBIDDEN and not (name == "torch.load" and path in TESTS and tensors_only):
            wrong.append(name)
    assert not wrong


def test_nothing_reaches_for_the_network():
    """The shipped code imports no network client; downloads happen in transformers, when asked for."""
    for path in SHIPPED:
        # Images by URL, from hosts that the user lists, none by default; the rollout servers that the user started.
        if path in (ROOT / "privileged" / "remote.py", ROOT / "vlm_dopd" / "rollout" / "server.py"):
            continue
        names = {name for name, _ in imports(path)}
        wrong = {n for n in names if n.split(".")[0] in NETWORK or n.startswith(("urllib.request", "http."))}
        assert not wrong, f"{path.relative_to(ROOT)}: {sorted(wrong)}"
