"""One step of ours equals the straightforward step of `tests/bench/plain.py`, which shares only formulas with it.

What is locked, to 1e-5 of each tensor's norm:
1) hidden states of the response tokens under the student and under every role, the loss and the gradient of every
   parameter, for any mix of no, one and two images, crops, with and without p, any number and lengths of siblings
   (empty ones too) and any split into micro-batches; with the tower frozen and trained, for DOPD and vanilla OPD;
2) the same for a text-only pair;
3) weights and losses after five steps of AdamW with rollouts of the student's own, in float32.
1 and 2 run in float64 weights, so that what differs is the code and not the order of float32 sums; 3 does not.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from privileged import Sample, get_builder
from tests import tiny
from tests.bench.plain import PlainStep
from vlm_dopd import run, trainer
from vlm_dopd.config import DataConfig, ModelConfig, RunConfig
from vlm_dopd.rollout import Response
from vlm_dopd.rollout.hf import RolloutConfig

TOLERANCE = 1e-5
SIBLINGS = 3
TRAIN = {
    "max_steps": 1,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "save_strategy": "no",
    "logging_steps": 1,
    "use_cpu": True,
    "disable_tqdm": True,
    "seed": 3,
}


def difference(mine: torch.Tensor, other: torch.Tensor) -> float:
    """‖mine − other‖ / ‖other‖."""
    return ((mine - other).norm() / other.norm().clamp(min=1e-12)).item()


def use_engine(trainer: trainer.DopdTrainer, engine: Any) -> None:
    builder = trainer.window_builder
    builder.completions = replace(builder.completions, engine=engine)


@dataclass(repr=False)
class Sides:
    """The same pair twice: in a trainer of ours and in the straightforward step."""

    trainer: trainer.DopdTrainer
    plain: PlainStep

    def ours(self, samples: Sequence[Sample], responses: Sequence[Sequence[torch.Tensor]], cuts: set[int]) -> Any:
        """Loss, gradients and hidden states of one window, cut into micro-batches before the samples `cuts`."""
        by_id = {sample.id: siblings for sample, siblings in zip(samples, responses, strict=True)}
        use_engine(
            self.trainer,
            lambda groups, step: [
                [Response(response, truncated=True) for response in by_id[group.sample_id]] for group in groups
            ],
        )
        starts = sorted({0, *cuts} & set(range(len(samples))))
        pieces = [samples[a:b] for a, b in zip(starts, [*starts[1:], len(samples)], strict=True)]
        batches = iter([self.trainer.data_collator(piece) for piece in pieces])
        seen: list[tuple[Any, ...]] = []
        with pytest.MonkeyPatch.context() as patch:
            original = trainer.routed_loss
            patch.setattr(trainer, "routed_loss", lambda *given: (seen.append(given), original(*given))[1])
            self.trainer.model.zero_grad()
            inputs, count = self.trainer.get_batch_samples(batches, len(pieces), torch.device("cpu"))
            losses = [self.trainer.training_step(self.trainer.model, micro_batch, count) for micro_batch in inputs]
        hidden = [
            torch.cat([token_N[:, None], live_NH, *(term.target.hidden_NH for term in terms)], dim=1)
            for live_NH, _, token_N, terms in seen
        ]
        return torch.stack(losses).sum(), gradients(self.trainer.model), by_token(torch.cat(hidden).detach())

    def straightforward(self, samples: Sequence[Sample], responses: Sequence[Sequence[torch.Tensor]]) -> Any:
        lengths = torch.tensor([len(response) for siblings in responses for response in siblings])
        kept_BT = torch.arange(lengths.max())[None] < lengths[:, None]
        order: list[torch.Tensor] = []
        hooks = [
            model.get_output_embeddings().register_forward_pre_hook(lambda _, args: order.append(args[0].detach()))
            for model in (self.plain.student, self.plain.teacher)
        ]
        self.plain.student.zero_grad()
        output = self.plain.loss(samples, responses)
        output.total.backward()
        for hook in hooks:
            hook.remove()
        seen = [hidden_BTH[:, :-1][kept_BT] for hidden_BTH in order]
        by_role = dict(zip(self.plain.method.roles, seen[:-1], strict=True))
        targets = [by_role[component.target] for component in self.plain.method.components]
        hidden = torch.cat([output.token_N[:, None], seen[-1], *targets], dim=1)
        return output.total.detach(), gradients(self.plain.student), by_token(hidden)

    def check(self, samples: Sequence[Sample], responses: Sequence[Sequence[torch.Tensor]], cuts: set[int]) -> None:
        loss, grads, hidden = self.ours(samples, responses, cuts)
        plain_loss, plain_grads, plain_hidden = self.straightforward(samples, responses)
        assert hidden.shape == plain_hidden.shape and torch.equal(hidden[:, 0], plain_hidden[:, 0])
        assert difference(hidden[:, 1:], plain_hidden[:, 1:]) < TOLERANCE
        assert difference(loss, plain_loss) < TOLERANCE
        assert grads.keys() == plain_grads.keys() and len(grads) > 10
        for name, gradient in plain_grads.items():
            assert difference(grads[name], gradient) < TOLERANCE, name


def by_token(row_NX: torch.Tensor) -> torch.Tensor:
    """Rows (token, hidden states under every policy) in an order that does not depend on how groups were packed."""
    order = sorted(range(len(row_NX)), key=lambda n: (row_NX[n, 0].item(), row_NX[n, 1:].sum().item()))
    return row_NX[order]


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def sides(
    pair: tuple[Path, Path], folder: Path, method: dict[str, Any], data: DataConfig, frozen: bool = True
) -> Sides:
    config = RunConfig(
        model=ModelConfig(student=str(pair[0]), teacher=str(pair[1]), teacher_dtype="float32", freeze_vision=frozen),
        data=data,
        rollout=RolloutConfig(siblings=SIBLINGS, max_new_tokens=8),
        method=method,
        train=TRAIN | {"max_steps": 5, "per_device_train_batch_size": 4},
        output_dir=str(folder / "run"),
    )
    ours = run.build_trainer(config)
    builder = ours.window_builder
    plain = PlainStep(
        student=copy.deepcopy(ours.model),
        teacher=copy.deepcopy(builder.policies["teacher"].model),
        processor=ours.processing_class,
        method=builder.method,
        builder=get_builder(data.builder),
        special_ids=builder.special_ids.tolist(),
        siblings=SIBLINGS,
    )
    return Sides(ours, plain)


def doubled(both: Sides) -> Sides:
    for model in (both.trainer.model, both.trainer.window_builder.policies["teacher"].model):
        model.double()
    both.plain.student.double(), both.plain.teacher.double()
    return both


SCENES = DataConfig(train=str(tiny.SCENES), builder="boxes", max_prompt_tokens=2048)
METHODS = {
    "dopd": {"name": "dopd", "k": 16},
    "opd": {"name": "opd", "divergence": "js", "support": "full", "reduction": "token_mean"},
}


@pytest.fixture(scope="module", params=["dopd", "opd", "dopd, tower trained", "crops"])
def vision(request, pair, tmp_path_factory):
    name, _, tower = request.param.partition(", ")
    data = SCENES
    if name == "crops":
        data = DataConfig(train=str(tiny.SCENES), builder="crops", max_prompt_tokens=2048)
    method = METHODS.get(name, METHODS["dopd"])
    return doubled(sides(pair, tmp_path_factory.mktemp("vision"), method, data, frozen=not tower))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for name, model in (("student", tiny.text_model(1)), ("teacher", tiny.text_model(2, hidden=48))):
        model.save_pretrained(folder / name)
        tiny.processor().tokenizer.save_pretrained(folder / name)
    data = DataConfig(train=str(tiny.TEXT), builder="hints", max_prompt_tokens=1024)
    return doubled(sides((folder / "student", folder / "teacher"), folder, METHODS["dopd"], data))


lengths = st.lists(st.integers(0, 7), min_size=SIBLINGS, max_size=SIBLINGS)
groups = st.lists(st.tuples(st.integers(0, 3), lengths), min_size=1, max_size=4, unique_by=lambda group: group[0])
windows = groups.filter(lambda window: any(n for _, siblings in window for n in siblings))
cuts = st.sets(st.integers(1, 3), max_size=2)
ALL = [(0, [5, 0, 2]), (1, [3, 3, 1]), (2, [0, 7, 4]), (3, [1, 2, 6])]
"""Of `tiny.mixed_samples`: one image, none, two of different sizes, one without p."""


def drawn(window: list[tuple[int, list[int]]], seed: int) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randint(30, 200, (n,), generator=generator) for n in siblings] for _, siblings in window]


@settings(max_examples=5)
@example(window=ALL, cuts=set(), seed=0)
@given(window=windows, cuts=cuts, seed=st.integers(0, 1000))
def test_hidden_states_loss_and_gradients_with_images(vision, window, cuts, seed):
    samples = tiny.mixed_samples()
    vision.check([samples[index] for index, _ in window], drawn(window, seed), cuts)


@settings(max_examples=8)
@given(window=windows, cuts=cuts, seed=st.integers(0, 1000))
def test_hidden_states_loss_and_gradients_without_eyes(text, window, cuts, seed):
    rows = text.trainer.train_dataset
    text.check([rows[index] for index, _ in window], drawn(window, seed), cuts)


def test_five_steps_in_float32(pair, tmp_path):
    """The trainer's own loop, rollouts included, against a loop by hand on the samples and responses it saw."""
    both = sides(pair, tmp_path, METHODS["dopd"], SCENES)
    start = copy.deepcopy(both.plain.student.state_dict())
    windows: list[list[Sample]] = []
    responses: list[list[list[torch.Tensor]]] = []
    collate, engine = both.trainer.data_collator, both.trainer.window_builder.completions.engine
    both.trainer.data_collator = lambda samples: (windows.append(list(samples)), collate(samples))[1]

    def roll_out(groups, step):
        found = engine(groups, step)
        responses.append([[response.id_T for response in siblings] for siblings in found])
        return found

    use_engine(both.trainer, roll_out)
    both.trainer.train()
    learning = [p for p in both.plain.student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-3, eps=1e-8, weight_decay=0.0)
    losses = []
    for samples, siblings in zip(windows, responses, strict=False):
        optimizer.zero_grad()
        loss = both.plain.loss(samples, siblings).total
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.plain.student.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    logged = [line["loss"] for line in both.trainer.state.log_history if "loss" in line]
    assert losses == pytest.approx(logged, rel=TOLERANCE) and len(losses) == 5
    after = both.trainer.model.state_dict()
    for name, weight in both.plain.student.state_dict().items():
        assert difference(after[name], weight) < TOLERANCE, name
        # AdamW makes a full step of a gradient that is nothing but rounding, so what moved agrees less closely.
        assert difference(after[name] - start[name], weight - start[name]) < 1e-3, name
    assert any(difference(after[name], start[name]) > 1e-2 for name in start)
