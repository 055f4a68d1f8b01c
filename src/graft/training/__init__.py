"""Training: one loop for every stage, whose runs go on by themselves after a kill, bit-identical."""

from graft.training.log import Observer
from graft.training.loop import Result, Task, Trainer
from graft.training.signals import Interrupted

__all__ = ["Interrupted", "Observer", "Result", "Task", "Trainer"]
