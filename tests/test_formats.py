"""The list of formats: what there is, what each one makes of its example, and the README's gallery.

What is locked: 1) every reader and builder is listed with its options, grade and a worked example; 2) those of other
packages too, each imported once, and a broken one spoils nothing; 3) JSON, terminal and gallery show the same, and no
text of a format is read as markup; 4) the gallery is reproducible, small, and up to date in the README.
"""

import dataclasses
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from privileged import DataError, builders, get_builder, readers
from privileged.records import PrivilegedRecord
from vlm_dopd.annotate import formats as module
from vlm_dopd.annotate.formats import (
    BEGIN,
    END,
    PICTURES,
    Entry,
    Rendered,
    Understood,
    as_json,
    formats,
    gallery_markdown,
    gallery_pictures,
    print_formats,
    replace_block,
    write_gallery,
)

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
COMMAND = "vlm-dopd annotate formats --gallery README.md"


@pytest.fixture(scope="module")
def entries():
    return formats()


def printed(entries, **options):
    console = Console(file=io.StringIO(), width=160)
    print_formats(entries, console, **options)
    return console.file.getvalue()


def test_every_format_is_listed_with_its_facts(entries):
    """All names, in order, readers first; a summary, the options with their defaults, the grade of a builder."""
    assert [entry.name for entry in entries] == [*readers.available(), *builders.available()]
    assert [entry.error for entry in entries if entry.error] == []
    for entry in entries:
        package = readers if entry.kind == "reader" else builders
        found = package.find(entry.name)
        cls = getattr(found, entry.kind.upper())
        assert entry.shipped and entry.summary and "\n" not in entry.summary
        assert found.__doc__.startswith(entry.summary.split()[0])
        fields = [field for field in dataclasses.fields(cls) if field.init]
        assert [option.name for option in entry.options] == [field.name for field in fields]
        if entry.kind == "builder":
            assert entry.discloses == cls.discloses
    (boxes,) = formats(["boxes"])
    assert [(o.name, o.type, o.default) for o in boxes.options] == [
        ("style", "str", "'json'"),
        ("max_regions", "int", "20"),
    ]


def test_the_example_of_a_builder_is_what_it_builds(entries):
    """Word by word for one of text; the pictures of p, but not the sample's own; nothing for `none`."""
    by_name = {entry.name: entry for entry in entries if entry.kind == "builder"}
    assert by_name["hints"].example.parts == (
        "Steps that lead to the answer:\n1. Add 3 to 4.\n2. Take 2 away.\nWork through them yourself. Answer the "
        "question as if you had not seen these steps; do not mention them.",
    )
    kinds = {name: "".join("t" if isinstance(p, str) else "i" for p in by_name[name].example.parts) for name in by_name}
    assert (kinds["crops"], kinds["marks"], kinds["boxes"], kinds["none"]) == ("ttitit", "tit", "t", "")
    answer = by_name["answer"].example
    assert answer.given["answer"] == "5" and "\n5\n" in answer.parts[0]
    drawn = next(part for part in by_name["marks"].example.parts if not isinstance(part, str))
    assert drawn.size == (640, 480) and len(drawn.getcolors(10**6)) > 4, "there is something to see"


def test_the_example_of_a_reader_is_what_it_reads(entries):
    """The file's first lines, and records that can be read back; question and answer where the format has them."""
    for entry in entries:
        if entry.kind == "builder":
            continue
        assert entry.example.files and entry.example.rows
        for row in entry.example.rows:
            assert PrivilegedRecord.from_json(row["record"]).to_json() == row["record"]
        for text in entry.example.files.values():
            assert 1 <= len(text.splitlines()) <= module.LINES + 1
            assert max(map(len, text.splitlines())) <= module.WIDTH
    (virl,) = formats(["virl39k"])
    assert (virl.example.rows[0]["question"], virl.example.rows[0]["answer"]) == ("How many cups are there?", "2")
    assert json.loads("".join(virl.example.files["39Krelease.parquet"].splitlines()))["qid"] == "q-1"


def test_long_files_are_cut_with_a_sign():
    """Whole up to six lines of 110 characters; then a sign that something is missing."""
    assert module._first_lines("a\n\nb") == "a\n\nb"
    assert module._first_lines("x\n" * 7) == "x\n" * 6 + "…"
    assert module._first_lines("y" * 115) == "y" * 110 + "\n" + "y" * 5


def test_json_holds_all_but_pixels(entries):
    """What `--json` prints is JSON, with the sizes of pictures and the records as objects."""
    listed = json.loads(json.dumps(as_json(entries)))
    assert [entry["name"] for entry in listed] == [entry.name for entry in entries]
    assert set(listed[0]) == {field.name for field in dataclasses.fields(Entry)}
    crops = next(entry for entry in listed if entry["name"] == "crops")
    assert crops["example"]["parts"][2] == {"type": "image", "width": 64, "height": 136}
    assert crops["example"]["privileged"]["regions"][0]["label"] == "bottle"
    coco = next(entry for entry in listed if entry["name"] == "coco")
    assert coco["example"]["rows"][0]["record"]["regions"][0]["label"] == "cup"
    assert any("kept: 2" in line for line in coco["example"]["report"])


def test_names_choose_and_unknown_ones_are_told(entries):
    """One or several; a wrong one is one line that lists what there is. A name may be both reader and builder."""
    assert [entry.kind for entry in formats(["points"])] == ["reader", "builder"]
    with pytest.raises(DataError, match=r"'boxen' is unknown: available: .*boxes"):
        formats(["boxen"])


GOOD = '''"""[bold]Stars[/bold] | <b>one</b> `|` line
that ends here.
Not here."""
from dataclasses import dataclass, field
from privileged import PrivilegedBlock
open("COUNT", "a").write("x")

@dataclass(frozen=True, kw_only=True)
class Stars:
    shape: list[str] = field(default_factory=lambda: ["*"])
    many: int
    def build(self, sample, record):
        return PrivilegedBlock(parts=("*" * self.many,))

BUILDER = Stars
EXAMPLE = {"question": "q", "privileged": {"regions": []}}
'''
FAILS = {
    "no_import": "import a_library_that_nobody_has\n",
    "no_builder": "EXAMPLE = {}\n",
    "no_class": "BUILDER = 3\n",
    "raises": GOOD.replace("    many: int\n", "").replace('"*" * self.many', "1 / 0"),
}


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package with one builder that works but needs an option, and others that fail in their ways."""
    monkeypatch.chdir(tmp_path)
    for name, text in {"stars": GOOD, **FAILS}.items():
        (tmp_path / f"plugged_{name}.py").write_text(text.replace("COUNT", f"count_{name}"))
    info = tmp_path / "plugged-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1.0\n")
    lines = "".join(f"{name} = plugged_{name}\n" for name in ("stars", *FAILS))
    (info / "entry_points.txt").write_text(f"[{builders.ENTRY_POINTS}]\n{lines}")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("plugged_")]:
        del sys.modules[name]


def test_plug_ins_are_listed_and_broken_ones_spoil_nothing(installed, entries):
    """Each is imported once; what fails is one line of its entry; all others are as they were."""
    found = {entry.name: entry for entry in formats() if not entry.shipped}
    assert set(found) == {"stars", *FAILS}
    assert (installed / "count_stars").read_text() == "x"
    assert "a_library_that_nobody_has" in found["no_import"].error
    assert "AttributeError" in found["no_builder"].error and "TypeError" in found["no_class"].error
    assert found["raises"].error == "ZeroDivisionError: division by zero"
    assert "many" in found["stars"].error, "an option without default: the example cannot be made"
    assert all("\n" not in entry.error and entry.example is None for entry in found.values())
    assert [(o.type, o.default) for o in found["stars"].options] == [("list[str]", "['*']"), ("int", None)]
    assert found["stars"].summary == "[bold]Stars[/bold] | <b>one</b> `|` line that ends here."
    assert [entry.name for entry in formats() if entry.shipped] == [entry.name for entry in entries]


@pytest.mark.usefixtures("installed")
def test_the_terminal_shows_texts_as_they_are(entries):
    """Every name, errors, square brackets; with examples the file, the record and p."""
    text = printed(formats())
    for entry in (*entries, *(entry for entry in formats() if not entry.shipped)):
        assert entry.name in text
    assert "cannot be used: ZeroDivisionError" in text
    details = printed(formats(["stars", "crops", "coco"]), examples=True)
    for words in ("[bold]Stars[/bold]", "[image 64×136]", "Closer views", "instances.json", '"sample_id": "7"'):
        assert words in details
    assert get_builder("crops").mode in details


@pytest.mark.usefixtures("installed")
def test_the_gallery_is_of_shipped_formats_and_escapes(tmp_path):
    """Nothing of other packages gets into the README; markup of a docstring is escaped; fences hold."""
    readme = tmp_path / "README.md"
    readme.write_text(f"# top\n{BEGIN}\nold\n{END}\nbottom\n")
    assert {path.suffix for path in write_gallery(readme)} == {".md", ".png"}
    text = readme.read_text()
    assert text.startswith(f"# top\n{BEGIN}\n") and text.endswith(f"{END}\nbottom\n")
    assert "old" not in text.split() and "stars" not in text and "<code>coco</code>" in text
    (tmp_path / PICTURES / "gone-1.png").write_bytes(b"")
    assert [path.name for path in write_gallery(readme)] == ["gone-1.png"], "the second time nothing else changes"
    entry = Entry(kind="builder", name="x", shipped=True, summary="<img onerror=x> `a`", discloses="cue")
    entry = dataclasses.replace(entry, example=Rendered(given={"question": "q"}, parts=("```\n</details>",)))
    block = gallery_markdown([entry])
    assert "&lt;img onerror=x&gt; <code>a</code>" in block and "````text\n```\n</details>\n````" in block


def test_the_block_needs_its_markers():
    """Once each and in order, or one line that says so; the rest of the text stays."""
    assert replace_block(f"a{BEGIN}x{END}b", "new", "R") == f"a{BEGIN}\n\nnew\n\n{END}b"
    for text in ("", BEGIN, END + BEGIN, BEGIN + BEGIN + END):
        with pytest.raises(DataError, match=r"^R: expected the markers"):
            replace_block(text, "new", "R")


def test_shared_options_of_readers_are_said_once(entries):
    """`image_root` stands above the readers, `level` with those that have it."""
    block = gallery_markdown(entries)
    assert block.count("`image_root: str = ''`") == 1
    assert block.count("level: str") == sum("level" in [o.name for o in entry.options] for entry in entries)
    assert all(isinstance(entry.example, Rendered | Understood) for entry in entries)


def test_the_gallery_of_the_repository_is_up_to_date(entries):
    """The pictures, by their pixels (other versions of Pillow draw letters a little differently), and the README."""
    expected = gallery_pictures(entries)
    folder = ROOT / PICTURES
    files = {path.name: path for path in folder.glob("*")}
    assert set(files) == set(expected), f"run `{COMMAND}`"
    assert sum(path.stat().st_size for path in files.values()) < 300_000
    for name, picture in expected.items():
        kept, drawn = (np.asarray(image.convert("RGB"), dtype=float) for image in (Image.open(files[name]), picture))
        assert kept.shape == drawn.shape and np.abs(kept - drawn).mean() < 2, f"{name} is old: run `{COMMAND}`"
    text = README.read_text(encoding="utf-8")
    assert BEGIN in text and END in text, f"put the lines {BEGIN} and {END} into README.md, then run `{COMMAND}`"
    assert replace_block(text, gallery_markdown(entries), "README.md") == text, f"README.md is old: run `{COMMAND}`"
    assert not re.search(r"/(tmp|home|work)/", gallery_markdown(entries))
