"""Intrinsic prompt tuning: vectors by hand, gradient by the chain rule, files in PEFT, subspaces."""

import copy

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.optimize import least_squares
from torch.testing import assert_close

from graft.base.base import Base
from graft.errors import AdapterError, UsageError
from graft.methods.ipt import IPT, find_subspace
from graft.methods.prompt import PromptTuning
from models import inputs, randomise, tiny_base, tiny_model

P, D, D_I, H = 4, 64, 3, 16
SETTINGS = {"num_virtual_tokens": P, "intrinsic_dim": D_I, "hidden_size": H}


def by_hand(tensors, z):
    """W₂ tanh(W₁z + b₁) + b₂ in fp64, by numpy."""
    W1, b1, W2, b2 = (tensors[name].detach().double().numpy() for name in ("W1", "b1", "W2", "b2"))
    return torch.from_numpy((W2 @ np.tanh(W1 @ np.asarray(z) + b1)).reshape(b2.shape) + b2)


def decoder(seed=0, width=D):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"W1": (H, D_I), "b1": (H,), "W2": (P * width, H), "b2": (P, width), "z": (D_I,)}
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def plane(tasks=12, seed=0, scale=1.0):
    """Prompts that lie on a plane away from the origin."""
    generator = torch.Generator().manual_seed(seed)
    at, axes = torch.randn(P, D, generator=generator), torch.randn(2, P, D, generator=generator)
    return [scale * (at + torch.tensordot(u, axes, 1)) for u in torch.randn(tasks, 2, generator=generator)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_the_prompt_is_the_decoders_and_stands_in_front_of_the_text(tmp_path, family):
    tensors = decoder()
    save_file(tensors, tmp_path / "subspace")
    base, batch = tiny_base(family), inputs(family)
    adapter = base.attach("x", IPT(subspace=str(tmp_path / "subspace")))
    randomise(adapter)
    table = by_hand(tensors, adapter.parameters()[0].detach().double())
    assert_close(adapter.file_state()["prompt_embeddings"].double(), table, atol=1e-6, rtol=1e-5)
    base.attach("y", PromptTuning(num_virtual_tokens=P)).load_file_state({"prompt_embeddings": table.float()})
    answers = [base(**batch, adapters=[name] * 3).logits for name in ("x", "y")]
    assert_close(*answers, atol=1e-5, rtol=1e-5)
    assert (answers[0] - base(**batch).logits).abs().max() > 1e-2


def test_the_gradient_follows_the_chain_rule_from_that_of_a_prompt(tmp_path):
    """dL/dz = W₁ᵀ((1 − tanh²) ⊙ W₂ᵀ dL/dP), with dL/dP as prompt tuning has it."""
    tensors = decoder()
    save_file(tensors, tmp_path / "subspace")
    base, ids = tiny_base(), inputs("llama")["ids"]
    mine = base.attach("x", IPT(subspace=str(tmp_path / "subspace")))
    other = base.attach("y", PromptTuning(num_virtual_tokens=P))
    other.load_file_state(mine.file_state())
    for name in "xy":
        with base.using(name):
            base(ids, labels=ids).loss.backward()
    hidden = torch.tanh(tensors["W1"] @ tensors["z"] + tensors["b1"])
    upper = tensors["W2"].T @ other.parameters()[0].grad.flatten()
    assert_close(mine.parameters()[0].grad, tensors["W1"].T @ ((1 - hidden**2) * upper), atol=1e-6, rtol=1e-4)
    assert mine.parameters()[0].grad.abs().min() > 1e-4


def test_what_is_saved_is_a_prompt_of_peft(tmp_path):
    model, ids = tiny_model("llama"), inputs("llama")["ids"]
    base = Base(copy.deepcopy(model))
    adapter = base.attach("x", IPT(**SETTINGS))
    randomise(adapter)
    adapter.save(tmp_path)
    with base.using("x"):
        wanted = base(ids).logits
    theirs = peft.PeftModel.from_pretrained(model, tmp_path).eval()
    assert theirs.peft_config["default"].peft_type == "PROMPT_TUNING"
    assert_close(theirs(input_ids=ids).logits[:, P:], wanted, atol=1e-5, rtol=1e-5)
    again = base.load_adapter(tmp_path, "y")
    assert isinstance(again.methods[0], PromptTuning) and again.count() == P * D


def test_the_coordinates_alone_are_trained_and_kept_in_checkpoints():
    adapter = tiny_base().attach("x", IPT(**SETTINGS))
    assert adapter.count() == D_I and [t.shape for t in adapter.checkpoint_state().values()] == [(D_I,)]


def test_a_random_decoder_starts_from_words_and_its_seed_decides_it():
    base = tiny_base("gemma")  # whose table scales what it gives
    made = lambda name, seed: base.attach(name, IPT(**SETTINGS, seed=seed))
    first, same, other = made("a", 0), made("b", 0), made("c", 1)
    words = base.model.get_input_embeddings()(torch.arange(96))
    table = first.file_state()["prompt_embeddings"]
    assert (torch.cdist(table.double(), words.double()).min(1).values < 1e-6).all()
    for adapter in (first, same, other):
        randomise(adapter, scale=1.0)
    tables = [adapter.file_state()["prompt_embeddings"] for adapter in (first, same, other)]
    assert torch.equal(tables[0], tables[1]) and not torch.allclose(tables[0], tables[2])
    assert 0.1 < float((tables[0] - table).std() / words.std()) < 3  # steps of the size of words


@pytest.mark.parametrize("scale", [1e-2, 1.0, 100.0])
def test_a_plane_of_prompts_is_found_whatever_their_size(tmp_path, scale):
    prompts = plane(scale=scale)
    left = find_subspace(prompts, tmp_path / "new" / "subspace", 2, hidden_size=32, steps=600, lr=1e-2)
    tensors = load_file(tmp_path / "new" / "subspace")
    mean = torch.stack(prompts).mean(0)
    spread = float(torch.stack([(p - mean).square().sum() for p in prompts]).mean())
    rest = []
    for prompt in prompts:  # scipy looks for its coordinates, through the decoder of the file alone
        error = lambda z, p=prompt: ((by_hand(tensors, z) - p) / scale).flatten().numpy()
        rest.append(2 * least_squares(error, tensors["z"].numpy()).cost * scale**2)
    assert left < 0.02 and sum(rest) / len(rest) / spread <= left + 1e-6
    at_start = by_hand(tensors, tensors["z"].double())
    assert float((at_start - mean).square().sum()) < 0.1 * spread


def test_a_plane_does_not_fit_into_a_line(tmp_path):
    assert find_subspace(plane(40), tmp_path / "subspace", 1, hidden_size=32, steps=300, lr=1e-2) > 0.1


def test_prompts_of_adapters_are_taken_as_they_are_and_the_callers_generator_is_left_alone(tmp_path):
    base, prompts = tiny_base(), plane(3)
    adapters = [base.attach(str(i), PromptTuning(num_virtual_tokens=P)) for i in range(3)]
    for adapter, prompt in zip(adapters, prompts, strict=True):
        adapter.load_file_state({"prompt_embeddings": prompt})
    before = torch.get_rng_state()
    for name, given in (("a", prompts), ("b", adapters)):
        find_subspace(given, tmp_path / name, 2, hidden_size=8, steps=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert_close(load_file(tmp_path / "a"), load_file(tmp_path / "b"), atol=0, rtol=0)


def test_the_tasks_own_losses_are_part_of_the_search(tmp_path):
    """Minimise ‖δ‖²/r + ‖δ − s‖²/k for a prompt δ away from where it was trained: δ = s·r/(r + k)."""
    prompts, k = plane(4), 2.0 * P * D
    s = torch.randn(P, D, generator=torch.Generator().manual_seed(9))
    found = {}

    def wish(i, prompt):
        found[i] = prompt.detach() - prompts[i]
        return (prompt - prompts[i] - s).square().sum() / k

    find_subspace(prompts, tmp_path / "subspace", 4, hidden_size=32, steps=600, lr=1e-2, task_loss=wish)
    mean = torch.stack(prompts).mean(0)
    for i, prompt in enumerate(prompts):
        r = float((prompt - mean).square().sum())
        assert_close(found[i], s * r / (r + k), atol=0.1, rtol=0)
    assert s.abs().max() > 2


def test_mistakes_are_named(tmp_path):
    for settings in ({"intrinsic_dim": 0}, {"num_virtual_tokens": -1}, {"hidden_size": 0}):
        with pytest.raises(UsageError, match="int from 1 to"):
            IPT(**settings)
    with pytest.raises(UsageError, match="intrinsic_dim=0"):
        find_subspace(plane(), tmp_path / "x", 0)
    for prompts in ([], plane(1), [torch.ones(2, 3), torch.ones(3, 3)], [torch.ones(3)] * 2):
        with pytest.raises(UsageError, match="at least two prompts"):
            find_subspace(prompts, tmp_path / "x", 2)
    base = tiny_base()
    unlike = [base.attach(str(p), PromptTuning(num_virtual_tokens=p)) for p in (2, 3)]
    with pytest.raises(UsageError, match="at least two prompts"):
        find_subspace(unlike, tmp_path / "x", 2)
    with pytest.raises(UsageError, match="64 positions"):
        base.attach("x", IPT(num_virtual_tokens=64))


def test_a_subspace_that_does_not_fit_is_named(tmp_path):
    base, path = tiny_base(), tmp_path / "subspace"
    for content in (None, b"no safetensors", {"W1": torch.ones(2)}, decoder() | {"b2": torch.ones(3)}):
        if isinstance(content, dict):
            save_file(content, path)
        elif content is not None:
            path.write_bytes(content)
        with pytest.raises(AdapterError, match="not a subspace of prompts"):
            base.attach("x", IPT(subspace=str(path)))
    save_file(decoder(), path)
    for method in (IPT(num_virtual_tokens=5, subspace=str(path)), IPT(intrinsic_dim=4, subspace=str(path))):
        with pytest.raises(AdapterError, match="4 vectors of width 64, in a subspace of 3 dimensions"):
            base.attach("x", method)
    save_file(decoder(width=32), path)
    with pytest.raises(AdapterError, match="the model's width of 64"):
        base.attach("x", IPT(subspace=str(path)))
