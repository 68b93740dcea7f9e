"""What a LoRA run leaves, in the hands of libraries that know nothing of us, of `eval` and of `vlm-dopd merge`.

Logits of the trained student in memory are the reference. Tolerances: 1e-4 in float32, where W·x + s·B·(A·x) and
(W + s·B·A)·x are the same sums in another order; 0.3 where products were taken in bfloat16, for logits that reach 7.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig
from typer.testing import CliRunner

from tests import tiny
from tests.test_lora import ADAM, BFLOAT16, IDS, LORA, QLORA, logits, trained
from vlm_dopd.cli import app
from vlm_dopd.errors import ConfigError
from vlm_dopd.evaluation import open_model
from vlm_dopd.lora import base_of, merged, trained_as
from vlm_dopd.merging import merge
from vlm_dopd.roles import load_policy

RUNS = {
    "float32": (LORA, 1e-4),
    "bfloat16": (BFLOAT16, 0.3),
    "nf4": (QLORA, 1e-4),
    "nf4 bfloat16": ({**QLORA, "model.lora.dtype": "bfloat16"}, 0.3),
}


@pytest.fixture(scope="module")
def runs(pair, tmp_path_factory):
    """By kind: run folder, logits of the trained student, tolerance."""
    found = {}
    for kind, (own, tolerance) in RUNS.items():
        folder, trainer = trained(pair, tmp_path_factory.mktemp("run"), **own, **ADAM)
        found[kind] = (folder, logits(trainer.model), tolerance)
    return found


def plain(script, *words):
    """Run `script` in a process that cannot import anything of ours."""
    blocked = "import sys\nfor name in ('vlm_dopd', 'privileged', 'evals'):\n    sys.modules[name] = None\n"
    command = [sys.executable, "-c", blocked + script, *map(str, words)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_adapter_loads_with_plain_peft_and_answers_as_the_student(runs, pair, tmp_path):
    folder, reference, tolerance = runs["float32"]
    save_file({"ids": IDS, "logits": reference}, tmp_path / "reference.safetensors")
    script = """
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText
base, adapter, reference, tolerance = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), adapter).eval()
expected = load_file(reference)
assert (model(expected["ids"]).logits - expected["logits"]).abs().max() < float(tolerance)
with model.disable_adapter():
    assert (model(expected["ids"]).logits - expected["logits"]).abs().max() > 1
"""
    plain(script, pair[0], folder, tmp_path / "reference.safetensors", tolerance)


def test_merged_models_load_with_plain_transformers_and_answer_as_the_students(runs, tmp_path):
    """No adapter, no quantisation and no missing tensor in them; their processor makes prompts."""
    words = []
    for kind, (folder, reference, tolerance) in runs.items():
        file = tmp_path / f"{kind}.safetensors"
        save_file({"ids": IDS, "logits": reference}, file)
        words += [merge(folder, tmp_path / kind), file, tolerance]
    script = """
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor
sys.modules["peft"] = sys.modules["bitsandbytes"] = None
words = iter(sys.argv[1:])
for folder, reference, tolerance in zip(words, words, words):
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    expected = load_file(reference)
    difference = (model(expected["ids"]).logits.float() - expected["logits"]).abs().max()
    assert difference < float(tolerance), (folder, difference)
    content = [{"type": "image", "image": Image.new("RGB", (96, 96))}, {"type": "text", "text": "What is red?"}]
    inputs = AutoProcessor.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )
    assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] > inputs["input_ids"].shape[1]
"""
    plain(script, *words)


def test_a_merged_model_differs_from_its_base_in_adapted_matrices_alone(runs, pair, tmp_path):
    ours, base = (load_file(f / "model.safetensors") for f in (merge(runs["float32"][0], tmp_path / "m"), pair[0]))
    assert ours.keys() == base.keys()
    moved = {name for name in base if not torch.equal(ours[name], base[name])}
    assert len(moved) == 2 * 7 and all("_proj" in name and "language_model" in name for name in moved)


def test_the_merged_model_has_the_dtype_of_the_base_or_the_one_asked_for(runs, pair, tmp_path):
    folder, reference, _ = runs["float32"]
    tiny.vision_model(1).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    tiny.processor().save_pretrained(tmp_path / "base")
    for base, asked, expected in (
        (tmp_path / "base", None, torch.bfloat16),
        (tmp_path / "base", "float32", torch.float32),
        (None, "bfloat16", torch.bfloat16),
    ):
        out = merge(folder, tmp_path / f"{base is None}{asked}", base=base and str(base), dtype=asked)
        tensors = load_file(out / "model.safetensors").values()
        assert {tensor.dtype for tensor in tensors} == {expected} == {AutoConfig.from_pretrained(out).dtype}
    assert (logits(open_model(str(out), dtype="float32").model) - reference).abs().max() < 0.3


def test_a_checkpoint_merges_as_its_run_does(pair, tmp_path):
    """Its settings are those beside it: 4-bit weights are spelt out there too."""
    steps = {"train.save_strategy": "steps", "train.save_steps": 2}
    folder, trainer = trained(pair, tmp_path, **QLORA, **ADAM | steps)
    assert trained_as(folder / "checkpoint-2").quantize == "nf4"
    out = merge(folder / "checkpoint-2", tmp_path / "merged")
    assert (logits(open_model(str(out)).model) - logits(trainer.model)).abs().max() < 1e-4


def test_eval_opens_an_adapter_folder_as_base_and_adapter(runs):
    folder, reference, tolerance = runs["float32"]
    opened = open_model(str(folder))
    assert (logits(opened.model) - reference).abs().max() < tolerance
    assert opened.processor.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)


def test_eval_refuses_what_was_trained_beside_other_weights(runs):
    """Beside whole weights a 4-bit run's adapter would be another student."""
    with pytest.raises(ConfigError, match=r"trained beside nf4 weights; `vlm-dopd merge .*` makes it whole"):
        open_model(str(runs["nf4"][0]))


def test_the_command_and_its_one_line_errors(runs, pair, tmp_path):
    folder = runs["float32"][0]
    done = CliRunner().invoke(app, ["merge", str(folder), "--out", str(tmp_path / "merged")])
    assert done.exit_code == 0 and done.stdout == f"student: {tmp_path / 'merged'}\n"
    full = tmp_path / "merged"
    for words, message in (
        ((folder, full), r"merged: expected a new or empty folder"),
        ((pair[0], tmp_path / "x"), r"expected an adapter folder, as a run with model\.lora leaves"),
        ((tmp_path / "nothing", tmp_path / "x"), r"expected an adapter folder"),
    ):
        with pytest.raises(ConfigError, match=message):
            merge(*words)
    with pytest.raises(ConfigError, match=r"--dtype float23: no such dtype; did you mean 'float32'"):
        merge(folder, tmp_path / "x", dtype="float23")
    with pytest.raises(ConfigError, match=r"the base of .*no such folder.*; --base says where it is now"):
        merge(folder, tmp_path / "x", base=str(tmp_path / "gone"))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"base_model_name_or_path": null}', "{"])
def test_an_adapter_that_does_not_say_its_base_is_refused(tmp_path, text):
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"expected base_model_name_or_path"):
        base_of(tmp_path)


def test_a_quantised_base_is_no_place_to_merge_into(runs, pair, processor):
    """Its matrices are packed integers. `merge` itself always loads the base in floating point."""
    base = load_policy(str(pair[0]), processor.tokenizer, held="nf4").model
    with pytest.raises(
        ConfigError, match=r"merge: expected a base in float32 or bfloat16, got float32, uint8; load it"
    ):
        merged(base, runs["nf4"][0])
