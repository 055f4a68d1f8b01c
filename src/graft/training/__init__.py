"""Training: one loop for every stage. Started again, a killed run continues bit for bit."""

from graft.storage.signals import Interrupted
from graft.training.loop import Trainer
from graft.training.observer import Observer
from graft.training.task import Result, Task

__all__ = ["Interrupted", "Observer", "Result", "Task", "Trainer"]
