"""Every setting of every config class of the PEFT that is installed: honoured, without effect, or refused.

The classes are walked, so a setting that a newer PEFT adds fails here until it has its place below. What is
honoured gives PEFT's logits, and others if the setting is left out. What is without effect has none in PEFT
either. What is refused is named by the error.
"""

import copy
import dataclasses
import json

import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft_oracle import logits, tuned
from torch.testing import assert_close

from graft.base.adapter_settings import known_methods
from graft.base.base import Base
from graft.errors import GraftError, Notice
from models import inputs, tiny_model

CONFIG = "adapter_config.json"
QV = ["q_proj", "v_proj"]
REGEX = r".*layers\.1\..*(q|up)_proj"
# Settings of the adapter that each change is made to.
PLAIN = {
    "LORA": {"r": 4, "lora_alpha": 6, "target_modules": QV},
    "ADALORA": {"init_r": 5, "target_r": 3, "lora_alpha": 6, "total_step": 9, "target_modules": QV},
    "BOFT": {"boft_block_size": 4, "target_modules": QV},
    "IA3": {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm", "norm"]},
    "LOHA": {"r": 3, "alpha": 4, "target_modules": QV},
    "LOKR": {"r": 3, "alpha": 4, "target_modules": QV},
    "OFT": {"oft_block_size": 8, "target_modules": QV},
    "PROMPT_TUNING": {"num_virtual_tokens": 3, "task_type": "CAUSAL_LM"},
    "P_TUNING": {"num_virtual_tokens": 3, "task_type": "CAUSAL_LM", "encoder_hidden_size": 16},
    "PREFIX_TUNING": {"num_virtual_tokens": 3, "task_type": "CAUSAL_LM"},
    "TRAINABLE_TOKENS": {"token_indices": [5, 9]},
    "VERA": {"r": 12, "target_modules": QV},
}
TARGETS = {
    "target_modules": [{"target_modules": ["k_proj", "up_proj"]}, {"target_modules": REGEX}],
    "exclude_modules": [
        {"exclude_modules": ["layers.0.self_attn.q_proj"]},
        {"exclude_modules": ".*1.*v_proj"},
    ],
    "modules_to_save": [{"modules_to_save": ["norm"]}, {"modules_to_save": ["lm_head"]}],
    "layers_to_transform": [{"layers_to_transform": [1]}, {"layers_to_transform": 0}],
    "layers_pattern": [{"layers_pattern": "layers", "layers_to_transform": [1]}],
}
PATTERNS = {
    "rank_pattern": [{"rank_pattern": {"q_proj": 2}}, {"rank_pattern": {r".*\.0\..*v_proj": 5}}],
    "alpha_pattern": [{"alpha_pattern": {"layers.1.self_attn.q_proj": 20}}],
}


def targets(*left_out):
    return {name: cases for name, cases in TARGETS.items() if name not in left_out}


def biases(word):
    return {"bias": [{"bias": "all"}, {"bias": word}]}


# By type and setting: changes with which an adapter answers otherwise.
HONOURED = {
    "LORA": targets()
    | PATTERNS
    | biases("lora_only")
    | {
        "r": [{"r": 3}],
        "lora_alpha": [{"lora_alpha": 9}],
        "use_rslora": [{"use_rslora": True}],
        "use_dora": [{"use_dora": True}, {"use_dora": True, "init_lora_weights": "pissa"}],
        "lora_bias": [{"lora_bias": True}],
        "init_lora_weights": [
            {"init_lora_weights": "pissa"},
            {"init_lora_weights": "olora"},
            {"init_lora_weights": "pissa", "use_rslora": True, "rank_pattern": {"q_proj": 2}},
            {"init_lora_weights": "olora", "alpha_pattern": {"v_proj": 3}, "bias": "lora_only"},
            {"init_lora_weights": "pissa", "target_modules": ["q_proj", "lm_head"]},
        ],
        "trainable_token_indices": [
            {"trainable_token_indices": [9, 5]},
            {"trainable_token_indices": {"embed_tokens": [7]}},
            {"trainable_token_indices": {"lm_head": [7, 8]}},
            {"trainable_token_indices": {"lm_head": [7, 8], "embed_tokens": [5]}},
        ],
        "ensure_weight_tying": [
            {"ensure_weight_tying": True, "target_modules": ["q_proj", "embed_tokens"]},
            {"ensure_weight_tying": True, "target_modules": ["q_proj", "lm_head"], "use_rslora": True},
        ],
    },
    "ADALORA": targets()
    | biases("lora_only")
    | {"init_r": [{"init_r": 4}], "lora_alpha": [{"lora_alpha": 9}]},
    "BOFT": targets()
    | biases("boft_only")
    | {
        "boft_block_size": [{"boft_block_size": 8}],
        "boft_block_num": [{"boft_block_num": 4, "boft_block_size": 0}],
    },
    "IA3": targets("layers_to_transform", "layers_pattern", "target_modules")
    | {
        "target_modules": [{"target_modules": ["q_proj", "v_proj", "down_proj"]}],
        "exclude_modules": [{"exclude_modules": ["layers.0.self_attn.k_proj"]}],
        "feedforward_modules": [{"feedforward_modules": []}],
    },
    "LN_TUNING": {
        "target_modules": [{"target_modules": ["post_attention_layernorm"]}],
        "exclude_modules": [{"exclude_modules": ["model.norm"]}],
        "modules_to_save": [{"modules_to_save": ["lm_head"]}],
    },
    "LOHA": targets() | PATTERNS | {"r": [{"r": 2}], "alpha": [{"alpha": 9}]},
    "LOKR": targets()
    | PATTERNS
    | {
        "r": [{"r": 2}],
        "alpha": [{"alpha": 9}],
        "decompose_both": [{"decompose_both": True}],
        "decompose_factor": [{"decompose_factor": 4}],
    },
    "OFT": targets()
    | biases("oft_only")
    | {
        "r": [{"r": 4, "oft_block_size": 0}],
        "oft_block_size": [{"oft_block_size": 16}],
        "coft": [{"coft": True, "eps": 0.1}],
        "eps": [{"coft": True, "eps": 0.2}],
        "block_share": [{"block_share": True}],
        "use_cayley_neumann": [{"use_cayley_neumann": False}],
        "num_cayley_neumann_terms": [{"num_cayley_neumann_terms": 3}],
    },
    "PROMPT_TUNING": {"num_virtual_tokens": [{"num_virtual_tokens": 5}]},
    "P_TUNING": {"num_virtual_tokens": [{"num_virtual_tokens": 5}]},
    "PREFIX_TUNING": {
        "num_virtual_tokens": [{"num_virtual_tokens": 5}],
        "prefix_projection": [{"prefix_projection": True, "encoder_hidden_size": 16}],
    },
    "TRAINABLE_TOKENS": {"token_indices": [{"token_indices": [7, 30, 11]}]},
    "VERA": targets("exclude_modules")
    | biases("vera_only")
    | {
        "r": [{"r": 8}],
        "projection_prng_key": [{"projection_prng_key": 5, "save_projection": False}],
        "save_projection": [{"save_projection": False}],
    },
}
# What leaving the setting out does not change: blocks are in one list here, and the file holds the rest.
SAID_TWICE = {"layers_pattern", "save_projection", "prefix_projection"}
SAID_TWICE_AT = ("lm_head",)  # a head in a file is taken for what it is, named or not

STARTS = {
    "loftq_config": {"loftq_bits": 4, "loftq_iter": 2},
    "eva_config": {"rho": 3.0},
    "corda_config": {"sample_count": 9},
    "lora_ga_config": {"direction": "random"},
}
LORA_IDLE = {**STARTS, "lora_dropout": 0.3, "megatron_core": "elsewhere", "qalora_group_size": 8}
ALL_IDLE = {
    "auto_mapping": {"base_model_class": "Other"},
    "base_model_name_or_path": "another/model",
    "inference_mode": False,
    "peft_version": "99.0.0",
    "revision": "other",
    "task_type": "FEATURE_EXTRACTION",
}
DERIVED = {"token_dim": 32, "num_layers": 9, "num_attention_heads": 2, "num_transformer_submodules": 2}
OR_REFUSED = {*DERIVED, "tokenizer_kwargs"}
TRANSPOSED = {"fan_in_fan_out": True}
# By type and setting: a value with which PEFT answers as before (or does not load: OR_REFUSED).
IDLE = {
    "LORA": LORA_IDLE | TRANSPOSED | {"runtime_config": {"ephemeral_gpu_offload": True}},
    "ADALORA": LORA_IDLE
    | TRANSPOSED
    | {
        "r": 3, "init_lora_weights": "gaussian", "target_r": 2, "tinit": 1, "tfinal": 2, "deltaT": 3,
        "beta1": 0.5, "beta2": 0.5, "orth_reg_weight": 0.1, "total_step": 30,
        "runtime_config": {"ephemeral_gpu_offload": True},
    },
    "BOFT": TRANSPOSED | {"boft_dropout": 0.2, "init_weights": False},
    "IA3": TRANSPOSED | {"init_ia3_weights": False},
    "LN_TUNING": {},
    "LOHA": {"rank_dropout": 0.1, "module_dropout": 0.1, "use_effective_conv2d": True, "init_weights": False},
    "LOKR": {
        "rank_dropout": 0.1, "module_dropout": 0.1, "use_effective_conv2d": True, "init_weights": "lycoris",
        "rank_dropout_scale": True,
    },
    "OFT": TRANSPOSED | {"module_dropout": 0.1, "init_weights": False},
    "PROMPT_TUNING": DERIVED
    | {
        "prompt_tuning_init": "SAMPLE_VOCAB", "prompt_tuning_init_text": "a text",
        "tokenizer_name_or_path": "x", "tokenizer_kwargs": {"use_fast": True},
    },
    "P_TUNING": DERIVED
    | {
        "encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 24, "encoder_num_layers": 3,
        "encoder_dropout": 0.1,
    },
    "PREFIX_TUNING": DERIVED | {"encoder_hidden_size": 24, "init_weights": "x"},
    "TRAINABLE_TOKENS": {"init_weights": False},
    "VERA": TRANSPOSED | {"vera_dropout": 0.2, "d_initial": 0.9, "init_weights": False},
}  # fmt: skip
LORA_REFUSED = {
    "alora_invocation_tokens": [1, 2],
    "arrow_config": {"top_k": 2},
    "kasa_config": {"beta": 0.1},
    "layer_replication": [[0, 2], [1, 2]],
    "megatron_config": {"tensor_model_parallel_size": 2},
    "use_bdlora": {"nblocks": 2},
}
REFUSED = {
    "LORA": LORA_REFUSED | {"init_lora_weights": "corda"},
    "ADALORA": LORA_REFUSED
    | {
        "target_parameters": ["experts.gate_up_proj"], "alpha_pattern": {"q_proj": 3},
        "ensure_weight_tying": True, "lora_bias": True,
        "trainable_token_indices": [3], "use_dora": True, "use_qalora": True, "use_rslora": True,
    },
    "PROMPT_TUNING": {"modules_to_save": ["lm_head"]},
    "P_TUNING": {"modules_to_save": ["lm_head"]},
    "PREFIX_TUNING": {"modules_to_save": ["lm_head"]},
    "TRAINABLE_TOKENS": {"target_modules": ["lm_head"]},
}  # fmt: skip
# Settings whose files need what no config alone makes, and the test that compares them.
ELSEWHERE = {
    ("LORA", "velora_config"): "test_what_only_training_reads_is_left_out",
    ("LORA", "monteclora_config"): "test_what_only_training_reads_is_left_out",
    ("LORA", "target_parameters"): "tests/methods/test_lora_experts.py",
    ("LORA", "use_qalora"): "tests/methods/test_qa_lora.py",
    ("ADALORA", "velora_config"): "PEFT's AdaLoRA never reads it",
    ("ADALORA", "monteclora_config"): "PEFT's AdaLoRA never reads it",
    ("ADALORA", "rank_pattern"): "tests/methods/test_adalora.py",
    ("BOFT", "boft_n_butterfly_factor"): "tests/methods/test_boft.py: PEFT needs CUDA for it",
}
KNOWN = {cls.files.peft_type for cls in known_methods()}


def fields_of(kind):
    return [field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[kind])]


def model():
    return tiny_model("llama", attention_bias=True)


def tied():
    return tiny_model("llama", attention_bias=True, tie_word_embeddings=True)


def written(kind, folder, changes=(), base=None):
    """Write an adapter of PEFT with these settings, and return its logits."""
    settings = {**PLAIN[kind], **dict(changes)}
    config = PEFT_TYPE_TO_CONFIG_MAPPING[kind](**copy.deepcopy(settings))
    return shown(logits(tuned(model() if base is None else base, config, folder, scale=0.1)))


def shown(found):
    """Return logits without those of PEFT's virtual tokens."""
    return found[:, -inputs("llama")["ids"].shape[1] :].detach()


def ours(folder, base=None, save=None):
    """Return Graft's logits with the adapter in a folder; save: a folder to write it to."""
    base = Base(copy.deepcopy(model() if base is None else base))
    adapter = base.load_adapter(folder, "x")
    if save is not None:
        adapter.save(save)
    with base.using("x"):
        return base(**inputs("llama")).logits.detach()


def edited(folder, **changes):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


HONOURED_CASES = [
    pytest.param(kind, name, changes, id=f"{kind}-{name}-{index}")
    for kind, by_name in HONOURED.items()
    for name, cases in by_name.items()
    for index, changes in enumerate(cases)
]
IDLE_CASES = [(kind, name) for kind in PLAIN for name in {**ALL_IDLE, **IDLE[kind]}]
REFUSED_CASES = [(kind, name) for kind in REFUSED for name in REFUSED[kind]]


@pytest.mark.parametrize("kind", sorted(KNOWN & {str(k.value) for k in PEFT_TYPE_TO_CONFIG_MAPPING}))
def test_every_setting_has_its_place(kind):
    places = {**HONOURED[kind], **IDLE[kind], **ALL_IDLE, **REFUSED.get(kind, {})}
    places |= {name: why for (owner, name), why in ELSEWHERE.items() if owner == kind}
    assert set(fields_of(kind)) - {"peft_type"} == set(places)


@pytest.mark.parametrize(("kind", "name", "changes"), HONOURED_CASES)
def test_what_is_honoured_travels_both_ways_and_answers_otherwise_without_it(tmp_path, kind, name, changes):
    base = tied() if name == "ensure_weight_tying" else model()
    wanted = written(kind, tmp_path, changes, base)
    assert_close(ours(tmp_path, base, save=tmp_path / "ours"), wanted, atol=2e-5, rtol=1e-4)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "ours").eval()
    assert_close(shown(logits(again)), wanted, atol=2e-5, rtol=1e-4)
    config = json.loads((tmp_path / CONFIG).read_text())
    del config[name]
    (tmp_path / CONFIG).write_text(json.dumps(config))
    if name in SAID_TWICE or tuple(changes.get("modules_to_save", ())) == SAID_TWICE_AT:
        return
    try:
        without = ours(tmp_path, base)
    except GraftError:
        return
    assert not torch.allclose(without, wanted, atol=1e-3), "the setting changes nothing"


@pytest.mark.parametrize(("kind", "name"), IDLE_CASES)
def test_what_has_no_effect_has_none_in_peft(tmp_path, kind, name):
    written(kind, tmp_path)
    before, wanted = ours(tmp_path), logits(peft.PeftModel.from_pretrained(model(), tmp_path)).detach()
    edited(tmp_path, **{name: {**ALL_IDLE, **IDLE[kind]}[name]})
    try:
        theirs = logits(peft.PeftModel.from_pretrained(model(), tmp_path)).detach()
    except Exception:
        assert name in OR_REFUSED
        return
    assert_close(theirs, wanted, atol=1e-6, rtol=1e-6)
    assert torch.equal(ours(tmp_path), before)


@pytest.mark.parametrize(("kind", "name"), REFUSED_CASES)
def test_what_is_refused_is_named(tmp_path, kind, name):
    written(kind, tmp_path)
    edited(tmp_path, **{name: REFUSED[kind][name]})
    with pytest.raises(GraftError, match=name):
        ours(tmp_path)


@pytest.mark.parametrize("init", ["corda", "lora_ga", "loftq", "pissa_niter_4", "of_tomorrow"])
def test_a_start_that_no_file_can_give_back_is_refused_with_the_way_to_convert_it(tmp_path, init):
    written("LORA", tmp_path)
    edited(tmp_path, init_lora_weights=init)
    with pytest.raises(GraftError, match=f"init_lora_weights='{init}'.*weight_conversion"):
        ours(tmp_path)


@pytest.mark.parametrize("init", [False, "gaussian", "eva", "orthogonal", "mica"])
def test_a_start_that_leaves_the_base_alone_is_in_the_tensors(tmp_path, init):
    wanted = written("LORA", tmp_path)
    edited(tmp_path, init_lora_weights=init)
    assert_close(ours(tmp_path), wanted, atol=2e-5, rtol=1e-4)
    assert_close(logits(peft.PeftModel.from_pretrained(model(), tmp_path)), wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"velora_config": peft.tuners.lora.config.VeloraConfig(num_groups=4, init_type="random")},
        {"monteclora_config": peft.tuners.lora.config.MontecloraConfig(num_samples=2)},
    ],
    ids=["velora", "monteclora"],
)
def test_what_only_training_reads_is_left_out(tmp_path, changes):
    wanted = written("LORA", tmp_path, changes)
    assert_close(ours(tmp_path), wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", sorted({str(k.value) for k in PEFT_TYPE_TO_CONFIG_MAPPING} - KNOWN))
def test_a_method_that_graft_has_not_is_refused_by_its_name(tmp_path, kind):
    written("LORA", tmp_path)
    edited(tmp_path, peft_type=kind)
    with pytest.raises(GraftError, match=f"'{kind}'"):
        ours(tmp_path)


@pytest.mark.parametrize("value", [True, 0, 1, "word", [1], {"a": 1}])
def test_a_setting_of_a_newer_peft_is_refused_by_its_name(tmp_path, value):
    written("LORA", tmp_path)
    edited(tmp_path, of_tomorrow=value)
    with pytest.raises(GraftError, match="of_tomorrow"):
        ours(tmp_path)


@pytest.mark.parametrize("value", [None, False, [], {}, ""])
def test_a_setting_of_a_newer_peft_that_is_off_is_said(tmp_path, value):
    wanted = written("LORA", tmp_path)
    edited(tmp_path, of_tomorrow=value)
    with pytest.warns(Notice, match="of_tomorrow"):
        assert_close(ours(tmp_path), wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", sorted(PLAIN))
def test_files_of_this_peft_are_read_without_a_notice(tmp_path, kind, recwarn):
    written(kind, tmp_path)
    recwarn.clear()
    ours(tmp_path)
    assert not [str(w.message) for w in recwarn if issubclass(w.category, Notice)]


@pytest.mark.parametrize("kind", sorted(PLAIN))
def test_a_setting_that_is_left_out_has_pefts_default(kind):
    cls = next(cls for cls in known_methods() if cls.files.peft_type == kind)
    theirs = {f.name: default(f) for f in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[kind])}
    mine = {f.name: default(f) for f in dataclasses.fields(cls)} | dict(cls.files.absent)
    stated = {"num_virtual_tokens", "token_indices"}  # PEFT cannot do without
    for name in theirs.keys() & mine.keys() - stated:
        same = mine[name] == theirs[name] or theirs[name] is None
        assert same or name in cls.files.idle | {"prompt_tuning_init"}, (name, mine[name], theirs[name])


def default(field):
    return field.default_factory() if field.default is dataclasses.MISSING else field.default
