"""Some 400 hostile images, files, records and rows. Each gets its documented fate, and nothing else happens.

What is locked: 1) an image is loaded as documented or is an ImageError of one line that names it, by path and as bytes;
2) headers say before decoding what decoding finds; 3) damaged bytes of any kind never raise anything else; 4) workers
of a data loader and of `datasets` survive all images and report every fate; 5) all of it in bounded memory, without a
socket or another program; 6) annotation files, records, rows and data files: one DataError of one line, or a count.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privileged import DataError, ImageError, PrivilegedRecord, load_image
from privileged.checks import Report
from privileged.readers import find, write_example
from privileged.rows import read_rows, to_sample
from tests import hostile, hostile_text
from tests.hostile import LOADED

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    hostile.write_images(folder)
    yield folder
    (folder / "root" / "locked.png").chmod(0o600)


def wrong(cases, fates):
    """Those whose fate is not the documented one."""
    pairs = zip(cases, fates, strict=True)
    return [(c.name, c.fate, f) for c, f in pairs if (f != LOADED if c.fate == LOADED else c.fate not in f)]


def test_the_corpus_is_large(folder):
    """And holds every fate."""
    cases = hostile.read_cases(folder)
    texts = (hostile_text.RECORDS, hostile_text.ROWS, hostile_text.DATA_FILES)
    assert len(cases) >= 220
    assert len({case.name for case in cases}) == len(cases)
    assert sum(map(len, texts)) >= 120


def test_every_image_has_its_fate(folder):
    """By path: loaded, or one short line that names the source."""
    cases = hostile.read_cases(folder)
    fates = [hostile.fate_of(case.source, folder / "root") for case in cases]
    assert wrong(cases, fates) == []
    for case, fate in zip(cases, fates, strict=True):
        assert "\n" not in fate
        assert len(fate) < 800
        if fate != LOADED:
            assert fate.startswith(f"image {case.source[:60]!r}"[:50])


def test_every_image_has_the_same_fate_as_bytes(folder):
    """What arrives encoded in a Parquet row is judged as a file is."""
    files = [case for case in hostile.read_cases(folder) if not case.name.startswith(("path ", "URI "))]
    assert len(files) > 120
    fates = [hostile.fate_of((folder / "root" / case.source).read_bytes(), folder / "root") for case in files]
    assert wrong(files, fates) == []
    assert all(fate == LOADED or fate.startswith("image <bytes>: expected") for fate in fates)


def test_headers_tell_what_decoding_finds(folder):
    """The size of the upright image and the notes; and nothing that loads is refused by its header."""
    for case in hostile.read_cases(folder):
        facts = hostile.inspected(case.source, folder / "root")
        if case.fate != LOADED:
            continue
        assert not isinstance(facts, str), facts
        assert facts.size == load_image(case.source, folder / "root").size
        if case.size is not None:
            assert (facts.size, facts.notes) == (case.size, case.notes), case.name


WHOLE = [data for data, _, _ in hostile.modes().values()]


@given(
    data=st.sampled_from(WHOLE),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.floats(0.01, 1),
)
@settings(max_examples=100)
def test_damaged_bytes_are_an_image_or_an_image_error(data, edits, cut):
    """Bytes replaced anywhere, headers included, and the end cut off."""
    damaged = bytearray(data[: int(len(data) * cut)])
    for place, value in edits:
        if damaged:
            damaged[int(place * min(len(damaged), 400))] = value
    damaged = bytes(damaged)
    try:
        image = load_image(damaged, Path())
    except ImageError as error:
        assert "\n" not in str(error)
    else:
        assert image.mode == "RGB"


def test_workers_of_a_data_loader_survive(folder):
    """Two processes, all images, every fate in its place."""
    from torch.utils.data import DataLoader, Dataset

    cases = hostile.read_cases(folder)

    class Images(Dataset):
        def __len__(self):
            return len(cases)

        def __getitem__(self, index):
            return hostile.fate_of(cases[index].source, folder / "root")

    loader = DataLoader(Images(), batch_size=16, num_workers=2, multiprocessing_context="fork", timeout=60)
    assert wrong(cases, [fate for batch in loader for fate in batch]) == []


def test_workers_of_a_datasets_map_survive(folder, tmp_path):
    """Two processes; what an Arrow file can hold of a name is all that is asked for."""
    import datasets

    cases = hostile.read_cases(folder)
    root = str(folder / "root")
    rows = datasets.Dataset.from_dict({"source": [case.source for case in cases]})
    done = rows.map(
        lambda row: {"fate": hostile.fate_of(row["source"], root)},
        num_proc=2,
        cache_file_name=str(tmp_path / "fates.arrow"),
    )
    assert wrong(cases, done["fate"]) == []


CHILD = """
import socket, subprocess, sys, os, json
from tests import hostile
def peak():  # kB; not of getrusage, whose figure a child inherits from whoever started it
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
def forbidden(*arguments, **options):
    raise SystemExit(f"asked for the world outside: {arguments}")
for place, names in ((socket, ("socket", "getaddrinfo", "create_connection")), (subprocess, ("Popen", "run", "call")),
                     (os, ("system", "popen", "fork", "execv", "execve", "posix_spawn"))):
    for name in names:
        setattr(place, name, forbidden)
cases = hostile.read_cases(sys.argv[1])
before = peak()
fates = [hostile.fate_of(case.source, sys.argv[1] + "/root") for case in cases]
facts = [hostile.inspected(case.source, sys.argv[1] + "/root") for case in cases]
print(json.dumps({"fates": fates, "grown": peak() - before}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
def test_memory_is_bounded_and_the_world_outside_is_left_alone(folder, tmp_path):
    """Less than 300 MB for all images together; a Ghostscript on the path would leave a trace."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-c", CHILD, str(folder)]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    result = json.loads(run.stdout)
    assert wrong(hostile.read_cases(folder), result["fates"]) == []
    assert 0 < result["grown"] < 300 * 1024  # kB
    assert not (tmp_path / "started").exists()


def reading(name, folder, content=None, change=None):
    """What the reader does with its example after its first file was replaced: the DataError's text, or the report."""
    reader, path = write_example(name, folder)
    file = folder / next(iter(find(name).EXAMPLE["files"]))
    file.write_bytes(change(file.read_bytes()) if change else content)
    report = Report()
    try:
        samples = list(reader.read(path, report))
    except DataError as error:
        assert "\n" not in str(error)
        assert str(error).startswith(file.name)
        return str(error), []
    return dict(report.images), samples


@pytest.mark.parametrize("junk", hostile_text.JUNK)
@pytest.mark.parametrize("name", hostile_text.DOCUMENTS)
def test_junk_instead_of_a_json_document(name, junk, tmp_path):
    """The file is named, and its kind where it is a dangerous one."""
    fate, _ = reading(name, tmp_path, hostile_text.JUNK[junk])
    expected = {"a pickle": hostile_text.PICKLE, "Latin-1": hostile_text.NOT_UTF8, "UTF-16": hostile_text.NOT_UTF8}
    expected |= {"NaN": "got nan", "null": "got None", "a picture": hostile_text.NOT_UTF8}
    assert expected.get(junk, hostile_text.NOT_JSON) in fate


@pytest.mark.parametrize("junk", hostile_text.JUNK)
@pytest.mark.parametrize("name", hostile_text.LINES)
def test_junk_instead_of_json_lines(name, junk, tmp_path):
    """A line that is none is counted; bytes that are no text, and pickles, are an error of the file."""
    fate, samples = reading(name, tmp_path, hostile_text.JUNK[junk])
    assert samples == []
    if junk in ("a pickle", "Latin-1", "UTF-16", "a picture"):
        assert (hostile_text.PICKLE if junk == "a pickle" else hostile_text.NOT_UTF8) in fate
    else:
        assert fate == ({} if junk == "empty" else hostile_text.COUNTED)


@pytest.mark.parametrize("head", hostile_text.XML_HEADS)
@pytest.mark.parametrize("name", ["voc", "cvat", "page_xml", "alto"])
def test_xml_that_asks_for_more(name, head, tmp_path):
    """Refused before a parser sees it; in a folder it is counted."""
    fate, samples = reading(name, tmp_path, change=lambda good: hostile_text.XML_HEADS[head].encode() + good)
    assert samples == []
    assert fate == hostile_text.COUNTED or "DOCTYPE" in fate


@pytest.mark.parametrize("way", ["BOM", "CR LF", "CR"])
@pytest.mark.parametrize("name", ["coco", "labelme", "voc", "cvat", "yolo", "hocr", "ms_swift", "qwen"])
def test_the_same_file_written_otherwise_reads_the_same(name, way, tmp_path):
    """Byte order marks and line ends of other systems."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    fate, samples = reading(name, tmp_path / "a", change=lambda good: good)
    assert samples
    changed = reading(name, tmp_path / "b", change=lambda good: hostile_text.same_but_written_otherwise(good)[way])
    assert changed == (fate, samples)


def judged(act, fate):
    """`act()` ends as documented."""
    if fate == hostile_text.OK:
        return act()
    with pytest.raises(DataError) as caught:
        act()
    assert fate in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    str(caught.value).encode()
    return None


@pytest.mark.parametrize(("record", "fate"), hostile_text.RECORDS.values(), ids=hostile_text.RECORDS)
def test_every_record_has_its_fate(record, fate):
    """A record that is read survives a round trip."""
    read = judged(lambda: PrivilegedRecord.from_json(record), fate)
    assert read is None or PrivilegedRecord.from_json(read.to_json()) == read


@pytest.mark.parametrize(("row", "fate"), hostile_text.ROWS.values(), ids=hostile_text.ROWS)
def test_every_row_has_its_fate(row, fate, tmp_path):
    """None of these is a sample."""
    judged(lambda: to_sample(row, "a", tmp_path), fate)


@pytest.mark.parametrize("name", hostile_text.DATA_FILES)
def test_every_data_file_has_its_fate(name, tmp_path):
    """The message names the file."""
    content, fate = hostile_text.DATA_FILES[name]
    (tmp_path / name).write_bytes(content)
    judged(lambda: read_rows(tmp_path / name), fate)


@pytest.mark.parametrize("name", ["folder.jsonl", "pipe.jsonl", "missing.jsonl", "loop.jsonl"])
def test_a_data_file_that_is_none(name, tmp_path):
    """A pipe would block for ever."""
    (tmp_path / "folder.jsonl").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    judged(lambda: read_rows(tmp_path / name), "no such data file")
