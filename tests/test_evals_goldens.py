"""Our scorers against what the benchmarks' own code gives, and against what a careful reader takes a reply to mean.

`golden/evals/*.jsonl` (see the README there) hold replies with the scores of the original functions. `official` has to
match on every row that has a score; where the original would draw or ask a judge, ours has to be unparsed. `toolkit`
has to read as `author_intent` says in 97 of 100 choice replies, and to misread at most 1 in 100.
"""

import json
from pathlib import Path

import pytest

from evals.benchmarks import find, logicvista
from evals.benchmarks.mmmu import DOMAIN_OF
from evals.questions import Record
from evals.rescore import rescore

from .predicted import Scored

GOLDEN = Path(__file__).parent / "golden" / "evals"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.jsonl"))
AS_INTENDED, MISREAD = 0.97, 0.01

# Official rows on which we differ, with the reason. None.
DIFFER: dict[str, str] = {}


def rows(name, kind="item"):
    with (GOLDEN / f"{name}.jsonl").open(encoding="utf-8") as file:
        return [row for row in map(json.loads, file) if row["kind"] == kind]


def agreement(name, protocol):
    """For each profile of the goldens: rows with a score, and the ids where ours is another."""
    found = {}
    for row, ours in zip(rows(name), rescore(rows(name), name, protocol), strict=True):
        for profile, expected in row["expected"].items():
            n, wrong = found.setdefault(profile, (0, []))
            if expected["score"] is not None:
                found[profile] = n + 1, wrong + [row["id"]] * (ours["score"] != expected["score"])
    return found


def reading(name):
    """Choice replies, and the ids not read as intended and misread."""
    n, missed, misread = 0, [], []
    for row, ours in zip(rows(name), rescore(rows(name), name, "toolkit"), strict=True):
        if "author_intent" in row:
            n += 1
            missed += [row["id"]] * (ours["parsed"] != row["author_intent"])
            misread += [row["id"]] * (ours["parsed"] not in (None, row["author_intent"]))
    return n, missed, misread


def test_there_are_goldens_for_every_benchmark():
    assert len(NAMES) == 8
    assert sum(len(rows(name)) for name in NAMES) > 1100


@pytest.mark.parametrize("name", NAMES)
def test_official_scores_are_those_of_the_original(name):
    figures = [
        f"{name}: toolkit against {profile}: {n - len(wrong)} of {n}"
        for profile, (n, wrong) in agreement(name, "toolkit").items()
    ]
    for profile, (n, wrong) in agreement(name, "official").items():
        figures.append(f"{name}: official against {profile}: {n - len(wrong)} of {n}")
        if profile == "official":
            differ = [f"{row} ({DIFFER.get(row, 'no reason')})" for row in wrong]
            assert set(wrong) <= set(DIFFER), f"{figures[-1]}; differ: {differ}"
    print("", *figures, sep="\n")


@pytest.mark.parametrize("name", NAMES)
def test_where_the_original_draws_or_asks_ours_is_unparsed(name):
    unscored = [row for row in rows(name) if row["expected"].get("official", {"score": 0})["score"] is None]
    for row, ours in zip(unscored, rescore(unscored, name, "official"), strict=True):
        assert (ours["parsed"], ours["score"], ours["fate"]) == (None, 0.0, "unparsed"), row["id"]


@pytest.mark.parametrize("name", NAMES)
def test_what_the_original_parsed_is_what_we_parsed(name):
    """Where both give a letter. (Open answers and formulas are shown in forms of their own.)"""
    for row, ours in zip(rows(name), rescore(rows(name), name, "official"), strict=True):
        parsed = row["expected"].get("official", {}).get("parsed")
        if isinstance(parsed, str) and parsed in (row["record"].get("choices") or {}):
            assert ours["parsed"] == parsed, row["id"]


def test_toolkit_reads_choices_as_a_careful_person():
    total, missed, misread, figures = 0, [], [], []
    for name in NAMES:
        n, not_as_intended, wrong = reading(name)
        figures.append(
            f"{name}: {n} choices, as intended {1 - len(not_as_intended) / n:.3f}, misread {len(wrong) / n:.3f}"
        )
        total, missed, misread = total + n, missed + not_as_intended, misread + wrong
        assert len(not_as_intended) <= 0.03 * n, f"{figures[-1]}: {not_as_intended}"
    figures.append(
        f"all: {total} choices, as intended {1 - len(missed) / total:.4f}, misread {len(misread) / total:.4f}"
    )
    print("", *figures, sep="\n")
    assert len(missed) <= (1 - AS_INTENDED) * total, f"{figures}: {missed}"
    assert len(misread) <= MISREAD * total, f"{figures}: {misread}"


def grouped(name, groups, keys):
    """Scored records with the hits of each group first."""
    out = []
    for i, group in enumerate(groups):
        record = Record(
            id=f"{name}-{i}",
            benchmark=name,
            split="test",
            question="",
            answer="A",
            answer_type="mcq",
            group={ours: group[theirs] for theirs, ours in keys.items()},
            cluster=str(i),
        )
        hits = group.get("hits", group.get("score"))
        if "score" in group:
            out.append(Scored(record, hits))
        else:
            out += [Scored(record, 1.0)] * hits + [Scored(record, 0.0)] * (group["n"] - hits)
    return out


@pytest.mark.parametrize("row", rows("mmstar", "aggregate"), ids=lambda row: row["id"])
def test_mmstar_aggregates(row):
    ours = find("mmstar").aggregate(
        grouped("mmstar", row["record"]["groups"], {"category": "category", "l2_category": "l2_category"})
    )
    expected = row["expected"]
    assert ours.headline["official (over 1,500)"] == pytest.approx(expected["official"]["final score"])
    assert ours.groups["category, official (over 250)"] == pytest.approx(expected["official"]["per_category"])
    assert ours.headline["accuracy"] == pytest.approx(expected["vlmevalkit"]["Overall"])
    assert ours.groups["category"] == pytest.approx(expected["vlmevalkit"]["per_category"])
    assert ours.headline["mean of sub-categories"] == pytest.approx(expected["lmms-eval"]["average"])
    full = ours.n == 1500
    assert (ours.headline["accuracy"] == pytest.approx(ours.headline["official (over 1,500)"])) is full
    assert bool(ours.notes) is not full


@pytest.mark.parametrize("row", rows("mmmu", "aggregate"), ids=lambda row: row["id"])
def test_mmmu_aggregates(row):
    groups = [{**group, "domain": DOMAIN_OF[group["subject"]]} for group in row["record"]["groups"]]
    ours = find("mmmu").aggregate(grouped("mmmu", groups, {"subject": "subject", "domain": "domain"}))
    expected = row["expected"]["official"]
    assert round(ours.headline["accuracy"], 3) == expected["overall"]
    assert {name: round(score, 3) for name, score in ours.groups["subject"].items()} == expected["subjects"]
    # The original shows 0 for a domain without a question; ours leaves it out.
    domains = {name: round(ours.groups["domain"].get(name, 0), 3) for name in expected["domains"]}
    assert domains == expected["domains"]
    assert set(ours.groups["domain"]) <= set(expected["domains"])


@pytest.mark.parametrize("row", rows("vsibench", "aggregate"), ids=lambda row: row["id"])
def test_vsibench_aggregates(row):
    ours = find("vsibench").aggregate(grouped("vsibench", row["record"]["groups"], {"question_type": "task"}))
    expected = row["expected"]["official"]["values_percent"]
    assert 100 * ours.headline["mean of tasks"] == pytest.approx(expected.pop("overall"))
    tasks = {name.removesuffix("_accuracy").removesuffix("_MRA:.5:.95:.05"): score for name, score in expected.items()}
    assert {name: 100 * score for name, score in ours.groups["task"].items()} == pytest.approx(tasks)


@pytest.mark.parametrize("row", rows("dynamath", "aggregate"), ids=lambda row: row["id"])
def test_dynamath_aggregates(row):
    items = []
    for seed in row["record"]["groups"]:
        for variant, right in enumerate(seed["correct_by_variant"]):
            group = {"subject": seed["subject"], "level": seed["knowledge_level"], "variant": str(variant)}
            items += grouped("dynamath", [{**group, "score": right}], {name: name for name in group})
            items[-1] = items[-1]._replace(record=_with_cluster(items[-1].record, seed["qid"]))
    ours = find("dynamath").aggregate(items)
    for theirs, number, suffix in (("average", "average", ""), ("worst", "worst case", ", worst case")):
        expected = dict(row["expected"]["vlmevalkit"][theirs])
        assert ours.headline[number] == pytest.approx(expected.pop("Overall"))
        both = {f"Subject-{name}": score for name, score in ours.groups[f"subject{suffix}"].items()}
        both |= {f"Level-{name}": score for name, score in ours.groups[f"level{suffix}"].items()}
        assert both == pytest.approx(expected)


def _with_cluster(record, cluster):
    fields = {name: getattr(record, name) for name in ("id", "benchmark", "split", "question", "answer", "group")}
    return Record(**fields, answer_type="mcq", cluster=str(cluster))


@pytest.mark.parametrize("row", rows("logicvista", "aggregate"), ids=lambda row: row["id"])
def test_logicvista_aggregates(row):
    ours = find("logicvista").aggregate(grouped("logicvista", row["record"]["groups"], {"skill": "skill"}))
    expected = dict(row["expected"]["vlmevalkit"]["acc_percent"])
    assert 100 * ours.headline["accuracy"] == pytest.approx(expected.pop("Overall"))
    assert {name: 100 * score for name, score in ours.groups["skill"].items()} == pytest.approx(expected)


@pytest.mark.parametrize("name", ["mathvision", "mmmu_pro"])
def test_plain_means(name):
    for row in rows(name, "aggregate"):
        expected = row["expected"]["lmms-eval"]
        groups = [{"subject": "s", "level": "1", "setting": "vision", **group} for group in row["record"]["groups"]]
        ours = find(name).aggregate(grouped(name, groups, {k: k for k in ("subject", "level", "setting")}))
        if name == "mathvision":
            assert round(100 * ours.headline["accuracy"], 2) == expected["accuracy_percent"]
        else:
            assert round(ours.headline["vision"], 5) == expected["overall"]
            assert ours.headline["overall"] is None  # one setting is not the whole


JUDGED = [row for row in rows("logicvista", "judge_stage") if "official" in row["expected"]]


@pytest.mark.parametrize("row", JUDGED, ids=lambda row: row["id"])
def test_logicvista_judge_stage(row):
    benchmark = find("logicvista")
    hub = {"question": "?", "skill": ["spatial"], "image": "picture.png", **row["record"]}
    reading = benchmark.protocol("official").judge(benchmark.record(hub), row["judge_output"])
    expected = row["expected"]["official"]
    assert (reading.score, reading.parsed) == (expected["score"], ", ".join(expected["parsed"]))


@pytest.mark.parametrize("row", rows("logicvista", "precheck"), ids=lambda row: row["id"])
def test_logicvista_precheck(row):
    expected = row["expected"]["official"]
    labels = logicvista.precheck(row["response"])
    assert labels == (None if expected["fallback"] == "judge" else expected["parsed"])
