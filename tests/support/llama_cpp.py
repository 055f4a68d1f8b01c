"""llama.cpp itself, through the wheel of `xllamacpp`, as the oracle of GGUF files."""

import json
import os
import subprocess
import sys
import urllib.request

import pytest
import torch

xllamacpp = pytest.importorskip("xllamacpp")


class LlamaCpp:
    """A server in this process, on one thread, with keys and values in fp32 and plain attention.

    So nothing is rounded but by the file's own types.
    lora: one adapter, or several, numbered in their order.  scale: of all of them, until others are posted.
    """

    def __init__(self, path, lora=None, context=256, *, scale=1.0):
        settings = xllamacpp.CommonParams()
        settings.model.path = str(path)
        settings.n_ctx = context
        settings.n_parallel = 1
        settings.warmup = False
        settings.use_jinja = True
        settings.n_gpu_layers = 0
        settings.verbosity = -1
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
        settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        adapters = []
        for file in lora if isinstance(lora, list) else [lora] if lora is not None else []:
            adapters.append(xllamacpp.CommonAdapterLoraInfo())
            adapters[-1].path, adapters[-1].scale = str(file), scale
        settings.lora_adapters = adapters
        self.server = xllamacpp.Server(settings)

    def complete(self, prompt, new, top=1):
        """Return (text, why it stopped, ids of the new tokens, [{id: logprob}]) of the greedy continuation.

        The ids leave out a token that ends within a character: ask for one token where the text is not words.
        """
        wanted = {"n_predict": new, "temperature": 0, "top_k": 1, "n_probs": top, "cache_prompt": False}
        choice = self.server.handle_completions({"prompt": prompt, **wanted})["choices"][0]
        steps = choice["logprobs"]["content"]
        likely = [{one["id"]: one["logprob"] for one in step["top_logprobs"]} for step in steps]
        return choice["text"], choice["finish_reason"], [step["id"] for step in steps], likely

    def tokenize(self, text):
        return self.ask("/tokenize", {"content": text, "add_special": True})["tokens"]

    def render(self, messages):
        return self.ask("/apply-template", {"messages": messages})["prompt"]

    def ask(self, path, body=None):
        """Return the answer to a body; without one, to GET."""
        request = urllib.request.Request(
            self.server.listening_address + path,
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            return json.load(answer)


def opens(path):
    """Tell whether llama.cpp opens the file. It is asked in a process of its own, because it may abort."""
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    return (
        subprocess.run([sys.executable, "-c", OPEN, str(path)], env=environment, timeout=60).returncode == 0
    )


OPEN = """
import os, sys, xllamacpp
settings = xllamacpp.CommonParams()
settings.model.path = sys.argv[1]
settings.n_ctx = 64
settings.warmup = False
settings.verbosity = -1
status = 1
try:
    server = xllamacpp.Server(settings)
    status = 0
finally:
    os._exit(status)  # its threads would keep the process alive
"""


def compare(llama, model, prompt, new, top=5):
    """Compare our model with llama.cpp along its greedy continuation of the prompt (ids).

    Returns two lists with one number per token: the largest difference of log-probabilities, and how much
    less likely its token is to our model than our best. Our model reads what llama.cpp wrote, so that
    another choice is one row of the comparison.
    """
    _, _, written, likely = llama.complete(prompt, new, top)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + written])).logits[0, len(prompt) - 1 : -1].float()
    ours = logits.log_softmax(-1)
    apart = [
        max(abs(float(row[i]) - p) for i, p in step.items()) for row, step in zip(ours, likely, strict=False)
    ]
    behind = [float(row.max() - row[i]) for row, i in zip(ours, written, strict=False)]
    return apart, behind
