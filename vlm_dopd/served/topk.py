"""An approximate teacher: any OpenAI-compatible server that gives log-probabilities of prompt tokens (vLLM does).

Such a server says the K most probable tokens of each position and the one that was sampled; of the rest only their sum
is known. What is formed of that and nothing else is computed as from a teacher in the trainer, up to the server's
rounding: the sampled support, and supports of the target's own top k ≤ K, whose rest is one bin (`tail`) or left out.
Everything else is refused by `check_method`: a student's top k, or the full vocabulary, would need the log-probability
of tokens that the server does not name.

Against the full-vocabulary divergence, with closure `tail`: KL and JS of merged bins are never larger (data
processing), so the value is too small, by less the larger K is. The entropy is the largest that fits, the rest spread
evenly: too high by at most rest · ln(V − K). For the loss itself, start `vlm-dopd serve-teacher`.

Text only: a prompt of ids goes to `/completions`, which takes no images. Every response is a request of its own.

Shape letters: N response tokens, K known tokens a position, V vocabulary.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..chunked_loss import Scored, score_tokens
from ..divergences import Divergence
from ..errors import ConfigError, TrainingError
from ..head import Head
from ..methods import Method
from ..packing import Packed
from ..roles import tokenizer_of
from ..scoring import response_tokens

logger = logging.getLogger(__name__)

AT_ONCE = 32
"""Requests of one rank under way."""
TIMEOUT = 600.0
RETRIES = 5
REST = 1e-9
"""Least mass of the tokens that are not named: log-probabilities are rounded, and log 0 is infinite."""
PROBE = "Which digit is left of the red square? 4, because 2 + 2 = 4."


@dataclass(frozen=True)
class TopKHead(Head):
    """Logits of what is known. In the place of hidden states stand K + 1 log-probabilities and their ids, [N, 2K + 2].

    The last of them is the sampled token, which may be one of the K. The tokens not named share the rest evenly.
    """

    def _separate_logits(self, hidden_nH: Tensor, out_nV: Tensor) -> None:
        logp_nK, id_nK = hidden_nH.chunk(2, dim=-1)
        again_n = (id_nK[:, :-1] == id_nK[:, -1:]).any(-1)
        mass_n = logp_nK[:, :-1].double().exp().sum(-1) + logp_nK[:, -1].double().exp().where(~again_n, 0.0)
        others_n = (self.vocab_size - logp_nK.shape[1] + again_n.long()).clamp(min=1)
        out_nV.copy_(((1 - mass_n).clamp(min=REST) / others_n).log()[:, None].expand_as(out_nV))
        out_nV.scatter_(-1, id_nK.long(), logp_nK)


def check_method(method: Method, k: int, key: str = "model.teacher_top_k") -> None:
    """Raises ConfigError for a method that asks more of the teacher than the K most probable tokens."""
    if k < 1:
        raise ConfigError(f"{key}: expected at least 1, got {k}")
    if method.temperature != 1:
        raise ConfigError(f"{key}: expected a method at temperature 1: the rest is known at that alone")
    if method.merge_stops:
        raise ConfigError(f"{key}: merge_stops needs the teacher's log-probability of every stop, named or not")
    for statistic in method.statistics:
        if any(role.weights.startswith("teacher") for role in (statistic.first, statistic.second)):
            raise ConfigError(f"{key}: the method's {statistic.name} needs the teacher's whole distribution")
    for component in method.components:
        if component.target and component.target.weights.startswith("teacher") and not _known(component.divergence, k):
            its = component.divergence
            raise ConfigError(
                f"{key}: {component.name} needs the teacher's log-probability of tokens outside its top {k} (support "
                f"{its.support}, owner {its.owner}, k {its.k}); expected support sampled, or topk with owner target "
                f"and k of at most {k}, or an exact teacher: `vlm-dopd serve-teacher`"
            )


def _known(divergence: Divergence, k: int) -> bool:
    own = divergence.support == "topk" and divergence.owner == "target" and divergence.k <= k
    return own or divergence.support == "sampled"


@dataclass(frozen=True)
class TopKTeacher:
    """A policy whose scores are what a plain server tells of it."""

    client: Any
    name: str
    k: int
    vocab_size: int
    device: torch.device
    pool: ThreadPoolExecutor

    def forget(self) -> None:
        """Nothing is kept from window to window."""

    def submit(self, passes: Sequence[Packed]) -> Callable[[], Scored]:
        """Ask for every response, several at a time. Raises TrainingError for rows with images, before any is sent."""
        if any(packed.images for packed in passes):
            raise TrainingError(
                f"teacher at {self.client.base_url}: expected rows without images, a plain server takes ids alone; "
                "for images start `vlm-dopd serve-teacher`"
            )
        asked = [self.pool.submit(self._ask, *one) for packed in passes for one in sequences(packed)]

        def collect() -> Scored:
            try:
                rows = [row for answer in asked for row in answer.result()]
            except BaseException:
                for answer in asked:
                    answer.cancel()
                raise
            known_NK = torch.tensor(rows).view(-1, 2 * self.k + 2)
            order_N = torch.cat([packed.place_N for packed in passes]).argsort()
            head = TopKHead(torch.empty(self.vocab_size, 0, device=self.device), self.vocab_size)
            return score_tokens(known_NK[order_N].to(self.device), head, response_tokens(passes).to(self.device))

        return collect

    def _ask(self, ids: list[int], prompt: int) -> list[list[float]]:
        """What is known at each token after the first `prompt` of them."""
        found = prompt_logprobs(self.client, self.name, ids, self.k)
        return [self._row(entries, token) for entries, token in zip(found[prompt:], ids[prompt:], strict=True)]

    def _row(self, entries: Any, token: int) -> list[float]:
        """Log-probabilities of the K best and of the sampled token, then their ids."""
        try:
            logp = {int(i): float(entry["logprob"]) for i, entry in entries.items()}
            ids = [*sorted(logp, key=lambda i: -logp[i])[: self.k], token]
            row = [*(logp[i] for i in ids), *map(float, ids)]
            fits = len(ids) == self.k + 1 and 0 <= min(logp) <= max(logp) < self.vocab_size
        except (AttributeError, KeyError, TypeError, ValueError):
            row, fits = [], False
        if not fits or not all(map(math.isfinite, row)):
            raise TrainingError(
                f"teacher at {self.client.base_url}: expected {self.k} log-probabilities and that of token {token}, "
                f"got {str(entries)[:80]}"
            )
        return row


def sequences(packed: Packed) -> Iterator[tuple[list[int], int]]:
    """Ids of each prompt with one response, and how many are the prompt's: in the order of the pass's tokens."""
    for row in zip(packed.inputs["input_ids"], packed.group_BL, packed.segment_BL, strict=True):
        id_L, group_L, segment_L = row
        for group in range(int(group_L.max()) + 1):
            prompt_L = (group_L == group) & (segment_L == 0)
            for segment in range(1, int(segment_L[group_L == group].max()) + 1):
                response_L = (group_L == group) & (segment_L == segment)
                if response_L.any():
                    yield [*id_L[prompt_L].tolist(), *id_L[response_L].tolist()], int(prompt_L.sum())


def prompt_logprobs(client: Any, name: str, ids: list[int], k: int) -> list[Any]:
    """By position of `ids`, what the server says: by id, `logprob` and `decoded_token`; None for the first."""
    import openai

    try:
        reply = client.completions.create(
            model=name, prompt=ids, max_tokens=1, temperature=0, extra_body={"prompt_logprobs": k}
        )
        found = reply.choices[0].prompt_logprobs
    except openai.OpenAIError as error:
        said = " ".join(str(error).split())[:200]
        raise TrainingError(
            f"teacher at {client.base_url}: {said or type(error).__name__}; a run that stops goes on with resume=true"
        ) from None
    except (AttributeError, IndexError, TypeError):
        found = None
    if not isinstance(found, list) or len(found) != len(ids):
        raise TrainingError(
            f"teacher at {client.base_url}: expected prompt_logprobs of {len(ids)} tokens, as vLLM gives them, got none"
        )
    return found


def connect(url: str, k: int, processor: Any, device: Any, key: str = "model.teacher") -> TopKTeacher:
    """The teacher at `url`, as http://host:8000/v1#NAME. The name may be left out where the server has one model.

    Raises ConfigError if it cannot be asked for so many tokens or its vocabulary is another.
    """
    try:
        import openai
    except ModuleNotFoundError:
        raise ConfigError(f"{key}: a plain server needs the openai SDK: pip install 'vlm-dopd[generate]'") from None
    base, _, name = url.partition("#")
    client = openai.OpenAI(
        base_url=base, api_key=os.environ.get("OPENAI_API_KEY", "none"), timeout=TIMEOUT, max_retries=RETRIES
    )
    tokenizer = tokenizer_of(processor)
    try:
        served = [model.id for model in client.models.list()]
        if not name and len(served) != 1:
            raise ConfigError(f"{key}: {base}: expected one model or a name, as in {base}#NAME; has {served}")
        ids = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
        said = prompt_logprobs(client, name or served[0], ids, k)
    except (openai.OpenAIError, TrainingError) as error:
        raise ConfigError(f"{key}: {base}: {' '.join(str(error).split())[:300]}; is --max-logprobs {k}?") from None
    for entries in said[1:]:
        for number, entry in (entries or {}).items():
            token = entry.get("decoded_token")
            mine = tokenizer.decode([int(number)])
            if token and "�" not in token + mine and token.strip() != mine.strip():
                raise ConfigError(f"{key}: expected one tokenizer, got two: {number} is {token!r} there, {mine!r} here")
    logger.warning("teacher at %s: an APPROXIMATION: its top %d log-probabilities and the sum of the rest", base, k)
    pool = ThreadPoolExecutor(AT_ONCE)
    teacher = TopKTeacher(client, name or served[0], k, len(tokenizer), torch.device(device), pool)
    for entries, token in zip(said[1:], ids[1:], strict=True):
        teacher._row(entries, token)
    return teacher
