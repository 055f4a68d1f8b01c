"""Greedy answers of a GGUF file by llama.cpp (the package `xllamacpp`), on one thread."""

from collections.abc import Sequence
from pathlib import Path

import xllamacpp


class LlamaCpp:
    """A GGUF file, opened with a context of so many tokens."""

    def __init__(self, path: Path, context: int) -> None:
        settings = xllamacpp.CommonParams()
        settings.model.path = str(path)
        settings.n_ctx = context
        settings.n_parallel = 1
        settings.warmup = False
        settings.n_gpu_layers = 0
        settings.verbosity = -1
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
        self.server = xllamacpp.Server(settings)

    def __call__(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[str]:
        """Return the answer to each prompt, given as token ids."""
        how = {"n_predict": new_tokens, "temperature": 0, "top_k": 1, "cache_prompt": False}
        answers = [self.server.handle_completions({"prompt": list(ids), **how}) for ids in prompts]
        return [answer["choices"][0]["text"] for answer in answers]
