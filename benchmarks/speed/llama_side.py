"""llama.cpp's side of decoding (the package `xllamacpp`): the same shape as Q4_0, on as many threads."""

import os
from pathlib import Path
from typing import Any

import link
import weights
import xllamacpp
from shapes import SHAPES


def decode(pipe: link.Link, spec: dict[str, Any]) -> None:
    """Write one text greedily."""
    shape = SHAPES[spec["shape"]]
    settings = xllamacpp.CommonParams()
    settings.model.path = str(weights.gguf(shape, Path(spec["folder"])))
    settings.n_ctx = 1024
    settings.n_parallel = 1
    settings.n_gpu_layers = 0
    settings.verbosity = -1
    threads = int(os.environ["OMP_NUM_THREADS"])
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(settings)
    pipe.loaded()
    (prompt,) = weights.rows(shape, spec["prompt"], 1).tolist()
    how = {"n_predict": spec["new"], "temperature": 0, "top_k": 1, "cache_prompt": False, "ignore_eos": True}

    def unit() -> int:
        answer = server.handle_completions({"prompt": prompt, **how})
        written = answer["usage"]["completion_tokens"]
        if written != spec["new"]:
            raise RuntimeError(f"llama.cpp wrote {written} tokens, not {spec['new']}")
        return written

    link.serve(pipe, unit, warm=spec["warm"], ready={"work": spec["new"], "variant": "Q4_0"})


KINDS = {"decode": decode}
