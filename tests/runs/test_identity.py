"""What a run depends on must be the same when its command is repeated; what it does not depend on may differ."""

import json

import pytest
from tiny_folder import ANIMALS, TOYS, write_model, write_rows

from graft.runs.run import run


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model, and rows of very different lengths."""
    folder = tmp_path_factory.mktemp("identity")
    write_model(folder / "model")
    answers = [f"The {ANIMALS[i % 4]} wants a {TOYS[i % 3]}. " * (1 + i * 7 % 5) for i in range(24)]
    write_rows(
        folder / "rows.jsonl",
        [{"prompt": f"Day {i}. What now? ", "completion": text} for i, text in enumerate(answers)],
    )
    return folder


def recipe(home, output, **changes):
    plain = {
        "model": str(home / "model"),
        "dtype": "fp32",
        "method": {"name": "lora", "r": 2},
        "data": {"train": str(home / "rows.jsonl"), "eval": 0.25, "max_length": 96},
        "train": {"max_steps": 2, "batch_size": 4, "micro_batch_size": 2, "lr": 1e-2, "save_every": 1},
        "output": str(output),
    }
    for key, value in changes.items():
        plain[key] = {**plain[key], **value} if isinstance(value, dict) and key in plain else value
    return plain


def test_packed_and_padded_rows_in_any_micro_batches_give_the_same_losses(home, tmp_path):
    def losses(name, pack, micro):
        steps = {"max_steps": 12, "micro_batch_size": micro, "save_every": 50}
        result = run(recipe(home, tmp_path / name, data={"pack": pack}, train=steps))
        lines = (result.folder / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        return [r[key] for key in ("loss", "eval_loss") for r in records if key in r]

    packed = losses("packed", True, 2)
    assert len(packed) > 12 and len({round(value, 3) for value in packed}) > 10
    for name, pack, micro in (("padded", False, 2), ("alone", False, 1), ("together", True, 4)):
        assert losses(name, pack, micro) == pytest.approx(packed, abs=1e-5)
