"""Keys of PEFT with what trainers put into them: mapped to PEFT's own, or an error that names them."""

import copy

import peft
import pytest
import torch
from peft_oracle import logits, tuned
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from graft.base.base import Base
from graft.errors import AdapterError
from graft.formats.peft_keys import plain
from models import inputs, tiny_model

WEIGHTS = "adapter_model.safetensors"
ROOT = "base_model.model."
SETTINGS = {
    "lora": peft.LoraConfig(
        r=3, target_modules=["q_proj", "embed_tokens"], modules_to_save=["lm_head"], bias="none"
    ),
    "dora": peft.LoraConfig(r=3, target_modules=["q_proj"], use_dora=True, lora_bias=False),
    "lora_bias": peft.LoraConfig(r=3, target_modules=["q_proj"], lora_bias=True),
    "tokens": peft.LoraConfig(r=3, target_modules=["q_proj"], trainable_token_indices=[5, 6]),
    "ia3": peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": peft.LoHaConfig(r=3, target_modules=["q_proj"]),
    "vera": peft.VeraConfig(r=3, target_modules=["q_proj", "k_proj"]),
    "oft": peft.OFTConfig(oft_block_size=8, target_modules=["q_proj"]),
    "boft": peft.BOFTConfig(boft_block_size=4, target_modules=["q_proj"]),
    "ln": peft.LNTuningConfig(target_modules=["norm"]),
    "adalora": peft.AdaLoraConfig(target_modules=["q_proj"], total_step=9),
    "prompt": peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}


def own_state(model):
    """What a trainer that knows nothing of PEFT saves: the trained tensors under their names in the model."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def full_state(model):
    """The whole state dict, base and all, as safetensors can hold it."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def compiled(state):
    return {f"_orig_mod.{key}": tensor for key, tensor in state.items()}


def sharded(state):
    state = {key.replace("layers.", "layers._fsdp_wrapped_module."): tensor for key, tensor in state.items()}
    return {key.replace("self_attn", "self_attn._orig_mod"): tensor for key, tensor in state.items()}


def parallel(state):
    return {f"module.{key}": tensor for key, tensor in state.items()}


def rootless(state):
    return {key.removeprefix(ROOT): tensor for key, tensor in state.items()}


def recomputed(state):
    inside = "_checkpoint_wrapped_module.self_attn"
    return {key.replace("self_attn", inside): tensor for key, tensor in state.items()}


FORMS = {f.__name__: f for f in (compiled, sharded, parallel, rootless, recomputed, dict)}


def answers(folder):
    base = Base(copy.deepcopy(tiny_model("llama")))
    base.load_adapter(folder, "x")
    with base.using("x"):
        return base(**inputs("llama")).logits


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", SETTINGS)
def test_wrapped_keys_of_pefts_own_file_answer_as_peft(tmp_path, kind, form):
    wanted = logits(tuned(tiny_model("llama"), copy.deepcopy(SETTINGS[kind]), tmp_path))[:, -7:]
    save_file(FORMS[form](load_file(tmp_path / WEIGHTS)), tmp_path / WEIGHTS)
    assert_close(answers(tmp_path), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["dict", "compiled", "parallel", "rootless"])
@pytest.mark.parametrize("kind", sorted(SETTINGS.keys() - {"prompt", "vera"}))
def test_keys_with_the_name_of_the_adapter_answer_as_peft(tmp_path, kind, form):
    model = tuned(tiny_model("llama"), copy.deepcopy(SETTINGS[kind]), tmp_path)
    save_file(FORMS[form](own_state(model)), tmp_path / WEIGHTS)
    assert_close(answers(tmp_path), logits(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "ia3"])
def test_a_whole_state_dict_answers_as_peft(tmp_path, kind):
    model = tuned(tiny_model("llama"), copy.deepcopy(SETTINGS[kind]), tmp_path)
    save_file(full_state(model), tmp_path / WEIGHTS)
    assert_close(answers(tmp_path), logits(model), atol=1e-5, rtol=1e-5)


def test_two_adapters_in_one_file_are_named():
    keys = [f"{ROOT}x.lora_A.{name}.weight" for name in ("sql", "poet")]
    with pytest.raises(AdapterError, match=r"2 adapters|two tensors"):
        plain({keys[0]: torch.ones(1), keys[1]: torch.ones(1)})
    keys = [f"{ROOT}x.lora_A.sql.weight", f"{ROOT}y.lora_A.poet.weight"]
    with pytest.raises(AdapterError, match="2 adapters: poet, sql"):
        plain({keys[0]: torch.ones(1), keys[1]: torch.ones(1)})


@pytest.mark.parametrize("form", ["compiled", "parallel"])
def test_two_tensors_of_one_meaning_are_named(form):
    state = {f"{ROOT}x.lora_A.weight": torch.ones(1)}
    with pytest.raises(AdapterError, match=r"two tensors of the file mean base_model.model.x.lora_A.weight"):
        plain({**state, **{key: tensor + 1 for key, tensor in FORMS[form](state).items()}})
    assert plain({**state, **FORMS[form](state)}) == state  # of one value they are one


@pytest.mark.parametrize(
    ("key", "shape"), [(f"{ROOT}x.lora_A.weight", (0,)), (f"{ROOT}model._flat_param", (100,))]
)
def test_tensors_that_were_never_gathered_are_said_to_be_that(key, shape):
    with pytest.raises(AdapterError, match=r"FSDP and DeepSpeed.*GatheredParameters"):
        plain({key: torch.zeros(shape)})


def test_a_part_of_a_models_own_name_stays():
    keys = [f"{ROOT}module.lora_x.3.lora_A.weight", f"{ROOT}model.module.q.lora_B.bias", "prompt_embeddings"]
    assert list(plain({key: torch.ones(1) for key in keys})) == keys
