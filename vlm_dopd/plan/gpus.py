"""GPUs: what one can compute, move and hold. Peaks are dense (without sparsity), of the SXM boards where there are any.

Sources: NVIDIA's datasheets and architecture papers of A100, H100, H200, L40S and Ada (GeForce RTX 4090). Where a
datasheet gives tensor figures "with sparsity", half of them stands here. `memory_gib` is what torch can use of the
board, as its own out-of-memory messages say: less than is printed on the box.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError, closest

GPUS_A_NODE = 8
NODE_LINK = 50.0
"""GB/s a GPU to other nodes, one way: 400 Gb/s InfiniBand for each, as in NVIDIA's own pods. An assumption."""


@dataclass(frozen=True)
class GPU:
    """One model of GPU by its peaks, which no kernel reaches."""

    name: str
    memory_gib: float
    bf16: float
    """TFLOP/s of tensor cores, sums in float32."""
    tf32: float
    fp32: float
    """TFLOP/s without tensor cores: float32 products unless `train.tf32` is set."""
    bandwidth: float
    """GB/s of its memory."""
    link: float
    """GB/s to the other GPUs of its node, one way: NVLink, or PCIe 4.0 ×16."""


GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("a100-40g", 39.5, 312, 156, 19.5, 1555, 300),
        GPU("a100-80g", 79.2, 312, 156, 19.5, 2039, 300),
        GPU("h100-80g", 79.1, 989, 494, 67, 3350, 450),
        GPU("h200-141g", 139.8, 989, 494, 67, 4800, 450),
        GPU("l40s-48g", 44.4, 362, 183, 91.6, 864, 32),
        GPU("rtx4090-24g", 23.6, 165, 82.6, 82.6, 1008, 32),
    )
}


def find_gpu(name: str) -> GPU:
    """Raises ConfigError for one that is not in the table."""
    if name not in GPUS:
        raise ConfigError(f"--gpu {name}: no such GPU; {closest(name, GPUS)}")
    return GPUS[name]
