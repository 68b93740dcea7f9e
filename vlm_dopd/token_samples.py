"""Token by token, what a few responses of a window were taught: kept during training for the report's token page.

window    called by `window.py` when a window is routed: scores and weights of the chosen responses
trained   called by `trainer.py` when a pass's loss is formed: the student's own opinion, and everybody's candidates
step end  one file a step, written by `token_files.py`

Nothing here draws a random number or has a gradient, so a run is the same with and without it. Beside what the window
has computed anyway it costs one product with each LM head, for the chosen responses only.

Shape letters: N response tokens of a micro-batch, n of one response or of a chunk of it, R loss components, K of the
most probable tokens, C candidates, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerState

from .collate import Batch, Group
from .head import Head
from .methods import Method, Role
from .rollout import Response
from .token_files import TokenFiles
from .window import TrainingBatch

TOP = 5
"""Most probable tokens that are kept of every role."""
CHUNK = 32
"""Tokens whose logits exist at one time, of every role: few, as the activations of a pass are still in memory."""

Opinion = tuple[Tensor, Head]
"""Hidden states [n, H] that predict a response, and the LM head that reads them."""


@dataclass
class Taken:
    """One chosen response, and what is known of it so far."""

    batch: int
    """Number of its micro-batch."""
    place: slice
    """Of its tokens among the micro-batch's N."""
    group: Group
    sibling: int
    response: Response
    weight_Rn: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    """The method's, before the mean over a sequence."""
    logp: dict[str, list[float]] = field(default_factory=dict)
    """Of the sampled token, by role, nats."""
    entropy: dict[str, list[float]] = field(default_factory=dict)
    statistic: dict[str, list[float]] = field(default_factory=dict)
    opinions: dict[str, Opinion] = field(default_factory=dict)
    candidates: tuple[list[str], list[list[tuple[int, list[float]]]]] = field(default_factory=lambda: ([], []))
    """Names of the roles, and of every token its candidates: id, and log-probability by role."""


class TokenSamples(TrainerCallback):
    """Keeps `count` responses of every `every`th window, and of the last one, on the first process."""

    def __init__(self, files: TokenFiles, method: Method, count: int, every: int) -> None:
        self.files, self.method, self.count, self.every = files, method, count, every
        self.last = -1
        self.step = -1
        self.taken: list[Taken] = []
        self._views: dict[int, tuple[int, str]] = {}
        """By identity of a pass with gradient: its micro-batch and its view."""

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """After a resume, the files of steps that will come again go."""
        self.last = state.max_steps - 1
        if state.is_world_process_zero:
            self.files.forget_after(state.global_step)

    def window(
        self,
        step: int,
        batches: Sequence[Batch],
        responses: Sequence[Sequence[Sequence[Response]]],
        scores: Sequence[Any],
        weight_RN: Sequence[Tensor],
        training: Sequence[Sequence[TrainingBatch]],
    ) -> None:
        """Choose responses of this process's window and keep what their tokens got.

        All sequences have one entry a micro-batch; `scores` are the window's own, with `by_role` and `statistic_N`.
        """
        self.step, self.taken, self._views = step, [], {}
        if step % self.every and step != self.last:
            return
        self.taken = chosen(batches, responses, self.count)
        for one in self.taken:
            s = scores[one.batch]
            one.weight_Rn = weight_RN[one.batch][:, one.place].cpu()
            one.statistic = {name: value_N[one.place].tolist() for name, value_N in s.statistic_N.items()}
            for role, scored in s.by_role.items():
                one.logp[name_of(role)] = scored.logp_N[one.place].tolist()
                one.entropy[name_of(role)] = scored.entropy_N[one.place].tolist()
                if len(scored.hidden_NH):  # those of roles that are no target are gone
                    one.opinions[name_of(role)] = (scored.hidden_NH[one.place].clone(), scored.head)
        view_of = {component.name: component.student_view for component in self.method.components}
        for number, passes in enumerate(training):
            self._views |= {id(batch): (number, view_of[batch.names[0]]) for batch in passes if batch.names}

    @torch.no_grad()
    def trained(self, batch: TrainingBatch, hidden_NH: Tensor, head: Head) -> None:
        """What the student thinks in a pass with gradient: its hidden states of the pass's tokens, and its head."""
        number, view = self._views.get(id(batch), (-1, ""))
        if not any(one.batch == number for one in self.taken):
            return
        place_N = batch.packed.place_N.cpu()
        for one in self.taken:
            found_n = ((place_N >= one.place.start) & (place_N < one.place.stop)).nonzero()[:, 0]
            role = name_of(Role("student", view))  # type: ignore[arg-type]  # views are checked where they are made
            if one.batch != number or found_n.numel() != one.response.id_T.numel():
                continue
            found_n = found_n[place_N[found_n].argsort()]
            own = (hidden_NH.detach()[found_n.to(hidden_NH.device)], head.detach())
            self._compare(one, {role: own} | {name: its for name, its in one.opinions.items() if name != role}, role)
            one.opinions = {}  # gigabytes of heads must not outlive the step

    def _compare(self, one: Taken, opinions: Mapping[str, Opinion], student: str) -> None:
        logp_n, entropy_n, candidates = candidates_of(opinions, one.response.id_T)
        one.logp.setdefault(student, logp_n.tolist())
        one.entropy.setdefault(student, entropy_n.tolist())
        one.candidates = (list(opinions), candidates)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Write the step's file, if responses were chosen in it, and let go of them."""
        if self.taken and state.is_world_process_zero:
            self.files.write(self.step, [(one.group, one.response, self._figures(one)) for one in self.taken])
        self.taken, self._views = [], {}

    def _figures(self, one: Taken) -> dict[str, Any]:
        """The columns of one response; those of tokens have an entry each."""
        roles, candidates = one.candidates
        return {
            "sibling": one.sibling,
            "gap_of": gap_of(one.logp),
            "components": [
                {
                    "name": component.name,
                    "target": name_of(component.target) if component.target else None,
                    "divergence": _described(component.divergence),
                }
                for component in self.method.components
            ],
            "component": components_of(self.method, one.weight_Rn),
            "weight": one.weight_Rn.sum(0).tolist(),
            "logp": one.logp,
            "entropy": one.entropy,
            "statistic": one.statistic,
            "roles": roles,
            "candidates": candidates,
        }


def chosen(batches: Sequence[Batch], responses: Sequence[Sequence[Sequence[Response]]], count: int) -> list[Taken]:
    """`count` responses that are not empty: the first of every group in order, then the second ones, and so on."""
    found = []
    for number, (batch, of_batch) in enumerate(zip(batches, responses, strict=True)):
        start = 0
        for group, siblings in zip(batch.groups, of_batch, strict=True):
            for sibling, response in enumerate(siblings):
                stop = start + response.id_T.numel()
                if stop > start:
                    found.append(Taken(number, slice(start, stop), group, sibling, response))
                start = stop
    return sorted(found, key=lambda one: one.sibling)[:count]


def candidates_of(
    opinions: Mapping[str, Opinion], token_n: Tensor
) -> tuple[Tensor, Tensor, list[list[tuple[int, list[float]]]]]:
    """The first role's log-probability of the sampled tokens and its entropy, [n]; and for every token the candidates.

    Candidates are the sampled token and the TOP most probable ones of every role, each with its log-probability under
    all roles in the order of `opinions`. All in float32, at temperature 1.
    """
    logps, entropies, candidates = [], [], []
    for rows in (slice(start, start + CHUNK) for start in range(0, token_n.numel(), CHUNK)):
        softmaxes = [_log_softmax(hidden_nH[rows], head) for hidden_nH, head in opinions.values()]
        first_nV, head = softmaxes[0], next(iter(opinions.values()))[1]
        sampled_n = head.scored_as(token_n[rows].to(first_nV.device)).cpu()
        tops = [logp_nV.topk(min(TOP, logp_nV.shape[-1])).indices.cpu() for logp_nV in softmaxes]
        ids_nC = torch.cat([sampled_n[:, None], *tops], dim=1)
        logp_nCr = torch.stack([nV.gather(-1, ids_nC.to(nV.device)).cpu() for nV in softmaxes], dim=-1)
        logps.append(logp_nCr[:, 0, 0])
        entropies.append(-(first_nV.exp() * first_nV).sum(-1).cpu())
        for ids, values in zip(ids_nC.tolist(), logp_nCr.tolist(), strict=True):
            candidates.append(list(dict(zip(ids, values, strict=True)).items()))
    return torch.cat(logps), torch.cat(entropies), candidates


def _log_softmax(hidden_nH: Tensor, head: Head) -> Tensor:
    out_nV = torch.empty(len(hidden_nH), head.vocab_size, device=head.weight_UH.device)
    with torch.autocast(out_nV.device.type, enabled=False):
        replace(head, temperature=1.0).logits(hidden_nH.to(out_nV.device), out_nV)
    return out_nV.log_softmax(-1)


def components_of(method: Method, weight_Rn: Tensor) -> list[str | None]:
    """Which component a token got: that of the largest share where a soft router mixed; None for no loss."""
    strength_R1 = torch.tensor(getattr(method, "strengths", [1.0] * len(weight_Rn)))[:, None]
    share_Rn = weight_Rn.abs() / strength_R1.where(strength_R1 > 0, 1.0)
    names = [component.name for component in method.components]
    return [names[r] if share > 0 else None for share, r in zip(*(x.tolist() for x in share_Rn.max(0)), strict=True)]


def gap_of(names: Mapping[str, Any]) -> tuple[str, str] | None:
    """The student and the teacher whose difference is the token's gap, of the roles there are: both shown p if so."""
    for view in ("privileged", "plain"):
        if f"student_{view}" in names and f"teacher_{view}" in names:
            return f"student_{view}", f"teacher_{view}"
    return None


def name_of(role: Role) -> str:
    """`teacher_privileged`, as in the names of metrics."""
    return f"{role.weights}_{role.view}"


def _described(divergence: Any) -> str:
    size = f"top {divergence.k} of the {divergence.owner}" if divergence.support == "topk" else divergence.support
    return f"{divergence.kind}, {size}"
