"""Convert loralib's pickled LoRA files (2021) to PEFT folders; the pickle is read in a child process only.

    MODULE.lora_A                   (r, in)    ->  base_model.model.MODULE.lora_A.weight
    MODULE.lora_B                   (out, r)   ->  base_model.model.MODULE.lora_B.weight
    classifier.dense.weight, ...               ->  base_model.model.classifier.dense.weight

MODULE is, for example, roberta.encoder.layer.0.attention.self.query. r is read from the shapes. α is not in
the file, so the caller states it; the official files used 16 with r 8. Layout: microsoft/LoRA,
`lora.lora_state_dict` and `loralib.Linear`: h = W x + (α / r) B A x, as in PEFT.
Differs: `MergedLinear` (GPT-2's fused q, k, v with one rank for each part) has no PEFT counterpart and is
refused.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from graft import storage
from graft.errors import AdapterError, ModelError, UsageError, listed
from graft.quant.finite import not_finite

PREFIX = "base_model.model."
# What a child needs to find its libraries. Tokens and keys in the caller's environment are not passed on.
INHERITED = ("LD_LIBRARY_PATH", "SYSTEMROOT")


def convert(
    path: str | Path, out: str | Path, *, lora_alpha: float, base: str | None = None, force: bool = False
) -> str:
    """Write the PEFT folder `out` from the loralib file `path`, and return a line that says what was done.

    lora_alpha: α of the training run.  base: is written as `base_model_name_or_path`.
    Raises ModelError if the file cannot be read safely, AdapterError if it is not a plain LoRA or not finite,
    UsageError if `out` exists and force is False.
    """
    path, out = Path(path), Path(out)
    if not path.is_file():
        raise UsageError(f"{path} is not a file", "a LoRA file in loralib layout", "check the path")
    if not lora_alpha > 0:
        raise UsageError(
            f"lora_alpha={lora_alpha}", "a number above 0", "take it from the file's training settings"
        )
    storage.refuse_occupied(out, force=force)
    tensors, config = peft(unpickled(path), lora_alpha=lora_alpha, base=base)
    with storage.output_folder(out, force=force) as folder:
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        settings = json.dumps(config, indent=2, sort_keys=True) + "\n"
        storage.write(folder / "adapter_config.json", settings.encode())
    count = sum(t.numel() for t in tensors.values())
    targets = ", ".join(config["target_modules"])
    return (
        f"read {path.name} weights-only in a child process; wrote {len(tensors)} tensors ({count:,} values), "
        f"LoRA r {config['r']} alpha {config['lora_alpha']} on {targets}, to {out}"
    )


def unpickled(path: Path, timeout_s: float = 600) -> dict[str, torch.Tensor]:
    """Return the tensors of a pickled state dict, read by a child process with limits. Raises ModelError."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "tensors.safetensors"
        script = Path(__file__).with_name("unpickle.py")
        command = [sys.executable, "-I", str(script), str(path.resolve()), str(target)]
        environment = {key: os.environ[key] for key in INHERITED if key in os.environ}
        environment["OMP_NUM_THREADS"] = "1"
        remedy = "get the file from its official place, or convert it where it is trusted"
        try:
            child = subprocess.run(
                command, capture_output=True, text=True, timeout=timeout_s, env=environment, cwd=folder
            )
        except subprocess.TimeoutExpired:
            raise ModelError(
                f"{path} was still being read after {timeout_s:.0f} s", "a small file", remedy
            ) from None
        if child.returncode or not target.exists():
            lines = child.stderr.strip().splitlines()
            reason = lines[-1] if lines else f"the child process ended with {child.returncode}"
            raise ModelError(
                f"{path} was not opened: {reason}", "a pickled dict of tensors and nothing else", remedy
            )
        return load_file(target)


def peft(state: Mapping[str, torch.Tensor], *, lora_alpha: float, base: str | None) -> tuple[dict, dict]:
    """Return (tensors, adapter_config) of a loralib state dict in PEFT's layout. Raises AdapterError."""
    wrong = [f"{key} is not finite" for key in not_finite(state.items())]
    modules = sorted({key.rsplit(".", 1)[0] for key in state if key.endswith((".lora_A", ".lora_B"))})
    wrong += [f"{module}: {_misfit(module, state)}" for module in modules if _misfit(module, state)]
    others = {key: value for key, value in state.items() if not key.endswith((".lora_A", ".lora_B"))}
    trunk = {module.split(".", 1)[0] for module in modules}
    wrong += [f"{key} is neither LoRA nor of a head" for key in others if key.split(".", 1)[0] in trunk]
    if wrong or not modules:
        reason = listed(wrong, 5, "; ") or "no key ends in .lora_A"
        raise AdapterError(
            f"not a plain loralib LoRA: {reason}",
            "finite lora_A (r, in) and lora_B (out, r) at each module",
            "convert files of loralib.Linear layers only",
        )
    ranks = {module: state[f"{module}.lora_A"].shape[0] for module in modules}
    r = max(set(ranks.values()), key=list(ranks.values()).count)
    tensors = {f"{PREFIX}{key}.weight": value for key, value in state.items() if key not in others}
    tensors |= {f"{PREFIX}{key}": value for key, value in others.items()}
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if any(key.startswith(("classifier.", "score.")) for key in others) else None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": r,
        "lora_alpha": int(lora_alpha) if lora_alpha == int(lora_alpha) else lora_alpha,
        # There is one α for all, because both libraries divide it by the rank of each layer.
        "rank_pattern": {module: rank for module, rank in ranks.items() if rank != r},
        "target_modules": sorted({module.rsplit(".", 1)[-1] for module in modules}),
        "modules_to_save": sorted({key.split(".", 1)[0] for key in others}) or None,
        "bias": "none",
        "fan_in_fan_out": False,
    }
    return {key: value.contiguous() for key, value in tensors.items()}, config


def _misfit(module: str, state: Mapping[str, torch.Tensor]) -> str:
    """Return why A and B of this module do not form one product, or "" if they do."""
    A, B = state.get(f"{module}.lora_A"), state.get(f"{module}.lora_B")
    if A is None or B is None:
        return f"lora_{'A' if A is None else 'B'} is missing"
    if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1]:
        fused = A.ndim == 2 and B.ndim >= 2 and A.shape[0] % B.shape[1] == 0
        return f"lora_A {tuple(A.shape)} and lora_B {tuple(B.shape)} share no rank" + (
            " (fused layer)" if fused else ""
        )
    return ""
