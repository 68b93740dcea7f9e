"""`vlm-dopd plan`: memory and time of a step before any GPU is rented, from the recipe and config files alone.

To be read in this order:

    gpus      what GPUs have                       shapes    sizes of models, and their parameters
    job       what is planned                      flops     operations of each part of a step
    memory    bytes of each part and phase         times     seconds, from operations, bytes and stated efficiencies
    suggest   settings that fit and are fastest    table     what is printed
"""

from .gpus import find_gpu
from .job import Job, Work, read_job
from .suggest import suggest
from .table import show

__all__ = ["Job", "Work", "find_gpu", "read_job", "show", "suggest"]
