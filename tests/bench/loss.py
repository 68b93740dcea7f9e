"""Time and memory of the routed loss at the real vocabulary, against its matrix products alone and a plain version.

Tokens are routed as in training: 45 % LH and 30 % LL (top-K reverse KL against the teacher and against S⁺), 10 % HT
(full JS), 15 % HS (top-K against S⁺). A step is the loss and its backward, down to the gradients of the hidden states
and the LM head. The teacher is as narrow as the student, which makes the share of everything but products the largest.

Each number of tokens has a process of its own, since a process only knows its peak memory. Inside it the step, the four
matrix products of the same shapes, and the scoring pass take turns; medians are of CPU seconds, which other processes
on the machine disturb less than they do the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from vlm_dopd.chunked_loss import CHUNK, Scored, Term, routed_loss, score_tokens
from vlm_dopd.divergences import Divergence
from vlm_dopd.head import Head

VOCABULARY = 151_936
TOPK, JS = Divergence(kind="rkl", k=128), Divergence(kind="js", support="full")
TINY: dict[str, Any] = {"widths": (64,), "tokens": (256, 512), "repeats": 1, "vocabulary": 2_048}
"""To try the machinery in seconds; its figures mean nothing."""
PLAIN_UP_TO = 1024
"""Tokens up to which the plain version is run: it holds about a dozen [N, V] tensors, 7 GB here."""


class Case:
    """A student with gradient, T⁺ and S⁺ with logits of a trained model's spread, and the four regimes."""

    def __init__(self, tokens: int, width: int, vocabulary: int) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        self.head_VH = normal(vocabulary, width).mul_(3 / width**0.5).requires_grad_()
        self.teacher_VH = normal(vocabulary, width).mul_(3 / width**0.5)
        self.hidden_NH = normal(tokens, width).requires_grad_()
        self.token_N = torch.randint(vocabulary, (tokens,), generator=generator)
        nothing_N = torch.zeros(tokens)
        self.head = Head(self.head_VH, vocabulary)
        teacher = Scored(normal(tokens, width), Head(self.teacher_VH, vocabulary), nothing_N, nothing_N)
        itself = Scored(normal(tokens, width), self.head.detach(), nothing_N, nothing_N)
        at_N = torch.rand(tokens, generator=generator)
        self.terms = [
            Term(TOPK, 0.6 * (at_N < 0.45), teacher),
            Term(TOPK, 0.3 * ((at_N >= 0.45) & (at_N < 0.75)), itself),
            Term(JS, 1.0 * ((at_N >= 0.75) & (at_N < 0.85)), teacher),
            Term(TOPK, 0.6 * (at_N >= 0.85), itself),
        ]

    def routed(self) -> Tensor:
        return routed_loss(self.hidden_NH, self.head, self.token_N, self.terms).total

    def plain(self) -> Tensor:
        """What one would write first: all logits of student and targets, autograd, one regime after the other."""
        logp_NV = (self.hidden_NH @ self.head_VH.T).log_softmax(-1)
        total = torch.zeros(())
        targets: dict[int, Tensor] = {}
        for term in self.terms:
            if id(term.target) not in targets:
                with torch.no_grad():
                    targets[id(term.target)] = (term.target.hidden_NH @ term.target.head.weight_VH.T).log_softmax(-1)
            rows = term.weight_N.nonzero()[:, 0]
            value_n = term.divergence(logp_NV[rows], targets[id(term.target)][rows], self.token_N[rows])
            total = total + (term.weight_N[rows] * value_n).sum()
        return total

    def step(self, loss: Callable[[], Tensor]) -> float:
        """Value of the loss, whose gradients are then in the leaves."""
        self.hidden_NH.grad = self.head_VH.grad = None
        total = loss()
        total.backward()
        return total.item()

    @torch.no_grad()
    def products(self, out_nV: Tensor, grad_VH: Tensor) -> None:
        """The products no implementation can do without: logits of student and target, and the two gradients."""
        for h_nH in self.hidden_NH.split(CHUNK):
            logits_nV = out_nV[: len(h_nH)]
            torch.mm(h_nH, self.head_VH.T, out=logits_nV)
            torch.mm(h_nH, self.teacher_VH.T, out=logits_nV)
            torch.mm(logits_nV, self.head_VH)
            grad_VH.addmm_(logits_nV.T, h_nH)


def forget_peak() -> float:
    """Lets the kernel's record of this process's highest memory begin anew; resident MiB now.

    `ru_maxrss` is no use here: a child starts with what its parent had, if that is more.
    """
    Path("/proc/self/clear_refs").write_text("5")
    return _status_mb("VmRSS")


def _status_mb(name: str) -> float:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


@contextmanager
def timed(into: list[float]) -> Iterator[None]:
    began = time.process_time()
    yield
    into.append(time.process_time() - began)


def one(what: str, tokens: int, width: int, vocabulary: int, repeats: int) -> dict[str, float]:
    """Figures of one number of tokens, measured in this process, which should be fresh. `what` is a loss of Case."""
    small = Case(8, 16, 1000)
    small.step(small.routed)  # loads what torch loads on first use
    case = Case(tokens, width, vocabulary)
    gradients_mb = (case.head_VH.numel() + case.hidden_NH.numel()) * 4 / 2**20
    before_mb = forget_peak()
    seconds: dict[str, list[float]] = {what: [], "products": [], "score": []}
    with timed(seconds[what]):
        figures = {"value": case.step(getattr(case, what))}
    figures["memory_mb"] = _status_mb("VmHWM") - before_mb - gradients_mb
    if what == "plain":
        return figures | {"seconds": seconds[what][0]}
    out_nV, grad_VH = torch.zeros(min(CHUNK, tokens), vocabulary), torch.zeros(vocabulary, width)
    for number in range(repeats):
        if number:
            with timed(seconds[what]):
                case.step(case.routed)
        with timed(seconds["products"]):
            case.products(out_nV, grad_VH)
        with timed(seconds["score"]):
            score_tokens(case.hidden_NH, case.head, case.token_N)
    loss, products, score = (median(values) for values in seconds.values())
    return figures | {
        "seconds": loss,
        "products_seconds": products,
        "score_seconds": score,
        "gemm_gflops": 8 * tokens * vocabulary * width / products / 1e9,
        "gemm_share": products / loss,
        "score_gemm_share": products / 4 / score,
    }


def measure(
    widths: tuple[int, ...] = (512, 1024),
    tokens: tuple[int, ...] = (256, 1024, 4096, 8192),
    repeats: int = 3,
    vocabulary: int = VOCABULARY,
) -> dict[str, Any]:
    """Figures by hidden size and number of tokens: CPU seconds, MiB above the inputs and gradients, shares."""
    result: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "vocabulary": vocabulary,
    }
    for width in widths:
        for count in tokens:
            often = repeats if count <= PLAIN_UP_TO else 1
            figures = result[f"H={width} N={count}"] = _child("routed", count, width, vocabulary, often)
            if count <= PLAIN_UP_TO:
                plain = _child("plain", count, width, vocabulary, 1)
                figures |= {"plain_seconds": plain["seconds"], "plain_memory_mb": plain["memory_mb"]}
                figures["difference_from_plain"] = abs(figures["value"] / plain["value"] - 1)
    return result


def _child(*arguments: Any) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench.loss", "--one", *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=(512, 1024))
    parser.add_argument("--tokens", type=int, nargs="+", default=(256, 1024, 4096, 8192))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file; without it the result is printed")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        what, *numbers = arguments.one
        print(json.dumps(one(what, *map(int, numbers))))
        return
    result = json.dumps(measure(tuple(arguments.widths), tuple(arguments.tokens), arguments.repeats), indent=1)
    if arguments.output:
        arguments.output.write_text(result + "\n")
    else:
        print(result)


if __name__ == "__main__":
    main()
