"""Sample logs of other toolkits as their writers write them, made from rows of a benchmark's data set."""

from __future__ import annotations

import ast
import csv
import io
import json
import zipfile
from typing import Any

from evals.benchmarks import find

Row = dict[str, Any]

LETTERS = "ABCDEFGHIJ"


def options_of(row):
    cell = row.get("options") or []
    return ast.literal_eval(cell) if isinstance(cell, str) else list(cell)


# lmms-eval 0.7.3 -----------------------------------------------------------------------------------------------------


def lines(options, mark):
    return "\n".join(f"{letter}{mark} {text}" for letter, text in zip(LETTERS, options, strict=False))


def lmms_prompt(name, row):
    question, options = row.get("question"), lines(options_of(row), ".")
    if name == "mathvision":
        asked = 'Please solve the problem step by step and put your answer in one "\\boxed{}".' + question
        direct = "Answer the question with the option's letter from the given choices directly."
        return f"{asked}\nChoices: {options}\n{direct}" if options else asked
    if name in ("mmmu", "mmmu_pro"):
        if question is None:
            return "Answer with the option letter from the given choices directly."
        if not options:
            return f"{question}\n\nAnswer the question using a single word or phrase."
        return f"{question}\n{options}\n\nAnswer with the option's letter from the given choices directly."
    if name == "mmstar":
        return f"{question}\nAnswer with the option's letter from the given choices directly"
    return question


def lmms_metrics(name, row, score=0.0):
    if name == "mmstar":
        told = {"question_id": row["index"], "l2_category": row["l2_category"], "score": score}
        return {row["category"]: told, "average": told}
    if name == "realworldqa":
        return {"exact_match": score}
    if name == "mathvision":
        return {"mathvision_standard_eval": {"response": ["…"], "scores": [False]}}
    if name == "dynamath":
        told = {"acc": score, "question_id": row["id"], "variant_id": row["id"]}
        return {"dynamath_average": told, "dynamath_worst": told}
    if name == "logicvista":
        return {"acc_score": score, "format_score": 0.0}
    if name == "vsibench":
        return {"vsibench_overall": {**row, "prediction": "…"}, "object_counting_mra": {**row, "prediction": "…"}}
    told = {"id": row["id"], "answer": row["answer"], "parsed_pred": ["A"]}
    if name == "mmmu":
        return {"mmmu_acc": {**told, "subdomain": "Physics", "question_type": row["question_type"]}}
    return {"mmmu_acc": {**told, "subject": row["subject"]}}


def lmms_row(name, number, row, reply):
    return {
        "doc_id": number,
        "target": str(row.get("answer", row.get("ground_truth"))),
        "filtered_resps": reply,
        "token_counts": [{"output_tokens": 3}],
        "doc_hash": "0" * 64,
        **lmms_metrics(name, row),
        "input": lmms_prompt(name, row),
    }


# VLMEvalKit ----------------------------------------------------------------------------------------------------------


def kit_row(name, number, row, reply):
    shared = {"index": number, "question": row.get("question", "placeholder"), "prediction": reply}
    if name in ("mmstar", "realworldqa"):
        options = find(name).record(row).choices or {}
        question = row["question"].partition("\nOptions")[0].partition("\n\n")[0]
        return {**shared, "question": question, **options, "answer": row["answer"], "category": "x"}
    if name == "mathvision":
        return {**shared, "answer": row["answer"], "choices": str(row["options"]), "level": row["level"]}
    if name == "dynamath":
        return {**shared, "answer": row["ground_truth"], "answer_type": row["answer_type"], "subject": row["subject"]}
    if name == "logicvista":
        return {**shared, "answer": row["answer"], "skill": str(row["skill"])}
    if name == "vsibench":
        return {
            **shared,
            "question_type": row["question_type"],
            "answer": row["ground_truth"],
            "candidates": str(row["options"]) if row["options"] else None,
            "video": f"{row['dataset']}/{row['scene_name']}.mp4",
        }
    columns = dict.fromkeys(LETTERS) | dict(zip(LETTERS, options_of(row), strict=False))
    return {**shared, **columns, "answer": row["answer"], "split": "validation", "category": "Physics"}


def save_json_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def save_json(path, rows):
    nan = [{name: float("nan") if value is None else value for name, value in row.items()} for row in rows]
    path.write_text(json.dumps(nan, indent=4, ensure_ascii=False), encoding="utf-8")
    return path


def save_tsv(path, rows):
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, columns, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n")
    table.writeheader()
    table.writerows([{name: "" if value is None else value for name, value in row.items()} for row in rows])
    path.write_text(text.getvalue(), encoding="utf-8")
    return path


# evalscope 1.14.1 ----------------------------------------------------------------------------------------------------

STEPS = (
    "Answer the following multiple choice question. The last line of your response should be of the following format: "
    "'ANSWER: [LETTER]' (without quotes) where [LETTER] is one of {letters}. Think step by step before answering."
)


def scope_parts(name, row):
    """Prompt, golds and columns."""
    question, options, gold = row.get("question"), options_of(row), row["answer"]
    steps = STEPS.format(letters=",".join(LETTERS[: len(options)]))
    chosen = f"{steps}\n\n{question}\n\n{lines(options, ')')}"
    if name == "mmstar":
        told = {"index": row["index"], "category": row["category"], "l2_category": row["l2_category"]}
        return f"{STEPS.format(letters='A,B,C,D')}\n\n{question}", gold, {**told, "image_path": "images/0.jpg"}
    if name == "realworldqa":
        rest = 'Remember to put your answer on its own line at the end in the form "ANSWER: [ANSWER]"'
        return f"Read the picture and solve it.\n\n{question}\n\n{rest}", gold.lower(), {"image_path": "a.webp"}
    if name == "mathvision":
        told = {"id": row["id"], "solution": None, "level": row["level"], "subject": row["subject"]}
        free = f"{question}\nPlease reason step by step, and put your final answer within \\boxed{{}} without units."
        return chosen if options else free, gold, {**told, "question_type": "multi_choice" if options else "free_form"}
    if name == "logicvista":
        return f"{STEPS}\n\n{question}", "".join(sorted(gold.replace(",", "").split())), {"id": "v1_3"}
    if name == "mmmu":
        told = {"id": row["id"], "question_type": row["question_type"], "subfield": row["subfield"]}
        return chosen if options else f"Solve it.\n\n{question}\n\nRemember", gold, told
    told = {"id": row["id"], "img_type": None, "subject": row["subject"]}
    return chosen if question else f"Answer. One of {','.join(LETTERS)}.", gold, told


def scope_row(name, number, row, reply):
    prompt, gold, told = scope_parts(name, row)
    before, image, after = prompt.partition("<image 1>")
    parts = [{"type": "text", "text": before}, {"type": "image", "image": "data:…"}, {"type": "text", "text": after}]
    content = parts if image else [*parts[:1], parts[1]]
    value = {"accuracy": 0.0}
    return {
        "index": number,
        "target": [gold],
        "messages": [
            {"id": "1", "role": "user", "content": content},
            {"id": "2", "role": "assistant", "content": reply, "source": "generate"},
        ],
        "agent_trace": None,
        "sample_score": {
            "score": {"value": value, "status": "success", "extracted_prediction": "?", "prediction": reply},
            "sample_id": number,
            "group_id": number,
            "generation_index": None,
            "sample_metadata": told,
        },
    }


def sheet(cells):
    """A spreadsheet as plain as it gets, texts inline."""

    def cell(value):
        if isinstance(value, int):
            return f"<c><v>{value}</v></c>"
        text = value.replace("&", "&amp;").replace("<", "&lt;")
        return f'<c t="inlineStr"><is><t xml:space="preserve">{text}</t></is></c>'

    body = "".join(f"<row>{''.join(map(cell, row))}</row>" for row in cells)
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    files = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types"><Default Extension="rels" ContentType='
        '"application/vnd.openxmlformats-package.relationships+xml"/><Override PartName="/xl/workbook.xml" ContentType='
        f'"{kind}.sheet.main+xml"/><Override PartName="/xl/s.xml" ContentType="{kind}.worksheet+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="a" '
        f'Type="{office}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets><sheet name="S" sheetId="1" r:id="b"/>'
        "</sheets></workbook>",
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="b" '
        f'Type="{office}/worksheet" Target="s.xml"/></Relationships>',
        "xl/s.xml": f'<worksheet xmlns="{main}"><sheetData>{body}</sheetData></worksheet>',
    }
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return data.getvalue()
