"""Loaded by every Python process of `make test-vllm`: the ops of torchvision's compiled part, which is built for CUDA
and does not load beside a CPU torch. Nothing calls them; torchvision only wants them declared.
"""

import torch

_library = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
