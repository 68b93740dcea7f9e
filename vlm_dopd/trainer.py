"""The loop is `transformers.Trainer`. This file only hooks the steps of DOPD into it; the maths is elsewhere.

get_batch_samples   sees the whole accumulation window: roll out, score, route (`window.py`)
training_step       a micro-batch may be several passes with gradient (`packing.py`)
compute_loss        one of them, and the routed loss (`chunked_loss.py`)
evaluate            greedy answers on held-out questions (`evals`)
log                 adds the window's figures to what Trainer logs
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, ProgressCallback

from .callbacks import Progress, StepTime, peak_memory
from .chunked_loss import LossOutput, routed_loss
from .copies import StudentCopies
from .errors import TrainingError
from .hub import StudentUploads
from .lora import has_adapter, load_adapter
from .roles import Policy
from .scoring import student_hidden
from .sharding import backward_pass, gather, sum_in_float32
from .token_samples import TokenSamples
from .window import TrainingBatch, Window, WindowBuilder, filled, gather_object

logger = logging.getLogger(__name__)


class DopdTrainer(StudentUploads):
    """A Trainer whose batches are windows. `build_window` gets the accelerator, which exists only from here on."""

    def __init__(
        self,
        *,
        student: Policy,
        build_window: Callable[[Any], WindowBuilder],
        copies: StudentCopies,
        evaluate_student: Callable[[int], dict[str, float]] | None = None,
        samples: TokenSamples | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=student.model, **kwargs)
        for default in (ProgressCallback, PrinterCallback):  # both print every figure of every log
            self.remove_callback(default)
        if not self.args.disable_tqdm:
            self.add_callback(Progress())
        # Left to itself, Trainer guesses from forward's signature; guessing wrong divides the loss twice.
        self.model_accepts_loss_kwargs = True
        self.student, self.copies, self.evaluate_student = student, copies, evaluate_student
        self.add_callback(copies)
        self.step_time = StepTime(self._add)
        self.add_callback(self.step_time)
        self.samples = samples
        if samples is not None:
            self.add_callback(samples)
        sum_in_float32(self.accelerator)
        self.window_builder = build_window(self.accelerator)
        self._sums: dict[str, tuple[float, float]] = {}

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, tuple[TrainingBatch, ...]]], int]:
        """The next window: `num_batches` micro-batches, and the denominator of their summed loss over all ranks."""
        self.step_time.began = time.perf_counter()
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        progress = self.state.global_step / max(self.state.max_steps, 1)
        gather(self.student.model)
        window: Window = self.window_builder.build(batches, self.state.global_step, progress)
        for name, value in window.figures.items():
            self._add(name, value, 1)
        windowed = window.batches
        if self.is_deepspeed_enabled:  # its ranks meet in every pass
            counts = gather_object([len(passes) for passes in windowed])
            windowed = tuple(filled(passes, max(own)) for passes, *own in zip(windowed, *counts, strict=True))
        return [{"passes": passes} for passes in windowed], window.denominator

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of each pass of a micro-batch: only one pass's activations exist at a time."""
        losses = []
        passes: tuple[TrainingBatch, ...] = inputs["passes"]
        ends = self.accelerator.sync_gradients  # with this micro-batch the step is done
        for number, batch in enumerate(passes, start=1):
            last = ends and number == len(passes)
            with backward_pass(self.accelerator, model, last, uneven=self.student.vision.trains):
                losses.append(super().training_step(model, {"batch": batch}, num_items_in_batch))
        return torch.stack(losses).sum()

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """This pass's share of the window's loss. Raises TrainingError before a non-finite one can do harm."""
        began = time.perf_counter()
        batch: TrainingBatch = inputs["batch"]
        hidden_NH = student_hidden(model, self.student, batch.packed)
        head = self.student.head(self.window_builder.method.temperature)
        output = routed_loss(hidden_NH, head, batch.packed.token_N, batch.terms)
        if not torch.isfinite(output.total):
            raise TrainingError(
                f"step {self.state.global_step + 1}: expected a finite loss, got {output.total.item()}; weights are "
                "those of the step before. Lower train.learning_rate, or look at the last rows of metrics.jsonl"
            )
        if self.samples is not None:
            self.samples.trained(batch, hidden_NH, head)
        self._record(batch, output, time.perf_counter() - began)
        # DDP averages gradients over ranks, the denominator is already that of all of them.
        return output.total / max(num_items_in_batch, 1) * self.accelerator.num_processes

    def _record(self, batch: TrainingBatch, output: LossOutput, seconds: float) -> None:
        active_RN = torch.stack([term.weight_N != 0 for term in batch.terms])
        for r, (name, term) in enumerate(zip(batch.names, batch.terms, strict=True)):
            active_N, count = active_RN[r], active_RN[r].sum().item()
            self._add(f"loss/{name}", output.divergence_RN[r, active_N].sum().item(), count)
            if term.divergence.support == "topk":  # how much of the target is where the student looks, or the reverse
                self._add(f"overlap/{name}", output.covered_RN[r, active_N].sum().item(), count)
        any_N = active_RN.any(0)
        self._add("entropy/student", output.entropy_N[any_N].sum().item(), any_N.sum().item())
        self._add("time/loss", seconds, 1)

    def _add(self, name: str, total: float, count: float) -> None:
        old_total, old_count = self._sums.get(name, (0.0, 0.0))
        self._sums[name] = (old_total + total, old_count + count)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean of each figure since the last log, over tokens and ranks, not of means."""
        ranks = gather_object(self._sums)
        self._sums = {}
        means = {}
        for name in ranks[0]:
            total, count = (sum(values) for values in zip(*(rank[name] for rank in ranks), strict=True))
            if count:
                means[name] = total / count
        if "time/step" in means:
            means["time/tokens_per_s"] = means["rollout/tokens"] / means["time/step"]
            means["memory/peak_gib"] = peak_memory()
        super().log({**logs, **means}, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if state_dict:  # gathered from shards: tied weights are no longer one tensor, and would be written twice
            tied = self.student.model.all_tied_weights_keys
            state_dict = {name: weight for name, weight in state_dict.items() if name not in tied}
        super()._save(output_dir, state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Before a checkpoint's last part, so that one with a `trainer_state.json` has all of them."""
        super()._save_optimizer_and_scheduler(output_dir)
        self.copies.save(Path(output_dir), self.args.should_save)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # the file that says that all are there is written next, by one rank

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Trainer knows adapters only in peft's wrapper; this one lies in the model itself."""
        if has_adapter(self.student.model) and not self.is_fsdp_enabled:
            load_adapter(self.student.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if has_adapter(self.student.model) and not self.is_fsdp_enabled:
            self._load_from_checkpoint(str(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.copies.load(Path(checkpoint))

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Held-out figures, logged as `eval/...`."""
        if self.evaluate_student is None:
            raise TrainingError("evaluation: expected data.eval or benchmarks.names, got nothing")
        gather(self.student.model)  # ranks may end an answer at different tokens
        found = self.evaluate_student(self.state.global_step)
        metrics = {f"eval_{name}": value for name, value in found.items()}
        self.log(metrics)
        shown = {name.removeprefix("benchmark/"): found[name] for name in found if name not in ("low", "high")}
        told = ", ".join(f"{name.replace('_', ' ')} {100 * value:.1f} %" for name, value in shown.items())
        logger.info("step %d: held-out %s", self.state.global_step, told)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """6 × parameters × tokens of the pass with gradient."""
        passes: tuple[TrainingBatch, ...] = inputs["passes"]
        tokens = sum(batch.packed.inputs["input_ids"].numel() for batch in passes)
        return 6 * tokens * self.student.model.num_parameters()
