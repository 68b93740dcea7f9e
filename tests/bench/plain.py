"""The same step written the straightforward way: what `tests.bench.step` measures against and the tests compare with.

One row a response, `[padding | prompt | response | padding]`; logits of every response position at once, [B, T, V];
torch's own autograd; the vision tower runs for every row of every pass. Masks, position ids and placement of images are
those of transformers, prompts those of its processor. Divergences, routing and weights are the method's public ones.

Shape letters: B rows (responses), P prompt columns, T response columns, N response tokens, V vocabulary, R components.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from privileged import Sample, View, build_views
from privileged.builders import Builder
from tests.windows import responses_of
from vlm_dopd.methods import Method, WindowScores


class PlainLoss(NamedTuple):
    total: Tensor
    """The window's loss, divided by its number of sequences or tokens. With gradient."""
    weight_RN: Tensor
    """What the method gave every token, before the reduction."""
    token_N: Tensor


class _Distribution(NamedTuple):
    logp_NV: Tensor
    logp_N: Tensor
    entropy_N: Tensor


@dataclass(frozen=True, kw_only=True)
class PlainStep:
    """A pair of models and a method; a window is one list of samples."""

    student: Any
    teacher: Any
    processor: Any
    """Of the pair; the tokenizer if the pair is text-only."""
    method: Method
    builder: Builder
    special_ids: Sequence[int]
    """End-of-sequence and banned ids: they set no threshold."""
    siblings: int

    def rollout(self, samples: Sequence[Sample], max_new_tokens: int, banned: list[int]) -> list[list[Tensor]]:
        """G sampled responses a sample, by `generate` on B rows."""
        prompts = self._prompts([view for view, _, _ in self._views(samples)])
        with torch.no_grad():
            rows_BL = self.student.generate(
                **prompts,
                max_new_tokens=max_new_tokens,
                do_sample=True,
                top_k=0,
                suppress_tokens=banned,
                eos_token_id=self._tokenizer.eos_token_id,
                pad_token_id=self._tokenizer.pad_token_id,
            )
        response_BT = rows_BL[:, prompts["input_ids"].shape[1] :]
        return [list(siblings) for siblings in response_BT.split(self.siblings)]

    def loss(self, samples: Sequence[Sample], responses: Sequence[Sequence[Tensor]]) -> PlainLoss:
        """Score under every role, route, and the student's plain pass with gradient."""
        views = self._views(samples)
        by_view = {"plain": [plain for plain, _, _ in views], "privileged": [shown for _, shown, _ in views]}
        lengths = torch.tensor([len(response) for siblings in responses for response in siblings])
        token_N = torch.cat([response for siblings in responses for response in siblings])
        models = {"student": self.student, "teacher": self.teacher}
        with torch.no_grad():
            targets = {
                role: self._distribution(models[role.weights], by_view[role.view], responses)
                for role in self.method.roles
            }
        has_p_B = torch.tensor([has_p for _, _, has_p in views]).repeat_interleave(self.siblings)
        weight_RN, _ = self.method.weights(
            WindowScores(
                logp_N={role: target.logp_N for role, target in targets.items()},
                entropy_N={role: target.entropy_N for role, target in targets.items()},
                has_privilege_N=has_p_B.repeat_interleave(lengths),
                ordinary_N=~torch.isin(token_N, torch.tensor(self.special_ids)),
                responses=replace(responses_of([[len(r) for r in own] for own in responses]), token_N=token_N),
                statistic_N={},
            )
        )
        per_sequence = self.method.reduction == "seq_mean"
        scale_N = 1 / lengths.repeat_interleave(lengths) if per_sequence else torch.ones(token_N.numel())
        student = self._distribution(self.student, by_view["plain"], responses)
        total = student.logp_NV.new_zeros(())
        for component, weight_N in zip(self.method.components, weight_RN, strict=True):
            mine = weight_N != 0
            if mine.any():
                target_NV = targets[component.target].logp_NV
                value_n = component.divergence(student.logp_NV[mine], target_NV[mine], token_N[mine])
                total = total + ((weight_N * scale_N)[mine] * value_n).sum()
        count = int((lengths > 0).sum()) if per_sequence else token_N.numel()
        return PlainLoss(total / max(count, 1), weight_RN, token_N)

    def _views(self, samples: Sequence[Sample]) -> list[tuple[View, View, bool]]:
        """Plain view, privileged view (the plain one where there is no p), and whether there is p."""
        built = [build_views(sample, self.builder) for sample in samples]
        return [(v.plain, v.privileged if v.has_privilege else v.plain, v.has_privilege) for v in built]

    def _distribution(self, model: Any, views: Sequence[View], responses: Sequence[Sequence[Tensor]]) -> _Distribution:
        """Log-probabilities of the N response tokens under `model`, row by row."""
        rows = self._prompts(views)
        flat = [response for siblings in responses for response in siblings]
        id_BT = torch.nn.utils.rnn.pad_sequence(flat, batch_first=True, padding_value=self._tokenizer.pad_token_id)
        real_BT = torch.arange(id_BT.shape[1]) < torch.tensor([len(response) for response in flat])[:, None]
        rows["input_ids"] = torch.cat([rows["input_ids"], id_BT], dim=1)
        rows["attention_mask"] = torch.cat([rows["attention_mask"], real_BT.long()], dim=1)
        if "mm_token_type_ids" in rows:
            rows["mm_token_type_ids"] = torch.cat([rows["mm_token_type_ids"], torch.zeros_like(id_BT)], dim=1)
        logits_BTV = model(**rows, use_cache=False, logits_to_keep=id_BT.shape[1] + 1).logits[:, :-1]
        logp_NV = logits_BTV[..., : len(self._tokenizer)][real_BT].float().log_softmax(-1)
        logp_N = logp_NV.detach().gather(-1, id_BT[real_BT][:, None])[:, 0]
        entropy_N = -(logp_NV.detach().exp() * logp_NV.detach()).sum(-1)
        return _Distribution(logp_NV, logp_N, entropy_N)

    def _prompts(self, views: Sequence[View]) -> dict[str, Tensor]:
        """Every prompt G times, padded on the left, each with images of its own."""
        texts = [self._text(view) for view in views for _ in range(self.siblings)]
        options = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
        if self._tokenizer is self.processor:
            return dict(self.processor(texts, **options))
        images = [image for view in views for _ in range(self.siblings) for image in view.images]
        return dict(self.processor(text=texts, images=images or None, **options))

    def _text(self, view: View) -> str:
        messages = copy.deepcopy(list(view.messages))
        options = {"add_generation_prompt": True, "tokenize": False}
        if self._tokenizer is not self.processor:
            return self.processor.apply_chat_template(messages, **options)
        for message in messages:
            message["content"] = "".join(part["text"] for part in message["content"])
        return self.processor.apply_chat_template(messages, **options, enable_thinking=False)

    @property
    def _tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", self.processor)
