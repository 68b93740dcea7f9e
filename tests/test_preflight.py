"""The cheap rungs of the preflight: each finds the defect that is planted for it, by its name, and no other does.

What is locked: 1) the bundled pair passes, with and without images; 2) every check has its defect, real files or code
that are spoiled the way they are in the field. `test_preflight_ladder.py` has the rest of the cheap part.
"""

import json
import shutil
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from privileged import build_views
from tests import tiny
from tests.preflight_case import config, failing, found, set_stops, spoiled, wiring
from vlm_dopd import collate, preflight
from vlm_dopd.config import load_config
from vlm_dopd.preflight.ladder import CHEAP
from vlm_dopd.preflight.prompts import inserted


def statuses(rungs):
    return {rung.name: rung.finding.status for rung in rungs}


@pytest.mark.parametrize("recipe", ["demo", "text"])
def test_the_bundled_pair_passes(recipe, tmp_path):
    rungs = list(preflight.climb(load_config(recipe, [f"output_dir={tmp_path / 'run'}"]), None))
    assert [rung.number for rung in rungs] == list(range(1, len(CHEAP) + 1))
    left = {name for name, status in statuses(rungs).items() if status != "PASS"}
    assert left <= {"references", "leaks"}, [rung.sentence for rung in rungs]
    assert not list(tmp_path.iterdir())


# Tokens


def other_word(tokenizer):
    vocabulary = tokenizer["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.get)[20:22]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]


def test_another_vocabulary(tmp_path):
    """Two tokens exchanged: the same number of them, another language."""
    assert failing(config(tmp_path, spoiled(tmp_path, "teacher", "tokenizer.json", other_word))) == {"vocabularies"}


def test_an_lm_head_with_fewer_rows_than_tokens(tmp_path):
    def cut(config):
        config["text_config"]["vocab_size"] = 500

    assert failing(config(tmp_path, spoiled(tmp_path, "teacher", "config.json", cut))) == {"LM heads"}


def test_a_student_that_does_not_stop_where_a_turn_ends(tmp_path):
    """The stop of a base model under the template of an instruct model: in both places where stops are named."""

    def endoftext(tokenizer):
        tokenizer["eos_token"] = "<|endoftext|>"

    for who in ("student", "teacher"):
        word = spoiled(tmp_path, who, "generation_config.json", set_stops(502))
        spoiled(tmp_path, who, "tokenizer_config.json", endoftext)
    words = [word, f"model.student={tmp_path / 'student'}"]
    assert failing(config(tmp_path, *words)) == {"stop tokens"}
    finding = found("stop tokens", wiring(tmp_path, *words))
    assert "a turn ends with 501 <|im_end|>" in finding.figure and "add 501 to eos_token_id" in finding.fix


def test_an_ordinary_word_among_the_stops(tmp_path):
    """Responses would end at it, in the middle of a sentence."""
    word = spoiled(tmp_path, "student", "generation_config.json", set_stops(501, 502, 70))
    assert failing(config(tmp_path, word)) == {"stop tokens"}
    assert "take 70 out" in found("stop tokens", wiring(tmp_path, word)).fix


def test_stops_that_differ_are_told_unless_they_are_merged(tmp_path):
    word = spoiled(tmp_path, "teacher", "generation_config.json", set_stops(501))
    finding = found("stop tokens", wiring(tmp_path, word))
    assert finding.status == "WARN" and "merge_stops" in finding.fix
    merged = wiring(tmp_path, word, "method.name=dopd_plus", "method.merge_stops=true")
    assert found("stop tokens", merged).status == "PASS"


def test_no_pad_token(tmp_path):
    given = wiring(tmp_path)
    given.tokenizer.pad_token = None
    assert found("stop tokens", given).figure == "the tokenizer has no pad token"


def test_another_chat_template(tmp_path):
    word = spoiled(tmp_path, "teacher", "chat_template.jinja", lambda text: text.replace("assistant", "helper"))
    assert failing(config(tmp_path, word)) == {"chat templates"}


@pytest.mark.parametrize(
    "old, new",
    [("'<|im_start|>assistant\\n'", "'<|im_start|>user\\n'"), ("if add_generation_prompt", "if false")],
    ids=["another turn", "no turn"],
)
def test_a_template_that_does_not_open_the_assistants_turn(tmp_path, old, new):
    """Both models have it, so nothing differs."""
    words = [
        spoiled(tmp_path, who, "chat_template.jinja", lambda t: t.replace(old, new)) for who in ("student", "teacher")
    ]
    assert failing(config(tmp_path, *words)) == {"chat templates"}


def test_no_chat_template(tmp_path):
    given = wiring(tmp_path)
    given.processors["teacher"].chat_template = None
    assert found("chat templates", given).status == "FAIL"


def test_a_model_that_looks_for_another_placeholder(tmp_path):
    def other(config):
        config["image_token_id"] = 514

    assert failing(config(tmp_path, spoiled(tmp_path, "teacher", "config.json", other))) == {"image tokens"}


def test_a_template_that_drops_images(tmp_path):
    given = wiring(tmp_path)
    for processor in given.processors.values():
        processor.chat_template = processor.chat_template.replace("<|vision_start|><|image_pad|><|vision_end|>", "")
    finding = found("image tokens", given)
    assert finding.status == "FAIL" and "0 placeholders for 2 images" in finding.figure


def test_another_image_size(tmp_path):
    def larger(processor):
        processor["image_processor"]["size"]["longest_edge"] *= 4

    assert failing(config(tmp_path, spoiled(tmp_path, "teacher", "processor_config.json", larger))) == {
        "image geometry"
    }


def test_patches_that_the_tower_does_not_take(tmp_path):
    def merge(processor):
        processor["image_processor"]["merge_size"] = 1

    words = [spoiled(tmp_path, who, "processor_config.json", merge) for who in ("student", "teacher")]
    assert "image geometry" in failing(config(tmp_path, *words))


@pytest.mark.parametrize("part", ["visual", "layers.1.mlp.down_proj"])
def test_a_checkpoint_without_a_part(tmp_path, part):
    """transformers would fill it with random numbers and go on: the model is blind, or worse."""
    shutil.copytree(tiny.ASSETS / "student", tmp_path / "student")
    file = tmp_path / "student" / "model.safetensors"
    whole = load_file(file)
    save_file({name: tensor for name, tensor in whole.items() if part not in name}, file, {"format": "pt"})
    word = f"model.student={tmp_path / 'student'}"
    assert failing(config(tmp_path, word)) == {"weights"}
    told = "nothing called visual" in found("weights", wiring(tmp_path, word)).figure
    assert told == (part == "visual")


def test_a_checkpoint_in_shards(tmp_path):
    AutoModelForImageTextToText.from_pretrained(tiny.ASSETS / "student").save_pretrained(
        tmp_path / "student", max_shard_size="1MB"
    )
    tiny.processor().save_pretrained(tmp_path / "student")
    given = wiring(tmp_path, f"model.student={tmp_path / 'student'}")
    assert len(list((tmp_path / "student").glob("*.safetensors"))) > 1
    assert found("weights", given) == found("weights", wiring(tmp_path))


# Prompts


def test_the_sample_shows_p_where_it_stands(tmp_path):
    given = wiring(tmp_path)
    finding = found("data sample", given)
    text = "\n".join(finding.shown)
    before, _, rest = text.partition("⟦p: ")
    section, _, after = rest.partition("⟧")
    assert before.endswith("<|vision_start|><image><|vision_end|>") and '"bbox_2d"' in section
    assert given.samples[0].question in after and "bbox" not in after and "image_pad" not in text


def test_nothing_left_of_the_data(tmp_path):
    assert found("data sample", wiring(tmp_path, "data.max_prompt_tokens=5")).status == "FAIL"


def test_rows_without_p(tmp_path):
    """Hints on rows that hold boxes: told, and refused where the configuration says that it is an error."""
    finding = found("p present", wiring(tmp_path, "data.builder=hints"))
    assert (finding.status, finding.figure) == ("WARN", "0 of 6 rows")
    assert found("p present", wiring(tmp_path, "data.builder=hints", "data.without_p=error")).status == "FAIL"
    assert found("p present", wiring(tmp_path, "data.builder=hints", "method.name=opd")).status == "SKIP"


def test_swapped_views(tmp_path, monkeypatch):
    """The collator gives p to the plain prompt, as code that confuses the two would."""
    given = wiring(tmp_path)
    whole = collate.Collator._group

    def swapped(self, sample):
        group, left_out = whole(self, sample)
        return replace(group, plain=group.privileged, privileged=group.plain), left_out

    monkeypatch.setattr(collate.Collator, "_group", swapped)
    finding = found("views", given)
    assert finding.status == "FAIL" and "plain prompt is not the question as it is deployed" in finding.figure


def test_a_privileged_prompt_with_another_question(tmp_path, monkeypatch):
    def edited(sample, builder, placement):
        return build_views(replace(sample, question="What else?"), builder, placement)

    given = wiring(tmp_path)
    whole = collate.Collator._group

    def other(self, sample):
        group, left_out = whole(self, sample)
        privileged = self.encoder.encode(edited(sample, self.builder, self.placement).privileged)
        return replace(group, privileged=privileged), left_out

    monkeypatch.setattr(collate.Collator, "_group", other)
    assert "is not the plain one with a stretch more" in found("views", given).figure


def test_a_plain_prompt_with_marked_images(tmp_path, monkeypatch):
    """Same words, other pixels: p is painted into the deployed prompt."""
    given = wiring(tmp_path)
    whole = collate.Encoder._image

    def painted(self, image, seen):
        return whole(self, image.rotate(90), seen)

    _ = given.groups
    monkeypatch.setattr(collate.Encoder, "_image", painted)
    assert "shows other images than the row's own" in found("views", given).figure


@pytest.mark.parametrize("builder", ["boxes", "crops", "marks", "overlay", "caption"])
def test_views_of_builders_that_paint_or_add_images_are_sound(tmp_path, builder):
    given = wiring(tmp_path, f"data.builder={builder}", "data.max_prompt_tokens=2048", rows=3)
    assert found("views", given).status == found("p whole", given).status == "PASS"


@pytest.mark.parametrize("placement", ["after_question", "system"])
def test_views_are_sound_wherever_p_stands(tmp_path, placement):
    given = wiring(tmp_path, f"data.placement={placement}", rows=3)
    assert found("views", given).status == found("p whole", given).status == "PASS"


def test_truncated_p(tmp_path, monkeypatch):
    """A tokenizer that keeps the last tokens, as trainers with `max_prompt_length` do."""
    given = wiring(tmp_path)
    whole = collate.Encoder.encode

    def cut(self, view, seen=None):
        prompt = whole(self, view, seen)
        return replace(prompt, id_P=prompt.id_P[-200:])

    monkeypatch.setattr(collate.Encoder, "encode", cut)
    finding = found("p whole", given)
    assert finding.status == "FAIL" and "not all of what the template wrote" in finding.figure


def test_p_over_budget_is_counted(tmp_path):
    given = wiring(tmp_path, rows=16)
    lengths = sorted(group.privileged.id_P.numel() for group in given.groups)
    some = found("p whole", wiring(tmp_path, f"data.max_prompt_tokens={lengths[8]}", rows=16))
    over = sum(length > lengths[8] for length in lengths)
    assert some.status == "WARN" and some.figure == f"{16 - over} of 16 whole; {over} over budget, 0 rows left out"
    dropped = found("p whole", wiring(tmp_path, f"data.max_prompt_tokens={lengths[8]}", "data.without_p=drop", rows=16))
    assert dropped.status == "WARN" and f"{over} rows left out" in dropped.figure


def test_no_room_to_answer(tmp_path):
    assert found("room to answer", wiring(tmp_path, "rollout.max_new_tokens=2000")).status == "FAIL"
    assert found("room to answer", wiring(tmp_path, "data.max_prompt_tokens=2048")).status == "WARN"


def test_inserted():
    assert inserted("abcd", "abXcd") == (2, "X")
    assert inserted("aad", "aaad") == (2, "a")
    assert inserted("abcd", "abcd") is None
    assert inserted("abcd", "aXbYcd") is None
    assert inserted("abcd", "abc") is None


# Surroundings


def test_p_that_states_the_answer(tmp_path):
    """The label of the one box is the answer, which boxes have no business to tell."""
    rows = pq.read_table(tiny.SCENES).slice(0, 4).to_pylist()
    for row in rows:
        row["question"], row["answer"] = "Which word is written on the sign?", "umbrella stand"
        record = json.loads(row["privileged"])
        record["regions"] = [record["regions"][0] | {"label": "umbrella stand"}]
        row["privileged"] = json.dumps(record)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "told.parquet")
    finding = found("leaks", wiring(tmp_path, f"data.train={tmp_path / 'told.parquet'}"))
    assert finding.status == "WARN" and "STATED 4" in finding.figure and "annotate audit" in finding.fix


@pytest.mark.parametrize(
    "word, package",
    [
        ("train.report_to=dvclive", "dvclive"),
        ("train.optim=adamw_bnb_8bit", "bitsandbytes"),
        ("train.optim=adamw_torch_8bit", "torchao"),
    ],
)
def test_a_package_that_is_not_installed(tmp_path, monkeypatch, word, package):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else object())
    finding = found("dependencies", wiring(tmp_path, word))
    assert finding.status == "FAIL" and finding.fix == f"pip install {package}"


def test_a_reward_that_does_not_exist(tmp_path):
    given = wiring(tmp_path, "method.name=sdpo", "rollout.reward=nowhere:judge")
    assert "nowhere" in found("dependencies", given).figure


def test_rows_without_the_column_that_is_asked_for(tmp_path):
    given = wiring(tmp_path, "method.name=sft", "rollout.reference=solution")
    finding = found("references", given)
    assert finding.status == "FAIL" and "6 of 6 rows without 'solution'" in finding.figure
    assert found("references", wiring(tmp_path, "method.name=sft", "rollout.reference=answer")).status == "PASS"


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    given = wiring(tmp_path)
    blocked = replace(given, config=replace(given.config, output_dir=str(tmp_path / "file" / "run")))
    assert found("output folder", blocked).status == "FAIL"


def test_a_full_disk(tmp_path, monkeypatch):
    given = wiring(tmp_path, "train.save_total_limit=3", "train.save_steps=10")
    tensors = given.tensors["student"]
    parameters = sum(tensors.values())
    trained = sum(count for name, count in tensors.items() if "visual" not in name)
    one, student = 4 * parameters + 8 * trained, 4 * parameters

    def free(size):
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": size})())
        return found("output folder", given).status

    assert free(one + student - 1) == "FAIL"
    assert free(4 * one + student - 1) == "WARN"
    assert free(4 * one + student) == "PASS"
