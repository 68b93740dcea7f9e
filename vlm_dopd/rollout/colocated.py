"""vLLM inside this process: every rank has an engine of its own on its own device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError
from .vllm import Answer, Question, Sampled


class Colocated:
    """The backend."""

    on_every_rank = True
    name = "rollout.engine=vllm, colocated"

    def __init__(self, model: str, max_length: int, dtype: str, memory_share: float) -> None:
        """Raises ConfigError if vLLM is not installed."""
        try:
            from vllm import LLM
        except ImportError:
            raise ConfigError(
                "rollout.vllm.mode=colocate: expected vLLM in this environment: pip install 'vlm-dopd[vllm]'; a server "
                "may have an environment of its own"
            ) from None
        # One engine a rank: torchrun's processes are its workers, so it starts none.
        ranks = {"distributed_executor_backend": "external_launcher"} if torch.distributed.is_initialized() else {}
        self.max_length = max_length
        self.llm: Any = LLM(
            model=model,
            max_model_len=max_length,
            dtype=dtype,
            gpu_memory_utilization=memory_share,
            logprobs_mode="processed_logprobs",
            generation_config="vllm",
            **ranks,
        )

    def load(self, folder: Path, version: str) -> None:
        """Reload in place, and drop prefixes, images and features that the old weights computed."""
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        engine = self.llm.llm_engine
        for reset in (self.llm.reset_prefix_cache, engine.reset_mm_cache, engine.reset_encoder_cache):
            reset()
        self.llm.update_weight_version(version)

    def generate(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer a question, in order; the engine batches them itself."""
        from vllm import SamplingParams, TokensPrompt

        prompts = []
        for question in questions:
            prompt = TokensPrompt(prompt_token_ids=question.ids)
            if question.images:
                prompt["multi_modal_data"] = {"image": question.images}
            prompts.append(prompt)
        sampling = [SamplingParams(**question.sampling) for question in questions]
        outputs = self.llm.generate(prompts, sampling, use_tqdm=False)
        return [Answer(list(o.prompt_token_ids), [_sampled(one) for one in o.outputs]) for o in outputs]


def _sampled(output: Any) -> Sampled:
    logps = [entry[token].logprob for token, entry in zip(output.token_ids, output.logprobs, strict=True)]
    versions = {span.version for span in output.weight_versions or ()}
    return Sampled(list(output.token_ids), logps, str(output.finish_reason), versions)
