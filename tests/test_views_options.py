"""Where the section stands, what becomes of samples without p, and the columns of other toolkits.

What is locked: 1) at every placement the privileged prompt is the plain one plus the section, after the real template;
2) a picture never goes to a system turn; 3) each policy for samples without p, or with too much of it, does what its
name says and is counted; 4) columns of other toolkits arrive in the privileged prompt and nowhere else; 5) a record of
another sample, or for images of another number or size, is refused.
"""

import json
import logging

import pytest
from PIL import Image

from privileged import DataError, Note, PrivilegedRecord, Region, Sample, build_views, get_builder
from privileged.records import SCHEMA, ImageRef
from privileged.rows import to_sample
from privileged.views import PLACEMENTS, SEPARATOR
from vlm_dopd.collate import Collator, Encoder

from . import tiny

ANSWERING = "<|im_end|>\n<|im_start|>assistant\n"


class Flat:
    """A model without M-RoPE, as far as Encoder asks."""

    base_model = None


@pytest.fixture(scope="module")
def encoder():
    return Encoder(tiny.processor(), Flat())


def sample(regions=2, images=1, **fields):
    boxes = tuple(Region(id=f"r{i}", label="cup", box=(8 * i, 8, 8 * i + 9, 40)) for i in range(regions))
    record = PrivilegedRecord(sample_id="s", regions=boxes, notes=(Note(text="Look left."),))
    pictures = tuple(Image.new("RGB", (96, 64), (90 * i, 0, 0)) for i in range(images))
    return Sample(**{"id": "s", "question": "Which?", "images": pictures, "privileged": record} | fields)


@pytest.mark.parametrize("images", [0, 2])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_placement_is_plain_plus_section(encoder, placement, images):
    """Removing the section from the rendered prompt gives the plain one, and both end where the assistant begins."""
    full = sample(images=images, regions=2 if images else 0)
    builder = get_builder("boxes" if images else "hints")
    views = build_views(full, builder, placement)
    plain, privileged = encoder.render(views.plain), encoder.render(views.privileged)
    (block,) = builder.build(full, full.privileged).parts
    section = {
        "before_question": block + SEPARATOR,
        "after_question": SEPARATOR + block,
        "system": f"<|im_start|>system\n{block}<|im_end|>\n",
    }[placement]
    assert privileged.count(section) == 1
    assert privileged.replace(section, "") == plain
    assert privileged.endswith(ANSWERING) and plain.endswith("Which?" + ANSWERING)
    assert views.privileged.images == views.plain.images


def test_after_the_question_images_and_question_are_a_shared_prefix(encoder):
    """So that their keys and values could be computed once."""
    views = build_views(sample(), get_builder("boxes"), "after_question")
    plain, privileged = encoder.render(views.plain), encoder.render(views.privileged)
    assert privileged.startswith(plain.removesuffix(ANSWERING))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_pictures_of_p_stay_out_of_the_system_turn(placement):
    """Qwen3-VL's template would drop them there while their pixels are still encoded."""
    if placement == "system":
        with pytest.raises(DataError, match=r"'s'.*system.*pictures of p \(1\)"):
            build_views(sample(), get_builder("crops"), placement)
        return
    view = build_views(sample(), get_builder("crops"), placement).privileged
    kinds = [part["type"] for part in view.messages[0]["content"]]
    assert kinds.count("image") == len(view.images) == 2


def test_a_placement_that_does_not_exist_is_named():
    with pytest.raises(DataError, match=r"placement: expected one of before_question.*got 'middle'"):
        build_views(sample(), get_builder("boxes"), "middle")


def test_what_a_limit_leaves_out_is_counted(encoder):
    """In the views and in the batch."""
    builder = get_builder("boxes", max_regions=2)
    assert build_views(sample(regions=5), builder).left_out == 3
    batch = Collator(encoder, builder, 4096)([sample(regions=5), sample(id="s", regions=3)])
    assert (batch.left_out, batch.dropped, batch.without_privilege) == (4, 0, 0)


NONE = PrivilegedRecord(sample_id="s")


def test_fallback_none_trains_without_p_and_the_batch_says_so(encoder, caplog):
    """No regions, no record, and p over budget: the privileged prompt is the plain one."""
    few = encoder.encode(build_views(sample(), get_builder("none")).plain).id_P.numel()
    samples = [sample(), sample(privileged=NONE), sample(privileged=None), sample(regions=9)]
    budget = encoder.encode(build_views(samples[0], get_builder("boxes")).privileged).id_P.numel()
    assert few < budget
    with caplog.at_level(logging.WARNING):
        batch = Collator(encoder, get_builder("boxes"), budget)(samples)
    assert [group.has_privilege for group in batch.groups] == [True, False, False, False]
    assert (batch.without_privilege, batch.dropped) == (3, 0)
    for group in batch.groups[1:]:
        assert group.privileged is group.plain
    assert caplog.text.count("trained without p") == 1, "only what was lost is worth a line"


def test_drop_leaves_them_out(encoder):
    collate = Collator(encoder, get_builder("boxes"), 4096, without_p="drop")
    batch = collate([sample(), sample(privileged=NONE), sample(privileged=None)])
    assert (len(batch.groups), batch.dropped, batch.without_privilege) == (1, 2, 0)
    with pytest.raises(DataError, match=r"nothing is left to train on.*without_p=drop"):
        collate([sample(privileged=None)])


@pytest.mark.parametrize("lacking", [NONE, None])
def test_error_ends_the_run_with_the_sample_named(encoder, lacking):
    collate = Collator(encoder, get_builder("boxes"), 4096, without_p="error")
    with pytest.raises(DataError, match=r"sample s: data\.without_p=error: it has no p"):
        collate([sample(), sample(privileged=lacking)])


def png(folder, name, colour, size=(96, 64)):
    Image.new("RGB", size, colour).save(folder / name)
    return name


def shown(view):
    return "".join(part["text"] for part in view.messages[0]["content"] if part["type"] == "text")


@pytest.mark.parametrize(
    "value",
    [
        "Which?\n\nHint: look left.",
        "Hint: look left.\n\nWhich?",
        [{"role": "user", "content": "Hint: look left.\n\nWhich?"}],
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?\n\nHint: look left."}]}],
    ],
)
def test_teacher_prompt_gives_its_text_without_the_question(tmp_path, value):
    """As text or as messages; the question appears once, at the end."""
    full = to_sample({"question": "Which?", "teacher_prompt": value}, "a", tmp_path)
    views = build_views(full, get_builder("column"))
    assert shown(views.privileged) == "Hint: look left.\n\nWhich?"
    assert shown(views.plain) == "Which?"


def test_teacher_images_take_the_place_of_the_samples_own(tmp_path):
    """Vision-OPD: the teacher sees the crop. The plain view keeps its image; `mode: append` shows both."""
    names = {
        "images": [png(tmp_path, "full.png", "red")],
        "teacher_images": [png(tmp_path, "crop.png", "blue", (40, 30))],
    }
    full = to_sample({"question": "Which?", **names}, "a", tmp_path)
    replaced, appended = (build_views(full, get_builder("column", mode=mode)) for mode in ("replace", "append"))
    assert [image.size for image in replaced.privileged.images] == [(40, 30)]
    assert [image.size for image in appended.privileged.images] == [(96, 64), (40, 30)]
    assert replaced.plain == appended.plain
    assert [image.size for image in replaced.plain.images] == [(96, 64)]
    assert replaced.has_privilege


def test_text_and_pictures_of_other_toolkits_together(tmp_path):
    row = {
        "question": "Which?",
        "privileged_context": "Look left. <|im_end|>",
        "image": png(tmp_path, "full.png", "red"),
    }
    row["bbox_images"] = [png(tmp_path, "drawn.png", "green", (50, 50))]
    full = to_sample(row, "a", tmp_path)
    view = build_views(full, get_builder("column")).privileged
    assert [image.size for image in view.images] == [(50, 50)]
    assert shown(view) == "Look left. < |im_end|>\n\nWhich?"
    row["teacher_images"] = row["bbox_images"]
    with pytest.raises(
        DataError, match=r"expected one column, got teacher_images, bbox_images; set the option 'images'"
    ):
        build_views(to_sample(row, "a", tmp_path), get_builder("column"))
    chosen = build_views(to_sample(row, "a", tmp_path), get_builder("column", images="teacher_images"))
    assert [image.size for image in chosen.privileged.images] == [(50, 50)]


@pytest.mark.parametrize("value", [5, {"role": "user"}, [5], [{"role": "user"}], [{"content": 7}]])
def test_a_teacher_prompt_of_another_form_is_named(tmp_path, value):
    with pytest.raises(DataError, match=r"teacher_prompt: expected text or chat messages"):
        to_sample({"question": "Which?", "teacher_prompt": value}, "a", tmp_path)


def test_an_image_and_images_cannot_both_be_meant(tmp_path):
    name = png(tmp_path, "full.png", "red")
    assert to_sample({"question": "Which?", "image": name}, "a", tmp_path).images[0].size == (96, 64)
    with pytest.raises(DataError, match=r"'image' or 'images', got both"):
        to_sample({"question": "Which?", "image": name, "images": [name]}, "a", tmp_path)


def test_ids_are_those_of_row_then_record_then_place(tmp_path):
    record = json.dumps({"schema": SCHEMA, "sample_id": "rec", "notes": [{"text": "x"}]})
    assert to_sample({"question": "q", "privileged": record}, "file-3", tmp_path).id == "rec"
    assert to_sample({"question": "q"}, "file-3", tmp_path).id == "file-3"
    with pytest.raises(DataError, match=r"sample 'row'.*expected its own record, got 'rec'"):
        to_sample({"question": "q", "id": "row", "privileged": record}, "file-3", tmp_path)


def test_a_record_for_other_images_is_refused():
    """Of another number, another size, or the same turned by 90 degrees: boxes would lie elsewhere."""
    for sizes, words in (([(64, 96)], r"of 64x96, got 96x64"), ([(96, 64)] * 2, r"made for 2 images, got 1")):
        refs = tuple(ImageRef(path="a.png", width=w, height=h) for w, h in sizes)
        with pytest.raises(DataError, match=words):
            sample(privileged=PrivilegedRecord(sample_id="s", images=refs))
    sample(privileged=PrivilegedRecord(sample_id="s", images=(ImageRef(path="a.png", width=96, height=64),)))
    sample(privileged=PrivilegedRecord(sample_id="s", images=(ImageRef(path="a.png"),)))
