"""Several gloo processes give what one process gives, under DDP and under FSDP2 as the shipped file asks for it.

What is locked, for 2 and 4 ranks: 1) weights after a step of size 1, loss, regimes and gaps are those of one process;
2) ranks with other numbers of passes, and with images or without, neither hang nor change it; 3) a sharded teacher and
sharded copies score as whole ones; 4) rows that do not divide by ranks; 5) the run folder is a plain checkpoint;
6) a rank leaves its process group before it ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests import tiny
from tests.test_recipes import environment
from tests.test_trainer import finished, largest_difference, settings
from vlm_dopd import cli, run
from vlm_dopd.callbacks import read_metrics
from vlm_dopd.chunked_loss import Term
from vlm_dopd.divergences import Divergence
from vlm_dopd.errors import ConfigError
from vlm_dopd.sharding import sum_in_float32
from vlm_dopd.window import TrainingBatch, filled

ROWS = 8
SEVERAL = {"train.max_steps": 3, "train.learning_rate": 0.3, "train.max_grad_norm": 1.0}
CASES = {
    "uneven": {"data.max_pass_tokens": 150, "train.gradient_checkpointing": True},
    "tower": {"data.max_pass_tokens": 150, "model.freeze_vision": False},
    "copies": {
        "method.name": "dopd_plus",
        "method.self_teacher": "ema",
        "method.ema_rate": 0.5,
        "model.teacher_load": "sharded",
        "data.max_pass_tokens": 600,
        **SEVERAL,
    },
    "bf16": {"data.max_pass_tokens": 150, "train.bf16": True},
    "odd": {"train.max_steps": -1, "train.num_train_epochs": 1, "train.learning_rate": 0.0},
}
"""One process trains on all rows at once, but in the last two cases: no other layout does the same steps to 1e-5."""
EQUAL = ("uneven", "tower", "copies")
OF_RANKS = {2: tuple(CASES), 4: EQUAL}
LAYOUTS = [(2, "ddp"), (2, "fsdp"), (4, "ddp"), (4, "fsdp")]
PLACES = [(*layout, case) for layout in LAYOUTS for case in EQUAL if case in OF_RANKS[layout[0]]]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Half of the rows have an image, and two of those fit one pass; the others have longer text, from row to row."""
    table = pq.read_table(tiny.SCENES)
    rows = table.slice(0, ROWS).to_pylist()
    for number in range(1, ROWS // 2):
        record = rows[0]["privileged"].replace(rows[0]["id"], rows[number]["id"])
        rows[number] |= {"question": rows[0]["question"], "privileged": record}
    for number in range(ROWS // 2, ROWS):
        rows[number] |= {"images": [], "privileged": None}
        rows[number]["question"] = " ".join([rows[number]["question"]] * 3 * number)
    path = tmp_path_factory.mktemp("data") / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema.remove_metadata()), path)
    return path


def written(pair, folder: Path, data: Path, case: str, ranks: int, engine: str) -> Path:
    """The configuration of a case; two ranks take their rows in two micro-batches."""
    own = ROWS // ranks if case != "odd" else 3
    accumulation = 2 if ranks == 2 and case != "odd" else 1
    layout = {
        "data.train": str(data),
        "preflight": False,
        "train.per_device_train_batch_size": own // accumulation,
        "train.gradient_accumulation_steps": accumulation,
        "train.use_cpu": engine == "ddp" or "train.bf16" in CASES[case],  # Trainer asks where bfloat16 would be
    }
    settings(pair, folder, **{**layout, **CASES[case]})
    return folder / "config.yaml"


@pytest.fixture(scope="module")
def single(pair, tmp_path_factory, data):
    """One process: by case its weights and its log."""
    root = tmp_path_factory.mktemp("single")
    found = {}
    for case in EQUAL:
        layout = {"data.train": str(data), "preflight": False, "train.per_device_train_batch_size": ROWS}
        weights = finished(settings(pair, root / case, **{**layout, **CASES[case]}))
        found[case] = weights, read_metrics(root / case / "run" / "metrics.jsonl")
    return found


@pytest.fixture(scope="module")
def launched(pair, tmp_path_factory, data):
    """By number of ranks the folder in which one launch ran every case under both engines."""
    done: dict[int, tuple[Path, subprocess.CompletedProcess]] = {}

    def launch(ranks: int) -> Path:
        if ranks not in done:
            root = tmp_path_factory.mktemp(f"ranks{ranks}")
            jobs = [
                f"{engine}:{written(pair, root / engine / case, data, case, ranks, engine)}"
                for engine in ("ddp", "fsdp")
                for case in OF_RANKS[ranks]
            ]
            torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m", "tests.gloo_ranks"]
            started = torchrun if ranks == 2 else ["tests.gloo_ranks", str(ranks)]
            process = subprocess.run(
                [sys.executable, "-m", *started, *jobs],
                cwd=tiny.ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                timeout=900,
                check=False,
            )
            done[ranks] = root, process
        root, process = done[ranks]
        assert process.returncode == 0, process.stderr[-3000:]
        return root

    return launch


@pytest.mark.parametrize(("ranks", "engine", "case"), PLACES)
def test_ranks_equal_one_process(single, launched, ranks, engine, case):
    """Weights, and what is logged of routing and loss. Steps are of size 1, so the first case is the gradient."""
    folder = launched(ranks) / engine / case / "run"
    weights, lines = single[case]
    assert largest_difference(weights, load_file(folder / "model.safetensors")) < 1e-5
    logged = read_metrics(folder / "metrics.jsonl")
    keys = [k for k in lines[0] if k.split("/")[0] in ("loss", "grad_norm", "share", "gap", "entropy", "rollout")]
    assert len(keys) > 10
    for ours, theirs in zip(lines[:-1], logged[:-1], strict=True):
        assert {k: theirs[k] for k in keys} == pytest.approx({k: ours[k] for k in keys}, rel=1e-4, abs=1e-5)


def test_a_command_that_ended_well_leaves_the_ranks(monkeypatch, pair, tmp_path):
    """A rank whose group is open as it ends may abort: torchrun would report a failure and kill the others."""
    opened = []

    def train(config):
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        opened.append(torch.distributed.is_initialized())
        return tmp_path

    monkeypatch.setattr(run, "train", train)
    settings(pair, tmp_path)
    result = CliRunner().invoke(cli.app, ["train", str(tmp_path / "config.yaml")])
    assert result.exit_code == 0, result.output
    assert opened == [True] and not torch.distributed.is_initialized()


def passes(folder: Path, ranks: int) -> list[list[dict]]:
    """By rank, what it was given micro-batch by micro-batch."""
    files = [folder / f"passes-{rank}.jsonl" for rank in range(ranks)]
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


@pytest.mark.parametrize(("ranks", "engine"), LAYOUTS)
def test_the_cases_are_as_uneven_as_they_are_meant(launched, ranks, engine):
    """Some micro-batch has more passes on one rank than on another, and images on one rank alone."""
    for case in set(EQUAL) & set(OF_RANKS[ranks]):
        by_rank = passes(launched(ranks) / engine / case / "run", ranks)
        assert any(len({len(line["tokens"]) for line in lines}) > 1 for lines in zip(*by_rank, strict=True))
        assert any(len({sum(line["images"]) > 0 for line in lines}) > 1 for lines in zip(*by_rank, strict=True))


@pytest.mark.parametrize(("ranks", "engine"), LAYOUTS)
def test_a_sharded_model_scores_unequal_numbers_of_passes(launched, ranks, engine):
    """A rank with fewer of them has to know so before its first: the others would wait in their last."""
    by_rank = passes(launched(ranks) / engine / "copies" / "run", ranks)
    assert any(len({tuple(line["scored"]) for line in lines}) > 1 for lines in zip(*by_rank, strict=True))


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_rows_that_do_not_divide_by_ranks(launched, engine):
    """Eight rows in windows of 2 x 3: both ranks do both steps, and the second window takes rows of the first again."""
    folder = launched(2) / engine / "odd" / "run"
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
    assert [(line["step"], line["rollout/sequences"]) for line in lines] == [(1, 12.0), (2, 12.0)]
    assert [len(given) for given in passes(folder, 2)] == [2, 2]


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_bfloat16_keeps_weights_in_float32_and_the_direction(pair, single, launched, engine):
    """FSDP2 gathers bfloat16 and sums gradients in float32; some sampled tokens are others, so it is another step."""
    after = load_file(launched(2) / engine / "bf16" / "run" / "model.safetensors")
    start = load_file(pair[0] / "model.safetensors")
    assert {weight.dtype for weight in after.values()} == {torch.float32}
    ours, theirs = (torch.cat([(w[n] - start[n]).flatten() for n in start]) for w in (after, single["uneven"][0]))
    assert 0.8 < torch.cosine_similarity(ours, theirs, dim=0) < 1


def test_filled_passes_have_no_weight():
    """DeepSpeed's ranks meet in every pass: the last one is done again, and nothing of it counts."""
    given = TrainingBatch(None, (Term(Divergence(k=3), torch.tensor([1.0, -2.0]), None),), ("a",))
    passes = filled((given, given), 4)
    assert passes[:2] == (given, given) and len(passes) == 4
    assert all(not batch.terms[0].weight_N.any() and batch.names == ("a",) for batch in passes[2:])
    assert filled((given,), 1) == (given,)


def test_zero3_is_refused_before_a_model_is_loaded(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ConfigError, match=r"DeepSpeed ZeRO-3: .*fsdp2\.yaml"):
        run.build_trainer(settings(pair, tmp_path))


def test_gradients_are_summed_in_float32():
    """accelerate's own policy for a bfloat16 run would sum them in bfloat16."""
    with environment("fsdp2"):
        plugin = FullyShardedDataParallelPlugin()
    plugin.set_mixed_precision("bf16")
    assert plugin.mixed_precision_policy.reduce_dtype == torch.bfloat16
    sum_in_float32(SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)))
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype) == (torch.bfloat16, torch.float32)
    sum_in_float32(SimpleNamespace(state=SimpleNamespace()))  # DDP has no such plugin


def test_the_run_folder_is_a_plain_checkpoint(pair, launched):
    """Of a sharded student: the tensors and dtypes of the one that it began as, in one file, and nothing else."""
    folder = launched(2) / "fsdp" / "uneven" / "run"
    start, end = load_file(pair[0] / "model.safetensors"), load_file(folder / "model.safetensors")
    assert {k: (w.shape, w.dtype) for k, w in start.items()} == {k: (w.shape, w.dtype) for k, w in end.items()}
    assert {file.suffix for file in folder.iterdir() if file.is_file()} <= {
        ".html",
        ".json",
        ".jsonl",
        ".yaml",
        ".jinja",
        ".safetensors",
    }
    assert all(torch.isfinite(w).all() for w in end.values())
