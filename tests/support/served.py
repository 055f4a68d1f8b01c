"""A small server's parts: a base, a folder of adapters of many kinds, and jobs that are waited for."""

import threading

from graft.generate.prompts import encoded, end_tokens
from graft.generate.sampling import Sampling
from graft.methods.houlsby import Houlsby
from graft.methods.ia3 import IA3
from graft.methods.lora import LoRA
from graft.methods.prefix import PrefixTuning
from graft.methods.prompt import PromptTuning
from graft.serve.jobs import Ended, Failed, Job, Piece
from models import randomise

KINDS = {
    "lora": LoRA(r=2, target_modules="all-linear"),
    "dora": LoRA(r=2, use_dora=True),
    "ia3": IA3(),
    "prefix": PrefixTuning(num_virtual_tokens=3),
    "prompt": PromptTuning(num_virtual_tokens=4),
    "bottleneck": Houlsby(),
}


def write_adapters(base, folder, count, scale=0.1):
    """Write so many adapters of all kinds in turns, and return their names."""
    names = []
    for number in range(count):
        kind = list(KINDS)[number % len(KINDS)]
        name = f"{kind}-{number}"
        adapter = base.attach("new", KINDS[kind])
        randomise(adapter, number, scale=scale)
        adapter.save(folder / name)
        base.detach("new")
        names.append(name)
    return names


class Waited:
    """A job whose events are collected."""

    def __init__(self, base, prompt, adapter=None, **how):
        self.events, self.done = [], threading.Event()
        how = Sampling(**{"max_new_tokens": 8, **how})
        ends = frozenset(end_tokens(base, how.stop, chat=False))
        self.job = Job(encoded(base, [prompt])[0], adapter, how, ends, self._take)

    def _take(self, event):
        self.events.append(event)
        if not isinstance(event, Piece):
            self.done.set()

    def result(self, timeout_s=120):
        """Return the completion. Raises what the job failed with."""
        assert self.done.wait(timeout_s), "nothing came"
        end = self.events[-1]
        if isinstance(end, Failed):
            raise end.error
        assert isinstance(end, Ended)
        return end.completion

    @property
    def pieces(self):
        return [event for event in self.events if isinstance(event, Piece)]
