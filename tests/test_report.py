"""The report page: same numbers as its JSON, one file without links, data never markup, the same bytes twice."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from evals.printable import printable
from privileged import DataError, PrivilegedRecord, Region, Sample
from vlm_dopd.report import write_report
from vlm_dopd.report.charts import PAINT, draw_charts
from vlm_dopd.report.collect import collect
from vlm_dopd.report.examples import QUOTA, choose, count_stories
from vlm_dopd.report.overlay import picture
from vlm_dopd.report.page import duration, headline, number, percent, shorten

from .predicted import predicted

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&{{ 7*7 }} Größe 大 \u202e\ud800"
KINDS = ("sum", "where")
REGIMES = ("LH", "LL", "HT", "HS")
N = 24


class Page(HTMLParser):
    """Tags with attributes, table rows as lists of cell texts, and all text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._in_cell = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_cell:
            self.rows[-1][-1] += data.strip()


def scene(index: int, label: str = "red 3") -> Sample:
    record = PrivilegedRecord(
        sample_id=f"s{index}",
        regions=(
            Region(label=label, box=(4, 4, 30, 34)),
            Region(label="blue 7", box=(60, 50, 99, 90)),  # reaches over the edge
            Region(label="nowhere", box=(200, 200, 220, 230)),
        ),
    )
    image = Image.new("RGB", (96, 96), (250, 248, 242))
    image.paste((206, 38, 44), (6, 6, 28, 32))
    return Sample(id=f"s{index}", question=f"Question {index}?", images=(image,), answer="4", privileged=record)


def reply(index: int, model: str) -> dict[str, object]:
    """Stories in a fixed cycle of eight: 3 gained, 3 kept, 1 missed, 1 lost."""
    before, after = ([False] * 3 + [True] * 3 + [False, True])[index % 8], index % 8 < 6
    right = {"before": before, "after": after, "teacher": True}[model]
    text = f"{model} says so.\nAnswer: {4 if right else 5}"
    outcome = "correct" if right else ("wrong", "unparsed", "truncated")[index % 3]
    made = predicted(f"s{index}", outcome, response=text, answer="4", group={"kind": KINDS[index // 8 % 2]})
    return json.loads(made.to_json())


def training(step: int, method: str) -> dict[str, float]:
    line = {"step": step, "loss": 0.5 / step, "entropy/student": 0.4, "rollout/length": 12.5, "rollout/truncated": 0.02}
    line |= {"time/rollout": 0.6, "time/train": 0.2, "tokens_per_s": 900.0}
    if method != "dopd":
        return line | {"loss/OPD": 0.5 / step}
    line |= {f"share/{name}": share for name, share in zip(REGIMES, (0.5, 0.2, 0.2, 0.1), strict=True)} | {
        "share/NP": 0
    }
    line |= {f"loss/{name}": 0.1 * step for name in REGIMES} | {"loss/NP": float("nan")}
    return line | {"gap/mean": 0.3, "gap/p50": 0.1, "gap/p95": 1.5, "time/score": 0.2}


def write_run(run: Path, method: str = "dopd", **changes: object) -> Path:
    """A finished run of `N` questions; `changes` replace fields of summary.json."""
    (run / "evals").mkdir(parents=True)
    summary: dict[str, object] = {
        "method": method, "seed": 7, "n": N, "seconds": 210.3,
        "rows": [
            {"name": "student before", "accuracy": 0.532, "low": 0.49, "high": 0.571},
            {"name": "student before, with p", "accuracy": 0.671, "low": 0.63, "high": 0.71},
            {"name": "student after", "accuracy": 0.745, "low": 0.708, "high": 0.78},
            {"name": "teacher", "accuracy": 0.921, "low": 0.9, "high": 0.94},
        ],
        "difference": {"points": 21.3, "low": 17.0, "high": 25.6},
        "gap_recovery": {"value": 0.548, "low": 0.45, "high": 0.64},
        "by_kind": {kind: {"before": 0.2, "after": 0.15, "teacher": 0.95, "n": 12} for kind in KINDS},
    }  # fmt: skip
    (run / "summary.json").write_text(json.dumps(summary | changes))
    (run / "config.yaml").write_text("method:\n  name: dopd\n  url: https://example.org\n")
    (run / "versions.json").write_text(json.dumps({"vlm-dopd": "0.1.0", "torch": "2.12.0"}))
    lines: list[dict[str, float]] = []
    for step in range(0, 41, 5):
        if step % 20 == 0:
            at = 0.5 + step / 200
            lines.append({"step": step, "eval/accuracy": at, "eval/low": at - 0.04, "eval/high": at + 0.04})
        if step:
            lines.append(training(step, method))
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for model in ("before", "after", "teacher"):
        rows = (json.dumps(reply(index, model)) for index in range(N))
        (run / f"evals/{model}.jsonl").write_text("".join(row + "\n" for row in rows))
    return run


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [scene(index) for index in range(N)]


@pytest.fixture(scope="module")
def dopd(tmp_path_factory: pytest.TempPathFactory, samples: list[Sample]) -> Path:
    run = write_run(tmp_path_factory.mktemp("report") / "dopd")
    assert write_report(run, samples) == run / "report.html"
    return run


def test_page_and_json_hold_the_same_numbers(dopd: Path) -> None:
    page, figures = Page(dopd / "report.html"), json.loads((dopd / "report.json").read_text())
    rows = {row[0]: row[1:] for row in page.rows}
    for row in figures["rows"]:
        interval = f"{number(100 * row['low'])} – {number(100 * row['high'])}"
        assert rows[row["name"]][:2] == [percent(row["accuracy"]), interval]
    for kind in figures["kinds"]:
        change = number(100 * (kind["after"] - kind["before"]))
        shares = [percent(kind[name]) for name in ("before", "after", "teacher")]
        assert rows[kind["name"]][:5] == [str(kind["n"]), shares[0], shares[1], change, shares[2]]
    assert figures["headline"] in page.text.replace("\u2011", "-")
    assert "+21.3 points" in page.text and figures["difference"] == {"value": 21.3, "low": 17.0, "high": 25.6}
    assert "training: rollout 60\u00a0%, score 20\u00a0%, train 20\u00a0%" in page.text
    assert {name: round(share, 9) for name, share in figures["time"].items()} == {
        "rollout": 0.6,
        "score": 0.2,
        "train": 0.2,
    }
    for story in figures["stories"].values():
        assert str(story) in page.text
    for example in figures["examples"]:
        assert all(answer["response"] in page.text for answer in example["replies"].values())


def test_json_holds_what_the_run_logged(dopd: Path) -> None:
    figures = json.loads((dopd / "report.json").read_text())
    assert figures["curves"]["eval/accuracy"] == {"step": [0, 20, 40], "value": [0.5, 0.6, 0.7]}
    assert figures["curves"]["loss"]["value"] == [0.5 / step for step in range(5, 41, 5)]
    assert "loss/NP" not in figures["curves"]  # NaN at every step
    assert figures["headline"] == (
        "DOPD raised the student from 53.2\u00a0% to 74.5\u00a0% on 24 held-out questions; "
        "it recovered 55\u00a0% of the gap to the teacher."
    )


def test_page_is_one_file_without_links(dopd: Path) -> None:
    page = Page(dopd / "report.html")
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "base"), tag
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "action"):
                assert value and value.startswith(("data:image/png;base64,", "#")), (tag, name, value)
            assert "://" not in (value or "") and not name.startswith("on")
    css = re.search(r"<style>(.*?)</style>", (dopd / "report.html").read_text(), flags=re.DOTALL)
    assert css and "url(" not in css[1] and "@import" not in css[1]
    assert (dopd / "report.html").read_text().count("https://") == 1  # the config's own text


def test_ids_are_unique_and_references_resolve(dopd: Path) -> None:
    page = Page(dopd / "report.html")
    ids = [value for _, attributes in page.tags if (value := attributes.get("id"))]
    assert len(ids) == len(set(ids))
    text = (dopd / "report.html").read_text()
    references = re.findall(r'(?:href="|url\()#([^")]+)', text)
    assert references and set(references) <= set(ids)
    assert set(re.findall(r"var\((--\w+)\)", text)) <= set(re.findall(r"(--\w+):", text))
    assert not any(paint in text for paint in PAINT.values())


def test_benchmarks_and_the_student_with_p_have_curves(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as metrics:
        for step in (0, 5, 10):
            line = {"step": step, "eval/accuracy": 0.5, "eval/accuracy_with_p": 0.8}
            line |= {f"eval/benchmark/{name}": 0.1 * step for name in ("mmstar", "vsibench", "mmmu", "dynamath")}
            metrics.write(json.dumps(line) + "\n")
    drawn, absent = draw_charts(collect(run))
    charts = {chart.name: chart for chart in drawn}
    assert [key.label for key in charts["benchmarks"].legend] == ["dynamath", "mmmu", "mmstar", "vsibench"]
    assert len({(key.paint, key.dash) for key in charts["benchmarks"].legend}) == 4
    assert "student, shown p" in [key.label for key in charts["accuracy"].legend]
    assert not absent and not draw_charts(collect(write_run(tmp_path / "other")))[1]


def test_text_of_data_is_never_markup(tmp_path: Path) -> None:
    kinds = {HOSTILE: {"before": 0.2, "after": 0.7, "teacher": 0.95, "n": 12}}
    run = write_run(tmp_path / "run", method=HOSTILE, by_kind=kinds)
    for model in ("before", "after", "teacher"):
        rows = [
            reply(index, model) | {"response": HOSTILE, "group": {"kind": HOSTILE}, "answer": HOSTILE}
            for index in range(N)
        ]
        (run / f"evals/{model}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (run / "config.yaml").write_text("x: <b onclick=y>é</b>", encoding="utf-8")
    (run / "versions.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps({"step": 5, f"loss/{HOSTILE}": 0.3, f"time/{HOSTILE}": 1.0}) + "\n")
    hostile = [scene(index, label=HOSTILE) for index in range(N)]
    page = Page(write_report(run, hostile))
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "script" not in dict(page.tags)
    assert len([tag for tag, _ in page.tags if tag == "img"]) == sum(QUOTA.values())
    shown = HOSTILE.replace("\ud800", "?")
    assert (
        printable(HOSTILE, lines=True) in page.text
        and "\u202e" not in page.text
        and "x: <b onclick=y>é</b>" in page.text
    )
    assert json.loads((run / "report.json").read_text())["versions"] == {shown: shown}


def test_same_input_same_bytes(dopd: Path, tmp_path: Path, samples: list[Sample]) -> None:
    run = tmp_path / "dopd"
    shutil.copytree(dopd, run)
    (run / "report.html").unlink()
    write_report(run, samples)
    assert (run / "report.html").read_bytes() == (dopd / "report.html").read_bytes()
    assert (run / "report.json").read_bytes() == (dopd / "report.json").read_bytes()


def test_charts_of_dopd_and_of_other_methods(dopd: Path, tmp_path: Path, samples: list[Sample]) -> None:
    charts, absent = draw_charts(collect(dopd))
    assert [chart.name for chart in charts] == ["accuracy", "loss", "shares", "gap", "entropy", "length"] and not absent
    shares = next(chart for chart in charts if chart.name == "shares")
    assert [(key.code, key.paint) for key in shares.legend] == [
        (name, name) for name in REGIMES
    ]  # no NP: no such token
    loss = next(chart for chart in charts if chart.name == "loss")
    assert {key.code: key.paint for key in loss.legend if key.code} == {name: name for name in REGIMES}
    opd = write_run(tmp_path / "opd", method="opd")
    charts, absent = draw_charts(collect(opd))
    assert [chart.name for chart in charts] == ["accuracy", "loss", "entropy", "length"]
    assert absent == ["Regime shares", "Gap"]
    assert "logged no figures for it: regime shares, gap." in Page(write_report(opd, samples)).text


def test_a_chart_says_what_and_unit_on_its_axes(dopd: Path) -> None:
    for chart in draw_charts(collect(dopd))[0]:
        assert "optimiser step" in chart.svg
        assert re.search(r">[^<>]*\((%|nats|tokens)\)<", chart.svg), chart.name
        assert "font-family" not in chart.svg and "xmlns" not in chart.svg


def test_a_run_that_logged_nothing_still_has_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", by_kind={}, gap_recovery={"value": None, "low": None, "high": None})
    (run / "metrics.jsonl").write_text("")
    text = Page(write_report(run, ())).text
    assert "undefined" in text and "questions of this run have no kinds" in text
    assert "None can be shown" in text
    assert "accuracy over training, loss, regime shares, gap, student entropy, response length." in text


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "config.yaml", "evals/after.jsonl"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "run")
    (run / name).unlink()
    with pytest.raises(DataError, match=f"missing {re.escape(name)}$"):
        write_report(run, ())
    assert not (run / "report.html").exists()


def test_a_torn_last_line_is_dropped_and_any_other_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    whole = collect(run).curves
    with (run / "metrics.jsonl").open("ab") as metrics:
        metrics.write('{"step": 45, "loss": 0.1, "é'.encode()[:-1])
    assert collect(run).curves == whole
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write('\n{"step": 50}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl: line 12: expected a JSON object"):
        collect(run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": [{"name": "teacher", "accuracy": 0.5, "low": 0.4}]}, "expected a field 'high'"),
        ({"rows": [{"name": "teacher", "accuracy": 53.2, "low": 49, "high": 57}]}, "fraction from 0 to 1, got 53.2"),
        ({"by_kind": []}, "another form"),
    ],
)
def test_a_malformed_summary_is_one_clear_error(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=f"summary.json.*{re.escape(message)}"):
        collect(write_run(tmp_path / "run", **changes))


def test_a_step_logged_twice_counts_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text('{"step": 10, "loss": 1}\n{"step": 5, "loss": 2}\n{"step": 10, "loss": 3}\n')
    assert (collect(run).curves["loss"].step, collect(run).curves["loss"].value) == ((5, 10), (2.0, 3.0))


def test_selection_shows_every_story_over_the_kinds(dopd: Path, samples: list[Sample]) -> None:
    evals = collect(dopd).evals
    assert count_stories(evals) == {"gained": 9, "kept": 9, "missed": 3, "lost": 3}
    chosen = choose(evals, samples)
    assert [example.story for example in chosen] == [story for story, quota in QUOTA.items() for _ in range(quota)]
    assert len({example.sample.id for example in chosen}) == len(chosen)
    kinds = [example.replies["before"].kind for example in chosen]
    assert kinds.count("sum") == kinds.count("where")


def test_selection_fills_up_and_leaves_out_what_has_no_reply(samples: list[Sample]) -> None:
    replies = {f"s{index}": predicted(f"s{index}", group={"kind": "sum"}) for index in range(20)}
    evals = {"before": replies, "after": replies, "teacher": replies}
    assert [example.sample.id for example in choose(evals, samples)] == [f"s{index}" for index in range(8)]
    assert choose({**evals, "teacher": {}}, samples) == []


def test_picture_is_enlarged_and_its_boxes_are_clamped() -> None:
    shown = picture(scene(0), 0)
    assert (shown.width, shown.height) == (96, 96)
    assert [mark.label for mark in shown.marks] == ["red 3", "blue 7"]
    first, second = shown.marks
    assert (first.left, first.top, first.width, first.height) == (4.17, 4.17, 27.08, 31.25)
    assert second.left + second.width == pytest.approx(100, abs=0.01)
    assert first.corner == "below"  # above, the picture's edge would cut it


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"difference": {"points": 2.0, "low": -1.0, "high": 5.0}}, "may be chance"),
        ({"gap_recovery": {"value": None, "low": None, "high": None}}, "on 24 held-out questions."),
        (
            {
                "difference": {"points": -5.0, "low": -7.0, "high": -3.0},
                "rows": [
                    {"name": "student before", "accuracy": 0.5, "low": 0.4, "high": 0.6},
                    {"name": "student after", "accuracy": 0.45, "low": 0.4, "high": 0.5},
                ],
            },
            "DOPD lowered the student from 50.0\u00a0% to 45.0\u00a0%",
        ),
    ],
)
def test_headline_says_no_more_than_the_figures(tmp_path: Path, changes: dict[str, object], sentence: str) -> None:
    assert sentence in headline(collect(write_run(tmp_path / "run", **changes)))


def test_wording_of_numbers() -> None:
    assert (number(-0.04), number(-1.25, 2), percent(None)) == ("0.0", "−1.25", "–")
    assert (duration(42), duration(210.3), duration(7500)) == (
        "42\u00a0s",
        "3\u00a0min 30\u00a0s",
        "2\u00a0h 05\u00a0min",
    )
    assert shorten("short") == "short"
    assert shorten("a" * 5000 + "Answer: 4").endswith("Answer: 4") and len(shorten("a" * 5000)) < 800
