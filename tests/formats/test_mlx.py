"""Files of mlx-lm: its arithmetic by hand, on the weights of a copy, and what is refused."""

import copy
import json

import pytest
import torch
from safetensors.torch import save_file
from tiny_folder import write_model
from torch.testing import assert_close

from graft.base.base import Base
from graft.errors import AdapterError
from models import inputs, tiny_base

KEYS = ["self_attn.q_proj", "mlp.down_proj"]
SETTINGS = {  # as mlx-lm writes them, beside much that it does not read again
    "model": "mlx-community/tiny-4bit", "train": True, "iters": 100, "batch_size": 4, "seed": 0,
    "lr_schedule": None, "fine_tune_type": "lora", "num_layers": 1,
    "lora_parameters": {"rank": 3, "alpha": 16, "dropout": 0.0, "scale": 5.0, "keys": KEYS},
}  # fmt: skip


def settings(fine_tune_type="lora", num_layers=1, **parameters):
    both = {"fine_tune_type": fine_tune_type, "num_layers": num_layers}
    return {**SETTINGS, **both, "lora_parameters": {**SETTINGS["lora_parameters"], **parameters}}


def made(base, paths, *, dora=False):
    """Random tensors for these places, in mlx-lm's names and shapes; a table's rows are its inputs."""
    torch.manual_seed(3)
    found = {}
    for path in paths:
        rows, columns = base.model.get_submodule(path).weight.shape
        into, out = (rows, columns) if "embed" in path else (columns, rows)
        found |= {f"{path}.lora_a": torch.randn(into, 3) * 0.1, f"{path}.lora_b": torch.randn(3, out) * 0.1}
        if dora:
            found[f"{path}.m"] = torch.rand(out) + 0.5
    return found


def written(folder, facts, tensors):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(facts, indent=4))
    save_file(tensors, folder / "adapters.safetensors", metadata={"format": "mlx"})
    return folder


def by_hand(base, tensors, scale):
    """A copy of the model with W + s·(A B)ᵀ, of a table W + s·A B, and for DoRA rows of the norms m."""
    model = copy.deepcopy(base.model)
    with torch.no_grad():
        for path in {key.rpartition(".")[0] for key in tensors}:
            weight, change = (
                model.get_submodule(path).weight,
                tensors[f"{path}.lora_a"] @ tensors[f"{path}.lora_b"],
            )
            weight += scale * (change if "embed" in path else change.T)
            if f"{path}.m" in tensors:
                weight *= (tensors[f"{path}.m"] / weight.norm(dim=1))[:, None]
    return model


def places(blocks, keys=KEYS):
    return [f"model.layers.{block}.{key}" for block in blocks for key in keys]


CASES = {
    "the last block": ({}, places([1]), {}),
    "all blocks": ({"num_layers": -1, "scale": 0.7}, places([0, 1]), {}),
    "more blocks than there are": ({"num_layers": 16}, places([0, 1]), {}),
    "no keys": ({"keys": None}, places([1], ["self_attn.v_proj"]), {}),
    "dora": ({"fine_tune_type": "dora", "num_layers": 2}, places([0, 1]), {"attention_bias": True}),
    "head and table": (
        {"keys": [*KEYS, "lm_head", "model.embed_tokens"]},
        [*places([1]), "lm_head", "model.embed_tokens"],
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_of_mlx_lm_answers_as_its_arithmetic_does(case, tmp_path):
    changes, paths, model = CASES[case]
    base, ids = tiny_base("llama", **model), inputs("llama")["ids"]
    facts = settings(**changes)
    tensors = made(base, paths, dora=case == "dora")
    expected = by_hand(base, tensors, facts["lora_parameters"]["scale"])(ids).logits
    base.load_adapter(written(tmp_path / "mlx", facts, tensors), "x")
    found = base(ids, adapters=["x"] * len(ids)).logits
    assert (found - base(ids).logits).abs().max() > 0.05
    assert_close(found, expected, atol=1e-5, rtol=1e-5)
    base.merge("x")
    assert_close(base(ids).logits, expected, atol=1e-5, rtol=1e-5)
    base.unmerge("x")
    base.adapters["x"].save(tmp_path / "kept")  # in PEFT's layout from then on
    base.load_adapter(tmp_path / "kept", "again")
    assert torch.equal(base(ids, adapters=["again"] * len(ids)).logits, found)


def test_half_precision_and_a_backbone_without_a_head_are_taken(tmp_path):
    base, ids = tiny_base("llama"), inputs("llama")["ids"]
    tensors = {key: tensor.bfloat16() for key, tensor in made(base, places([1])).items()}
    folder = written(tmp_path / "mlx", settings(), tensors)
    expected = by_hand(base, {key: tensor.float() for key, tensor in tensors.items()}, 5.0).model(ids)[0]
    backbone = Base(base.model.model, name="backbone")
    backbone.load_adapter(folder, "x")
    assert_close(backbone(ids, adapters=["x"] * len(ids))[0], expected, atol=1e-5, rtol=1e-5)


GOOD = places([1])
MLP = "model.layers.1.mlp"
REFUSED = {
    "full": (settings("full"), GOOD, {}, "fine_tune_type 'full'.*mlx_lm.fuse"),
    "unknown kind": (settings("loha"), GOOD, {}, "fine_tune_type 'loha'"),
    "no layers": ({k: v for k, v in settings().items() if k != "num_layers"}, GOOD, {}, "num_layers"),
    "no parameters": ({**settings(), "lora_parameters": None}, GOOD, {}, "lora_parameters"),
    "unknown parameter": (settings(rslora=True), GOOD, {}, "rslora"),
    "no rank": (settings(rank=None), GOOD, {}, "rank None"),
    "no number": (settings(scale=float("inf")), GOOD, {}, "scale inf"),
    "keys that are none": (settings(keys=7), GOOD, {}, "keys 7"),
    "another rank": (settings(rank=4), GOOD, {}, "of rank 3.*rank 4"),
    "huge rank": (settings(rank=10**6), [], {f"{MLP}.down_proj.lora_a": torch.zeros(128, 3)}, "rank 1000000"),
    "quantised": (settings(), GOOD, {f"{MLP}.down_proj.lora_a_scales": torch.ones(2, 2)}, "lora_a_scales"),
    "experts": (settings(), GOOD, {f"{MLP}.up_proj.lora_a": torch.ones(2, 3, 64)}, r"\(2, 3, 64\)"),
    "a weight": (settings(), GOOD, {"model.norm.weight": torch.ones(64)}, "the tensor model.norm.weight"),
    "magnitudes of a LoRA": (settings(), GOOD, {f"{GOOD[0]}.m": torch.ones(64)}, "lora_a, lora_b, m"),
    "DoRA without magnitudes": (settings("dora"), GOOD, {}, "dora on .* with lora_a, lora_b\\."),
    "another model": (settings(), [*GOOD], {"language_model.x.lora_a": torch.ones(4, 3)}, "not in this base"),
    "another depth": (settings(), places([0]), {}, "places differ.*of blocks 1 to 1"),
    "a place too few": (settings(), GOOD[:1], {}, "down_proj is not in the file"),
    "a place too many": (settings(keys=KEYS[:1]), GOOD, {}, "down_proj is in the file"),
    "another width": (settings(keys=KEYS[:1]), [], {
        f"{GOOD[0]}.lora_a": torch.ones(32, 3), f"{GOOD[0]}.lora_b": torch.ones(3, 64),
    }, "lora_A"),
    "no tensors": (settings(keys=None), [], {}, "a file without tensors"),
    "a tied table": (
        settings(keys=["model.embed_tokens"]), ["model.embed_tokens"], {"tied": True}, "not the head"
    ),
}  # fmt: skip


@pytest.mark.parametrize("why", REFUSED)
def test_what_it_cannot_mean_here_is_refused_with_the_reason(why, tmp_path):
    facts, paths, more, reason = REFUSED[why]
    base = tiny_base("llama", tie_word_embeddings="tied" in more)
    tensors = made(base, paths) | {key: tensor for key, tensor in more.items() if key != "tied"}
    with pytest.raises(AdapterError, match=f"(?s){reason}"):
        base.load_adapter(written(tmp_path / "mlx", facts, tensors), "x")
    assert not base.adapters


def test_a_command_wants_its_base(tmp_path, capsys):
    from graft.cli import call

    base = tiny_base("llama")
    folder = written(tmp_path / "mlx", settings(), made(base, GOOD))
    assert call(["chat", str(folder), "--prompt", "Day"]) == 2
    assert "names no base" in capsys.readouterr().err
    model = write_model(tmp_path / "model")
    assert call(["chat", str(model), "--adapter", str(folder), "--prompt", "Day"]) == 1  # of another width
    assert "lora_A" in capsys.readouterr().err
