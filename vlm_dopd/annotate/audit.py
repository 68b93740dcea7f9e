"""The audit of training files: what is in them, what p gives away, which rows are fit to train on.

`audit` looks at data files and writes a folder: `audit.json` (the figures), `rows.jsonl` (facts and fate of each row),
`sheet.csv` (random rows for people to judge) and `audit.html`. An array of jobs writes a folder a shard; `join` makes
one of them, with the figures of the whole.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import evals
import privileged
from privileged import Sample
from privileged.audit import DropPolicy, audit_row, decide, fingerprint_row, mark_overlap, summarise
from privileged.audit.kept import check_kept, write_kept
from privileged.audit.rows import to_json
from privileged.builders import Builder, discloses
from privileged.errors import DataError
from privileged.rows import read_rows, to_sample
from privileged.scale import Shard, map_rows
from privileged.views import View

from . import human_sheet
from .audit_page import write_page
from .policy_checks import blind_test, choose, citation_check

BLIND_ROWS = 300
"""Rows of the checks with a model: the interval of a share is then ± 6 points at most."""
CITATION_ROWS = 100
SHEET = 24
"""Random and worst rows on the contact sheet, so many of each."""

Row = dict[str, Any]


def audit(
    data: Sequence[Path],
    *,
    builder: Builder,
    builder_name: str,
    out: Path,
    eval_data: Sequence[Path] = (),
    kept: Path | None = None,
    shard: Shard | None = None,
    workers: int = 1,
    policy: DropPolicy | None = None,
    count_tokens: Callable[[View], int] | None = None,
    counted_by: str = "",
    model: evals.Model | None = None,
    model_name: str = "",
    instruction: str = "",
    placement: str = "before_question",
    seed: int = 0,
) -> dict[str, Any]:
    """Audit the rows of `data` with p as `builder` renders it, write `out`, and return what `audit.json` holds.

    `eval_data` are files whose images and questions must not be in `data`. `kept`, a file beside the data, gets the
    rows that are not dropped. `count_tokens` must be picklable for several `workers`; `counted_by` (the processor's
    name, say) tells cached counts apart. With a `model`, called `model_name`, the blind test and the citation check
    are run on a sample of the rows that are left; `instruction` tells it how to write its answer, if questions do not.
    Raises DataError for a file that cannot be read, or a `kept` from which the images could not be found.
    """
    policy = policy or DropPolicy()
    if kept is not None:
        check_kept(kept, data)
    key = f"audit {builder_name} {builder!r} {placement} {counted_by} {_code(builder)}"
    work = functools.partial(audit_row, builder=builder, count_tokens=count_tokens, placement=placement)
    rows: list[Row] = []
    for path in data:
        facts = map_rows(path, work, key=key, shard=shard, workers=workers, desc=f"audit {path.name}")
        first = (shard or Shard()).slice(len(read_rows(path))).start
        rows += [row | {"file": str(path), "row": first + place} for place, row in enumerate(facts)]
    if eval_data:
        others = [
            row
            for path in eval_data
            for row in map_rows(path, fingerprint_row, key=f"fingerprint {_code()}", workers=workers, desc=path.name)
        ]
        rows = mark_overlap(rows, others)
    rows = [row | decide(row, policy, discloses(builder)) for row in rows]
    settings = {
        "data": [path.name for path in data],
        "eval_data": [path.name for path in eval_data],
        "builder": builder_name,
        "options": repr(builder),
        "discloses": discloses(builder),
        "placement": placement,
        "policy": asdict(policy),
        "shard": f"{shard.index}/{shard.count}" if shard else "1/1",
        "seed": seed,
    }
    checks: dict[str, Any] = {}
    if model is not None:
        settings["model"] = model_name
        try:
            checks = _checks(model, model_name, rows, builder, out, instruction, seed)
        except ValueError as error:  # of `evals`: the folder holds the replies of another run
            raise DataError(f"{error}: give another --out, or remove {out / 'checks'}") from None
    if kept is not None:
        left = [row for row in rows if row["fate"] != "dropped"]
        places = {path: {row["row"]: row["id"] for row in left if row["file"] == str(path)} for path in data}
        write_kept(kept, {path: read_cached(path) for path in data}, places)
    return _report(rows, settings, checks, builder, out)


def join(parts: Sequence[Path], *, builder: Builder, out: Path) -> dict[str, Any]:
    """The audit of a whole out of the folders of its shards, in their order. Checks with a model are the first's."""
    whole: list[Row] = []
    settings: dict[str, Any] = {}
    checks: dict[str, Any] = {}
    for number, part in enumerate(parts):
        try:
            report = json.loads((part / "audit.json").read_text(encoding="utf-8"))
            lines = (part / "rows.jsonl").read_bytes().split(b"\n")
            whole += [json.loads(line) for line in lines if line]
        except (OSError, ValueError) as error:
            raise DataError(f"{part}: expected the folder of a finished audit, got: {error}") from None
        if number and {**report["settings"], "shard": ""} != {**settings, "shard": ""}:
            raise DataError(f"{part}: expected the settings of {parts[0]}, got others; audit all shards in one way")
        settings, checks = report["settings"], checks or report["checks"]
    return _report(whole, settings | {"shard": "1/1"}, checks, builder, out)


def _report(
    rows: list[Row], settings: dict[str, Any], checks: dict[str, Any], builder: Builder, out: Path
) -> dict[str, Any]:
    """Write the files of `out`; they appear when they are complete."""
    written = [to_json(row) for row in rows]
    rows = [json.loads(line) for line in written]  # as `join` reads them: keys in the same order
    report = {"settings": settings, "figures": summarise(rows), "checks": checks, "versions": _versions()}
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "rows.jsonl", "".join(f"{line}\n" for line in written))
    _write(out / "audit.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    left = [row for row in rows if row["fate"] != "dropped" and not row["empty"]]
    people = [_sample(left[place]) for place in choose(len(left), human_sheet.ROWS, settings["seed"])]
    human_sheet.write_sheet(out / "sheet.csv", people, builder, settings["placement"])
    write_page(out / "audit.html", report, _sheet(rows, settings["seed"]), builder, _sample)
    return report


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="ascii", newline="\n")  # JSON escapes the rest, half surrogate pairs too
    part.replace(path)


def _sheet(rows: Sequence[Row], seed: int) -> dict[str, list[Row]]:
    """The rows of the contact sheet, all with readable images: random ones, and the worst by leaks, then by boxes."""
    ordered = sorted((row for row in rows if "labels" in row), key=lambda row: (row["id"], row["file"], row["row"]))
    # Of each finding in turn, so that a common one does not fill the sheet.
    before: Counter[str] = Counter()
    worst = []
    for row in ordered:
        if row["flags"] or row["fate"] != "kept" or row.get("grade"):
            finding = f"{row['kind']} {row['rules']} {sorted(row['flags'])}"
            worst.append((-row.get("grade", 0), before[finding], -sum(row["flags"].values()), row))
            before[finding] += 1
    worst.sort(key=lambda entry: entry[:3])
    return {
        "random": [ordered[place] for place in choose(len(ordered), SHEET, seed)],
        "worst": [row for *_, row in worst[:SHEET]],
    }


def _sample(row: Row) -> Sample:
    """The sample that a row of facts is about, read again."""
    path = Path(row["file"])
    return to_sample(read_cached(path)[row["row"]], f"{path.stem}-{row['row']}", path.parent)


@functools.lru_cache(maxsize=4)
def read_cached(path: Path) -> Any:
    """The rows of a file, kept while the page and the checks pick from them."""
    return read_rows(path)


def _checks(
    model: evals.Model, name: str, rows: Sequence[Row], builder: Builder, out: Path, instruction: str, seed: int
) -> dict[str, Any]:
    # Runs of `evals` are by id: of rows that share one, the last is asked.
    left = list({row["id"]: row for row in rows if row["fate"] != "dropped" and not row["empty"]}.values())
    asked = [left[place] for place in choose(len(left), BLIND_ROWS, seed)]
    samples = [_sample(row) for row in asked]
    kinds = [row["kind"] for row in asked]
    blind = blind_test(
        model, samples, builder, kinds=kinds, out=out / "checks", run=name, instruction=instruction, seed=seed
    )
    return {
        "blind": blind,
        "citation": citation_check(model, samples[:CITATION_ROWS], builder, out=out / "checks", run=name),
    }


def _code(builder: Builder | None = None) -> str:
    """A digest of the code that facts depend on, so that cached ones of another version are not taken."""
    package = Path(privileged.__file__).parent
    files = sorted(glob.glob("*.py", root_dir=package) + glob.glob("*/*.py", root_dir=package))
    digest = hashlib.sha256(b"".join((package / name).read_bytes() for name in files))
    source = getattr(sys.modules.get(type(builder).__module__), "__file__", None)
    if source is not None:
        digest.update(Path(source).read_bytes())
    return digest.hexdigest()[:16]


def _versions() -> dict[str, str]:
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in ("vlm-dopd", "pillow", "datasets"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def lines(report: dict[str, Any]) -> Iterable[str]:
    """The report for people at a terminal: a few lines."""
    rows, figures = report["figures"]["rows"], report["figures"]
    yield f"rows: {rows['total']}: {rows['kept']} kept, {rows['warned']} kept with a warning, {rows['dropped']} dropped"
    for fate in ("dropped_by", "warned_by"):
        yield from (f"  {fate.removesuffix('_by')}: {rule}: {number}" for rule, number in rows[fate].items())
    grades = figures["leaks"]["grades"]
    yield "leaks: " + ", ".join(f"{grade} {number}" for grade, number in grades.items())
    if "gap" in (blind := report["checks"].get("blind", {})):
        gap = blind["gap"]
        low, high = (100 * end for end in gap["interval"])
        yield f"blind test: {100 * gap['difference']:+.1f} points with p [{low:+.1f}, {high:+.1f}], n={gap['n']}"
