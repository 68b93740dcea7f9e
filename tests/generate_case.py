"""A small data set with a coloured rectangle in every image, and the settings to ask a fake endpoint about it."""

import json

import pytest
from PIL import Image, ImageDraw

from privileged.generate import Settings, generate
from privileged.rows import read_rows, to_sample

SIZE = (120, 90)


def place(number):
    """The box (px) of image `number`: another one each."""
    x, y = 5 + 7 * (number % 10), 5 + 4 * (number % 7)
    return (x, y, x + 30, y + 25)


def write_data(folder, count, name="data.jsonl", **columns):
    """`count` rows about images of their own."""
    (folder / "pictures").mkdir(exist_ok=True, parents=True)
    rows = []
    for number in range(count):
        image = Image.new("RGB", SIZE, "white")
        x0, y0, x1, y1 = place(number)
        ImageDraw.Draw(image).rectangle((x0, y0, x1 - 1, y1 - 1), fill="red")
        image.save(folder / "pictures" / f"{number}.png")
        row = {"id": f"s{number}", "question": f"What is the red thing in {number}?", "answer": "a box"}
        rows.append(row | {"images": [f"pictures/{number}.png"]} | columns)
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def settings(server, **changes):
    """For tests: no probe, no waiting."""
    given = {"base_url": server.url, "model": "m", "probe": False, "concurrency": 4, "timeout": 60.0, "max_retries": 2}
    return Settings(**(given | changes))


def run(server, data, out="out.jsonl", shard=None, **changes):
    """Summary and rows of one run."""
    target = data.parent / out
    summary = generate(data, target, settings(server, **changes), shard=shard, on_progress=lambda *figures: None)
    return summary, [] if changes.get("dry_run") else list(read_rows(target))


def samples(rows, folder):
    """As training reads them: raises for a record that does not fit its images."""
    return [to_sample(row, f"out-{number}", folder) for number, row in enumerate(rows)]


def kept_replies(folder):
    """All entries of the replies folder."""
    return [json.loads(line) for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]


@pytest.fixture
def quick(monkeypatch):
    """The SDK's back-off in milliseconds, and no reading of the 200 kB of certificates that loopback needs none of."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.002)
    monkeypatch.setattr("ssl.SSLContext.load_verify_locations", lambda *args, **kwargs: None)
