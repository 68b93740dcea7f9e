"""The traps of the single formats: PRIVILEGED.md section 2, one test a trap."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from privileged import DataError
from privileged.checks import Report
from privileged.readers import find, get_reader
from privileged.readers._replies import parse_reply
from privileged.readers._rle import mask_box, run_lengths


def read(folder, name, content, file="a.json", images=None, **options):
    """(samples, report) of one file; 100 x 80 image `a.png` unless told otherwise."""
    path = folder / file
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    for image, size in ({"a.png": (100, 80)} if images is None else images).items():
        Image.new("L", size).save(folder / image)
        options.setdefault("image_root", str(folder))
    report = Report()
    return list(get_reader(name, **options).read(path, report)), report


def boxes(samples):
    return [region.box for sample in samples for region in sample.record.regions]


def coco(annotation, **category):
    return {
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 80}],
        "categories": [{"id": 90, "name": "cup"} | category],
        "annotations": [{"image_id": 1, "category_id": 90} | annotation],
    }


def test_coco_keypoints_that_are_not_labelled_are_no_corner(tmp_path):
    """v = 0 is left out; names are the category's."""
    data = coco({"bbox": [5, 5, 50, 50], "keypoints": [9, 9, 2, 0, 0, 0, 8, 7, 1]}, keypoints=["eye", "ear", "nose"])
    samples, _ = read(tmp_path, "coco", data)
    assert samples[0].record.regions[0].points == {"eye": (9, 9), "nose": (8, 7)}


def test_coco_outline_in_parts_keeps_the_largest(tmp_path):
    """And says so; the box, where missing, is around all parts."""
    parts = [[5, 5, 10, 5, 10, 10], [20, 20, 60, 20, 60, 60, 20, 60]]
    samples, report = read(tmp_path, "coco", coco({"segmentation": parts}))
    assert boxes(samples) == [(5, 5, 60, 60)]
    assert len(samples[0].record.regions[0].polygon) == 4
    assert report.notes == {"outline in several parts: the largest is kept": 1}


@pytest.mark.parametrize("seed", range(6))
def test_coco_run_lengths_against_pixels(seed):
    """The box of random masks, empty and full ones among them."""
    rng = np.random.default_rng(seed)
    mask = rng.random((7, 9)) < (0, 1, 0.05, 0.1, 0.3, 0.9)[seed]
    flat = mask.flatten(order="F").astype(int)
    runs, value = [0], 0
    for pixel in flat:
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    assert run_lengths({"size": [7, 9], "counts": runs}, 9, 7) == runs
    ys, xs = np.nonzero(mask)
    expected = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else None
    assert mask_box(runs, 7) == expected


@pytest.mark.parametrize(
    ("rle", "words"),
    [
        ({"size": [80, 100], "counts": [1, 2]}, "8000 pixels"),
        ({"size": [80, 100], "counts": [9000, -1000]}, "8000 pixels"),
        ({"size": [10**9, 10**9], "counts": [10**18]}, "expected \\[80, 100\\]"),
        ({"size": [80, 100], "counts": ["x"]}, "integer"),
        ({"size": [80, 100]}, "counts"),
    ],
)
def test_bad_run_lengths_are_refused_before_memory_is_taken(tmp_path, rle, words):
    """Counted as malformed."""
    _, report = read(tmp_path, "coco", coco({"bbox": [5, 5, 9, 9], "segmentation": rle}))
    assert report.objects == {"dropped:malformed": 1}
    with pytest.raises(DataError, match=words):
        run_lengths(rle, 100, 80)


def test_compressed_run_lengths_without_their_library(monkeypatch):
    """The extra is named."""
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(DataError, match=r"pip install vlm-dopd\[coco\]"):
        run_lengths({"size": [2, 2], "counts": "04"}, 2, 2)


def test_compressed_run_lengths_with_their_library():
    """Both forms of one mask are the same runs."""
    coco_masks = pytest.importorskip("pycocotools.mask")
    for mask in (np.eye(5, 7, dtype=np.uint8), np.ones((5, 7), np.uint8), np.zeros((5, 7), np.uint8)):
        packed = coco_masks.encode(np.asfortranarray(mask))
        runs = run_lengths({"size": [5, 7], "counts": packed["counts"].decode()}, 7, 5)
        flat = np.repeat(np.arange(len(runs)) % 2, runs)
        assert (flat.reshape(5, 7, order="F") == mask).all()
    with pytest.raises(DataError, match="counts"):
        run_lengths({"size": [5, 7], "counts": "\u0663"}, 7, 5)


def test_voc_base_is_declared_and_a_zero_is_told(tmp_path):
    """1-based: first pixel 1 is edge 0, last pixel 10 is edge 10."""
    text = (
        "<annotation><filename>a.png</filename><size><width>100</width><height>80</height></size><object><name>c</name>"
        "<bndbox><xmin>1</xmin><ymin>{}</ymin><xmax>10</xmax><ymax>20</ymax></bndbox></object></annotation>"
    )
    assert boxes(read(tmp_path, "voc", text.format(5), "a.xml", base=1)[0]) == [(0, 4, 10, 20)]
    assert boxes(read(tmp_path, "voc", text.format(5), "a.xml")[0]) == [(1, 5, 10, 20)]
    _, report = read(tmp_path, "voc", text.format(0), "a.xml", base=1)
    assert any("read it with base=0" in note for note in report.notes)
    assert not read(tmp_path, "voc", text.format(0), "a.xml")[1].notes


@pytest.mark.parametrize(
    ("task", "line", "fate"),
    [
        ("detect", "0 0.5 0.5 0.2 0.2", "kept"),
        ("detect", "0 0.5 0.5 0.2 0.2 0.9", "kept"),
        ("detect", "0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5", "dropped:malformed"),
        ("obb", "0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5", "kept"),
        ("obb", "0 0.5 0.5 0.2 0.2", "dropped:malformed"),
        ("segment", "0 0.1 0.1 0.5 0.1 0.5 0.5", "kept"),
        ("segment", "0 0.5 0.5 0.2 0.2", "dropped:malformed"),
        ("detect", "7 0.5 0.5 0.2 0.2", "dropped:unknown category"),
        ("detect", "0.5 0.5 0.5 0.2 0.2", "dropped:unknown category"),
        ("detect", "cup 0.5 0.5 0.2 0.2", "dropped:malformed"),
        ("detect", "0 320 240 20 20", "dropped:outside"),
    ],
)
def test_yolo_lines_by_declared_task(tmp_path, task, line, fate):
    """The same numbers mean different things, so nothing is guessed from their count."""
    _, report = read(tmp_path, "yolo", line, "a.txt", names=("cup",), task=task)
    assert report.objects == {fate: 1}


def test_yolo_names_from_yaml_and_empty_files(tmp_path):
    """A mapping or a list; an empty text file is an image without objects."""
    (tmp_path / "data.yaml").write_text("nc: 2\nnames:\n  0: cup\n  5: 'no'\n")
    options = {"data": str(tmp_path / "data.yaml")}
    samples, _ = read(tmp_path, "yolo", "5 0.5 0.5 0.2 0.2\n", "a.txt", **options)
    assert samples[0].record.regions[0].label == "no"
    samples, report = read(tmp_path, "yolo", "", "a.txt", **options)
    assert boxes(samples) == []
    assert report.notes == {"image without annotations": 1}


def test_label_studio_annotators_and_predictions(tmp_path):
    """Cancelled ones never, the named one if named, else the first, with a note; predictions only if asked for."""

    def result(label, x):
        value = {"x": x, "y": 10, "width": 20, "height": 20, "rectanglelabels": [label]}
        return [{"id": "a", "type": "rectanglelabels", "original_width": 100, "original_height": 80, "value": value}]

    annotations = [
        {"completed_by": 1, "was_cancelled": True, "result": result("cancelled", 1)},
        {"completed_by": 2, "result": result("second", 2)},
        {"completed_by": {"id": 3}, "result": result("third", 3)},
    ]
    task = {"id": 1, "data": {"image": "http://host/data/local-files/?d=x/a.png"}, "annotations": annotations}
    task["predictions"] = [{"result": result("model", 4)}]
    for options, label in (({}, "second"), ({"annotator": "3"}, "third"), ({"predictions": True}, "model")):
        samples, report = read(tmp_path, "label_studio", [task], **options)
        assert [r.label for r in samples[0].record.regions] == [label]
        assert bool(report.notes) == (not options)
    _, report = read(tmp_path, "label_studio", [task], annotator="1")
    assert report.images == {"dropped:skipped": 1}


def test_label_studio_joins_label_text_and_relation(tmp_path):
    """Results of one id are one region; relations join regions by their ids in the record."""
    size = {"original_width": 100, "original_height": 80}
    place = {"x": 10, "y": 10, "width": 20, "height": 20}
    results = [
        {"id": "a", "type": "rectangle", "value": place} | size,
        {"id": "a", "type": "labels", "value": place | {"labels": ["line"]}} | size,
        {"id": "a", "type": "textarea", "value": place | {"text": ["Dear"]}} | size,
        {"id": "b", "type": "keypointlabels", "value": {"x": 50, "y": 50, "width": 1, "keypointlabels": ["dot"]}}
        | size,
        {"type": "relation", "from_id": "a", "to_id": "b", "labels": ["next to"]},
        {"id": "c", "type": "rectanglelabels", "image_rotation": 90, "value": place | {"rectanglelabels": ["x"]}}
        | size,
    ]
    samples, report = read(
        tmp_path, "label_studio", [{"id": 1, "data": {"image": "a.png"}, "annotations": [{"result": results}]}]
    )
    line, dot = samples[0].record.regions
    assert (line.label, line.text, line.box) == ("line", "Dear", (10, 8, 30, 24))
    assert dot.points == {"1": (50, 40)}
    assert samples[0].record.relations == ((line.id, "next to", dot.id),)
    assert report.objects == {"kept": 2, "dropped:skipped": 1}


@pytest.mark.parametrize(
    ("reply", "items", "cut"),
    [
        ('[{"a": 1}, {"a": 2}]', 2, False),
        ('```json\n[{"a": 1}]\n```\nThat is [all].', 1, False),
        ('Sure! Here: {"a": 1} and so on', 1, False),
        ('```json\n[{"a": 1},\n {"a": 2}, {"a": 3, "b', 2, True),
        ('[{"a": 1}, {"a"', 1, True),
        ("[", 0, True),
        ("[]", 0, False),
    ],
)
def test_replies_as_models_write_them(reply, items, cut):
    """Fences, talk, a list cut off by the token limit."""
    assert (len(parse_reply(reply)[0]), parse_reply(reply)[1]) == (items, cut)


@pytest.mark.parametrize("reply", ["", "There is no cup.", '{"a"', "```json\n```"])
def test_a_reply_without_json_is_malformed(reply):
    """Not an empty list: the model did not answer."""
    with pytest.raises(DataError, match="expected a JSON list"):
        parse_reply(reply)


def test_qwen_numbers_above_1000_are_not_its_third_version(tmp_path):
    """They are not clamped: the declaration is wrong. 1000 itself is right."""
    row = {"image": "a.png", "response": [{"bbox_2d": [0, 0, 1000, 500], "label": "a"}]}
    assert boxes(read(tmp_path, "qwen", json.dumps(row), "a.jsonl", profile="qwen3")[0]) == [(0, 0, 100, 40)]
    row["response"][0]["bbox_2d"][2] = 1016
    _, report = read(tmp_path, "qwen", json.dumps(row), "a.jsonl", profile="qwen3")
    assert report.objects == {"dropped:malformed": 1}
    assert "declare another convention" in report.examples["dropped:malformed"][0]
    _, report = read(tmp_path, "qwen", json.dumps(row), "a.jsonl", profile="qwen2_5")
    assert report.images == {"dropped:malformed": 1}
    samples, _ = read(tmp_path, "qwen", json.dumps(row), "a.jsonl", profile="qwen2_5", resized=(2032, 1000))
    assert boxes(samples) == [(0, 0, 50, 40)]


def test_a_folder_of_replies(tmp_path):
    """One reply a file, for the image of the same name."""
    (tmp_path / "replies").mkdir()
    (tmp_path / "replies" / "a.txt").write_text('```json\n[{"box_2d": [0, 500, 500, 1000], "label": "a"}]')
    Image.new("L", (100, 80)).save(tmp_path / "a.png")
    samples = list(get_reader("gemini", image_root=str(tmp_path)).read(tmp_path / "replies", Report()))
    assert boxes(samples) == [(50, 0, 100, 40)]


def test_visual_cot_union_and_meta(tmp_path):
    """Three forms, declared."""
    row = {"image": "a.png", "width": 100, "height": 80, "question": "q", "answer": "a"}
    samples, _ = read(tmp_path, "visual_cot", json.dumps(row | {"bboxs": [[1, 2, 30, 40], [9, 9, 50, 60]]}), "a.jsonl")
    assert boxes(samples) == [(1, 2, 30, 40), (9, 9, 50, 60)]
    turns = [{"value": v} for v in ("<image>\nq", "[0.1, 0.2, 0.5, 0.6]", "<image>", "a")]
    chat = [{"image": ["a.png", "a.png###[1, 2, 50, 60]"], "conversations": turns}]
    assert boxes(read(tmp_path, "visual_cot", chat, form="union")[0]) == [(1, 2, 50, 60)]
    assert boxes(read(tmp_path, "visual_cot", chat, form="square")[0]) == [(10, 10, 50, 50)]


def test_visual_genome_negative_coordinates_and_names(tmp_path):
    """Cut, or dropped with its relations; `name` and `names`, `w` and `width`."""
    objects = [
        {"object_id": 1, "name": "cup", "x": -5, "y": 5, "width": 25, "height": 20},
        {"object_id": 2, "names": ["sky", "air"], "x": 5, "y": -904, "w": 25, "h": 20},
    ]
    (tmp_path / "image_data.json").write_text(json.dumps([{"image_id": 1, "width": 100, "height": 80}]))
    relation = {"predicate": "under", "subject": {"object_id": 1}, "object": {"object_id": 2}}
    (tmp_path / "relationships.json").write_text(json.dumps([{"image_id": 1, "relationships": [relation]}]))
    (tmp_path / "objects.json").write_text(json.dumps([{"image_id": 1, "objects": objects}]))
    report = Report()
    (sample,) = get_reader("visual_genome").read(tmp_path, report)
    assert boxes([sample]) == [(0, 5, 20, 25)]
    assert sample.record.relations == ()
    assert report.objects == {"clamped": 1, "dropped:outside": 1}
    assert report.notes == {"relation of a dropped object": 1}


def test_ms_swift_placeholders_must_match(tmp_path):
    """Two boxes and one mark is a broken row."""
    row = {"messages": [{"role": "user", "content": "<bbox>"}], "images": ["a.png"]}
    row["objects"] = {"ref": ["a"], "bbox": [[1, 1, 9, 9], [20, 20, 30, 30]]}
    _, report = read(tmp_path, "ms_swift", json.dumps(row), "a.jsonl")
    assert report.images == {"dropped:malformed": 1}
    row["messages"][0]["content"] = "<bbox><bbox>"
    assert boxes(read(tmp_path, "ms_swift", json.dumps(row), "a.jsonl")[0]) == [(1, 1, 9, 9), (20, 20, 30, 30)]


def test_alto_units_need_dpi(tmp_path):
    """254 tenths of a millimetre are an inch."""
    text = find("alto").EXAMPLE["files"]["letter.xml"].replace(">pixel<", ">mm10<")
    images = {"letter.png": (640, 480)}
    with pytest.raises(DataError, match="dpi"):
        read(tmp_path, "alto", text, "a.xml", images=images)
    samples, _ = read(tmp_path, "alto", text, "a.xml", images=images, dpi=127)
    assert boxes(samples) == [(32, 24, 160, 40)]


def test_hocr_words_and_an_offset_page(tmp_path):
    """Confidence of a word; the page's own box is a size only if it starts at 0 0."""
    text = find("hocr").EXAMPLE["files"]["letter.hocr"]
    samples, _ = read(tmp_path, "hocr", text, "a.hocr", images={"letter.png": (640, 480)}, level="word")
    assert [(r.text, r.score) for r in samples[0].record.regions] == [("Dear", 0.95), ("Ada &", 0.91)]
    text = text.replace("bbox 0 0 640 480", "bbox 10 10 600 400")
    assert len(boxes(read(tmp_path, "hocr", text, "a.hocr", images={"letter.png": (640, 480)})[0])) == 1
    assert read(tmp_path, "hocr", text, "a.hocr", images={})[1].images == {"dropped:no image size": 1}


def test_points_that_are_missing(tmp_path):
    """Negative and NaN; y first if declared."""
    row = {"image": "a.png", "points": [{"label": "a", "point": [-1, -1]}, {"label": "b", "point": [200, 500]}]}
    samples, report = read(tmp_path, "points", json.dumps(row), "a.jsonl", unit="rel1000", y_first=True)
    assert [r.points for r in samples[0].record.regions] == [{"1": (50, 16)}]
    assert report.objects == {"kept": 1, "dropped:not a number": 1}
