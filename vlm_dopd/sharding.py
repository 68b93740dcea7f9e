"""Models of which each rank holds a part (FSDP2's `fully_shard`): when they are whole, and when gradients are summed.

student          accelerate shards it. Whole on each rank from the beginning of a window to its last backward: it is
                 gathered once a step, and generates, scores and learns without a further collective. So ranks may
                 differ in lengths, in passes, and in who has images; its LM head too is gathered once and its
                 gradient summed once.
frozen models    `shard` takes the decoder's layers and the embedding apart. Each pass of scoring gathers them one by
                 one, so ranks have to run equally many passes (`scoring.score` sees to that). The LM head and the
                 vision tower stay whole: the loss needs all of the head on each rank, and ranks differ in images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor


def sum_in_float32(accelerator: Any) -> None:
    """Before the student is sharded: gradients of passes and ranks are to be summed in float32, under autocast too."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, reduce_dtype=torch.float32)


def gather(model: Any) -> None:
    """Makes every parameter whole on this rank; on all ranks at once. Nothing happens to a model that is not sharded.

    The next backward in `backward_pass` with `last=True` gives the shards back.
    """
    if not isinstance(model, FSDPModule):
        return
    model.set_reshard_after_forward(False)
    for unit in _units(model):
        unit.set_unshard_in_backward(False)  # it would prefetch by past forwards, of which ranks did different numbers
    model.set_reduce_scatter_unused_params(True)  # a rank without images has no gradient of the tower
    # Trainer makes `generate` a forward of FSDP2's; one that has others inside gives shards back at its end.
    vars(model).pop("generate", None)
    with torch.no_grad():
        _as_forward(model, _unshard)


@contextmanager
def backward_pass(accelerator: Any, model: Any, last: bool, uneven: bool) -> Iterator[None]:
    """Around forward and backward of one pass. Ranks meet in the `last` one of an optimiser step alone.

    Where the parameters that a pass uses are `uneven` over ranks (a tower that is trained, and rows without images),
    FSDP2's sums would not be the same ones in the same order; they are formed after the pass then, module by module.
    """
    apart = uneven and isinstance(model, FSDPModule)
    # DeepSpeed steps where this is set; `no_sync` does not reach it.
    accelerator.gradient_state._set_sync_gradients(last)
    if isinstance(model, FSDPModule):
        model.set_reshard_after_backward(last and not apart)
    with nullcontext() if last and not apart else accelerator.no_sync(model):
        yield
    if last and apart:
        model.set_reshard_after_backward(True)
        _as_forward(model, _zero).backward()


def _units(model: Any) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _unshard(model: Any) -> None:
    for unit in _units(model):
        unit.unshard()


def _zero(model: Any) -> Tensor:
    return 0 * next(parameter for parameter in model.parameters() if parameter.requires_grad).sum()


def _nothing(model: Any) -> None:
    pass


def _as_forward(model: Any, function: Callable[[Any], Any]) -> Any:
    """`function(model)` as if it were the forward: FSDP2 asks for one of the whole before any of a part."""
    name = function.__name__
    setattr(model, name, MethodType(function, model))
    register_fsdp_forward_method(model, name)
    try:
        return getattr(model, name)()
    finally:
        delattr(model, name)


def shard(model: Any) -> None:
    """Leaves each rank its share of a model that is only scored with, but for its LM head and vision tower."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return
    decoder = getattr(model.base_model, "language_model", model.base_model)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    units = [*decoder.layers, *([] if embedding.weight is head.weight else [embedding])]
    for unit in units:
        fully_shard(unit, reshard_after_forward=True)
    fully_shard(decoder, reshard_after_forward=True, ignored_params={head.weight})
    _as_forward(decoder, _nothing)  # the embedding runs before the decoder does


def is_sharded(model: Any) -> bool:
    """Whether a forward gathers weights from other ranks; a gathered student's does not."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def most(count: int, device: torch.device) -> int:
    """The largest `count` of all ranks."""
    if not torch.distributed.is_initialized():
        return count
    counted = torch.tensor(count, device=device)
    torch.distributed.all_reduce(counted, torch.distributed.ReduceOp.MAX)
    return int(counted)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which each rank may hold a part; a collective then."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """`tensor`, whole or sharded, laid out over ranks as `other` is."""
    if isinstance(other, DTensor):
        if isinstance(tensor, DTensor) and tensor.placements == other.placements:
            return tensor
        return distribute_tensor(whole(tensor).to(other.device), other.device_mesh, other.placements)
    return whole(tensor)
