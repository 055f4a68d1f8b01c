"""Training: one loop for every stage, whose runs go on by themselves after a kill, bit-identical."""

from graft.train.log import Observer
from graft.train.loop import Result, Task, Trainer
from graft.train.signals import Interrupted

__all__ = ["Interrupted", "Observer", "Result", "Task", "Trainer"]
