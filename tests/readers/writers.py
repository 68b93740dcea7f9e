"""The same objects written in every format by formulas of its own documentation, not by `privileged.geometry`.

An object is (label, x0, y0, x1, y1, degrees): px, turned clockwise by so many degrees about the centre of the box.
"""

import json
import math


def corners(x0, y0, x1, y1, degrees):
    """The four corners, from the one that was top left, clockwise."""
    cx, cy, a = (x0 + x1) / 2, (y0 + y1) / 2, math.radians(degrees)
    return [
        (cx + (x - cx) * math.cos(a) - (y - cy) * math.sin(a), cy + (x - cx) * math.sin(a) + (y - cy) * math.cos(a))
        for x, y in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    ]


def upright(object_):
    """The box around a turned object."""
    xs, ys = zip(*corners(*object_[1:]), strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def labelme(folder, name, w, h, objects):
    shapes = []
    for label, x0, y0, x1, y1, degrees in objects:
        turned = {"shape_type": "polygon", "points": corners(x0, y0, x1, y1, degrees)}
        straight = {"shape_type": "rectangle", "points": [[x1, y0], [x0, y1]]}
        shapes.append({"label": label, **(turned if degrees else straight)})
    text = json.dumps({"imagePath": f"..\\a\\{name}", "imageWidth": w, "imageHeight": h, "shapes": shapes})
    return _write(folder / "scene.json", text), {}


def coco(folder, name, w, h, objects):
    labels = sorted({o[0] for o in objects})
    annotations = []
    for i, o in enumerate(objects):
        x0, y0, x1, y1 = upright(o)
        annotations.append({"id": i, "image_id": 9, "category_id": 3 * labels.index(o[0]) + 1, "iscrowd": 0})
        annotations[-1]["bbox"] = [x0, y0, x1 - x0, y1 - y0]
        annotations[-1]["segmentation"] = [[v for point in corners(*o[1:]) for v in point]] if o[5] else []
    data = {"images": [{"id": 9, "file_name": name, "width": w, "height": h}], "annotations": annotations}
    data["categories"] = [{"id": 3 * i + 1, "name": label} for i, label in enumerate(labels)]
    return _write(folder / "coco.json", json.dumps(data)), {}


def voc(folder, name, w, h, objects, base=0):
    items = ""
    for o in objects:
        x0, y0, x1, y1 = upright(o)
        edges = {"xmin": x0 + base, "ymin": y0 + base, "xmax": x1, "ymax": y1}  # 1-based: first and last pixel
        items += f"<object><name>{o[0]}</name><bndbox>{_tags(edges)}</bndbox></object>"
    size = _tags({"width": w, "height": h, "depth": 3})
    text = f"<annotation><filename>{name}</filename><size>{size}</size>{items}</annotation>"
    return _write(folder / "scene.xml", text), {"base": base}


def yolo(folder, name, w, h, objects, task="detect"):
    labels = sorted({o[0] for o in objects})
    lines = []
    for o in objects:
        x0, y0, x1, y1 = upright(o)
        values = [(x0 + x1) / 2 / w, (y0 + y1) / 2 / h, (x1 - x0) / w, (y1 - y0) / h]
        if task == "obb":
            values = [v for x, y in corners(*o[1:]) for v in (x / w, y / h)]
        lines.append(" ".join(map(repr, [labels.index(o[0]), *values])))
    path = _write(folder / (name.rpartition(".")[0] + ".txt"), "\n".join(lines) + "\n")
    return path, {"names": tuple(labels), "task": task}


def label_studio(folder, name, w, h, objects):
    results = []
    for i, (label, x0, y0, x1, y1, degrees) in enumerate(objects):
        x, y = corners(x0, y0, x1, y1, degrees)[0]  # the pivot is the corner that was top left
        value = {"x": x / w * 100, "y": y / h * 100, "width": (x1 - x0) / w * 100, "height": (y1 - y0) / h * 100}
        value |= {"rotation": degrees, "rectanglelabels": [label]}
        result = {"id": f"x{i}", "type": "rectanglelabels", "value": value, "image_rotation": 0}
        results.append(result | {"original_width": w, "original_height": h})
    task = {"id": 5, "data": {"image": f"/data/upload/2/{name}"}, "annotations": [{"id": 1, "result": results}]}
    return _write(folder / "tasks.json", json.dumps([task])), {}


def cvat(folder, name, w, h, objects):
    boxes = "".join(
        f'<box label="{label}" xtl="{x0}" ytl="{y0}" xbr="{x1}" ybr="{y1}" rotation="{degrees}"/>'
        for label, x0, y0, x1, y1, degrees in objects
    )
    image = f'<image id="0" name="{name}" width="{w}" height="{h}">{boxes}</image>'
    return _write(folder / "cvat.xml", f"<annotations><version>1.1</version>{image}</annotations>"), {}


def visual_cot_square(folder, name, w, h, objects):
    """One object a row, as the published converter writes it, but without its rounding to three digits."""
    rows = []
    for i, o in enumerate(objects):
        box, side = list(upright(o)), max(w, h)
        axis = 1 if w > h else 0
        for k in (axis, axis + 2):
            box[k] += (side - min(w, h)) // 2
        said = ["<image>\nWhere? Please provide the bounding box coordinate of the region that can help you.",
                json.dumps([edge / side for edge in box]), "<image>", "There."]  # fmt: skip
        turns = [{"from": "human" if k % 2 == 0 else "gpt", "value": text} for k, text in enumerate(said)]
        row = {"question_id": i, "image": [f"{name}", f"{name}###[0, 0, 1, 1]"], "conversations": turns}
        rows.append(row | {"width": w, "height": h})
    return _write(folder / "chat.json", json.dumps(rows)), {"form": "square", "label": objects[0][0]}


def qwen(folder, name, w, h, objects):
    reply = []
    for o in objects:
        x0, y0, x1, y1 = upright(o)
        box = [round(x0 / w * 1000), round(y0 / h * 1000), round(x1 / w * 1000), round(y1 / h * 1000)]
        reply.append({"bbox_2d": box, "label": o[0]})
    row = {"image": name, "width": w, "height": h, "response": f"```json\n{json.dumps(reply)}\n```"}
    return _write(folder / "qwen.jsonl", json.dumps(row)), {"profile": "qwen3"}


def qwen2_5(folder, name, w, h, objects):
    reply = []
    for o in objects:
        x0, y0, x1, y1 = upright(o)
        reply.append({"bbox_2d": [x0 / w * 644, y0 / h * 476, x1 / w * 644, y1 / h * 476], "label": o[0]})
    row = {"image": name, "width": w, "height": h, "resized_width": 644, "resized_height": 476, "response": reply}
    return _write(folder / "qwen.jsonl", json.dumps(row)), {"profile": "qwen2_5"}


def gemini(folder, name, w, h, objects):
    reply = []
    for o in objects:
        x0, y0, x1, y1 = upright(o)
        box = [round(y0 / h * 1000), round(x0 / w * 1000), round(y1 / h * 1000), round(x1 / w * 1000)]
        reply.append({"box_2d": box, "label": o[0]})
    row = {"image": name, "width": w, "height": h, "response": json.dumps(reply)}
    return _write(folder / "gemini.jsonl", json.dumps(row)), {}


def _tags(values):
    return "".join(f"<{key}>{value}</{key}>" for key, value in values.items())


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
