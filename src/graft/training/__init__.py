"""Training: one loop for every stage. Started again, a killed run continues bit for bit."""

from graft.training.log import Observer
from graft.training.loop import Result, Task, Trainer
from graft.training.signals import Interrupted

__all__ = ["Interrupted", "Observer", "Result", "Task", "Trainer"]
