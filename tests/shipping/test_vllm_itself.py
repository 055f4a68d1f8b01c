"""vLLM itself loads what `export` writes for it and writes the same tokens, in the Python that has it.

vLLM wants a torch of its own, so it lives in another environment. The tests run where the variable GRAFT_VLLM
names the Python of one, on a CPU too: GRAFT_VLLM=/path/to/python pytest tests/shipping/test_vllm_itself.py
"""

import json
import os
import subprocess

import pytest

from graft.methods.lora import LoRA
from graft.models.load import load
from graft.shipping.export import export
from graft.shipping.several import export_each
from models import randomise

PYTHON = os.environ.get("GRAFT_VLLM")
KINDS = {
    "alphas": LoRA(r=4, target_modules="all-linear", alpha_pattern={"up_proj": 3, "o_proj": 40}),
    "plain": LoRA(r=4, target_modules="all-linear"),
    "ranks": LoRA(r=12, target_modules=["q_proj", "down_proj"], rank_pattern={"q_proj": 3}),
    "rslora": LoRA(r=3, use_rslora=True, target_modules="all-linear"),
}
PROMPT = "Write a product description.\n\nname: Silver Otter\ntype: kettle\n\nDescription:\n"
ASK = """
import json, sys

def main():
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    asked = json.loads(sys.argv[1])
    model = LLM(asked["base"], dtype="float32", enable_lora=True, max_lora_rank=asked["rank"],
                max_loras=4, enforce_eager=True, max_model_len=256)
    how = SamplingParams(temperature=0, max_tokens=24, min_tokens=24)
    loras = [LoRARequest(f"{at}", at + 1, folder) for at, folder in enumerate(asked["folders"])]
    prompts = [{"prompt_token_ids": asked["ids"]}] * len(loras)
    answers = model.generate(prompts, how, lora_request=loras)
    print("TOKENS", json.dumps([list(answer.outputs[0].token_ids) for answer in answers]), flush=True)

if __name__ == "__main__":
    main()
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="GRAFT_VLLM names no Python that has vLLM"),
]


def test_four_adapters_in_one_batch_of_vllm_write_what_they_write_here(tmp_path):
    base = load("seedling", dtype="fp32")
    for number, (name, kind) in enumerate(KINDS.items()):
        randomise(base.attach(name, kind), number, scale=0.05)
        base.adapters[name].save(tmp_path / "adapters" / name)
        base.detach(name)
    export(base, tmp_path / "base", "hf")
    done = export_each(base, tmp_path / "out", "vllm", {name: tmp_path / "adapters" / name for name in KINDS})
    for name in KINDS:
        base.load_adapter(tmp_path / "adapters" / name, name)
    answers = base.complete([PROMPT] * 4, list(KINDS), max_new_tokens=24, min_new_tokens=24)
    ours = [list(answer.tokens) for answer in answers]
    assert len({tuple(tokens) for tokens in ours}) == 4
    asked = {
        "base": str(tmp_path / "base"),
        "folders": [str(tmp_path / "out" / name) for name in done.written],
        "ids": base.tokenizer(PROMPT).input_ids,
        "rank": 16,
    }
    (tmp_path / "ask.py").write_text(ASK)  # a file: vLLM starts processes that import it
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    words = [str(PYTHON), str(tmp_path / "ask.py"), json.dumps(asked)]
    ran = subprocess.run(
        words, capture_output=True, text=True, env={"VLLM_CPU_KVCACHE_SPACE": "1", **environment}
    )
    told = [line for line in ran.stdout.splitlines() if line.startswith("TOKENS ")]
    assert told, ran.stderr[-3000:]
    assert json.loads(told[0].removeprefix("TOKENS ")) == ours
