"""A benchmark as questions to ask: records and a protocol -> items, how they are scored, and what the run is called.

run folder of `vlm-dopd eval --benchmarks`
  run.json        who was asked, with what data and settings     NAME.jsonl   one row a question (`records.Prediction`)
  summary.json    the benchmark's own numbers with intervals, by group, and what became of the replies
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .benchmarks import Benchmark, find
from .comparison import Figures, measure
from .decoded import LoadImage
from .media import lazy
from .questions import Media, Record
from .records import Item, Prediction, Reply, Verdict
from .runner import Model, evaluate, read
from .scorers import Scoring
from .sources import FIXTURE, HUB, Loaded, load

logger = logging.getLogger(__name__)

RUN, SUMMARY = "run.json", "summary.json"


@dataclass(frozen=True, kw_only=True)
class Asking:
    """What a user may change in how a benchmark is asked. Whatever differs from the protocol changes the run's hash."""

    max_new_tokens: int | None = None
    """Instead of the protocol's budget."""
    pixels: tuple[int, int] | None = None
    """Least and most pixels of an image, instead of what the checkpoint's processor says."""

    def budget(self, benchmark: Benchmark, protocol: str) -> int:
        """Tokens of a reply."""
        return self.max_new_tokens or benchmark.protocol(protocol).max_new_tokens


def protocol_of(benchmark: Benchmark, protocol: str, asking: Asking = Asking()) -> str:
    """`name:protocol:hash`: what makes two runs comparable. It is over prompts, budget, frames, scorer, pixels."""
    told = [benchmark.fingerprint(protocol), *asdict(asking).values()]
    digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]
    return f"{benchmark.name}:{protocol}:{digest}"


def items(benchmark: Benchmark, protocol: str, loaded: Loaded, load_image: LoadImage) -> list[Item]:
    """Every record as an item; its media are decoded when it is asked."""
    frames = benchmark.protocol(protocol).frames
    found = []
    for record in loaded.records:
        parts: list[dict[str, Any]] = []
        media: dict[str, list[Any]] = {"image": [], "video": []}
        for part in benchmark.prompt(record, protocol):
            if isinstance(part, Media):
                media[part.kind].append(lazy(part, loaded.root, load_image, frames, record.id))
                parts.append({"type": part.kind})
            else:
                parts.append({"type": "text", "text": part})
        found.append(
            Item(
                id=record.id,
                messages=({"role": "user", "content": parts},),
                images=tuple(media["image"]),
                videos=tuple(media["video"]),
                answer=shown(record),
                group=record.group,
                cluster=record.cluster,
                record=record.columns,
            )
        )
    return found


def shown(record: Record) -> str:
    """The gold as people read it. A blank one, which LogicVista has, is said."""
    golds = [record.answer] if isinstance(record.answer, str) else record.answer
    return (" and " if record.answer_type == "multi_mcq" else " or ").join(golds).strip() or "(blank)"


def scoring(benchmark: Benchmark, protocol: str, records: Sequence[Record], asking: Asking = Asking()) -> Scoring:
    """How the replies to `records` are judged."""
    by_id = {record.id: record for record in records}

    def score(item: Item, reply: Reply) -> Verdict:
        return benchmark.score(by_id[item.id], reply.text, protocol, reply.truncated)

    return Scoring(protocol_of(benchmark, protocol, asking), score)


def run(
    model: Model,
    benchmark: Benchmark,
    protocol: str,
    loaded: Loaded,
    load_image: LoadImage,
    *,
    who: str = "",
    out: Path | None = None,
    asking: Asking = Asking(),
) -> list[Prediction]:
    """Ask `model` all of `loaded`; with `out` a killed run goes on. See `runner.evaluate`."""
    asked = items(benchmark, protocol, loaded, load_image)
    return evaluate(model, asked, out, who, scoring(benchmark, protocol, loaded.records, asking))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run asks: benchmarks with their questions, all read before a model is opened."""

    protocol: str
    data: str
    limit: int | None
    questions: dict[str, Loaded]
    """By the name of the benchmark."""
    asking: Asking
    load_image: LoadImage


def plan(
    names: Sequence[str],
    protocol: str,
    data: str,
    load_image: LoadImage,
    *,
    limit: int | None = None,
    asking: Asking = Asking(),
    allow_download: bool = False,
) -> Plan:
    """Benchmarks with the rows of `data`: "fixture", "hub", a file for one benchmark, or a folder.

    Several benchmarks in one folder have a folder (or file) each, called like the benchmark. Raises ValueError with
    one line for whatever cannot be asked.
    """
    if not names or len(set(names)) < len(names):
        raise ValueError(f"benchmarks: expected different names, got {', '.join(names) or 'none'}")
    questions = {}
    for name in names:
        benchmark = find(name)
        benchmark.protocol(protocol)
        questions[name] = load(benchmark, _place(data, name), limit=limit, allow_download=allow_download)
        logger.info("%s: %s; %s", name, questions[name].origin, "; ".join(questions[name].notes) or "all rows")
    return Plan(protocol=protocol, data=data, limit=limit, questions=questions, asking=asking, load_image=load_image)


def run_all(plan: Plan, replier: Callable[[int], Model], out: Path, *, who: str, judged_by: str = "") -> Figures:
    """Ask all benchmarks of `plan` and write the run folder; a killed run goes on. Returns the figures of the folder.

    `replier` gives a model with that many tokens a reply, `judged_by` is the address of a judge for replies that no
    rule could read. Benchmarks that the folder holds from before stay.
    """
    out.mkdir(parents=True, exist_ok=True)
    known = _read_json(out / RUN).get("benchmarks", {})
    for name, loaded in plan.questions.items():
        known[name] = {
            "protocol": protocol_of(find(name), plan.protocol, plan.asking),
            "data": plan.data,
            "limit": plan.limit,
            "origin": loaded.origin,
            "notes": list(loaded.notes),
        }
    _write_json(out / RUN, {"model": who, "asking": asdict(plan.asking), "benchmarks": known})
    for name, loaded in plan.questions.items():
        model = replier(plan.asking.budget(find(name), plan.protocol))
        run(
            model,
            find(name),
            plan.protocol,
            loaded,
            plan.load_image,
            who=who,
            out=out / f"{name}.jsonl",
            asking=plan.asking,
        )
        if judged_by:
            _judge(name, plan, out, judged_by)
    return write_summary(out)


def write_summary(out: Path) -> Figures:
    """`summary.json` of the run folder `out`, from what it holds."""
    figures = measure(read_run(out))
    for name, its in figures["benchmarks"].items():
        if (out / f"{name}.judge.json").is_file():
            its["judge"] = _read_json(out / f"{name}.judge.json")["told"]
    _write_json(out / SUMMARY, figures)
    return figures


def _judge(name: str, plan: Plan, out: Path, address: str) -> None:
    """What a judge makes of the unparsed replies: `NAME.judge.json`, and what it said in `NAME.judge-cache`."""
    from . import judge

    rows = read(out / f"{name}.jsonl")
    records = {record.id: record for record in plan.questions[name].records}
    server = judge.connect(address)
    judged = judge.judge(rows, name, plan.protocol, server, out / f"{name}.judge-cache", records)
    result = judge.summarise(rows, judged)
    told = {"judge": server.model, "told": str(result), **asdict(result)}
    _write_json(out / f"{name}.judge.json", told | {"by_id": {key: asdict(one) for key, one in judged.items()}})


def read_run(path: Path) -> dict[str, list[Prediction]]:
    """The predictions of a run folder by benchmark, or those of one file. Raises ValueError if there are none."""
    files = [path] if path.is_file() else sorted(path.glob("*.jsonl"))
    if not files:
        raise ValueError(f"{path}: expected a file of predictions or the folder of a run, got neither")
    found = {}
    for file in files:
        if rows := read(file):
            name = rows[0].protocol.partition(":")[0]
            if name in found:
                raise ValueError(f"{path}: expected one file a benchmark, got two of {name!r}")
            found[name] = rows
    if not found:
        raise ValueError(f"{path}: expected predictions, got none")
    return found


def pictures(path: Path, load_image: LoadImage) -> dict[str, Item]:
    """The questions of a run folder by id, with their media as far as its data is still where it was."""
    found: dict[str, Item] = {}
    for name, told in _read_json(path / RUN).get("benchmarks", {}).items():
        try:
            loaded = load(find(name), _place(told["data"], name), limit=told["limit"])
            found |= {item.id: item for item in items(find(name), told["protocol"].split(":")[1], loaded, load_image)}
        except ValueError as error:
            logger.warning("no pictures of %s: %s", name, error)
    return found


def _place(data: str, name: str) -> str:
    """The benchmark's own folder in `data`, if it has one."""
    own = Path(data) / name
    return str(own) if data not in (FIXTURE, HUB) and own.is_dir() else data


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got something else ({error})") from None


def _write_json(path: Path, value: Any) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
