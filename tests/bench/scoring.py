"""How long it takes to score 12,000 stored replies offline, mathematics included.

The replies are those of the golden cases, 1,500 a benchmark: each round over the goldens puts other words around them,
so that no two rows are the same and nothing that a cache could remember helps. Each benchmark is one file, scored by
`evals.rescore.rescore_file` as `vlm-dopd rescore` does it, under both protocols. The limit is 60 s on two cores for
12,000 replies; one process does all of it, so the sum over the benchmarks of one protocol is what counts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from evals.benchmarks import available
from evals.rescore import rescore_file

GOLDENS = Path(__file__).parent.parent / "golden" / "evals"
REPLIES = 12_000
PROTOCOLS = ("official", "toolkit")
TINY = 160

_BEFORE = ("", "Let us look at the picture, step {}.\n", "<think>\nStep {}: not sure yet.\n</think>\n\n")


def make(folder: Path, replies: int) -> dict[str, Path]:
    """A file of stored replies for each benchmark, as many in each."""
    files = {}
    for name in available():
        lines = (GOLDENS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        goldens = [row for row in map(json.loads, lines) if row["kind"] == "item"]
        rows = []
        for number, golden in enumerate(itertools.islice(itertools.cycle(goldens), replies // len(available()))):
            lap = number // len(goldens)
            before = _BEFORE[lap % len(_BEFORE)].format(lap)
            rows.append({"id": number, "record": golden["record"], "response": before + golden["response"]})
        files[name] = folder / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return files


def measure(replies: int = REPLIES) -> dict[str, Any]:
    """Seconds by protocol and benchmark, fates by protocol, and what it ran with."""
    seconds: dict[str, dict[str, float]] = {}
    fates: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = make(folder, replies)
        for protocol in PROTOCOLS:
            seconds[protocol], fates[protocol] = {}, Counter()
            for benchmark, file in files.items():
                began = time.perf_counter()
                verdicts = rescore_file(file, benchmark, protocol, folder / "out.jsonl")
                seconds[protocol][benchmark] = round(time.perf_counter() - began, 2)
                fates[protocol].update(verdict["fate"] for verdict in verdicts)
    return {
        "replies": replies // len(files) * len(files),
        "replies_by_benchmark": replies // len(files),
        "seconds": {protocol: round(sum(by_name.values()), 2) for protocol, by_name in seconds.items()},
        "seconds_by_benchmark": seconds,
        "fates": fates,
        "cores": os.cpu_count(),
        "versions": {"python": platform.python_version(), "numpy": version("numpy")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replies", type=int, default=REPLIES)
    print(json.dumps(measure(parser.parse_args().replies), indent=1))


if __name__ == "__main__":
    main()
