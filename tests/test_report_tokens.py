"""The token page: one file that only its own script runs in, the figures of the files, and no more than its size."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import random
import re
from pathlib import Path

import pytest
from PIL import Image

from privileged import DataError
from vlm_dopd.report import tokens
from vlm_dopd.report.tokens import gaps_of, legend, read_rows, write_tokens

HOSTILE = "</script><script>alert(1)</script><!--<img src=x onerror=alert(1)><svg onload=alert(1)>{{ 7*7 }}\u202e\ud800"
COMPONENTS = [
    {"name": name, "target": "teacher_privileged", "divergence": "rkl, top 128 of the student"}
    for name in ("LH", "LL", "HT", "HS", "NP")
]
ROLES = ("student_plain", "student_privileged", "teacher_privileged")


def stored(folder: Path, size=(96, 96), noise=False) -> dict:
    image = Image.effect_noise(size, 90).convert("RGB") if noise else Image.new("RGB", size, (200, 30, 30))
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    name = f"{hashlib.sha256(stream.getvalue()).hexdigest()[:20]}.png"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(stream.getvalue())
    boxes = [{"label": HOSTILE, "box": [4, 4, 40, 40]}]
    return {"file": name, "origin": "sample", "width": size[0], "height": size[1], "boxes": boxes}


def row(step=0, words=(" a", "b\n", "</script>"), **changes) -> dict:
    n = len(words)
    logp = {role: [-0.5 * (r + 1) - 0.25 * i for i in range(n)] for r, role in enumerate(ROLES)}
    return {
        "step": step, "sample": "s1", "question": "How many?", "answer": "4", "has_privilege": True, "p": "notes",
        "pictures": [], "truncated": False, "reference": False, "reward": None, "token": list(words), "sibling": 0,
        "gap_of": ["student_privileged", "teacher_privileged"], "components": COMPONENTS,
        "component": ["LH", "HT", None, "LH", "LH"][:n] + ["LH"] * (n - 5), "weight": [0.6] * n, "logp": logp,
        "entropy": {role: [0.125] * n for role in ROLES}, "statistic": {}, "roles": list(ROLES),
        "candidates": [[[word, *(logp[r][i] for r in ROLES)], ["other", -9.0, -2.0, -9.0], ["rare", -8.0, -9.0, -7.5]]
                       for i, word in enumerate(words)],
    } | changes  # fmt: skip


def write(run: Path, *rows: dict) -> Path:
    (run / "tokens").mkdir(parents=True, exist_ok=True)
    for step in {one["step"] for one in rows}:
        lines = [json.dumps(one) for one in rows if one["step"] == step]
        (run / "tokens" / f"{step:06d}.jsonl").write_text("\n".join(lines) + "\n")
    page = write_tokens(run)
    assert page == run / "tokens.html"
    return page


def data_of(page: Path) -> tuple[dict, dict]:
    """The page's JSON, and what is packed in it."""
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), flags=re.DOTALL)
    assert len(found) == 1
    data = json.loads(found[0])
    return data, json.loads(gzip.decompress(base64.b64decode(data["packed"])))


def test_a_run_without_samples_has_no_page(tmp_path):
    assert write_tokens(tmp_path) is None and not (tmp_path / "tokens.html").exists()


def test_the_page_holds_the_figures_of_the_files(tmp_path):
    page = write(tmp_path, row(0), row(20, answer=None))
    data, packed = data_of(page)
    assert data["steps"] == [0, 20] and [one["answer"] for one in data["responses"]] == ["4", None]
    assert [key["code"] for key in data["legend"]] == ["LH", "HT", "–"]
    column = packed["columns"][0]
    assert [packed["words"][word] for word in column["t"]] == [" a", "b\n", "</script>"]
    assert [data["legend"][kind]["code"] for kind in column["r"]] == ["LH", "HT", "–"]
    assert column["l"]["teacher_privileged"] == [-1500, -1750, -2000] and column["e"]["student_plain"] == [12, 12, 12]
    # Of the others only those that some role thinks likely: −7.5 is below a thousandth.
    assert [column["k"][0][0], *column["k"][0][1:]] == [packed["words"].index("other"), -900, -200, -900]
    assert data["responses"][0]["mean"] == data["responses"][0]["most"] == 0.5
    assert gaps_of(row()) == [0.5, 0.5, 0.5] and gaps_of(row(gap_of=None)) == []


def test_the_same_files_give_the_same_bytes(tmp_path):
    first = write(tmp_path, row(0, pictures=[stored(tmp_path / "tokens")])).read_bytes()
    assert write_tokens(tmp_path).read_bytes() == first


def test_nothing_but_its_own_script_can_run(tmp_path):
    picture = stored(tmp_path / "tokens")
    changed = dict.fromkeys(("question", "answer", "p", "sample"), HOSTILE)
    components = [{"name": HOSTILE, "target": HOSTILE, "divergence": HOSTILE}]
    words = [HOSTILE] * 3
    page = write(tmp_path, row(0, words, pictures=[picture], components=components, component=[HOSTILE] * 3, **changed))
    text = page.read_text()
    assert text.count("<script") == 2 == text.count("</script>") and "alert(1)</" not in text
    assert "<img" not in text and "<svg" not in text and "<!--" not in text
    script = re.search(r"<script>(.*?)</script>", text, flags=re.DOTALL)[1]
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.replace("&#39;", "'") == (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    )
    for never in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(", "XMLHttp"):
        assert never not in script
    data, packed = data_of(page)
    for shown in (data["responses"][0]["question"], *packed["words"]):
        assert "\u202e" not in shown and ("\\u202e" in shown or shown in ("other", "rare"))
    assert not re.findall(r'(?:src|href)="(?!report\.html"|data:)', text)


@pytest.mark.parametrize("name", ["../../secret.png", "/etc/passwd", "0" * 20 + ".svg", "0" * 20 + ".png", "", "a.png"])
def test_pictures_come_from_the_folder_alone(tmp_path, name):
    secret = stored(tmp_path, (8, 8))
    (tmp_path / "secret.png").write_bytes((tmp_path / secret["file"]).read_bytes())
    data, _ = data_of(write(tmp_path / "run", row(0, pictures=[secret | {"file": name}])))
    assert data["pictures"] == [] and data["responses"][0]["missing"] == 1


def test_what_is_no_picture_is_left_out(tmp_path):
    picture = stored(tmp_path / "tokens")
    (tmp_path / "tokens" / picture["file"]).write_bytes(b"<svg onload=alert(1)>")
    data, _ = data_of(write(tmp_path, row(0, pictures=[picture])))
    assert data["pictures"] == []


@pytest.mark.parametrize(
    "line", ["[]", "{", '{"step": 0}', "5", "null", "\\ud800"], ids=["list", "torn", "fields", "number", "null", "half"]
)
def test_a_bad_line_is_named(tmp_path, line):
    folder = tmp_path / "tokens"
    folder.mkdir()
    (folder / "000020.jsonl").write_text(json.dumps(row()) + "\n" + line + "\n")
    with pytest.raises(DataError, match=r"000020\.jsonl line 2: expected a token sample"):
        write_tokens(tmp_path)


def test_other_methods_have_components_for_regimes():
    rows = [
        row(components=[{"name": "OPD", "target": "teacher_plain", "divergence": "rkl, full"}], component=["OPD"] * 3)
    ]
    (key,) = legend(rows)
    assert key == {"code": "OPD", "label": "this method's loss", "paint": "other1", "style": "other1"}
    assert [one["style"] for one in legend([row()])] == ["LH", "HT", "none"]


def test_a_large_run_stays_below_the_limit_and_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "LARGEST", 120_000)
    monkeypatch.setattr(tokens, "PICTURES", 30_000)
    chance = random.Random(0)
    rows = []
    for number in range(24):
        words = ["".join(chance.choices("abcdefgh", k=4)) for _ in range(60)]
        others = [
            [["".join(chance.choices("abcdefgh", k=4)), *(-chance.random() for _ in ROLES)] for _ in range(7)]
            for _ in words
        ]
        candidates = [[[word, -1.0, -1.0, -1.0], *its] for word, its in zip(words, others, strict=True)]
        rows.append(
            row(
                20 * (number // 4),
                words,
                candidates=candidates,
                pictures=[stored(tmp_path / "tokens", (300, 200), True)],
            )
        )
    page = write(tmp_path, *rows)
    assert page.stat().st_size <= 120_000
    data, packed = data_of(page)
    assert len(data["responses"]) == 24 and sum(map(len, data["pictures"])) <= 30_000
    assert (
        any(column["k"][0] for column in packed["columns"]) and "more responses would not fit" not in page.read_text()
    )
    monkeypatch.setattr(tokens, "LARGEST", 60_000)
    page = write_tokens(tmp_path)
    left = 24 - len(data_of(page)[0]["responses"])
    assert page.stat().st_size <= 60_000 and left > 0
    assert f"{left} more responses would not fit on this page" in page.read_text()


def test_rows_come_by_step(tmp_path):
    write(tmp_path, row(100), row(20), row(0))
    assert [one["step"] for one in read_rows(tmp_path / "tokens")] == [0, 20, 100]
