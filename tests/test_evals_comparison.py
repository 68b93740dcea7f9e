"""Three runs of several benchmarks in figures: what is paired with what, what is refused, and what is said of it."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from evals.benchmarks import find
from evals.benchmarks.mmmu_pro import STANDARD_10, VISION
from evals.benchmarks.vsibench import DIRECTIONS, NUMERIC
from evals.compare_table import HEADER, difference, plus_minus, points, recovered, rows, table
from evals.comparison import compare_runs, measure
from evals.printable import printable
from evals.records import FATES, Prediction
from evals.stats import gap_recovery, mcnemar, paired_difference, wilson


def prediction(key, score, protocol="logicvista:official:1a2b", fate="parsed", **fields):
    made = {
        "id": str(key),
        "question": f"Question {key}?",
        "response": None if fate == "error" else "Answer: B",
        "truncated": fate == "truncated",
        "answer": "B",
        "parsed": "B" if fate == "parsed" else None,
        "score": float(score),
        "fate": fate,
        "digest": f"d{key}",
        "protocol": protocol,
        "run": "a model",
        "group": {"skill": ("spatial", "numerical")[ord(str(key)[-1]) % 2]},
    }
    return Prediction(**made | fields)


def run(scores, **fields):
    return [prediction(i, score, **fields) for i, score in enumerate(scores)]


def at(rate, n=400, **fields):
    """Right on the first `rate` of the questions."""
    return run([i < rate * n for i in range(n)], **fields)


def figure(*runs, seed=0):
    """Figures of one benchmark."""
    figures = compare_runs(*({"logicvista": rows} for rows in runs), seed=seed)
    json.dumps(figures, allow_nan=False)
    return figures["benchmarks"]["logicvista"]


def ends(estimate):
    return estimate["low"], estimate["high"]


def test_single_items_agree_with_the_functions_for_them():
    rng = np.random.default_rng(0)
    runs = [run(rng.random(300) < rate) for rate in (0.4, 0.5, 0.8)]
    found = figure(*runs)
    entry = found["headlines"]["accuracy"]
    by_id = [{row.id: row.score for row in rows} for rows in runs]
    paired, gap = paired_difference(*by_id[:2]), gap_recovery(*by_id)
    assert entry["difference"]["value"] == pytest.approx(paired.difference)
    assert ends(entry["difference"]) == pytest.approx(paired.interval, abs=0.004)
    assert (entry["p_value"], entry["p_undefined"]) == (paired.p_value, "")
    assert (found["gained"], found["lost"]) == (paired.gained, paired.lost)
    assert entry["recovery"]["value"] == pytest.approx(gap.value)
    assert ends(entry["recovery"]) == pytest.approx(gap.interval, abs=0.02)
    assert entry["lead"]["value"] == pytest.approx(gap.teacher - gap.before)
    for name, value in (("before", gap.before), ("after", gap.after), ("teacher", gap.teacher)):
        assert entry[name]["value"] == pytest.approx(value)
        assert ends(entry[name]) == pytest.approx(wilson(round(300 * value), 300), abs=0.006)
        assert entry[name]["half_width"] == pytest.approx((entry[name]["high"] - entry[name]["low"]) / 2)
    discordant = (paired.gained + paired.lost) / 300
    assert entry["mde"] == pytest.approx(2.8016 * math.sqrt(discordant / 300), rel=0.02)


def test_what_is_said_of_a_benchmark():
    found = figure(at(0.4), at(0.5))
    assert found["title"] == "LogicVista" and found["protocol"] == "logicvista:official:1a2b"
    assert found["reproduced"] == "" and (found["n"], found["clusters"]) == (400, 400)
    assert found["headline"] == "accuracy" and set(found["headlines"]) == {"accuracy"}
    assert "teacher" not in found["headlines"]["accuracy"] and "recovery" not in found["headlines"]["accuracy"]
    assert found["notes"] == [f"400 of {find('logicvista').count} questions"]
    skills = found["groups"]["skill"]
    assert sum(row["n"] for row in skills.values()) == 400
    assert sum(row["n"] * row["after"] for row in skills.values()) == pytest.approx(200)
    assert set(skills["spatial"]) == {"n", "before", "after"}


def test_fates_of_every_run_sum_to_its_replies():
    fates = ["parsed", "unparsed", "truncated", "error", "error"]
    before = [prediction(i, 0, fate=fate) for i, fate in enumerate(fates)]
    found = figure(before, at(1, n=5))
    assert found["fates"]["before"] == dict(zip(FATES, (1, 1, 1, 2), strict=True))
    assert found["fates"]["after"] == dict(zip(FATES, (5, 0, 0, 0), strict=True))


def test_identical_runs_differ_by_nothing():
    found = figure(run([0.1, 0.7, 0.3] * 40), run([0.1, 0.7, 0.3] * 40), at(1, n=120))
    entry = found["headlines"]["accuracy"]
    assert (*ends(entry["difference"]), entry["difference"]["value"], entry["mde"]) == (0, 0, 0, None)
    assert (*ends(entry["recovery"]), entry["recovery"]["value"]) == (0, 0, 0)
    assert entry["p_value"] is None and "0 or 1" in entry["p_undefined"]
    assert "teacher: all scores are equal, so the bootstrap sees no uncertainty" in found["notes"]


def test_recovery_without_a_real_lead_is_undefined():
    sure = figure(at(0.5), at(0.6), at(0.515))["headlines"]["accuracy"]["recovery"]
    none = figure(at(0.5), at(0.6), at(0.5))["headlines"]["accuracy"]["recovery"]
    assert (sure["value"], sure["low"], sure["high"]) == (None, None, None) and "under 2 points" in sure["undefined"]
    assert none["value"] is None and "includes 0" in none["undefined"]
    beyond = figure(at(0.5), at(0.9), at(0.6))["headlines"]["accuracy"]["recovery"]
    assert beyond["value"] == pytest.approx(4) and beyond["undefined"] == ""


def dynamath(rates, seed):
    rng = np.random.default_rng(seed)
    group = {"subject": "algebra", "level": "high school"}
    return [
        prediction(
            f"{s}-{v}",
            rng.random() < rate,
            protocol="dynamath:official:1",
            cluster=f"seed {s}",
            group={**group, "variant": str(v)},
        )
        for s, rate in enumerate(rates)
        for v in range(10)
    ]


def test_seed_questions_are_resampled_whole():
    rates = np.random.default_rng(1).beta(0.5, 0.5, 100)
    runs = [{"dynamath": dynamath(rates, seed)} for seed in (1, 2)]
    found = compare_runs(*runs)["benchmarks"]["dynamath"]
    assert (found["n"], found["clusters"]) == (1000, 100)
    average, worst = found["headlines"]["average"], found["headlines"]["worst case"]
    assert (average["units"], worst["units"]) == (1000, 100)
    # A cluster says about as much as one item: the interval is that of 100 items, not of 1,000.
    assert average["before"]["half_width"] > 0.05
    assert average["p_value"] is None and "not independent" in average["p_undefined"]
    solid = [[all(row.score for row in r["dynamath"][10 * s : 10 * s + 10]) for s in range(100)] for r in runs]
    gained = sum(after and not before for before, after in zip(*solid, strict=True))
    lost = sum(before and not after for before, after in zip(*solid, strict=True))
    assert worst["p_value"] == mcnemar(gained, lost)
    assert found["groups"]["subject, worst case"]["algebra"] == {
        "n": 100,
        "before": pytest.approx(np.mean(solid[0])),
        "after": pytest.approx(np.mean(solid[1])),
    }


def test_the_first_number_that_can_be_formed_is_the_headline():
    rows = [prediction(i, i % 2, "mmmu_pro:official:1", group={"setting": VISION, "subject": "Art"}) for i in range(30)]
    found = compare_runs({"mmmu_pro": rows}, {"mmmu_pro": rows})["benchmarks"]["mmmu_pro"]
    assert found["headline"] == VISION and set(found["headlines"]) == {"overall", VISION}
    overall = found["headlines"]["overall"]
    assert overall["before"] == {"value": None, "low": None, "high": None, "half_width": None}
    assert overall["p_undefined"] == "the number cannot be formed" and overall["mde"] is None
    assert any("no overall number" in note for note in found["notes"])


def test_settings_of_one_question_go_together():
    group = {"setting": STANDARD_10, "subject": "Art"}
    rows = [
        prediction(f"{s[:1]}{i}", i % 2, "mmmu_pro:official:1", cluster=f"q{i}", group={**group, "setting": s})
        for i in range(60)
        for s in (STANDARD_10, VISION)
    ]
    found = compare_runs({"mmmu_pro": rows}, {"mmmu_pro": rows})["benchmarks"]["mmmu_pro"]
    overall, vision = found["headlines"]["overall"], found["headlines"][VISION]
    assert ends(overall["before"]) == pytest.approx(ends(vision["before"]))  # two settings are no second sample
    assert overall["p_undefined"] == "a mean of several means" and vision["p_value"] == 1


def test_partial_credit_of_tasks():
    tasks = [NUMERIC[0], *DIRECTIONS]
    rows = [
        prediction(i, i % 11 / 10, "vsibench:official:1", group={"task": tasks[i % 4]}, cluster=f"scene {i % 40}")
        for i in range(220)
    ]
    better = [replace(row, score=min(1.0, row.score + 0.1)) for row in rows]
    found = compare_runs({"vsibench": rows}, {"vsibench": better})["benchmarks"]["vsibench"]
    entry = found["headlines"]["mean of tasks"]
    assert entry["difference"]["value"] == pytest.approx(0.1 * 10 / 11, abs=0.01)
    assert (found["gained"], found["lost"]) == (200, 0)
    assert set(found["groups"]["task"]) == {NUMERIC[0], "object_rel_direction"}


def test_samples_of_a_question_are_averaged_first():
    before = [prediction(i, j < 1) for i in range(40) for j in range(4)]
    after = [prediction(i, j < i % 3) for i in range(40) for j in range(2)]
    found = figure(before, after)
    entry = found["headlines"]["accuracy"]
    assert (found["n"], found["clusters"], entry["units"]) == (40, 40, 40)
    assert ends(entry["before"]) == (0.25, 0.25)
    assert entry["after"]["value"] == pytest.approx(np.mean([min(i % 3, 2) / 2 for i in range(40)]))
    assert (found["gained"], found["lost"]) == (26, 14)
    assert "before: 160 replies to 40 questions, averaged by question" in found["notes"]
    assert sum(found["fates"]["before"].values()) == 160


def several(rates, **more):
    protocols = {"logicvista": "logicvista:o:1", "held-out": "held-out:exact:1"}
    return {
        name: at(rate, n, protocol=protocols[name], group={"kind": "colour", "skill": "spatial"})
        for (name, n), rate in zip((("logicvista", 100), ("held-out", 900)), rates, strict=True)
    } | more


def test_macro_numbers_are_means_over_benchmarks():
    figures = compare_runs(several((0.4, 0.6)), several((0.5, 0.7)), several((0.8, 0.8)))
    macro = figures["macro"]
    assert macro["benchmarks"] == ["logicvista", "held-out"]
    assert [macro[run]["value"] for run in ("before", "after", "teacher")] == pytest.approx([0.5, 0.6, 0.8])
    assert macro["difference"]["value"] == pytest.approx(0.1)
    assert macro["lead"]["value"] == pytest.approx(0.3)
    assert macro["recovery"]["value"] == pytest.approx(1 / 3)  # the mean of 1/4 and 1/2 would be 0.375
    entries = [f["headlines"]["accuracy"] for f in figures["benchmarks"].values()]
    together = math.hypot(*(entry["before"]["half_width"] for entry in entries)) / 2
    assert macro["before"]["half_width"] == pytest.approx(together, rel=0.05)
    assert macro["mde"] == pytest.approx(math.hypot(*(entry["mde"] for entry in entries)) / 2)
    assert figures["benchmarks"]["held-out"]["groups"]["kind"]["colour"]["n"] == 900
    assert figures["benchmarks"]["held-out"]["reproduced"] is None


def test_benchmarks_are_resampled_independently():
    before, after = (
        {name: at(rate, protocol="held-out:exact:1") for name in ("a", "b", "c", "d")} for rate in (0.4, 0.5)
    )
    figures = compare_runs(before, after)
    alone = figures["benchmarks"]["a"]["headlines"]["accuracy"]
    assert figures["macro"]["after"]["half_width"] == pytest.approx(alone["after"]["half_width"] / 2, rel=0.06)
    assert figures["macro"]["mde"] == pytest.approx(alone["mde"] / 2, rel=0.03)


def test_a_benchmark_of_one_run_is_a_note():
    more = {"mmmu": at(0.5)}
    figures = compare_runs(several((0.4, 0.6), **more), several((0.5, 0.7)), {"held-out": several((0, 1))["held-out"]})
    assert list(figures["benchmarks"]) == ["logicvista", "held-out"]
    assert figures["notes"] == ["mmmu: only in before, left out", "logicvista: no replies of the teacher"]
    assert "teacher" not in figures["benchmarks"]["logicvista"]["headlines"]["accuracy"]
    assert figures["macro"] is None  # one benchmark has all three runs
    alone = compare_runs({"held-out": several((0, 1))["held-out"]}, several((0, 1)), more)
    assert alone["notes"] == [
        "logicvista: only in after, left out",
        "held-out: no replies of the teacher",
        "mmmu: only in teacher, left out",
    ]
    assert "teacher" not in alone["benchmarks"]["held-out"]["fates"]


def test_one_benchmark_more_leaves_the_others_as_they_are():
    both = compare_runs(several((0.4, 0.6)), several((0.5, 0.7)))
    one = compare_runs({"held-out": several((0.4, 0.6))["held-out"]}, {"held-out": several((0.5, 0.7))["held-out"]})
    assert one["benchmarks"]["held-out"] == both["benchmarks"]["held-out"]


def test_one_run_is_measured_alike():
    both, one = several((0.4, 0.6)), measure(several((0.4, 0.6)))
    json.dumps(one, allow_nan=False)
    assert one["runs"] == {"run": "a model"} and set(one["benchmarks"]) == set(both)
    found = one["benchmarks"]["logicvista"]
    assert (
        found["headlines"]["accuracy"]["run"] == figure(at(0.4, 100), at(0.4, 100))["headlines"]["accuracy"]["before"]
    )
    assert found["groups"]["skill"]["spatial"] == {"n": 100, "run": pytest.approx(0.4)}
    assert found["fates"]["run"]["parsed"] == 100 and "gained" not in found
    assert set(found["headlines"]["accuracy"]) == {"units", "run"}


def test_text_benchmarks_of_lm_eval_are_plain_accuracy():
    rows = at(0.5, protocol="math500:lm-eval:1a", group={"subject": "algebra", "level": "1"})
    found = compare_runs({"math500": rows}, {"math500": rows})["benchmarks"]["math500"]
    assert (found["title"], found["reproduced"], list(found["groups"])) == ("math500", None, ["subject", "level"])


def test_groups_that_some_held_out_questions_lack_are_not_reported():
    rows = [*at(1, protocol="held-out:exact:1", group={"kind": "a"}), prediction("x", 0, "held-out:exact:1", group={})]
    assert compare_runs({"held-out": rows}, {"held-out": rows})["benchmarks"]["held-out"]["groups"] == {}


def test_seed_decides_the_intervals():
    assert figure(at(0.4), at(0.5)) == figure(at(0.4), list(reversed(at(0.5))))
    assert figure(at(0.4), at(0.5)) != figure(at(0.4), at(0.5), seed=1)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (at(1), at(1, protocol="logicvista:toolkit:9"), "'logicvista:official:1a2b' in 'before' and 'logicvista:too"),
        ([*at(1), prediction("x", 1, "logicvista:o:2")], at(1), "'logicvista:o:2' in 'before'"),
        (at(1), at(1, n=398), "2 in 'before' that 'after' lacks, e.g. '398', '399'"),
        (at(1, n=399), at(1), "1 in 'after' that 'before' lacks, e.g. '399'"),
        (at(1), [replace(row, digest="other") for row in at(1)], "item '0' was not the same question"),
        (at(1), [], "at least one reply in 'after'"),
        (at(1, group={"topic": "x"}), at(1), "logicvista: aggregate: expected every item to have the group 'skill'"),
        (at(1, protocol="logicvist:o:1"), at(1, protocol="logicvist:o:1"), "did you mean 'logicvista'"),
    ],
    ids=["protocol", "two protocols", "missing", "extra", "question", "empty", "group", "unknown"],
)
def test_what_cannot_be_compared_is_refused(before, after, message):
    with pytest.raises(ValueError) as error:
        figure(before, after)
    assert message in str(error.value) and "logicvist" in str(error.value) and "\n" not in str(error.value)


def test_the_teacher_is_checked_too():
    with pytest.raises(ValueError, match="in 'before' that 'teacher' lacks"):
        figure(at(1), at(1), at(1, n=399))
    with pytest.raises(ValueError, match="in 'teacher'"):
        figure(at(1), at(1), at(1, protocol="logicvista:x:1"))


def test_nothing_in_common_is_refused():
    with pytest.raises(ValueError, match="got mmmu in 'before' and none in 'after'"):
        compare_runs({"mmmu": at(1)}, {})


def test_the_table_says_the_same():
    figures = compare_runs(several((0.4, 0.6)), several((0.5, 0.7)), several((0.8, 0.605)))
    cells = rows(figures)
    assert [row[0] for row in cells] == ["logicvista", "held-out", "macro mean of 2"]
    assert all(len(row) == len(HEADER) for row in cells)
    entry = figures["benchmarks"]["logicvista"]["headlines"]["accuracy"]
    assert cells[0][2] == f"40.0 ± {100 * entry['before']['half_width']:.1f}"
    assert cells[0][5].startswith("+10.0 [+") and cells[0][6] == "0.002" and cells[1][6] == "<0.001"
    assert cells[0][7].startswith("25 % [") and cells[1][7] == "undefined" and cells[2][6] == ""
    text = table(figures)
    assert all(cell in text for row in cells for cell in row)
    assert "held-out: gap recovery undefined: " in text and "logicvista: 100 of 448 questions" in text
    assert "No published number has been reproduced with real weights yet: logicvista." in text
    assert len({line.find("after") for line in text.splitlines()[:1]}) == 1


def test_without_a_teacher_its_columns_are_empty():
    cells = rows(compare_runs(several((0.4, 0.6)), several((0.5, 0.7))))
    assert all((row[4], row[7]) == ("", "") for row in cells)


def test_numbers_as_people_write_them():
    assert points(None) == "–" and points(-0.0001) == "0.0" and points(0.5437) == "54.4"
    made = {"value": -0.02, "low": -0.0401, "high": 0.0001, "half_width": 0.02}
    assert difference(made) == "−2.0 [−4.0, 0.0]" and plus_minus(made) == "−2.0 ± 2.0"
    assert recovered({"value": -0.1, "low": None, "high": None}) == "−10 % [−∞, ∞]"
    assert difference({"value": None}) == plus_minus({"value": None}) == "–"
    assert recovered({"value": None}) == "undefined"


def test_a_table_of_strangers_is_only_text():
    name = "\x1b[31mred\u202e\ud800"
    text = table(compare_runs({name: at(1)}, {name: at(0.5)}))
    assert "\x1b" not in text and "\u202e" not in text and r"\x1b[31mred\u202e\ud800" in text
    assert printable("a\tb\nc", lines=True) == "a\tb\nc" and printable("a\nb") == r"a\nb"
    assert printable("日本 é ‌👩‍🔬") == "日本 é ‌👩‍🔬"
