"""Do teacher, student and processors speak one language? Tokens, stops, chat template, placeholders and patches."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ..errors import ConfigError
from ..roles import check_geometries, check_templates, check_vocabularies, eos_ids, tokenizer_of
from .finding import Check, Finding, judged, skipped
from .wiring import Wiring

MARK = "MARK"
"""What question and answer say in a conversation that is written to see what the template puts around them."""


def vocabularies(wiring: Wiring) -> Finding:
    """Token ids mean the same to all."""
    if problem := _disagreement(wiring, check_vocabularies):
        return judged(problem, "the student's tokens", fail=True, fix="take a teacher of the student's family")
    return judged(f"{len(wiring.tokenizer)} tokens, the same for {_listed(wiring)}", "one vocabulary")


def lm_heads(wiring: Wiring) -> Finding:
    """Every token has a row; rows beyond them only pad, and are left out of every softmax."""
    tokens = len(wiring.tokenizer)
    rows = {role: config.get_text_config().vocab_size for role, config in wiring.model_configs.items()}
    figure = ", ".join(f"{role} {count} rows, {max(count - tokens, 0)} of them padding" for role, count in rows.items())
    fix = "the checkpoint and its tokenizer are not of one model: fetch both again"
    return judged(figure, f"at least {tokens} rows", fail=min(rows.values()) < tokens, fix=fix)


def stop_tokens(wiring: Wiring) -> Finding:
    """A response ends where the chat template ends a turn, and at no token that is a word."""
    tokenizer, stops = wiring.tokenizer, _stops(wiring)
    end = _end_of_turn(wiring.processor)
    words = {role: [i for i in ids if i not in tokenizer.added_tokens_decoder] for role, ids in stops.items()}
    listed = ", ".join(f"{role} stops at {_named(tokenizer, ids)}" for role, ids in stops.items())
    figure = f"{listed}; a turn ends with {_named(tokenizer, [end] if end is not None else [])}"
    expected = "the token that ends a turn among the stops, no ordinary token, the same stops for all"
    if end is not None and end not in stops["student"]:
        fix = f"add {end} to eos_token_id in the student's generation_config.json: its responses would not end"
        return judged(figure, expected, fail=True, fix=fix)
    if ordinary := [(role, ids) for role, ids in words.items() if ids]:
        role, ids = ordinary[0]
        fix = f"take {', '.join(map(str, ids))} out of eos_token_id in the {role}'s generation_config.json"
        return judged(figure, expected, fail=True, fix=fix)
    if tokenizer.pad_token_id is None:
        return judged("the tokenizer has no pad token", "one", fail=True, fix="set pad_token in tokenizer_config.json")
    different = len(set(map(tuple, stops.values()))) > 1 and not wiring.method.merge_stops
    fix = "stops that differ make responses longer: method.merge_stops of dopd_plus counts them as one token"
    return judged(figure, expected, warn=different, fix=fix)


def chat_templates(wiring: Wiring) -> Finding:
    """One template, and prompts end where the assistant begins."""
    if any(processor.chat_template is None for processor in wiring.processors.values()):
        return judged("a processor without one", "a chat template", fail=True, fix="put chat_template.jinja beside it")
    if problem := _disagreement(wiring, check_templates):
        fix = "take instruct models of one generation, or copy the student's chat_template.jinja to the teacher"
        return judged(problem, "one template", fail=True, fix=fix)
    asked, open_, whole = (_written(wiring.processor, *how) for how in ((1, False), (1, True), (2, False)))
    header = open_.removeprefix(asked).split("\n")[0]
    figure = f"prompts end in {open_[-40:]!r}"
    wrong = not open_.startswith(asked) or not header or not whole.startswith(asked + header)
    fix = "the template ignores add_generation_prompt, or opens another turn than it writes: take the model's own"
    return judged(figure, "the assistant's header, as in a whole conversation", fail=wrong, fix=fix)


def image_tokens(wiring: Wiring) -> Finding:
    """The placeholders that the processor writes are those that the models replace."""
    if not wiring.collator.encoder.sees:
        return skipped("the pair is text-only")
    processor = wiring.processor
    written = tokenizer_of(processor).convert_tokens_to_ids(processor.image_token)
    known = {role: getattr(config, "image_token_id", None) for role, config in wiring.model_configs.items()}
    figure = f"the processor writes {processor.image_token} = {written}, " + ", ".join(
        f"{role} looks for {number}" for role, number in known.items()
    )
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": MARK}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    places = text.count(processor.image_token)
    if places != 2:
        fix = "a model that is not shown its images trains blind: take the model's own chat template"
        return judged(f"the template writes {places} placeholders for 2 images", "one an image", fail=True, fix=fix)
    wrong = any(number != written for number in (processor.image_token_id, *known.values()))
    fix = "set image_token_id in config.json to the tokenizer's; else features of images replace other tokens, or none"
    return judged(figure, "one id", fail=wrong, fix=fix)


def image_geometry(wiring: Wiring) -> Finding:
    """Both processors cut an image into the same patches, of the size that the towers take."""
    if not wiring.collator.encoder.sees:
        return skipped("the pair is text-only")
    if problem := _disagreement(wiring, check_geometries):
        return judged(problem, "one geometry", fail=True, fix="copy the student's image processor to the teacher")
    images = wiring.processor.image_processor
    given = (images.patch_size, images.merge_size, images.temporal_patch_size)
    names = ("patch_size", "spatial_merge_size", "temporal_patch_size")
    wanted = {role: _numbers(config.vision_config, names) for role, config in wiring.model_configs.items()}
    figure = f"patch, merge, frames {given}; " + ", ".join(f"{role} {numbers}" for role, numbers in wanted.items())
    fix = "the processor is of another model: copy the checkpoint's own processor files"
    return judged(figure, "the towers' numbers", fail=any(n != given for n in wanted.values()), fix=fix)


def _disagreement(wiring: Wiring, check: Callable[[Any, Any], None]) -> str:
    """What a check of `roles` says of the student and another model; nothing if all agree."""
    for role, processor in wiring.processors.items():
        try:
            check(wiring.processor, processor)
        except ConfigError as error:
            return f"{role}: {error}"
    return ""


def _listed(wiring: Wiring) -> str:
    return " and ".join(wiring.paths)


def _stops(wiring: Wiring) -> dict[str, list[int]]:
    found = {}
    for role, processor in wiring.processors.items():
        model = SimpleNamespace(generation_config=wiring.generation_configs[role])
        found[role] = eos_ids(model, tokenizer_of(processor))
    return found


def _end_of_turn(processor: Any) -> int | None:
    """The token that the template writes after an assistant's words; None where it writes none."""
    after = _written(processor, 2, False).rpartition(MARK)[2]
    ids = tokenizer_of(processor)(after, add_special_tokens=False)["input_ids"]
    return ids[0] if ids else None


def _written(processor: Any, turns: int, generation: bool) -> str:
    """A conversation of `turns` turns, each of which says MARK."""
    sees = hasattr(processor, "image_processor")
    content: Any = [{"type": "text", "text": MARK}] if sees else MARK
    messages = [{"role": role, "content": content} for role in ("user", "assistant")[:turns]]
    options = {} if sees else {"enable_thinking": False}
    return processor.apply_chat_template(messages, add_generation_prompt=generation, tokenize=False, **options)


def _named(tokenizer: Any, ids: list[int]) -> str:
    return " and ".join(f"{i} {tokenizer.convert_ids_to_tokens(i)}" for i in ids) or "nothing"


def _numbers(config: Any, names: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(getattr(config, name) for name in names)


CHECKS = (
    Check("vocabularies", "cheap", vocabularies),
    Check("LM heads", "cheap", lm_heads),
    Check("stop tokens", "cheap", stop_tokens),
    Check("chat templates", "cheap", chat_templates),
    Check("image tokens", "cheap", image_tokens),
    Check("image geometry", "cheap", image_geometry),
)
