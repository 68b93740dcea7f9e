"""HFModel on the committed student: a real Qwen3-VL with a real processor, and a text model with its tokenizer."""

import copy
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen3Config, Qwen3ForCausalLM

from evals import Item, evaluate
from evals.decoded import Video
from evals.model import HFModel

STUDENT = Path(__file__).parent.parent / "assets" / "student"

# As text-only Qwen3: content is a string, and thinking has to be switched off.
TEXT_TEMPLATE = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}
"""


@pytest.fixture(scope="module")
def student():
    torch.set_num_threads(1)
    return AutoModelForImageTextToText.from_pretrained(STUDENT).float(), AutoProcessor.from_pretrained(STUDENT)


@pytest.fixture(scope="module")
def text_model(student):
    tokenizer = AutoProcessor.from_pretrained(STUDENT).tokenizer
    tokenizer.chat_template = TEXT_TEMPLATE
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config), tokenizer


def item(number, sizes, text):
    """A question with images of noise, drawn from the item's own seed."""
    rng = np.random.default_rng(number)
    images = tuple(Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes)
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": text}]
    return Item(id=f"q{number}", messages=({"role": "user", "content": content},), images=images, answer="7")


MIXED = [
    item(0, [(96, 96)], "How many?"),
    item(1, [], "2 + 3"),
    item(2, [(64, 128), (96, 64)], "Which of the two pictures is larger, and by how much?"),
    item(3, [], "Compute 12 + 30, and end with a line of the form Answer: 42"),
    item(4, [(96, 96)], "What colour is the ball?"),
    item(5, [], "4"),
]
TEXT = [one for one in MIXED if not one.images]


def answers(model, processor, items, batch_size, tokens=12):
    return HFModel(model, processor, max_new_tokens=tokens, batch_size=batch_size).generate(items)


@pytest.mark.parametrize("batch_size", [2, 4, 6])
def test_a_batch_of_images_and_text_answers_as_one_by_one(student, batch_size):
    alone = [answers(*student, [one], 1)[0] for one in MIXED]
    assert answers(*student, MIXED, batch_size) == alone
    assert answers(*student, MIXED[::-1], batch_size) == alone[::-1]


def test_replies_are_those_of_a_plain_greedy_loop(student):
    model, processor = student
    one = MIXED[0]
    prompt = processor.apply_chat_template([dict(m) for m in one.messages], tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[prompt], images=list(one.images), return_tensors="pt")
    start = inputs["input_ids"].shape[1]
    for _ in range(12):
        with torch.no_grad():
            token = model.eval()(**inputs, use_cache=False).logits[:, -1:].argmax(-1)
        if token.item() in (processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id):
            break
        inputs["input_ids"] = torch.cat([inputs["input_ids"], token], dim=1)
        for key in ("attention_mask", "mm_token_type_ids"):
            inputs[key] = torch.cat([inputs[key], torch.full_like(token, int(key == "attention_mask"))], dim=1)
    expected = processor.tokenizer.decode(inputs["input_ids"][0, start:], skip_special_tokens=True)
    assert answers(*student, [one], 1)[0].text == expected


def test_pixels_reach_the_model(student):
    """Blind and seeing models alike write text; this one must be fed the picture it was given."""
    model, processor = student
    seen = []
    hook = model.model.visual.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    try:
        answers(model, processor, [MIXED[0], MIXED[4]], 1, tokens=1)
        answers(model, processor, TEXT, 2, tokens=1)
    finally:
        hook.remove()
    assert len(seen) == 2 and not torch.equal(*seen)


def test_a_text_model_takes_joined_text_and_does_not_think(text_model):
    alone = [answers(*text_model, [one], 1)[0] for one in TEXT]
    assert answers(*text_model, TEXT, 3) == alone
    assert len(set(alone)) > 1
    prompt = HFModel(*text_model, max_new_tokens=1, batch_size=1)._prompt(TEXT[0])
    assert prompt == "<|im_start|>user\n2 + 3<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    plain = Item(id="s", messages=({"role": "user", "content": "2 + 3"},), answer="5")
    assert answers(*text_model, [plain], 1)[0] == alone[0]


def test_a_text_model_refuses_images(text_model):
    with pytest.raises(ValueError, match="item 'q0' has images, but the model has only a tokenizer"):
        answers(*text_model, MIXED[:2], 2)


class Scripted(torch.nn.Module):
    """Writes the given rows whatever it is asked: the end of a reply is ours to find, not the model's."""

    def __init__(self, rows, eos):
        super().__init__()
        self.rows, self.device = rows, torch.device("cpu")
        self.generation_config = type("Config", (), {"eos_token_id": eos})

    def generate(self, input_ids, **_):
        self.asked = input_ids.tolist()
        return torch.cat([input_ids, torch.tensor(self.rows)], dim=1)


@pytest.mark.parametrize("listed", [True, False], ids=["ends of the checkpoint", "end of the tokenizer alone"])
def test_truncated_means_no_end_token(text_model, listed):
    tokenizer = text_model[1]
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    word = tokenizer("7", add_special_tokens=False)["input_ids"][0]
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    rows = [[word, end, word, pad], [word, word, word, word], [end, pad, pad, pad], [image, word, word, end]]
    model = Scripted(rows, [end, pad] if listed else None)
    # Equal lengths: the order of the script is the order of the items.
    items = [item(n, [], "2 + 3") for n in range(4)]
    replies = answers(model, tokenizer, items, 4, tokens=4)
    assert [(reply.text, reply.truncated) for reply in replies] == [
        ("7", False),
        ("7777", True),
        ("", False),
        ("77", False),
    ]


def test_the_template_alone_writes_special_tokens(text_model):
    tokenizer = copy.deepcopy(text_model[1])
    start = ("<|endoftext|>", tokenizer.pad_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{start[0]} $A", special_tokens=[start])
    assert tokenizer("7")["input_ids"][0] == tokenizer.pad_token_id  # as tokenizers with a start token do
    model = Scripted([[tokenizer.eos_token_id]], None)
    answers(model, tokenizer, [item(0, [], "2 + 3")], 1)
    assert tokenizer.decode(model.asked[0]).startswith("<|im_start|>user")


def test_everything_is_left_as_it_was(student):
    model, processor = student
    processor.tokenizer.padding_side = "right"
    model.train()
    model.model.visual.eval()  # as a frozen tower would be
    modes = [module.training for module in model.modules()]
    messages = repr(MIXED[0].messages)
    torch.manual_seed(3), np.random.seed(3), random.seed(3)  # noqa: NPY002 - the global states are the point
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    replies = answers(model, processor, MIXED, 4)
    assert [module.training for module in model.modules()] == modes
    assert processor.tokenizer.padding_side == "right"
    assert repr(MIXED[0].messages) == messages
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert states[2] == random.getstate()
    model.eval()
    assert replies == answers(model, processor, MIXED, 4)  # no dropout, although it was training


def test_the_mode_comes_back_after_a_failure(student):
    model, processor = student
    model.train()
    with pytest.raises(ValueError):
        HFModel(model, processor.tokenizer, max_new_tokens=4, batch_size=2).generate(MIXED)
    handle = model.register_forward_pre_hook(lambda *_: 1 / 0)
    try:
        with pytest.raises(ZeroDivisionError):
            answers(model, processor, MIXED, 4)
    finally:
        handle.remove()
    assert all(module.training for module in model.modules())
    model.eval()


def test_sampling_settings_of_the_checkpoint_are_ignored(student, caplog):
    model, processor = student
    expected = answers(model, processor, MIXED, 6)
    before = model.generation_config.to_dict()
    model.generation_config.update(do_sample=True, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=5.0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert answers(model, processor, MIXED, 6) == expected
    finally:
        model.generation_config.update(**before)
    assert caplog.text == ""


def test_nothing_asked_nothing_answered(student):
    assert answers(*student, [], 4) == []


@pytest.mark.parametrize("field", ["max_new_tokens", "batch_size"])
def test_sizes_below_one_are_refused(field):
    with pytest.raises(ValueError, match=f"{field}: expected at least 1, got 0"):
        HFModel(None, None, **{"max_new_tokens": 1, "batch_size": 1, field: 0})


def test_a_run_from_pixels_to_file(student, tmp_path):
    out = tmp_path / "run.jsonl"
    model = HFModel(*student, max_new_tokens=8, batch_size=4)
    first = evaluate(model, MIXED, out, run="student")
    content = out.read_bytes()
    out.write_bytes(content[: len(content) * 2 // 3])
    assert evaluate(model, MIXED, out, run="student") == first
    assert out.read_bytes() == content


def film(number, count, fps=10.0):
    """A question about `count` frames of noise, a second apart."""
    rng = np.random.default_rng(number)
    frames = tuple(Image.fromarray(rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)) for _ in range(count))
    content = [{"type": "video"}, {"type": "text", "text": "How many balls?"}]
    video = Video(frames, tuple(float(second) for second in range(count)), fps)
    return Item(id=f"v{number}", messages=({"role": "user", "content": content},), videos=(video,), answer="7")


def test_frames_of_a_video_reach_the_model_with_their_times(student):
    model, processor = student
    films = [film(0, 4), film(1, 3), film(2, 1)]
    seen, prompts = [], []
    hooks = [
        model.model.visual.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["grid_thw"].tolist()), with_kwargs=True
        ),
        model.register_forward_pre_hook(lambda _, args, kwargs: prompts.append(kwargs["input_ids"]), with_kwargs=True),
    ]
    try:
        alone = [answers(model, processor, [one], 1, tokens=4)[0] for one in films]
    finally:
        for hook in hooks:
            hook.remove()
    # Two frames make one patch in time; an odd last frame, or a single one, is doubled.
    assert [grid[0][0] for grid in seen] == [2, 2, 1]
    texts = [processor.tokenizer.decode(ids[0]) for ids in prompts if ids.shape[1] > 1]
    for text, times in zip(texts, ((0.5, 2.5), (0.5, 2.0), (0.0,)), strict=True):
        assert [f"<{time:.1f} seconds>" in text for time in times] == [True] * len(times)
        assert text.count("seconds>") == len(times)
    assert answers(model, processor, [films[0], MIXED[0], films[1], MIXED[1]], 4, tokens=4)[::2] == alone[:2]
