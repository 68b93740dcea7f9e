"""`vlm-dopd preflight`: is the wiring of a training job right? Minutes, before GPU hours are spent.

A ladder of checks, each a function with a name that returns what it found, what was expected, and the fix. The cheap
ones read files, and begin every run; the others need the pair in memory and ask the objects that training will use.

    tokens         one language for teacher, student and processors
    weights        all of each model is in its checkpoint   (headers)
    prompts        plain and privileged prompts of some rows
    surroundings   leaks, packages, disk
    trial          the trainer, and a micro-batch with responses: what the checks below look at
    sight          both models see the images; p is read, and helps
    scores         equal policies give no loss; rows, engine and trainer agree
    answers        responses end, and are shown
    cost           memory and time, measured on a micro-batch
    ladder         all of them in order          table    what is printed and written
"""

from .ladder import climb, refuse
from .table import show, write_json

__all__ = ["climb", "refuse", "show", "write_json"]
