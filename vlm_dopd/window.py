"""Steps 1-3 of an optimiser step over a whole window: roll out, score under every role, route.

A window is all groups of one optimiser step: every accumulation micro-batch of every rank. Routing statistics and the
loss's denominator are the window's, so neither depends on how it was split.

Shape letters: N response tokens of a micro-batch (of the window in `WindowScores`), R loss components.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .chunked_loss import Scored, Term
from .collate import Batch
from .errors import TrainingError
from .methods import Method, Role, WindowScores
from .packing import Packed, pack
from .roles import Policy
from .rollout import Engine, Response
from .scoring import score

logger = logging.getLogger(__name__)


class Ranks(Protocol):
    """What of `accelerate.Accelerator` a window needs."""

    process_index: int

    def autocast(self) -> AbstractContextManager[Any]: ...


@dataclass(frozen=True)
class TrainingBatch:
    """What one forward pass with gradient needs."""

    packed: Packed
    """Rows of the plain view."""
    terms: tuple[Term, ...]
    """One a component of the method. Weights hold 1/|y| if the reduction is a mean over sequences."""


@dataclass(frozen=True)
class Window:
    batches: tuple[tuple[TrainingBatch, ...], ...]
    """The passes of each micro-batch."""
    denominator: int
    """What the summed loss is divided by: the number of sequences (or tokens) of the window, over all ranks."""
    figures: dict[str, float]
    """For the log: regime shares, gap, lengths, times. Over all ranks, but for times and padding."""


@dataclass(frozen=True)
class _Scores:
    """One micro-batch between scoring and routing."""

    plain: list[Packed]
    by_role: dict[Role, Scored]
    token_N: Tensor
    has_privilege_N: Tensor
    length_N: Tensor
    """Length of the response that the token belongs to."""


class WindowBuilder:
    """Builds windows for one run: holds the policies, the method and the rollout engine."""

    def __init__(
        self,
        student: Policy,
        teacher: Policy,
        method: Method,
        engine: Engine,
        pad_id: int,
        special_ids: Sequence[int],
        ranks: Ranks,
        max_tokens: int | None = None,
    ) -> None:
        self.policies = {"student": student, "teacher": teacher}
        self.method, self.engine, self.pad_id, self.ranks = method, engine, pad_id, ranks
        self.max_tokens, self._unwarned = max_tokens, True
        self.special_ids = torch.tensor(sorted(special_ids))

    def build(self, batches: Sequence[Batch], step: int) -> Window:
        """One window from this rank's micro-batches."""
        began = time.perf_counter()
        for policy in self.policies.values():
            policy.vision.forget()
        with self.ranks.autocast():
            responses = [self.engine(batch.groups, step) for batch in batches]
            rolled_out = time.perf_counter()
            scores = [self._score(*pair) for pair in zip(batches, responses, strict=True)]
        weight_RN, figures = self._route(scores)
        figures |= self._count(batches, responses)
        self._warn_without_p(batches)
        figures |= {"time/rollout": rolled_out - began, "time/score": time.perf_counter() - rolled_out}
        passes = [packed for s in scores for packed in s.plain]
        figures["data/padding"] = sum(p.padding for p in passes) / sum(p.inputs["input_ids"].numel() for p in passes)
        mine_RN = weight_RN.split([s.token_N.numel() for s in scores], dim=1)
        training = tuple(self._training_batches(s, w) for s, w in zip(scores, mine_RN, strict=True))
        counted = "rollout/sequences" if self.method.reduction == "seq_mean" else "rollout/tokens"
        return Window(training, int(figures[counted]), figures)

    def _warn_without_p(self, batches: Sequence[Batch]) -> None:
        """Once: a builder that finds nothing in the data is a mistake more often than a wish."""
        groups = [group for batch in batches for group in batch.groups]
        asks = any(role.view == "privileged" for role in self.method.roles)
        if asks and self._unwarned and not any(group.has_privilege for group in groups):
            self._unwarned = False
            logger.warning(
                "no sample of this window has p (%d samples): it is vanilla OPD; does data.builder fit what the rows "
                "hold? `vlm-dopd annotate preview` shows",
                len(groups),
            )

    def _score(self, batch: Batch, responses: list[list[Response]]) -> _Scores:
        ids = [[response.id_T for response in siblings] for siblings in responses]
        views = {view for _, view in self.method.roles} | {"plain"}
        packed = {
            view: pack([getattr(g, view) for g in batch.groups], ids, self.pad_id, self.max_tokens)
            for view in sorted(views)
        }
        by_role = {role: score(self.policies[role.weights], packed[role.view]) for role in self.method.roles}
        flat = [response for siblings in ids for response in siblings]
        length = torch.tensor([response.numel() for response in flat])
        privilege = torch.tensor([g.has_privilege for g, own in zip(batch.groups, ids, strict=True) for _ in own])
        return _Scores(
            plain=packed["plain"],
            by_role=by_role,
            token_N=torch.cat(flat),
            has_privilege_N=privilege.repeat_interleave(length),
            length_N=length.repeat_interleave(length),
        )

    def _route(self, scores: Sequence[_Scores]) -> tuple[Tensor, dict[str, float]]:
        """The method's weights of this rank's tokens, [R, N], decided on the tokens of all ranks."""
        columns: dict[Any, Tensor] = {
            "has_privilege": torch.cat([s.has_privilege_N for s in scores]),
            "ordinary": ~torch.cat([torch.isin(s.token_N, self.special_ids) for s in scores]),
        }
        for role in self.method.roles:
            columns[role, "logp"] = torch.cat([s.by_role[role].logp_N for s in scores]).cpu()
            columns[role, "entropy"] = torch.cat([s.by_role[role].entropy_N for s in scores]).cpu()
        ranks = gather_object(columns)
        merged = {name: torch.cat([rank[name] for rank in ranks]) for name in columns}
        for role in self.method.roles:  # a NaN compares as False everywhere and would be routed in silence
            bad = int((~torch.isfinite(merged[role, "logp"])).sum())
            if bad:
                raise TrainingError(
                    f"{role.weights} in the {role.view} view: expected finite log-probabilities, got {bad} of "
                    f"{merged[role, 'logp'].numel()} that are not; check its weights and dtype"
                )
        weight_RN, figures = self.method.weights(
            WindowScores(
                logp_N={role: merged[role, "logp"] for role in self.method.roles},
                entropy_N={role: merged[role, "entropy"] for role in self.method.roles},
                has_privilege_N=merged["has_privilege"],
                ordinary_N=merged["ordinary"],
            )
        )
        for role in self.method.roles:
            entropy = merged[role, "entropy"].mean().item() if merged[role, "entropy"].numel() else 0.0
            figures[f"entropy/{role.weights}_{role.view}"] = entropy
        mine = slice(*_span([rank["ordinary"].numel() for rank in ranks], self.ranks.process_index))
        return weight_RN[:, mine], figures

    def _count(self, batches: Sequence[Batch], responses: list[list[list[Response]]]) -> dict[str, float]:
        flat = [response for batch in responses for siblings in batch for response in siblings if len(response.id_T)]
        mine = torch.tensor(
            [
                len(flat),
                sum(response.id_T.numel() for response in flat),
                sum(response.truncated for response in flat),
                sum(batch.dropped for batch in batches),
                sum(batch.without_privilege for batch in batches),
                sum(batch.left_out for batch in batches),
            ]
        )
        sequences, tokens, truncated, dropped, without, left_out = torch.stack(gather_object(mine)).sum(0).tolist()
        return {
            "rollout/sequences": sequences,
            "rollout/tokens": tokens,
            "rollout/length": tokens / max(sequences, 1),
            "rollout/truncated": truncated / max(sequences, 1),
            "data/dropped": dropped,
            "data/without_privilege": without,
            "data/left_out": left_out,
        }

    def _training_batches(self, scores: _Scores, weight_RN: Tensor) -> tuple[TrainingBatch, ...]:
        if self.method.reduction == "seq_mean":
            weight_RN = weight_RN / scores.length_N
        device = self.policies["student"].device
        targets = {component.target for component in self.method.components}
        batches = []
        for packed in scores.plain:
            # One object a role: the loss forms the logits of a target once for all terms that share it.
            by_role = {role: _at(scores.by_role[role], packed.place_N) for role in targets}
            terms = tuple(
                Term(component.divergence, weight_N.to(device), by_role[component.target])
                for component, weight_N in zip(self.method.components, weight_RN[:, packed.place_N], strict=True)
            )
            batches.append(TrainingBatch(packed.to(device), terms))
        return tuple(batches)


def _at(scored: Scored, place_N: Tensor) -> Scored:
    """The scores of some of the tokens."""
    place_N = place_N.to(scored.logp_N.device)
    return Scored(scored.hidden_NH[place_N], scored.head, scored.logp_N[place_N], scored.entropy_N[place_N])


def gather_object(value: Any) -> list[Any]:
    """One value a rank, in rank order, on every rank. Objects, because ranks hold different numbers of tokens."""
    if not torch.distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def _span(sizes: Sequence[int], index: int) -> tuple[int, int]:
    start = sum(sizes[:index])
    return start, start + sizes[index]
