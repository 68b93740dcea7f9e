"""Token samples: the run is the same with them, and they say what the log says, token by token."""

from __future__ import annotations

import json
import math

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from privileged import PrivilegedRecord, Region, Sample, get_builder
from tests import tiny
from tests.test_trainer import settings
from vlm_dopd import run
from vlm_dopd.callbacks import read_metrics
from vlm_dopd.head import Head
from vlm_dopd.token_files import SIDE, TokenFiles, pieces
from vlm_dopd.token_samples import TOP, candidates_of, components_of, gap_of

REGIMES = ("LH", "LL", "HT", "HS", "NP")


def trained(pair, folder, **overrides):
    """A run of one step, its weights, its rows of step 0 and its one line of metrics."""
    config = settings(pair, folder, **overrides)
    run.train(config)
    out = folder / "run"
    files = sorted((out / "tokens").glob("*.jsonl"))
    rows = [json.loads(line) for line in files[0].read_text().splitlines()] if files else []
    return load_file(out / "model.safetensors"), rows, read_metrics(out / "metrics.jsonl")[0]


@pytest.fixture(scope="module")
def every_response(pair, tmp_path_factory):
    return trained(pair, tmp_path_factory.mktemp("all"), **{"report.token_samples": 99})


@pytest.fixture(scope="module")
def no_response(pair, tmp_path_factory):
    return trained(pair, tmp_path_factory.mktemp("none"), **{"report.token_samples": 0})


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def test_the_run_is_the_same_bit_for_bit(every_response, no_response):
    assert no_response[1] == []
    assert every_response[0].keys() == no_response[0].keys()
    assert all(torch.equal(every_response[0][name], no_response[0][name]) for name in no_response[0])
    same = {name for name in no_response[2] if not name.startswith(("time/", "memory/"))}
    assert {name: every_response[2][name] for name in same} == {name: no_response[2][name] for name in same}


def test_the_columns_add_up_to_the_log(every_response):
    _, rows, logged = every_response
    assert len(rows) == 8 and [row["sibling"] for row in rows] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert sum(len(row["token"]) for row in rows) == logged["rollout/tokens"]
    flat = [name for row in rows for name in row["component"]]
    for regime in REGIMES:
        assert flat.count(regime) / len(flat) == pytest.approx(logged[f"share/{regime}"], abs=1e-9)
    gaps = []
    for row in rows:
        student, teacher = row["gap_of"]
        assert (student, teacher) == ("student_privileged", "teacher_privileged")
        if row["has_privilege"]:
            pairs = zip(row["logp"][student], row["logp"][teacher], strict=True)
            gaps += [abs(a - b) for a, b in pairs]
    assert mean(gaps) == pytest.approx(logged["gap/mean"], abs=2e-4)
    for role in ("student_privileged", "teacher_privileged"):
        mine = mean(value for row in rows for value in row["entropy"][role])
        assert mine == pytest.approx(logged[f"entropy/{role}"], abs=2e-4)
    plain = mean(value for row in rows for value in row["entropy"]["student_plain"])
    assert plain == pytest.approx(logged["entropy/student"], abs=2e-4)


def test_regimes_agree_with_their_scores(every_response):
    """By the definitions: who is surer tells HT from HS, and the gaps of both are above those of LH and LL."""
    gap = {name: [] for name in REGIMES}
    for row in every_response[1]:
        student, teacher = (row["logp"][role] for role in row["gap_of"])
        for s, t, name, weight in zip(student, teacher, row["component"], row["weight"], strict=True):
            gap[name].append(abs(s - t))
            assert name != "HT" or t >= s
            assert name != "HS" or s >= t
            assert weight == pytest.approx({"LH": 0.6, "LL": 0.3, "HT": 1.0, "HS": 0.6, "NP": 1.0}[name])
    low, high = gap["LH"] + gap["LL"], gap["HT"] + gap["HS"]
    assert low and high and max(low) <= min(high)


def test_candidates_are_the_likeliest_and_the_sampled_token(every_response):
    for row in every_response[1]:
        assert row["roles"] == ["student_plain", "student_privileged", "teacher_privileged"]
        for n, (text, candidates) in enumerate(zip(row["token"], row["candidates"], strict=True)):
            assert candidates[0][0] == text or "\ufffd" in candidates[0][0] + text  # parts of a character
            for r, role in enumerate(row["roles"], start=1):
                assert candidates[0][r] == pytest.approx(row["logp"][role][n], abs=2e-4)
                assert sum(math.exp(one[r]) for one in candidates) <= 1.001
            assert TOP <= len(candidates) <= 3 * TOP + 1


def test_rows_do_not_depend_on_the_micro_batch(pair, tmp_path, every_response):
    layout = {"train.per_device_train_batch_size": 1, "train.gradient_accumulation_steps": 4}
    _, rows, _ = trained(pair, tmp_path, **layout, **{"report.token_samples": 6, "data.max_pass_tokens": 150})
    for mine, other in zip(rows, every_response[1], strict=False):
        assert mine["token"] == other["token"] and mine["component"] == other["component"]
        assert mine["entropy"]["student_plain"] == pytest.approx(other["entropy"]["student_plain"], abs=2e-4)
    assert len(rows) == 6


@pytest.mark.parametrize("method", ["opd", "sft", "tip", "opd_v", "sdft"])
def test_methods_without_regimes_have_weights_and_statistics(pair, tmp_path, method):
    options = {"method.name": method, "rollout.reference": "teacher"}
    _, rows, logged = trained(pair, tmp_path, **options)
    assert len(rows) == 4
    for row in rows:
        assert row["components"][0]["name"] in {name.removeprefix("loss/") for name in logged}
        assert len(row["weight"]) == len(row["token"]) == len(row["candidates"])
        assert row["gap_of"] is None or set(row["gap_of"]) <= set(row["logp"])
        assert all(len(values) == len(row["token"]) for values in row["statistic"].values())
        for r, role in enumerate(row["roles"], start=1):  # of tip's student: scored before, and in the pass itself
            again = [candidates[0][r] for candidates in row["candidates"]]
            assert again == pytest.approx(row["logp"][role], abs=2e-4)


def test_saved_steps_and_a_resumed_run(pair, tmp_path):
    longer = {"train.max_steps": 4, "report.every": 2, "report.token_samples": 1}
    trained(pair, tmp_path, **longer)
    folder = tmp_path / "run" / "tokens"
    assert [path.name for path in sorted(folder.glob("*.jsonl"))] == ["000000.jsonl", "000002.jsonl", "000003.jsonl"]
    files = TokenFiles(folder, None, None, "before_question")
    files.forget_after(2)
    assert [path.name for path in folder.glob("*.jsonl")] == ["000000.jsonl"]


def test_pictures_of_the_sample_and_of_p(tmp_path, pair):
    photo = Image.effect_noise((1600, 800), 60).convert("RGB")
    region = Region(label="red </script>", box=(-5, 10, 400, 300))
    sample = Sample(
        id="a",
        question="q?",
        images=(photo,),
        answer="4",
        privileged=PrivilegedRecord(sample_id="a", regions=(region,)),
    )
    files = TokenFiles(tmp_path, tiny.processor().tokenizer, get_builder("crops"), "before_question")
    group = type("Group", (), {"sample": sample, "has_privilege": True})()
    shown = files._shown(group)
    whole, *crops = shown["pictures"]
    assert whole["boxes"] == [{"label": "red </script>", "box": (0.0, 10.0, 400.0, 300.0)}]
    assert (whole["origin"], whole["width"], whole["height"]) == ("sample", 1600, 800)
    assert crops and all(crop["origin"] == "p" for crop in crops)
    with Image.open(tmp_path / whole["file"]) as stored:
        assert max(stored.size) == SIDE and stored.format == "JPEG"
    group.has_privilege = False
    assert files._shown(group)["p"] == "" and len(files._shown(group)["pictures"]) == 1


class Bytes:
    """A tokenizer of single bytes: a character may be up to four tokens."""

    def decode(self, ids, **_):
        return bytes(ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize("text", ["Größe 大 🙂!", "a", "大大", "🙂"])
def test_pieces_are_the_text(text):
    found = pieces(Bytes(), list(text.encode()))
    assert "".join(found) == text and len(found) == len(text.encode())
    assert len(pieces(Bytes(), [0xE5, 0xA4, 65, 0xF0])) == 4  # half characters, an end in the middle of one


def test_candidates_against_a_plain_softmax():
    generator = torch.Generator().manual_seed(0)
    heads = [Head(torch.randn(13, 6, generator=generator), 11, temperature=2.0) for _ in range(2)]
    hidden = [torch.randn(70, 6, generator=generator) for _ in heads]
    token_n = torch.randint(0, 11, (70,), generator=generator)
    logp_n, entropy_n, candidates = candidates_of(
        dict(zip("ab", zip(hidden, heads, strict=True), strict=True)), token_n
    )
    plain = [(h @ head.weight_UH[:11].T).log_softmax(-1) for h, head in zip(hidden, heads, strict=True)]
    assert torch.allclose(logp_n, plain[0].gather(1, token_n[:, None])[:, 0], atol=1e-5)
    assert torch.allclose(entropy_n, -(plain[0].exp() * plain[0]).sum(-1), atol=1e-5)
    for n, found in enumerate(candidates):
        ids = [number for number, _ in found]
        wanted = {int(token_n[n])} | {int(i) for side in plain for i in side[n].topk(TOP).indices}
        assert ids[0] == token_n[n] and set(ids) == wanted and len(ids) == len(wanted)
        for number, values in found:
            assert values == pytest.approx([side[n, number].item() for side in plain], abs=1e-5)


def test_a_soft_router_names_the_largest_share():
    class Routed:
        strengths = (0.5, 1.0)
        components = tuple(type("C", (), {"name": name}) for name in ("LH", "HT"))

    weights = torch.tensor([[0.4, 0.1, 0.0], [0.5, 0.9, 0.0]])
    assert components_of(Routed, weights) == ["LH", "HT", None]  # 0.8 against 0.5, by share and not by weight
    assert gap_of({"student_plain": 0, "teacher_plain": 0, "student_privileged": 0}) == (
        "student_plain",
        "teacher_plain",
    )
    assert gap_of({"ema_privileged": 0, "student_plain": 0}) is None
