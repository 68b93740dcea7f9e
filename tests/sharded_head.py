"""One of two gloo ranks with half of an LM head each; run by `test_head.py` under `torch.distributed.run`."""

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from tests import tiny
from vlm_dopd.chunked_loss import Term, routed_loss, score_tokens
from vlm_dopd.divergences import Divergence
from vlm_dopd.roles import Policy

V, H, N = 261, 32, 7


def loss(head, rank):
    """Of the tokens of one rank, against a target of its own."""
    generator = torch.Generator().manual_seed(rank)
    hidden_NH, target_NH = torch.randn(2, N, H, generator=generator)
    token_N = torch.randint(V, (N,), generator=generator)
    target = score_tokens(target_NH, head.detach(), token_N)
    return routed_loss(hidden_NH, head, token_N, [Term(Divergence(k=9), torch.ones(N), target)], chunk=3).total


def main():
    torch.distributed.init_process_group("gloo")
    rank, mesh = torch.distributed.get_rank(), init_device_mesh("cpu", (2,))
    whole, model = tiny.text_model(0), tiny.text_model(0)
    total = sum(loss(Policy(whole, V).head(), r) for r in range(2)) / 2
    total.backward()
    expected_UH = whole.get_output_embeddings().weight.grad
    sharded = torch.nn.Parameter(distribute_tensor(model.get_output_embeddings().weight.detach(), mesh, [Shard(0)]))
    model.get_output_embeddings().weight = sharded
    mine = loss(Policy(model, V).head(), rank)
    mine.backward()
    assert sharded.grad.placements == (Shard(0),), sharded.grad.placements
    torch.testing.assert_close(sharded.grad.full_tensor(), expected_UH, rtol=1e-5, atol=1e-6)
    losses = [torch.zeros(()) for _ in range(2)]
    torch.distributed.all_gather(losses, mine.detach())
    torch.testing.assert_close(sum(losses) / 2, total.detach())
    print("equal")


if __name__ == "__main__":
    main()
