"""`python -m tests.bench [PART …]`: measures steps against their peers; writes one JSON and prints tables.

Parts: plain, trl, methods, growth, padding, share, loss, scoring (see the files of those names, and `step.py`). Without
a name all are run: two hours on two cores. `--size tiny` tries the machinery in two minutes; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

PARTS = ("plain", "trl", "methods", "growth", "padding", "share", "loss", "scoring")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--steps", type=int, default=3, help="measured steps a variant, after one to warm up")
    parser.add_argument("--size", default="bench", choices=("bench", "tiny"))
    parser.add_argument("--trl-python", default=sys.executable, help="an interpreter that has TRL and this package")
    parser.add_argument("--output", type=Path, default=Path("bench.json"))
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as name:
        results = measure(Path(name), arguments)
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")
    from tests.bench.step import rows

    facts = ", ".join(f"{key} {value}" for key, value in results["machine"].items())
    print(f"{facts}; {results['steps']} steps, medians, interleaved\n\n{rows(results)}")


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    from tests.bench import loss, measure, pair, scoring, share, step, trl

    pair.save_pair(folder, pair.SIZES[arguments.size])
    data = {side: str(pair.save_questions(folder / str(side), [(side, side)] * 4)) for side in (224, 448, 896)}
    uneven = pair.save_questions(folder / "uneven", [(224, 224), (896, 448), (448, 448), (320, 672)] * 4)
    spec = step.Spec(folder=str(folder), data=data[448], response=96 if arguments.size == "bench" else 12)
    steps = arguments.steps
    parts = {
        "plain": lambda: step.measure_plain(spec, steps),
        "trl": lambda: trl.measure(spec, steps, arguments.trl_python),
        "methods": lambda: step.measure_methods(spec, steps),
        "growth": lambda: step.measure_growth(spec, steps, data),
        "padding": lambda: step.measure_padding(step.replace(spec, data=str(uneven), prompts=16)),
        "share": lambda: share.measure(spec, steps),
        "loss": lambda: loss.measure(repeats=steps) if arguments.size == "bench" else loss.measure(**loss.TINY),
        "scoring": lambda: scoring.measure() if arguments.size == "bench" else scoring.measure(scoring.TINY),
    }
    results: dict[str, Any] = {"machine": measure.machine(), "size": arguments.size, "steps": steps}
    for name in arguments.parts or PARTS:
        print(f"{name} …", file=sys.stderr)
        results[name] = parts[name]()
    return results


if __name__ == "__main__":
    main()
