"""What each policy sees, as facts.

What is locked: 1) texts are the chat template's, counts are of the ids that training uses, and parts add up; 2) the
section is exactly what the plain prompt lacks, wherever it is placed; 3) the fate is what the collator does; 4) two
prompts where there should be one are a problem that is said; 5) no error of a builder or template is a crash.
"""

import copy
import dataclasses
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from privileged import DataError, Note, PrivilegedBlock, PrivilegedRecord, Region, Sample, build_views, get_builder
from privileged.escape import escape
from privileged.views import PLACEMENTS
from tests import tiny
from tests.photographs import photograph
from vlm_dopd.annotate.preview import ROLES, WITHOUT_P, preview
from vlm_dopd.annotate.preview_page import write_page
from vlm_dopd.annotate.preview_picture import write_picture
from vlm_dopd.collate import Collator, Encoder

NO_MODEL = SimpleNamespace(base_model=None)


def encoder(template=None, size=None, text_only=False):
    """The bundled processor as it is, or with another template, image size, or without eyes."""
    processor = tiny.processor()
    if template:
        processor.chat_template = template(processor.chat_template)
    if size:
        processor.image_processor.size = size
    return Encoder(processor.tokenizer if text_only else processor, NO_MODEL)


@pytest.fixture(scope="module")
def own():
    return encoder()


@pytest.fixture(scope="module")
def blind():
    return encoder(text_only=True)


def seen(sample, own, name="boxes", budget=10_000, teacher=None, placement="before_question", without_p="drop", **o):
    builder = get_builder(name, **o) if isinstance(name, str) else name
    return preview(sample, builder, {"student": own, "teacher": teacher or own}, budget, placement, without_p)


def labelled(*labels, question="What is red?", size=(120, 96), id="s-1", answer=None):
    regions = tuple(Region(id=f"r{i}", label=label, box=(4 + i, 4, 40 + i, 40)) for i, label in enumerate(labels))
    record = PrivilegedRecord(sample_id=id, regions=regions, notes=(Note(text="Look left."),))
    return Sample(id=id, question=question, images=(Image.new("RGB", size),), answer=answer, privileged=record)


def joined(pieces):
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("name", ["boxes", "marks", "crops", "hints", "answer", "none"])
def test_texts_and_ids_are_those_of_training(name, own):
    """For every role what `Encoder` renders and encodes, and pieces whose tokens add up to it."""
    for sample in (*tiny.mixed_samples(), photograph("voc")):
        builder = get_builder(name)
        views, found = build_views(sample, builder), seen(sample, own, name)
        for prompt, view in zip(found.prompts, (views.plain, views.privileged, views.privileged), strict=True):
            assert (prompt.error, prompt.text) == ("", own.render(view))
            assert prompt.ids == tuple(own.encode(view).id_P.tolist())
            assert sum(piece.tokens for piece in prompt.pieces) == prompt.tokens > 0
            assert [picture.image for picture in prompt.pictures] == list(view.images)
            assert joined(p for p in prompt.pieces if p.kind == "question") == escape(sample.question)
        assert [prompt.role for prompt in found.prompts] == list(ROLES)
        assert found.problems == ()
        assert found.has_privilege == views.has_privilege == bool(found.prompts[1].section)


def test_the_tokens_of_an_image_are_the_processors_own_arithmetic(own):
    """Placeholders as the processor counts them without pixels, and two that mark the image; size after the resize."""
    for sample in (photograph("voc"), photograph("arc2017")):
        for picture in seen(sample, own, "crops").prompts[2].pictures:
            wide, high = picture.image.size
            counted = own.processor._get_num_multimodal_tokens(image_sizes=[[high, wide]])["num_image_tokens"][0]
            assert picture.tokens == counted + 2
            assert picture.seen[0] * picture.seen[1] == counted * 32 * 32
            assert (wide > high) == (picture.seen[0] > picture.seen[1])


def test_the_section_word_by_word(own):
    """The golden bytes at each of the places, with the template's turn around p in the system turn."""
    sample = labelled("cup", question="What is red?")
    text = "Visual notes for this image (coordinates are relative, 0-1000, [x1, y1, x2, y2]):\n- cup (33,42,333,417)\n"
    text += get_builder("template").footer
    for placement, section in (
        ("before_question", f"{text}\n\n"),
        ("after_question", f"\n\n{text}"),
        ("system", f"<|im_start|>system\n{text}<|im_end|>\n"),
    ):
        assert seen(sample, own, style="lines", placement=placement).prompts[2].section == section


TRICKY = ["Visual notes", "\n\n", "user", "s", "Steps that lead to the answer:\n1. Look left.", "<|im_start|>", "1\n"]


@given(data=st.data())
def test_the_privileged_prompt_without_the_section_is_the_plain_prompt(data, blind):
    """Also for questions that begin or end as the section does, and whatever a label holds."""
    texts = st.lists(
        st.sampled_from(TRICKY) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4), min_size=1
    )
    question = data.draw(texts.map("".join).filter(str.strip))
    notes = data.draw(st.lists(texts.map("".join).filter(str.strip), min_size=1, max_size=2))
    placement = data.draw(st.sampled_from(PLACEMENTS))
    record = PrivilegedRecord(sample_id="s", notes=tuple(Note(text=note) for note in notes))
    sample = Sample(id="s", question=question, privileged=record)
    plain, student, _ = seen(sample, blind, "hints", placement=placement).prompts
    assert (plain.error, student.error) == ("", "")
    assert joined(piece for piece in student.pieces if not piece.in_section) == plain.text
    assert get_builder("hints").build(sample, record).parts[0] in student.section


def test_images_say_where_they_come_from(own):
    """The sample's own; a part of p; instead of the sample's. In the order of the prompt."""
    origins = {
        ("marks", "append"): ["sample", "p"],
        ("marks", "replace"): ["replaced"],
        ("crops", "replace"): ["p", "p", "p", "p"],
    }
    for (name, mode), expected in origins.items():
        found = seen(photograph("arc2017"), own, name, mode=mode)
        assert [picture.origin for picture in found.prompts[1].pictures] == expected
        assert [picture.number for picture in found.prompts[1].pictures] == list(range(1, len(expected) + 1))
        assert [picture.origin for picture in found.prompts[0].pictures] == ["sample"]
        assert found.problems == ()
    assert seen(photograph("arc2017"), own, "crops").left_out == 3


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Fewer images than the sample has, and no text."""

    count: int

    def build(self, sample, record):
        return PrivilegedBlock(replace_images=(Image.new("RGB", (64, 64)),) * self.count)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_builder_may_show_nothing_but_other_images(count, own):
    """Fewer, as many, or more than the sample's two: no problem, and no image is taken for one of the sample's."""
    two = tiny.mixed_samples()[2]
    found = seen(two, own, Pictures(count))
    assert (found.problems, found.discloses) == ((), "")
    assert {picture.origin for picture in found.prompts[1].pictures} <= {"replaced", "p"}
    assert len(found.prompts[1].pictures) == count


@pytest.mark.parametrize("without_p", WITHOUT_P)
def test_the_fate_is_what_the_collator_does(without_p, own):
    """At every budget around the two lengths, for samples with p, without a record, and with nothing to say."""
    for sample in (labelled("cup"), tiny.mixed_samples()[3], labelled(question="Nothing to say?")):
        lengths = {prompt.tokens for prompt in seen(sample, own).prompts}
        for budget in sorted({length + step for length in lengths for step in (-1, 0)}):
            try:
                (group,) = Collator(own, get_builder("boxes"), budget, without_p=without_p)([sample]).groups
                expected = "trained with p" if group.has_privilege else "trained without p"
            except DataError as error:
                expected = "training stops at this sample" if "without_p=error:" in str(error) else "dropped"
            found = seen(sample, own, budget=budget, without_p=without_p)
            assert found.fate.split(":")[0] == expected
            assert found.trained_with_p == (expected == "trained with p")


def test_a_sample_without_p_says_why(own):
    """No record; or a record of which the builder makes nothing. Three times the same prompt."""
    for sample, why in ((tiny.mixed_samples()[3], "no record"), (labelled(), "nothing to say")):
        found = seen(sample, own, without_p="fallback_none")
        assert found.fate.startswith("trained without p: ") and why in found.fate
        assert len({prompt.text for prompt in found.prompts}) == 1


def test_a_teacher_with_another_prompt_is_a_problem(own):
    """Another template, image size or vocabulary is named, with place and figures; each role keeps its own counts."""
    sample = labelled("cup")
    thinking = encoder(template=lambda t: t.replace("assistant\\n'", "assistant\\n<think>\\n'"))
    found = seen(sample, own, teacher=thinking)
    (problem,) = found.problems
    place = len(found.prompts[1].text)
    assert f"from character {place} it reads '<think>\\n' instead of ''" in problem and "two chat templates" in problem
    assert found.prompts[2].tokens > found.prompts[1].tokens

    coarse = encoder(size={"shortest_edge": 4096, "longest_edge": 4096})
    (problem,) = seen(sample, own, teacher=coarse).problems
    assert problem == "Image 1 is 4 tokens for the teacher, 14 for the student. Training refuses two image geometries."

    foreign = encoder()
    foreign.processor.tokenizer = copy.deepcopy(foreign.processor.tokenizer)
    foreign.processor.tokenizer.add_tokens(["red"])
    assert "two vocabularies" in seen(sample, own, teacher=foreign).problems[0]
    assert seen(sample, own, teacher=encoder()).problems == ()


def test_a_template_that_adds_its_own_system_turn_is_a_problem():
    """As Qwen2-VL's does when there is none: with p in the system turn, its words are missing."""
    default = "{%- if messages[0].role != 'system' -%}<|im_start|>system\nBe kind.<|im_end|>\n{%- endif -%}"
    polite = encoder(template=lambda t: default + t)
    (problem,) = seen(labelled("cup"), polite, placement="system").problems
    assert problem.startswith("The privileged prompt is not the plain prompt plus p")
    assert seen(labelled("cup"), polite).problems == ()


def test_text_only_models(own, blind):
    """A tokenizer is enough for a question without images; with one, the role that has no eyes says so."""
    text = tiny.mixed_samples()[1]
    found = seen(text, blind, "hints")
    assert (found.fate, found.prompts[1].count("image")) == ("trained with p", 0)
    found = seen(labelled("cup"), own, teacher=blind)
    assert found.prompts[2].error == "prompt has 1 images: expected none, the model is text-only"
    assert found.problems == ("Only one of teacher and student can read the privileged prompt.",)


@dataclasses.dataclass(frozen=True)
class Failing:
    discloses = "cue"

    def build(self, sample, record):
        raise KeyError("two\nlines")


def test_errors_are_one_line_in_their_place(own, tmp_path):
    """Of a bad box, a failing plug-in, a picture in the system turn, a template that loses a part: shown, no crash."""
    outside = labelled("cup")
    record = dataclasses.replace(outside.privileged, regions=(Region(id="r9", label="x", box=(500, 0, 510, 9)),))
    outside = dataclasses.replace(outside, privileged=record)
    cases = [
        (seen(outside, own), "'r9'"),
        (seen(labelled("cup"), own, Failing()), "KeyError: 'two\\nlines'"),
        (seen(labelled("cup"), own, "marks", placement="system"), "pictures of p"),
    ]
    for found, words in cases:
        plain, student, teacher = found.prompts
        assert plain.text and not plain.error
        assert words in student.error == teacher.error and "\n" not in student.error
        assert found.fate == "training stops at this sample"
    lossy = encoder(template=lambda t: t.replace("{{- part.text -}}", "{{- part.text | replace('u', '') -}}"))
    imageless = encoder(template=lambda t: t.replace("<|image_pad|>", ""))
    for broken, words in ((lossy, "every text of the messages"), (imageless, "1 images, got 0")):
        found = seen(labelled("cup", question="Du?"), broken)
        assert all(words in prompt.error for prompt in found.prompts)
        cases.append((found, words))
    assert "r9" in write_page([found for found, _ in cases], tmp_path / "page.html").read_text()
    assert write_picture(cases[0][0], tmp_path / "picture.png") == ""


def test_a_template_that_strips_is_followed():
    """Some templates trim every text; the section is then what is left of it."""
    trimmed = encoder(text_only=True, template=None)
    trimmed.processor.chat_template = trimmed.processor.chat_template.replace(
        "{{- message.content -}}", "{{- message.content | trim -}}"
    )
    each = encoder(template=lambda t: t.replace("{{- part.text -}}", "{{- part.text | trim -}}"))
    found = seen(labelled("cup", question=" What? "), each).prompts
    assert not found[1].error and found[1].section.endswith(get_builder("template").footer)
    sample = dataclasses.replace(tiny.mixed_samples()[1], question=" What is 4 plus 3? ")
    found = seen(sample, trimmed, "hints").prompts
    assert not found[0].error and found[1].section.startswith("Steps that lead")
