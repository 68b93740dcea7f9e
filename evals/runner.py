"""Ask, score, write down, sum up; and compare two runs.

The file of a run has one row per item in the order of the items, only ever grows, and is all that is needed to go on
after a kill. A run that was killed anywhere, even in the middle of a line, and started again leaves the same file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from .records import FATES, Item, Prediction, Reply, Result
from .scorers import exact_match
from .stats import PairedDifference, paired_difference, wilson

CHUNK = 64
"""Items asked at once: enough for a model to sort them by length, few enough that a kill loses little."""

_ROW_START = b'{"id": "'


class Model(Protocol):
    """Whatever can answer items: a local model, a server, a fake."""

    def generate(self, items: Sequence[Item]) -> list[Reply]:
        """One reply for each item, in the same order."""
        ...


def evaluate(model: Model, items: Sequence[Item], out: Path | None = None, run: str = "") -> list[Prediction]:
    """Ask and score every item; predictions in the order of `items`.

    With `out`, rows are appended as they come, and items that the file already holds are not asked again. `run` says
    in your words who is asked and how (checkpoint, decoding); it is stored in the rows. Raises ValueError, before
    anything is asked, if ids repeat, if an item's answer cannot be given, or if `out` holds a row of other items, of
    a changed question or answer, or of another `run`.
    """
    _check(items)
    digests = {item.id: item.digest for item in items}
    done = {} if out is None else _resume(out, digests, run)
    with tqdm(total=len(items), desc=run or "evaluate", disable=None) as bar:
        # Chunks are cut before finished items are left out, so that after a kill the model meets the same batches.
        for start in range(0, len(items), CHUNK):
            chunk = items[start : start + CHUNK]
            asked = [item for item in chunk if item.id not in done]
            fresh = [_predict(item, reply, digests[item.id], run) for item, reply in _ask(model, asked)]
            if out is not None and fresh:
                _append(out, fresh)
            done.update({prediction.id: prediction for prediction in fresh})
            bar.update(len(chunk))
    return [done[item.id] for item in items]


def summarise(predictions: Sequence[Prediction]) -> Result:
    """Counts, accuracy and interval of a run, overall and by kind. Raises ValueError if there are no predictions."""
    kinds = sorted({prediction.kind for prediction in predictions})
    groups = {kind: [prediction for prediction in predictions if prediction.kind == kind] for kind in kinds}
    return _result(predictions, kinds={kind: _result(group, kinds={}) for kind, group in groups.items()})


def compare(before: Sequence[Prediction], after: Sequence[Prediction], seed: int = 0) -> PairedDifference:
    """after − before on the same items. Raises ValueError if ids, questions or answers of the two runs differ."""
    asked = {prediction.id: prediction.digest for prediction in before}
    for prediction in after:
        if asked.get(prediction.id, prediction.digest) != prediction.digest:
            raise ValueError(f"compare: item {prediction.id!r} was another question or answer in the two runs")
    return paired_difference(scores(before), scores(after), seed=seed)


def scores(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Score (0 or 1) by item id: what the functions of `evals.stats` take. Raises ValueError if an id repeats."""
    if repeated := _repeated([prediction.id for prediction in predictions]):
        raise ValueError(f"expected one prediction for each item, got {repeated!r} twice")
    return {prediction.id: float(prediction.correct) for prediction in predictions}


def read(path: Path) -> list[Prediction]:
    """The complete rows of a run's file; a last line without its newline is left out. Raises ValueError for others."""
    rows = []
    # Bytes, not str.splitlines(): a reply may hold U+2028, which JSON does not escape.
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            rows.append(Prediction.from_json(line))
        except ValueError as error:
            raise ValueError(f"{path}: line {number}: {error}") from None
    return rows


def _check(items: Sequence[Item]) -> None:
    if repeated := _repeated([item.id for item in items]):
        raise ValueError(f"items: expected unique ids, got {repeated!r} twice")
    for item in items:
        # Published benchmarks hold answers that their own scorer refuses verbatim. Better to know before the run.
        if not exact_match(item.answer, f"Answer: {item.answer}", truncated=False).value:
            raise ValueError(
                f"item {item.id!r}: answer {item.answer!r} would not be scored as correct if a model gave it: "
                "expected one line with more than punctuation"
            )


def _repeated(ids: list[str]) -> str | None:
    return next((key for key, count in Counter(ids).items() if count > 1), None)


def _ask(model: Model, items: list[Item]) -> list[tuple[Item, Reply]]:
    replies = model.generate(items) if items else []
    if len(replies) != len(items):
        raise ValueError(f"model.generate: expected {len(items)} replies, one for each item, got {len(replies)}")
    return list(zip(items, replies, strict=True))


def _predict(item: Item, reply: Reply, digest: str, run: str) -> Prediction:
    score = exact_match(item.answer, reply.text, reply.truncated)
    return Prediction(
        id=item.id,
        kind=item.kind,
        reply=reply.text,
        answer=item.answer,
        parsed=score.parsed,
        fate=score.fate,
        digest=digest,
        run=run,
    )


def _resume(out: Path, digests: dict[str, str], run: str) -> dict[str, Prediction]:
    """Finished items of `out` by id. A torn last line is cut off, but only once the file is known to be ours."""
    if not out.exists():
        return {}
    done: dict[str, Prediction] = {}
    for number, row in enumerate(read(out), start=1):
        reason = ""
        if row.id not in digests:
            reason = "is not among the items"
        elif row.digest != digests[row.id]:
            reason = "had another question, image or answer"
        elif row.run != run:
            reason = f"is of run {row.run!r}, not {run!r}"
        elif row.id in done:
            reason = "occurs twice"
        if reason:
            raise ValueError(f"{out} holds another run: line {number}: item {row.id!r} {reason}; choose another file")
        done[row.id] = row
    with out.open("r+b") as file:
        data = file.read()
        torn = data.rpartition(b"\n")[2]
        if not torn.startswith(_ROW_START[: len(torn)]):
            raise ValueError(f"{out} is not the file of a run: it ends with {torn[:60]!r}; choose another file")
        file.truncate(len(data) - len(torn))
    return done


def _append(out: Path, predictions: list[Prediction]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8", newline="\n") as file:
        file.writelines(prediction.to_json() + "\n" for prediction in predictions)


def _result(predictions: Sequence[Prediction], kinds: dict[str, Result]) -> Result:
    n = len(predictions)
    if n == 0:
        raise ValueError("summarise: expected at least one prediction, got none")
    fates = Counter(prediction.fate for prediction in predictions)
    return Result(
        n=n,
        fates={fate: fates[fate] for fate in FATES},
        accuracy=fates["correct"] / n,
        interval=wilson(fates["correct"], n),
        parse_rate=(fates["correct"] + fates["wrong"]) / n,
        kinds=kinds,
    )
