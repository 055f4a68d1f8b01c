"""Training: one loop for every stage. A killed run continues by itself, bit for bit."""

from graft.training.log import Observer
from graft.training.loop import Result, Task, Trainer
from graft.training.signals import Interrupted

__all__ = ["Interrupted", "Observer", "Result", "Task", "Trainer"]
