"""Every method leaves the bytes of the base alone, and its files mean the same in another process."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from laws import answer, moved
from safetensors.torch import load_file

from graft.base.base import Base
from graft.core.registry import find, names
from graft.quant import quantise_model
from models import tiny_base, tiny_model

BESIDE = [name for name in names() if not find(name).in_place]
CHILD = """
import sys
from pathlib import Path
from safetensors.torch import save_file
from laws import answer
from models import tiny_base
base, found = tiny_base(), {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    base.load_adapter(folder, folder.name)
    found[folder.name] = answer(base, folder.name).detach().contiguous()
    base.detach(folder.name)
save_file(found, sys.argv[2])
"""


@pytest.mark.parametrize("packed", [False, True], ids=["fp32", "nf4"])
@pytest.mark.parametrize("name", BESIDE)
def test_ten_steps_leave_every_byte_of_the_base(name, packed):
    model = tiny_model("llama")
    base = Base(quantise_model(model, "nf4") if packed else model)
    before = digest(base.model)
    adapter = moved(base, find(name)())
    start = [p.detach().clone() for p in adapter.parameters()]
    optimizer = torch.optim.AdamW(adapter.param_groups(1e-2))
    base.train()
    for step in range(1, 11):
        answer(base, "x").square().mean().backward()
        optimizer.step()
        adapter.after_step(step, 10)
        optimizer.zero_grad()
    assert all(not torch.equal(p, old) for p, old in zip(adapter.parameters(), start, strict=True))
    assert all(p.grad is None for p in base.model.parameters())
    assert digest(base.model) == before


def digest(model):
    """Return the SHA-256 of every byte of a model, packed codes included."""
    total = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        total.update(key.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def test_files_mean_the_same_in_another_process(tmp_path):
    wanted = {}
    threads = torch.get_num_threads()
    for name in names():
        base = tiny_base()
        adapter = moved(base, find(name)())
        adapter.save(tmp_path / "adapters" / name)
        wanted[name] = answer(base, "x").detach()
    places = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "support"), *filter(None, sys.path)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": str(threads)}
    words = [sys.executable, "-c", CHILD, str(tmp_path / "adapters"), str(tmp_path / "answers")]
    subprocess.run(words, check=True, capture_output=True, timeout=300, env=env)
    found = load_file(tmp_path / "answers")
    assert found.keys() == wanted.keys()
    for name, logits in wanted.items():
        assert torch.equal(found[name], logits), name
