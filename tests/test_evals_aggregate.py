"""Headlines: one declaration, one value, and a bootstrap that is the value of resampled items."""

from collections import defaultdict
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.aggregate import Headline, Numbers, Table, Tally
from evals.benchmarks import available, find
from evals.benchmarks.mmmu_pro import STANDARD_4, STANDARD_10, VISION
from evals.benchmarks.vsibench import CHOICE, DIRECTION, DIRECTIONS, NUMERIC
from evals.records import Prediction
from evals.stats import RESAMPLES, percentiles, resample

stable = settings(deadline=None, derandomize=True, max_examples=60)

GROUPS = {
    "category": ["a", "b", "c"],
    "l2_category": ["a1", "a2", "b1"],
    "subject": ["Art", "Music"],
    "level": ["1", "2"],
    "variant": ["1", "2"],
    "skill": ["spatial", "mechanical"],
    "domain": ["x", "y"],
    "setting": [STANDARD_10, STANDARD_4, VISION],
    "task": [*NUMERIC[:2], *DIRECTIONS, CHOICE[-1]],
    "kind": ["k"],
}


class Reply(NamedTuple):
    group: dict
    cluster: str
    score: float


def replies(*scores, cluster="", **group):
    return [Reply(group, cluster, score) for score in scores]


item = st.builds(
    Reply,
    st.fixed_dictionaries({name: st.sampled_from(values) for name, values in GROUPS.items()}),
    st.sampled_from(["", "s1", "s2", "s3"]),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)
items = st.lists(item, min_size=1, max_size=12)


def plainly(headline, scored):
    """The definition of a headline, in loops."""
    units = defaultdict(list)
    for index, one in enumerate(scored):
        stratum = one.group[headline.by] if headline.by else ""
        alone = index if headline.unit == "item" else (one.cluster or index)
        units[stratum, alone].append(one.score)
    strata = defaultdict(list)
    for (stratum, _), scores in units.items():
        strata[stratum].append(min(scores))
    weights = {name: (1 if headline.weights is None else headline.weights.get(name, 0)) for name in strata}
    there = [name for name in headline.together if name in strata]
    if not any(weights.values()) or len(there) not in (0, len(headline.together)):
        return None
    means = {name: sum(scores) / (headline.over or len(scores)) for name, scores in strata.items()}
    return sum(weights[name] * means[name] for name in strata) / sum(weights.values())


def same(ours, expected):
    assert (ours is None or np.isnan(ours)) if expected is None else ours == pytest.approx(expected, abs=1e-9)


MADE = (
    Headline("weighted", by="category", weights={"a": 3, "b": 0.5, "z": 9}),
    Headline("worst by subject", by="subject", unit="worst of cluster"),
    Headline("pair", by="category", weights={"a": 1, "b": 1}, together=("a", "b")),
    Headline("over", over=20),
)


@stable
@given(items)
def test_every_headline_and_row_is_what_its_definition_says(scored):
    for numbers in (Numbers(MADE), *(find(name).numbers for name in available())):
        found = numbers.aggregate(scored)
        first, *_ = numbers.headlines
        assert first.name in found.headline and found.n == len(scored)
        for headline in numbers.headlines:
            expected = plainly(headline, scored)
            same(found.headline.get(headline.name), expected)
            assert (headline.name in found.headline) == (expected is not None or headline == first)
        for table in numbers.tables:
            rows = {row.name: plainly(row, scored) for row in table.headlines(scored)}
            assert found.groups[table.name] == pytest.approx({k: v for k, v in rows.items() if v is not None})


@stable
@given(items, st.data())
def test_a_resample_has_the_value_of_its_items(scored, data):
    """Drawing a cluster twice is the same as having its items twice, as another cluster."""
    headlines = [*MADE, *(h for name in available() for h in find(name).numbers.headlines)]
    tally = Tally(headlines, scored, np.array([[one.score for one in scored], [1 - one.score for one in scored]]))
    keys = list(dict.fromkeys(one.cluster or index for index, one in enumerate(scored)))
    times = data.draw(st.lists(st.integers(0, 3), min_size=len(keys), max_size=len(keys)).filter(any))
    drawn = [
        one._replace(cluster=f"{key}, draw {draw}")
        for key, count in zip(keys, times, strict=True)
        for draw in range(count)
        for index, one in enumerate(scored)
        if (one.cluster or index) == key
    ]
    value_HA = tally.resampled(np.array([times]) @ tally.sum_CF)[:, :, 0]
    turned = [one._replace(score=1 - one.score) for one in drawn]
    for headline, value_A in zip(headlines, value_HA, strict=True):
        same(value_A[0], plainly(headline, drawn))
        same(value_A[1], plainly(headline, turned))


def test_the_bootstrap_draws_clusters():
    """Against drawing cluster by cluster: clusters of unequal size whose items go together."""
    rng = np.random.default_rng(3)
    scored = [
        Reply({"task": str(i % 3)}, f"c{cluster}", float(rng.random() < rate))
        for cluster, rate in enumerate(rng.random(40))
        for i in range(rng.integers(1, 9))
    ]
    numbers = (Headline("micro"), Headline("tasks", by="task"), Headline("worst", unit="worst of cluster"))
    tally = Tally(numbers, scored)
    ours = tally.resampled(resample(tally.sum_CF, np.random.default_rng(0)))[:, 0]
    members = defaultdict(list)
    for one in scored:
        members[one.cluster].append(one)
    slow = []
    for _ in range(1500):
        drawn = [
            one._replace(cluster=str(place))
            for place, key in enumerate(rng.choice(list(members), len(members)))
            for one in members[key]
        ]
        slow.append([plainly(headline, drawn) for headline in numbers])
    for sampled_R, reference in zip(ours, np.array(slow).T, strict=True):
        assert sampled_R.shape == (RESAMPLES,)
        assert sampled_R.mean() == pytest.approx(reference.mean(), abs=0.006)
        assert sampled_R.std() == pytest.approx(reference.std(), rel=0.08)
        assert percentiles(sampled_R) == pytest.approx(np.quantile(reference, (0.025, 0.975)), abs=0.025)
    # As single items the same replies look much surer than they are.
    alone = Tally(numbers[:1], [one._replace(cluster="") for one in scored])
    (sure_R,) = alone.resampled(resample(alone.sum_CF, np.random.default_rng(0)))[:, 0]
    assert sure_R.std() < 0.8 * ours[0].std()


def test_the_three_directions_are_one_task():
    scored = [
        *(one for name in DIRECTIONS for one in replies(1, task=name)),
        *replies(0, 0, 0, 0, task=NUMERIC[0]),
    ]
    found = find("vsibench").aggregate(scored)
    assert found.headline == {"mean of tasks": pytest.approx(0.5), "mean over questions": pytest.approx(3 / 7)}
    assert list(found.groups["task"]) == [NUMERIC[0], DIRECTION]
    assert "2 of 8 tasks" in found.notes[0] and DIRECTION not in found.notes[0]


def test_settings_that_were_not_run_have_no_number():
    found = find("mmmu_pro").aggregate(replies(1, 0, setting=STANDARD_10, subject="Art"))
    assert found.headline == {"overall": None, STANDARD_10: 0.5}
    assert found.notes


def test_worst_is_over_the_seed_question():
    scored = [*replies(1, 1, 1, cluster="a", subject="s", level="l", variant="1")]
    scored += replies(1, 0, 1, cluster="b", subject="s", level="l", variant="1")
    found = find("dynamath").aggregate(scored)
    assert found.headline == {"average": pytest.approx(5 / 6), "worst case": 0.5}
    assert found.notes == ("2 of 2 seed questions lack a variant: their worst case is over fewer than 10",)


def test_a_benchmark_of_ones_own_needs_no_declaration():
    made = replace(find("realworldqa"), name="mine", numbers=Numbers())
    found = made.aggregate(replies(1, 0, 0, 0))
    assert (found.headline, found.groups, found.notes) == ({"accuracy": 0.25}, {}, ())


def test_predictions_are_aggregated_as_they_are():
    fields = {"question": "", "response": "B", "truncated": False, "answer": "B", "digest": "", "protocol": "p"}
    row = Prediction(id="1", parsed="B", score=1.0, fate="parsed", group={"skill": "spatial"}, **fields)
    assert find("logicvista").aggregate([row]).groups == {"skill": {"spatial": 1.0}}


def test_what_cannot_be_aggregated_is_named():
    with pytest.raises(ValueError, match="at least one scored reply"):
        Numbers().aggregate([])
    with pytest.raises(ValueError, match=r"every item to have the group 'skill', got one with \{'topic': 'x'\}"):
        find("logicvista").aggregate(replies(1, topic="x"))


def test_a_table_may_be_named_otherwise_than_its_group():
    table = Table("half", by="category", over=4)
    found = Numbers(tables=(table,)).aggregate([*replies(1, 1, category="b"), *replies(0, category="a")])
    assert found.groups == {"half": {"a": 0.0, "b": 0.5}}
    assert list(found.groups["half"]) == ["a", "b"]
