"""Ask, score, write down, sum up; and compare two runs.

The file of a run has one row per item, only ever grows while there is something to ask, and is all that is needed to
go on after a kill. A run that was killed anywhere, even in the middle of a line, and started again ends with the same
file.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from .records import Item, Prediction, Reply, Result, Verdict, count_fates
from .scorers import EXACT, Scoring
from .stats import PairedDifference, paired_difference, wilson

logger = logging.getLogger(__name__)

CHUNK = 64
"""Items asked at once: enough for a model to sort them by length, few enough that a kill loses little."""

_ROW_START = b'{"id": "'


class Model(Protocol):
    """Whatever can answer items: a local model, a server, a fake.

    Where replies may depend on their neighbours (padding changes the last bit of a sum), the model has an attribute
    `whole_chunks = True`: a chunk that a kill has cut is then asked whole, and only what was missing is written.
    """

    def generate(self, items: Sequence[Item]) -> list[Reply]:
        """One reply for each item, in the same order; their media are decoded. Raises Interrupted where it must end."""
        ...


class Interrupted(ValueError):
    """Asking cannot go on. `replies` are those that came, in the order of the items, None where none did."""

    def __init__(self, message: str, replies: Sequence[Reply | None] = ()) -> None:
        super().__init__(message)
        self.replies = replies


def evaluate(
    model: Model, items: Sequence[Item], out: Path | None = None, run: str = "", scoring: Scoring = EXACT
) -> list[Prediction]:
    """Ask and score every item; predictions in the order of `items`.

    With `out`, rows are appended as they come, and items that the file already holds are not asked again. `run` says
    in your words who is asked (checkpoint); it is stored in the rows. An item whose media cannot be decoded, or whose
    request alone fails, gets the fate `error`. Raises ValueError, before anything is asked, if ids repeat, if an item's
    answer cannot be given, or if `out` holds a row of other items, of a changed question or answer, of another `run`
    or of another protocol.
    """
    if repeated := _repeated([item.id for item in items]):
        raise ValueError(f"items: expected unique ids, got {repeated!r} twice")
    for item in items:
        scoring.check(item)
    digests = {item.id: item.digest for item in items}
    done = {} if out is None else _resume(out, digests, run, scoring.protocol)
    with tqdm(total=len(items), desc=run or "evaluate", disable=None) as bar:
        # Chunks are cut before finished items are left out, so that after a kill the model meets the same batches.
        for start in range(0, len(items), CHUNK):
            chunk = items[start : start + CHUNK]
            fresh = _answer(model, [item for item in chunk if item.id not in done], chunk, digests, run, scoring, out)
            done.update({prediction.id: prediction for prediction in fresh})
            bar.update(len(chunk))
    predictions = [done[item.id] for item in items]
    if out is not None:
        _settle(out, predictions)
    return predictions


def summarise(predictions: Sequence[Prediction]) -> Result:
    """Counts, accuracy and interval of a run, overall and by kind. Raises ValueError if there are no predictions."""
    kinds = sorted({prediction.kind for prediction in predictions})
    groups = {kind: [prediction for prediction in predictions if prediction.kind == kind] for kind in kinds}
    return _result(predictions, kinds={kind: _result(group, kinds={}) for kind, group in groups.items()})


def compare(before: Sequence[Prediction], after: Sequence[Prediction], seed: int = 0) -> PairedDifference:
    """after − before on the same items. Raises ValueError if ids, questions, answers or protocols differ."""
    asked = {prediction.id: prediction for prediction in before}
    for prediction in after:
        other = asked.get(prediction.id, prediction)
        if other.digest != prediction.digest:
            raise ValueError(f"compare: item {prediction.id!r} was another question or answer in the two runs")
        if other.protocol != prediction.protocol:
            raise ValueError(
                f"compare: expected one protocol, got {other.protocol!r} and {prediction.protocol!r} for item "
                f"{prediction.id!r}"
            )
    return paired_difference(scores(before), scores(after), seed=seed)


def scores(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Score by item id: what the functions of `evals.stats` take. Raises ValueError if an id repeats."""
    if repeated := _repeated([prediction.id for prediction in predictions]):
        raise ValueError(f"expected one prediction for each item, got {repeated!r} twice")
    return {prediction.id: prediction.score for prediction in predictions}


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


def _repeated(ids: list[str]) -> str | None:
    return next((key for key, count in Counter(ids).items() if count > 1), None)


def _answer(
    model: Model,
    missing: list[Item],
    chunk: Sequence[Item],
    digests: dict[str, str],
    run: str,
    scoring: Scoring,
    out: Path | None,
) -> list[Prediction]:
    """Predictions for the items of a chunk that are `missing`; those that came are in the file, however it ends."""
    if not missing:
        return []
    asked, errors = [], {}
    for item in chunk if getattr(model, "whole_chunks", False) else missing:
        try:
            asked.append(item.loaded())
        except ValueError as error:
            errors[item.id] = Reply("", False, error=str(error))
            logger.warning("%s: counted as an error", error)
    interrupted = None
    try:
        replies: Sequence[Reply | None] = model.generate(asked) if asked else []
    except Interrupted as error:
        interrupted, replies = error, error.replies or [None] * len(asked)
    if len(replies) != len(asked):
        raise ValueError(f"model.generate: expected {len(asked)} replies, one for each item, got {len(replies)}")
    came = errors | {item.id: reply for item, reply in zip(asked, replies, strict=True) if reply is not None}
    fresh = [_predict(item, came[item.id], digests[item.id], run, scoring) for item in missing if item.id in came]
    if out is not None and fresh:
        _append(out, fresh)
    if interrupted is not None:
        raise interrupted
    return fresh


def _predict(item: Item, reply: Reply, digest: str, run: str, scoring: Scoring) -> Prediction:
    verdict = Verdict(parsed=None, score=0, fate="error", method=reply.error)
    if not reply.error:
        verdict = scoring.score(item, reply)
    return Prediction(
        id=item.id,
        question=item.question,
        response=None if reply.error else reply.text,
        truncated=reply.truncated,
        answer=item.answer,
        parsed=verdict.parsed,
        score=verdict.score,
        fate=verdict.fate,
        method=verdict.method,
        digest=digest,
        protocol=scoring.protocol,
        run=run,
        group=item.group,
        cluster=item.cluster,
        record=item.record,
    )


def _resume(out: Path, digests: dict[str, str], run: str, protocol: str) -> dict[str, Prediction]:
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
        elif row.protocol != protocol:
            reason = f"is of protocol {row.protocol!r}, not {protocol!r}"
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


def _settle(out: Path, predictions: list[Prediction]) -> None:
    """Rows in the order of the items: after an interruption those that came late stand behind."""
    if [row.id for row in read(out)] == [prediction.id for prediction in predictions]:
        return
    part = out.with_name(out.name + ".part")
    part.write_text("".join(p.to_json() + "\n" for p in predictions), encoding="utf-8", newline="\n")
    part.replace(out)


def _result(predictions: Sequence[Prediction], kinds: dict[str, Result]) -> Result:
    n = len(predictions)
    if n == 0:
        raise ValueError("summarise: expected at least one prediction, got none")
    fates = count_fates(predictions)
    if any(prediction.score not in (0, 1) for prediction in predictions):
        raise ValueError("summarise: expected scores of 0 or 1; partial credit is for `evals.comparison`")
    correct = sum(prediction.correct for prediction in predictions)
    return Result(
        n=n,
        fates=fates,
        accuracy=correct / n,
        interval=wilson(correct, n),
        parse_rate=fates["parsed"] / n,
        kinds=kinds,
    )
