"""Steps 1-3 of an optimiser step over a whole window: roll out, score under every role, route.

A window is all groups of one optimiser step: every accumulation micro-batch of every rank. Routing statistics and the
loss's denominator are the window's, so neither depends on how it was split.

Shape letters: N response tokens and M responses of a micro-batch (of the window in `WindowScores`), R loss components.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor

from .chunked_loss import Scored, Term, compare_tokens
from .collate import Batch, Prompt
from .completions import Completions
from .errors import TrainingError
from .importance import Importance
from .importance import figures as importance_figures
from .methods import Method, Role, View, WindowScores
from .methods._responses import Responses
from .packing import Packed, pack
from .roles import Policy
from .rollout import Response
from .rollout.mismatch import MismatchCheck
from .scoring import ServedPolicy, submit

logger = logging.getLogger(__name__)


class Ranks(Protocol):
    """What of `accelerate.Accelerator` a window needs."""

    process_index: int

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of mixed precision that passes run in."""
        ...


class Samples(Protocol):
    """What of `token_samples.TokenSamples` a window needs."""

    def window(self, step: int, batches: Any, responses: Any, scores: Any, weight_RN: Any, training: Any) -> None:
        """Told of each window once it is routed; `weight_RN` is that of each micro-batch, before any mean."""
        ...


@dataclass(frozen=True)
class TrainingBatch:
    """What one forward pass with gradient needs."""

    packed: Packed
    """Rows of one view."""
    terms: tuple[Term, ...]
    """Weights hold 1/|y| if the reduction is a mean over sequences."""
    names: tuple[str, ...]
    """The component of each term."""


@dataclass(frozen=True)
class Window:
    """One optimiser step's worth of passes, routed and weighted: what is left is to take their loss."""

    batches: tuple[tuple[TrainingBatch, ...], ...]
    """The passes of each micro-batch."""
    denominator: int
    """What the summed loss is divided by: the number of sequences (or tokens) of the window, over all ranks."""
    figures: dict[str, float]
    """For the log: regime shares, gap, lengths, times. Over all ranks, but for times and padding."""


@dataclass(frozen=True)
class _Scores:
    """One micro-batch between scoring and routing."""

    packed: dict[View, list[Packed]]
    by_role: dict[Role, Scored]
    statistic_N: dict[str, Tensor]
    responses: Responses
    has_privilege_N: Tensor


_Asked = tuple[dict[View, list[Packed]], dict[Role, Callable[[], Scored]]]
"""One micro-batch on its way to be scored."""


class WindowBuilder:
    """Builds windows for one run: holds the policies (by `Role.weights`), the method and what gives the responses."""

    def __init__(
        self,
        policies: Mapping[str, Policy | ServedPolicy],
        method: Method,
        completions: Completions,
        pad_id: int,
        special_ids: Sequence[int],
        ranks: Ranks,
        max_tokens: int | None = None,
        state: dict[str, float] | None = None,
        check: MismatchCheck | None = None,
        importance: Importance | None = None,
        samples: Samples | None = None,
    ) -> None:
        """`check`: of what the engine says of its samples; `importance`: what corrects the loss for it."""
        self.policies, self.method, self.completions = policies, method, completions
        self.pad_id, self.ranks, self.max_tokens = pad_id, ranks, max_tokens
        self.state = {} if state is None else state
        self.check, self.importance = check, importance
        own = [importance.role] if importance else []
        self.roles = tuple(dict.fromkeys([*method.roles, *own]))
        self.special_ids = torch.tensor(sorted(special_ids))
        self.samples = samples
        self._unwarned = True

    def build(self, batches: Sequence[Batch], step: int, progress: float = 0.0) -> Window:
        """One window from this rank's micro-batches. `progress`: share of the steps that are done."""
        began = time.perf_counter()
        for policy in self.policies.values():
            policy.forget()
        with self.ranks.autocast():
            responses = self.completions(batches, step)
            rolled_out = time.perf_counter()
            mismatch = self._compared(batches, responses, step)
            asked = [self._ask(*pair) for pair in zip(batches, responses, strict=True)]
            scores = [self._score(*of) for of in zip(batches, responses, asked, strict=True)]
        weight_RN, figures = self._route(scores, progress)
        figures |= self._count(batches, responses) | mismatch
        self._warn_without_p(batches)
        figures |= {"time/rollout": rolled_out - began, "time/score": time.perf_counter() - rolled_out}
        if self.importance:
            ratio_N = torch.cat([self._ratio(self.importance, s) for s in scores])
            figures |= importance_figures(gather_object(ratio_N), self.importance.cap)
            weight_RN = weight_RN * ratio_N
        mine_RN = weight_RN.split([s.has_privilege_N.numel() for s in scores], dim=1)
        training = tuple(self._training_batches(s, w) for s, w in zip(scores, mine_RN, strict=True))
        if self.samples is not None and self.ranks.process_index == 0:
            self.samples.window(step, batches, responses, scores, mine_RN, training)
        passes = [batch.packed for passes in training for batch in passes]
        tokens = sum(packed.inputs["input_ids"].numel() for packed in passes)
        figures["data/padding"] = sum(packed.padding for packed in passes) / max(tokens, 1)
        counted = {"seq_mean": "rollout/sequences", "token_mean": "rollout/tokens"}
        denominator = int(figures[counted[self.method.reduction]]) if self.method.reduction in counted else 1
        return Window(training, denominator, figures)

    def _compared(self, batches: Sequence[Batch], responses: list[list[list[Response]]], step: int) -> dict[str, float]:
        if self.check is None:
            return {}
        groups = [group for batch in batches for group in batch.groups]
        return self.check(groups, [siblings for own in responses for siblings in own], step)

    def _ratio(self, importance: Importance, scores: _Scores) -> Tensor:
        return importance.weights(scores.by_role[importance.role].logp_N.cpu(), scores.responses)

    def _warn_without_p(self, batches: Sequence[Batch]) -> None:
        """Once: a builder that finds nothing in the data is a mistake more often than a wish."""
        groups = [group for batch in batches for group in batch.groups]
        asks = any(role.view == "privileged" for role in self.method.roles)
        if asks and self._unwarned and not any(group.has_privilege for group in groups):
            self._unwarned = False
            logger.warning(
                "no sample of this window has p (%d samples): each is treated as the method treats rows without; does "
                "data.builder fit what the rows hold? `vlm-dopd annotate preview` shows",
                len(groups),
            )

    def _ask(self, batch: Batch, siblings: list[list[Response]]) -> _Asked:
        """All micro-batches are asked for before any answer is waited for: a served teacher is at work meanwhile."""
        views = {role.view for role in self.roles} | {c.student_view for c in self.method.components}
        ids = [response.id_T for own in siblings for response in own]
        packed = {view: self._pack(self.completions.prompts(batch, siblings, view), ids) for view in sorted(views)}
        roles = sorted(self.roles, key=lambda role: role.weights.startswith("teacher"))  # waited for last
        return packed, {role: submit(self.policies[role.weights], packed[role.view]) for role in roles}

    def _score(self, batch: Batch, siblings: list[list[Response]], asked: _Asked) -> _Scores:
        packed, answers = asked
        by_role = {role: answer() for role, answer in answers.items()}
        responses = responses_of(siblings)
        statistic_N = self._statistics(by_role, responses.token_N)
        targets = {component.target for component in self.method.components}
        kept = {role: s if role in targets else replace(s, hidden_NH=s.hidden_NH[:0]) for role, s in by_role.items()}
        privilege_M = torch.tensor(
            [g.has_privilege for g, own in zip(batch.groups, siblings, strict=True) for _ in own]
        )
        return _Scores(
            packed=packed,
            by_role=kept,
            statistic_N=statistic_N,
            responses=responses,
            has_privilege_N=privilege_M[responses.response_N],
        )

    def _pack(self, prompts: Sequence[Prompt], ids: Sequence[Tensor]) -> list[Packed]:
        """Responses in a row with the same prompt share it."""
        runs = [list(run) for _, run in groupby(zip(prompts, ids, strict=True), key=lambda pair: id(pair[0]))]
        responses = [[id_T for _, id_T in run] for run in runs]
        return pack([run[0][0] for run in runs], responses, self.pad_id, self.max_tokens)

    def _statistics(self, by_role: Mapping[Role, Scored], token_N: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        pairs = dict.fromkeys((statistic.first, statistic.second) for statistic in self.method.statistics)
        for pair in pairs:
            asked = [s for s in self.method.statistics if (s.first, s.second) == pair]
            first, second = (by_role[role] for role in pair)
            values = compare_tokens(first, second, token_N.to(first.logp_N.device), [s.function for s in asked])
            found |= {s.name: value_N.cpu() for s, value_N in zip(asked, values, strict=True)}
        return found

    def _route(self, scores: Sequence[_Scores], progress: float) -> tuple[Tensor, dict[str, float]]:
        """The method's weights of this rank's tokens, [R, N], decided on the tokens of all ranks."""
        mine: list[dict[Any, Tensor]] = []
        for s in scores:
            columns: dict[Any, Tensor] = {(role, "logp"): scored.logp_N.cpu() for role, scored in s.by_role.items()}
            columns |= {(role, "entropy"): scored.entropy_N.cpu() for role, scored in s.by_role.items()}
            mine.append(columns | s.statistic_N | {"has_privilege": s.has_privilege_N})
        ranks = gather_object((mine, [s.responses for s in scores]))
        parts = [columns for rank, _ in ranks for columns in rank]
        merged = {name: torch.cat([columns[name] for columns in parts]) for name in parts[0]}
        for role in self.method.roles:  # a NaN compares as False everywhere and would be routed in silence
            bad = int((~torch.isfinite(merged[role, "logp"])).sum())
            if bad:
                raise TrainingError(
                    f"{role.weights} in the {role.view} view: expected finite log-probabilities, got {bad} of "
                    f"{merged[role, 'logp'].numel()} that are not; check its weights and dtype"
                )
        responses = Responses.joined([one for _, rank in ranks for one in rank])
        weight_RN, figures = self.method.weights(
            WindowScores(
                logp_N={role: merged[role, "logp"] for role in self.method.roles},
                entropy_N={role: merged[role, "entropy"] for role in self.method.roles},
                has_privilege_N=merged["has_privilege"],
                ordinary_N=~torch.isin(responses.token_N, self.special_ids),
                responses=responses,
                statistic_N={s.name: merged[s.name] for s in self.method.statistics},
                progress=progress,
                state=self.state,
            )
        )
        for role in self.method.roles:
            entropy = merged[role, "entropy"].mean().item() if merged[role, "entropy"].numel() else 0.0
            figures[f"entropy/{role.weights}_{role.view}"] = entropy
        sizes = [sum(columns["has_privilege"].numel() for columns in rank) for rank, _ in ranks]
        return weight_RN[:, slice(*_span(sizes, self.ranks.process_index))], figures

    def _count(self, batches: Sequence[Batch], responses: list[list[list[Response]]]) -> dict[str, float]:
        flat = [response for batch in responses for siblings in batch for response in siblings if len(response.id_T)]
        rewarded = [response.reward for response in flat if response.reward == response.reward]
        mine = torch.tensor(
            [
                len(flat),
                sum(response.id_T.numel() for response in flat),
                sum(response.truncated for response in flat),
                sum(batch.dropped for batch in batches),
                sum(batch.without_privilege for batch in batches),
                sum(batch.left_out for batch in batches),
                sum(rewarded),
                len(rewarded),
            ],
            dtype=torch.float64,
        )
        sequences, tokens, truncated, dropped, without, left_out, reward, judged = (
            torch.stack(gather_object(mine)).sum(0).tolist()
        )
        return {
            "rollout/sequences": sequences,
            "rollout/tokens": tokens,
            "rollout/length": tokens / max(sequences, 1),
            "rollout/truncated": truncated / max(sequences, 1),
            "data/dropped": dropped,
            "data/without_privilege": without,
            "data/left_out": left_out,
        } | ({"rollout/reward": reward / judged} if judged else {})

    def _training_batches(self, scores: _Scores, weight_RN: Tensor) -> tuple[TrainingBatch, ...]:
        if self.method.reduction == "seq_mean":
            weight_RN = weight_RN / scores.responses.length_M[scores.responses.response_N]
        components = self.method.components
        batches = []
        for view in dict.fromkeys(component.student_view for component in components):
            asked = [r for r, component in enumerate(components) if component.student_view == view]
            for packed in scores.packed[view]:
                terms = self._terms(scores, weight_RN[:, packed.place_N], packed.place_N, asked)
                names = tuple(components[r].name for r in asked)
                batches.append(TrainingBatch(packed.to(self.policies["student"].device), terms, names))
        return tuple(batches)

    def _terms(self, scores: _Scores, weight_Rn: Tensor, place_n: Tensor, asked: Sequence[int]) -> tuple[Term, ...]:
        """Of the components `asked` for, on the tokens at `place_n` of the micro-batch."""
        device = self.policies["student"].device
        components = [self.method.components[r] for r in asked]
        # One object a role: the loss forms the logits of a target once for all terms that share it.
        targets = {
            c.target: _at(scores.by_role[c.target], place_n, self.method.temperature) for c in components if c.target
        }
        return tuple(
            Term(component.divergence, weight_Rn[r].to(device), targets[component.target] if component.target else None)
            for r, component in zip(asked, components, strict=True)
        )


def responses_of(siblings: Sequence[Sequence[Response]]) -> Responses:
    """The responses of one micro-batch, group by group."""
    flat = [response for own in siblings for response in own]
    length_M = torch.tensor([response.id_T.numel() for response in flat])
    unknown = [torch.full((n,), float("nan")) for n in length_M.tolist()]
    return Responses(
        token_N=torch.cat([response.id_T for response in flat]),
        response_N=torch.arange(len(flat)).repeat_interleave(length_M),
        group_M=torch.arange(len(siblings)).repeat_interleave(torch.tensor([len(own) for own in siblings])),
        reward_M=torch.tensor([response.reward for response in flat]),
        truncated_M=torch.tensor([response.truncated for response in flat]),
        reference_M=torch.tensor([response.reference for response in flat]),
        rollout_logp_N=torch.cat([nan if r.logp_T is None else r.logp_T for r, nan in zip(flat, unknown, strict=True)]),
    )


def _at(scored: Scored, place_N: Tensor, temperature: float) -> Scored:
    """The scores of some of the tokens, their logits at the temperature of the loss."""
    place_N = place_N.to(scored.logp_N.device)
    head = replace(scored.head, temperature=temperature)
    return Scored(scored.hidden_NH[place_N], head, scored.logp_N[place_N], scored.entropy_N[place_N])


def filled(passes: tuple[TrainingBatch, ...], count: int) -> tuple[TrainingBatch, ...]:
    """`count` passes: these, and the last one again without weight."""
    idle = replace(passes[-1], terms=tuple(replace(t, weight_N=torch.zeros_like(t.weight_N)) for t in passes[-1].terms))
    return (*passes, *[idle] * (count - len(passes)))


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
