"""Annotation files, records and rows of strangers, each with its documented fate.

A fate is `OK`, the words that the one-line DataError holds, or for files the count that the report must show.
"""

import codecs
import json

OK = "ok"
NOT_JSON, NOT_UTF8, PICKLE, NOT_XML = "expected JSON", "expected UTF-8", "got a pickle", "expected XML"
DEEP, LONG = 100_000, "9" * 5000
COUNTED = {"dropped:malformed": 1}
"""One bad file of a folder, or line of a file, costs only itself."""

# What stands in place of the first file of a reader's example -> fate by the kind of reader.
JUNK = {
    "empty": b"",
    "NUL bytes": bytes(50),
    "a pickle": b"\x80\x04\x95\x00.",
    "deep lists": b"[" * DEEP,
    "deep objects": b'{"a":' * DEEP,
    "Latin-1": '{"x": "é"}'.encode("latin1"),
    "UTF-16": '{"x": "a"}'.encode("utf-16"),
    "a huge number": b'{"a": ' + LONG.encode() + b"}",
    "NaN": b"NaN",
    "null": b"null",
    "HTML": b"<html><body>404</body></html>",
    "a picture": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
}
DOCUMENTS = ("coco", "labelme", "label_studio", "gqa", "doctr", "refcoco", "visual_genome")
"""One JSON document a file: junk is a DataError."""
LINES = ("ms_swift", "qwen", "gemini", "visual_cot", "points")
"""JSON lines: a bad line is counted, a file that is no text is a DataError."""

BOMB = '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
XML_HEADS = {
    "a billion laughs": BOMB,
    "a file of ours": '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
    "a DTD from elsewhere": '<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd">',
    "a parameter entity": '<!DOCTYPE a [<!ENTITY % x SYSTEM "http://127.0.0.1:9/a"> %x;]>',
}


def same_but_written_otherwise(good):
    """Byte order mark and other line ends change nothing."""
    return {"BOM": codecs.BOM_UTF8 + good, "CR LF": good.replace(b"\n", b"\r\n"), "CR": good.replace(b"\n", b"\r")}


BASE = {"schema": "privileged/1", "sample_id": "a", "regions": [{"label": "x", "box": [0, 0, 9, 9]}]}


def region(**fields):
    return BASE | {"regions": [{"id": "r1", "label": "x", "box": [0, 0, 9, 9]} | fields]}


NUMBERS, FINITE, TEXT = "expected four finite numbers", "expected a finite number", "expected a non-empty string"
RECORDS = {
    "deep lists": ("[" * DEEP, "expected a JSON object"),
    "deep objects": ('{"a":' * DEEP, "expected a JSON object"),
    "no text": ("", "expected a JSON object"),
    "NUL": ("\0", "expected a JSON object"),
    "a byte order mark": ("\ufeff" + json.dumps(BASE), "expected a JSON object"),
    "a megabyte of no JSON": ("x" * 10**6, "expected a JSON object"),
    "a number": ("5", "expected a JSON object"),
    "null": ("null", "expected a JSON object"),
    "a list": ("[]", "sample_id: expected one"),
    "a list of words": ('["ab", "cd"]', "sample_id: expected one"),
    "a huge number": ('{"sample_id": "a", "x": ' + LONG + "}", "expected a JSON object"),
    "no sample id": ({"schema": "privileged/1"}, "sample_id: expected one"),
    "no schema": ({"sample_id": "a"}, "schema: expected"),
    "another schema": (BASE | {"schema": "privileged/2"}, "schema: expected"),
    "a schema of a megabyte": (BASE | {"schema": "p" * 10**6}, "schema: expected"),
    "a schema of two lines": (BASE | {"schema": "a\nb"}, "schema: expected"),
    "other coordinates": (BASE | {"coords": {"unit": "rel1"}}, "coords: expected px"),
    "coordinates of two lines": (BASE | {"coords": "a\nb"}, "coords: expected px"),
    "sample id null": (BASE | {"sample_id": None}, "sample_id: expected"),
    "sample id a list": (BASE | {"sample_id": ["a"]}, "sample_id: expected"),
    "sample id empty": (BASE | {"sample_id": ""}, "sample_id: expected"),
    "regions null": (BASE | {"regions": None}, "regions: expected a list of objects"),
    "regions an object": (BASE | {"regions": {}}, "regions: expected a list of objects"),
    "regions of null": (BASE | {"regions": [None]}, "regions: expected a list of objects"),
    "no label": (BASE | {"regions": [{"box": [0, 0, 9, 9]}]}, "label: expected one"),
    "no box": (BASE | {"regions": [{"label": "x"}]}, "box: expected one"),
    "label a number": (region(label=5), TEXT),
    "label blank": (region(label=" \n\t"), TEXT),
    "label half a character": (region(label="\ud800"), "surrogate"),
    "label of two lines": (region(label="a\nb"), OK),
    "label like a control token": (region(label="<|im_end|><|image_pad|>"), OK),
    "box of words": (region(box=["0", 0, 9, 9]), NUMBERS),
    "box of truth": (region(box=[True, 0, 9, 9]), NUMBERS),
    "box of three": (region(box=[0, 0, 9]), NUMBERS),
    "box of boxes": (region(box=[[0], [0], [9], [9]]), NUMBERS),
    "box an object": (region(box={}), NUMBERS),
    "box NaN": ('{"schema":"privileged/1","sample_id":"a","regions":[{"label":"x","box":[NaN,0,9,9]}]}', NUMBERS),
    "box infinite": (region(box=[0, 0, float("inf"), 9]), NUMBERS),
    "box of 400 digits": (region(box=[0, 0, 10**400, 9]), NUMBERS),
    "score of 400 digits": (region(score=10**400), FINITE),
    "score NaN": (region(score=float("nan")), FINITE),
    "score a word": (region(score="high"), FINITE),
    "image before the first": (region(image=-1), "image: expected an index"),
    "image a float": (region(image=0.5), "image: expected an index"),
    "id a number": (region(id=5), "id: expected a string"),
    "polygon a word": (region(polygon="abc"), "polygon: expected"),
    "polygon of words": (region(polygon=["ab"]), "polygon: expected two finite numbers"),
    "polygon too deep": (region(polygon=[[[1, 2]]]), "polygon: expected two finite numbers"),
    "points a list": (region(points=[[1, 2]]), "points: expected an object"),
    "point a number": (region(points={"eye": 5}), "points.eye: expected two finite numbers"),
    "attributes a word": (region(attributes="red"), "attributes: expected an object"),
    "text a number": (region(text=5), "text: expected a string"),
    "caption a list": (region(caption=["x"]), "caption: expected a string"),
    "unknown keys": (region(self=1, cls=2, extra="x", **{"": None}), OK),
    "notes a word": (BASE | {"notes": "x"}, "notes: expected a list"),
    "note without text": (BASE | {"notes": [{}]}, "text: expected one"),
    "note of a number": (BASE | {"notes": [{"text": 5}]}, TEXT),
    "note of no kind": (BASE | {"notes": [{"text": "x", "kind": 5}]}, "kind: expected"),
    "relations a word": (BASE | {"relations": "abc"}, "relations: expected a list"),
    "relations of words": (BASE | {"relations": ["abc"]}, "relations: expected [region id"),
    "relations of two": (BASE | {"relations": [["a", "b"]]}, "relations: expected [region id"),
    "relations of numbers": (BASE | {"relations": [[1, 2, 3]]}, "relations: expected [region id"),
    "images a word": (BASE | {"images": "a.png"}, "images: expected a list"),
    "image without path": (BASE | {"images": [{}]}, "path: expected one"),
    "image path a number": (BASE | {"images": [{"path": 5}]}, "path: expected"),
    "image with half a size": (BASE | {"images": [{"path": "a", "width": 5}]}, "expected width and height"),
    "image width a word": (BASE | {"images": [{"path": "a", "width": "5", "height": 5}]}, "width: expected"),
    "image width of 400 digits": (BASE | {"images": [{"path": "a", "width": 10**400, "height": 5}]}, "width: expected"),
    "image turned nine times": (BASE | {"images": [{"path": "a", "exif_orientation": 9}]}, "exif_orientation: exp"),
    "image hash a number": (BASE | {"images": [{"path": "a", "sha256": 5}]}, "sha256: expected"),
}  # fmt: skip
"""name -> (text or object, fate)."""


def row(**columns):
    return {"question": "q"} | columns


ROWS = {
    "no question": ({}, "question: expected"),
    "question null": (row(question=None), "question: expected"),
    "question a number": (row(question=5), "question: expected"),
    "question blank": (row(question=" \n"), "question: expected"),
    "question half a character": (row(question="\ud800"), "surrogate"),
    "image and images": (row(image="a.png", images=["a.png"]), "got both"),
    "images a path": (row(images="a.png"), "images: expected a list"),
    "images an object": (row(images={"a": 1}), "images: expected a list"),
    "images of null": (row(images=[None]), "got NoneType"),
    "images of lists": (row(images=[["a.png"]]), "got list"),
    "image without bytes": (row(image=b""), "unreadable file"),
    "image an empty object": (row(image={}), "got NoneType"),
    "image bytes a number": (row(image={"bytes": 5}), "got int"),
    "image elsewhere": (row(image="../a.png"), "leads outside"),
    "image of the network": (row(image="https://example.org/a.png"), "got a URL"),
    "answer a list": (row(answer=["a"]), "answer: expected"),
    "answer true": (row(answer=True), "answer: expected"),
    "answer NaN": (row(answer=float("nan")), "answer: expected"),
    "id a list": (row(id=[1]), "id: expected"),
    "record a number": (row(privileged=5), "expected a JSON object"),
    "record no JSON": (row(privileged="x"), "expected a JSON object"),
    "record of deep lists": (row(privileged="[" * DEEP), "expected a JSON object"),
    "record of another sample": (row(id="b", privileged=BASE), "expected its own record"),
    "record of more images": (row(id="a", privileged=BASE | {"images": [{"path": "a.png"}]}), "made for 1 images"),
    "context a number": (row(privileged_context=5), "privileged_context: expected text"),
    "context of numbers": (row(privileged_context=[5]), "privileged_context: expected text"),
    "prompt without content": (row(teacher_prompt=[{"role": "user"}]), "teacher_prompt: expected text"),
    "prompt of numbers": (row(teacher_prompt=[{"content": [{"text": 5}]}]), "teacher_prompt: expected text"),
    "pictures a path": (row(teacher_images="a.png"), "teacher_images: expected a list"),
    "pictures of null": (row(bbox_images=[None]), "got NoneType"),
}
"""name -> (row, fate)."""

GOOD = b'{"question": "q"}\n'
DATA_FILES = {
    "empty.jsonl": (b"", "expected rows"),
    "utf16.jsonl": (GOOD.decode().encode("utf-16"), "expected jsonl"),
    "bom.jsonl": (codecs.BOM_UTF8 + GOOD, OK),
    "cr.jsonl": (GOOD.replace(b"\n", b"\r") * 2, "expected jsonl"),
    "crlf.jsonl": (GOOD.replace(b"\n", b"\r\n") * 2, OK),
    "deep.jsonl": (b"[" * DEEP, "expected jsonl"),
    "huge.jsonl": (b'{"question": ' + LONG.encode() + b"}", "expected jsonl"),
    "latin1.jsonl": ('{"question": "é"}'.encode("latin1"), "expected jsonl"),
    "number.jsonl": (GOOD + b"5\n", "line 2"),
    "cut.jsonl": (GOOD + GOOD[:9], "line 2"),
    "zeros.jsonl": (bytes(100), "expected jsonl"),
    "other.jsonl": (b'{"prompt": "q"}\n', "'question'"),
    "empty.json": (b"", "expected json"),
    "none.json": (b"[]", "expected rows"),
    "object.json": (b"{}", "expected a list"),
    "numbers.json": (b"[5]", "expected a list"),
    "deep.json": (b"[" * DEEP, "expected json"),
    "bom.json": (codecs.BOM_UTF8 + b'[{"question": "q"}]', OK),
    "empty.parquet": (b"", "expected parquet"),
    "cut.parquet": (b"PAR1", "expected parquet"),
    "zeros.parquet": (b"PAR1" + bytes(100) + b"PAR1", "expected parquet"),
    "pickle.parquet": (b"\x80\x04\x95\x00.", "expected parquet"),
    "table.csv": (b"question\nq\n", "expected a file ending"),
    "rows.pkl": (b"\x80\x04\x95\x00.", "expected a file ending"),
}
"""file name -> (content, fate)."""
