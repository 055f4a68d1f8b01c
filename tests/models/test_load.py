"""Loading and refusing model folders: what comes out, and what each bad folder is told."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.testing import assert_close
from transformers import PreTrainedTokenizerFast
from transformers.models.bamba.configuration_bamba import BambaConfig
from transformers.models.bamba.modeling_bamba import BambaForCausalLM
from transformers.models.bert.configuration_bert import BertConfig
from transformers.models.bert.modeling_bert import BertForMaskedLM, BertForSequenceClassification, BertModel
from transformers.models.falcon.configuration_falcon import FalconConfig
from transformers.models.falcon.modeling_falcon import FalconForCausalLM
from transformers.models.gpt2.configuration_gpt2 import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2LMHeadModel
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM
from transformers.models.perceiver.configuration_perceiver import PerceiverConfig
from transformers.models.perceiver.modeling_perceiver import PerceiverForMaskedLM
from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5ForConditionalGeneration

from graft.errors import GraftError, ModelError, Notice, UsageError
from graft.models.fresh import fresh
from graft.models.load import _name_unpacked, load
from graft.quant import QuantLinear, packed_layers, quantise_model
from graft.quant.scheme import Scheme
from graft.shipping.export import export

IDS = torch.arange(2, 14).view(2, 6)
CLOSE = {"atol": 1e-5, "rtol": 1e-5}  # the kernels add in another order than the stock model
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
}
BUILD = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=50, n_positions=32)
    ),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(d_model=64, d_ff=96, d_kv=16, num_layers=1, num_heads=4, vocab_size=50)
    ),
    "bert": lambda: BertForMaskedLM(BertConfig(**SHAPE)),
    "bare": lambda: BertModel(BertConfig(**SHAPE)),
    "classifier": lambda: BertForSequenceClassification(BertConfig(**SHAPE)),
}
FAMILY = {
    "llama": "causal",
    "gpt2": "causal",
    "t5": "seq2seq",
    "bert": "masked",
    "bare": "encoder",
    "classifier": "encoder",
}


@pytest.fixture
def folder(tmp_path):
    """A tiny Llama on disk."""
    torch.manual_seed(0)
    BUILD["llama"]().save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def edit_weights(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def words(folder, **special):
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "a": 2, "b": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


@pytest.mark.parametrize("quant", [None, "nf4", "int8", "int4"])
@pytest.mark.parametrize("name", BUILD)
def test_every_family_loads_with_its_own_class_and_values(name, quant, tmp_path):
    torch.manual_seed(0)
    model = BUILD[name]().eval()
    model.save_pretrained(tmp_path)
    base = load(tmp_path, quant, "fp32")
    assert type(base.model) is type(model) and base.family == FAMILY[name]
    assert base.count() == sum(p.numel() for p in model.parameters())
    assert not base.model.training and not any(p.requires_grad for p in base.model.parameters())
    extra = {"decoder_input_ids": IDS} if name == "t5" else {}
    base.faster(False)  # the same code on both sides: the same bits
    with torch.no_grad():
        ours, theirs = base.model(IDS, **extra)[0], model(IDS, **extra)[0]
    if quant is None:
        assert torch.equal(ours, theirs)
    else:
        assert any(isinstance(m, QuantLinear) for m in base.model.modules())
        assert 0 < (ours - theirs).norm() / theirs.norm() < 0.3


@pytest.mark.parametrize(
    ("dtype", "expected"), [("bf16", torch.bfloat16), ("fp32", torch.float32), ("fp16", torch.float16)]
)
def test_dtype_is_that_of_every_float_weight(dtype, expected, folder):
    base = load(folder, "nf4", dtype)
    plain = [
        p
        for n, p in base.model.named_parameters()
        if p.is_floating_point() and "absmax" not in n and "offset" not in n
    ]
    assert {p.dtype for p in plain} == {expected} and base.dtype == expected
    assert base.model.model.layers[0].mlp.up_proj.weight.dtype == expected


def test_a_sharded_folder_loads(folder, tmp_path):
    base = load(folder, dtype="fp32")
    base.model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert torch.equal(load(tmp_path / "shards", dtype="fp32").model(IDS).logits, base.model(IDS).logits)
    next((tmp_path / "shards").glob("*00002*.safetensors")).unlink()
    with pytest.raises(ModelError, match=r"has no model-00002-of-\d+\.safetensors"):
        load(tmp_path / "shards")


def test_a_task_gives_an_encoder_a_fresh_head_and_the_same_one_each_time(tmp_path):
    torch.manual_seed(0)
    BUILD["bare"]().save_pretrained(tmp_path)
    first, second = load(tmp_path, task="masked", dtype="fp32"), load(tmp_path, task="masked", dtype="fp32")
    assert first.family == "masked"
    assert torch.equal(first.model(IDS).logits, second.model(IDS).logits)
    with pytest.raises(UsageError, match="task='seq2seq' for a bert model"):
        load(tmp_path, task="seq2seq")


def test_no_tokenizer_is_no_error_and_a_pad_token_is_chosen_from_those_there_are(folder):
    assert load(folder).tokenizer is None
    words(folder, unk_token="<unk>", eos_token="</s>")
    tokenizer = load(folder).tokenizer
    assert tokenizer.pad_token == "<unk>" and len(tokenizer) == 4
    words(folder, eos_token="</s>")
    assert load(folder).tokenizer.pad_token == "</s>"
    words(folder, eos_token="</s>", pad_token="a")
    assert load(folder).tokenizer.pad_token == "a"


def test_a_missing_folder_names_the_nearest(folder):
    with pytest.raises(ModelError, match=rf"no folder .*lama.*nearest: {folder}"):
        load(folder.parent / "lama")


REFUSED = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "an adapter": (
        lambda f: (f / "config.json").rename(f / "adapter_config.json"),
        "is an adapter.*load_adapter",
    ),
    "broken JSON": (lambda f: (f / "config.json").write_text("{"), "config.json is not a JSON object"),
    "a list": (lambda f: (f / "config.json").write_text("[1]"), "config.json is not a JSON object"),
    "own code": (
        lambda f: edit(f, auto_map={"AutoModel": "evil.Model"}),
        r"asks for its own code \(auto_map\)",
    ),
    "unknown architecture": (lambda f: edit(f, model_type="lama"), "model_type 'lama'.*nearest: llama"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no weights"),
    "pickle": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "is a pickle"),
    "half a file": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:999]),
        "cannot be read",
    ),
    "missing tensor": (
        lambda f: edit_weights(f, lambda s: s.pop("model.norm.weight")),
        "has no model.norm.weight, which LlamaForCausalLM needs",
    ),
    "missing linear": (
        lambda f: edit_weights(f, lambda s: s.pop("model.layers.1.mlp.up_proj.weight")),
        r"has no model\.layers\.1\.mlp\.up_proj",
    ),
    "other width": (
        lambda f: edit(f, intermediate_size=128),
        r"_proj\.weight is \(64, 96\) in the file and \(64, 128\) by config",
    ),
    "other quantiser": (
        lambda f: edit(f, quantization_config={"quant_method": "hqq"}),
        r"is quantised (with hqq|already \(hqq\))",
    ),
    "NaN in a norm": (
        lambda f: edit_weights(f, lambda s: s["model.norm.weight"].fill_(torch.nan)),
        r"llama: NaN or infinity in model\.norm\.weight",
    ),
    "Inf in a linear": (
        lambda f: edit_weights(f, lambda s: s["model.layers.0.self_attn.q_proj.weight"].fill_(torch.inf)),
        r"NaN or infinity in model\.layers\.0\.self_attn\.q_proj\.weight",
    ),
}


@pytest.mark.parametrize("quant", [None, "nf4"])
@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_cannot_be_trusted_is_refused_by_name(case, quant, folder):
    damage, message = REFUSED[case]
    damage(folder)
    with pytest.raises(GraftError, match=f"(?s){message}") as error:
        load(folder, quant)
    assert "Expected: " in str(error.value) and "To do: " in str(error.value)


def test_code_in_a_folder_is_never_run(folder):
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    edit(folder, auto_map={"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"})
    with pytest.raises(ModelError):
        load(folder)
    assert not (folder / "ran").exists()


def test_an_adapter_beside_the_weights_is_not_followed(folder):
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "nowhere"})
    )
    assert type(load(folder).model) is LlamaForCausalLM


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quant": "nf5"}, "did you mean 'nf4'"),
        ({"dtype": "bf61"}, "did you mean 'bf16'"),
        ({"task": "casual"}, "did you mean 'causal'"),
        ({"device": "gpu"}, "device='gpu'"),
    ],
)
def test_a_misspelt_argument_names_the_nearest(arguments, message, folder):
    with pytest.raises(UsageError, match=message) as error:
        load(folder, **arguments)
    assert error.value.exit_code == 2


def test_loading_leaves_transformers_as_talkative_as_it_was(folder):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load(folder, "nf4")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_unquantised_weights_are_mapped_not_copied(folder):
    base = load(folder, dtype="fp32")
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]
    start = [int(line.split("-")[0], 16) for line in mapped]
    stop = [int(line.split("-")[1].split()[0], 16) for line in mapped]
    pointer = base.model.model.layers[0].mlp.up_proj.weight.data_ptr()
    assert any(a <= pointer < b for a, b in zip(start, stop, strict=True))


def test_a_fresh_model_is_a_function_of_its_seed():
    config = {"model_type": "llama", **SHAPE}
    first, second, other = (fresh(config, seed=seed).model.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_a_fresh_model_takes_sizes_and_ids_from_the_tokenizer(tmp_path):
    words(tmp_path, eos_token="</s>")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    shape = {k: v for k, v in SHAPE.items() if k != "vocab_size"}
    base = fresh({"model_type": "llama", **shape}, tokenizer, "bf16")
    assert base.model.config.vocab_size == 4 and base.model.config.eos_token_id == 1
    assert base.dtype == torch.bfloat16 and base.family == "causal"
    assert fresh({"model_type": "bert", **SHAPE}).family == "masked"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "lama"}, "nearest: llama"),
        ({"model_type": "llama", "num_hiden_layers": 2}, "nearest: num_hidden_layers"),
        (
            {"model_type": "llama", "hidden_size": 30, "num_attention_heads": 4, "vocab_size": 8},
            "no llama can be built",
        ),
    ],
)
def test_a_config_that_means_nothing_is_refused(config, message):
    with pytest.raises(UsageError, match=message):
        fresh(config)


def shards_and_a_whole_file(folder):
    """The folder's model as one file, and a model with other weights as shards beside it."""
    torch.manual_seed(7)
    BUILD["llama"]().save_pretrained(folder.parent / "other", max_shard_size="100KB")
    for file in (folder.parent / "other").glob("model*"):
        file.rename(folder / file.name)


def test_a_whole_file_counts_before_an_index_as_in_transformers(folder):
    shards_and_a_whole_file(folder)
    with pytest.warns(
        Notice, match=r"model\.safetensors is loaded.*model-00001-of-\d+\.safetensors and \d+ more"
    ):
        base = load(folder, dtype="fp32")
    torch.testing.assert_close(
        base.model(IDS).logits, LlamaForCausalLM.from_pretrained(folder)(IDS).logits, atol=2e-2, rtol=2e-2
    )


@pytest.mark.parametrize("named", ["other.safetensors", "model.safetensors.index.json"])
def test_the_weights_that_config_json_names_count_first_as_in_transformers(named, folder):
    shards_and_a_whole_file(folder)
    torch.manual_seed(8)
    save_file(
        {k: v.clone() for k, v in BUILD["llama"]().state_dict().items()},
        folder / "other.safetensors",
        {"format": "pt"},
    )
    edit(folder, transformers_weights=named)
    ours = load(folder, dtype="fp32").model(IDS).logits
    torch.testing.assert_close(
        ours, LlamaForCausalLM.from_pretrained(folder)(IDS).logits, atol=2e-2, rtol=2e-2
    )


@pytest.mark.parametrize("named", ["../model.safetensors", "/etc/passwd"])
def test_weights_outside_the_folder_are_refused(named, folder):
    edit(folder, transformers_weights=named)
    with pytest.raises(ModelError, match="names the weights"):
        load(folder)


def test_an_index_of_one_whole_file_is_no_news(folder, recwarn):
    keys = load_file(folder / "model.safetensors")
    index = {"weight_map": dict.fromkeys(keys, "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    load(folder)
    assert not [w for w in recwarn if issubclass(w.category, Notice)]


@pytest.mark.parametrize("quant", [None, "nf4"])
@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("model.layers.2.mlp.up_proj.weight", r"holds 1 tensors .*layers\.2\.mlp\.up_proj"),
        ("model.layers.0.mlp.up_proj.lora_magnitude_vector", "lora_magnitude_vector"),
        ("score.weight", r"score\.weight"),
    ],
)
def test_tensors_without_a_place_are_named(extra, said, quant, folder):
    edit_weights(folder, lambda state: state.update({extra: torch.ones(3, 3)}))
    with pytest.warns(Notice, match=said):
        load(folder, quant)


def test_what_transformers_leaves_out_by_itself_is_no_news(folder, recwarn):
    stale = {"model.rotary_emb.inv_freq": torch.ones(8)}
    edit_weights(folder, lambda state: state.update(stale))
    load(folder)
    load(folder, task="encoder")  # the head is left behind by intention
    assert not [w for w in recwarn if issubclass(w.category, Notice)]


def test_an_infinite_setting_is_read_as_transformers_writes_it(tmp_path):
    config = BambaConfig(
        **SHAPE, num_key_value_heads=2, attn_layer_indices=[1], mamba_n_heads=4, mamba_d_head=32,
        mamba_d_state=16, mamba_n_groups=1, mamba_chunk_size=16, time_step_limit=(0.0, float("inf")),
    )  # fmt: skip
    torch.manual_seed(0)
    model = BambaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "one")
    assert "__float__" in (tmp_path / "one" / "config.json").read_text()
    base = load(tmp_path / "one", dtype="fp32")
    assert base.model.config.time_step_limit[1] == float("inf")
    export(base, tmp_path / "two", to="hf")
    again = load(tmp_path / "two", dtype="fp32")
    torch.testing.assert_close(
        again.model(IDS, use_cache=False).logits, model(IDS, use_cache=False).logits, atol=2e-2, rtol=2e-2
    )


def test_what_stays_unpacked_is_said_with_its_share():
    model = BUILD["llama"]()
    numbers = sum(p.numel() for p in model.parameters()) + 2 * 300 * 300
    for layer in model.model.layers:  # no linear, but a table of numbers
        layer.mlp.register_parameter("table", torch.nn.Parameter(torch.ones(300, 300)))
    share = f"{2 * 300 * 300 / numbers:.0%}"
    said = rf"{share} of the weights stay in bf16, not in nf4: model\.layers\.\*\.mlp\.table"
    with pytest.warns(Notice, match=said):
        _name_unpacked(quantise_model(model, "nf4"), Scheme("nf4"), torch.bfloat16)


def test_a_whole_packed_model_is_no_news(folder, recwarn):
    load(folder, "nf4")
    assert not [w for w in recwarn if issubclass(w.category, Notice)]


@pytest.mark.parametrize("alibi", [True, False])
def test_a_linear_of_its_own_class_is_packed(alibi, tmp_path):
    torch.manual_seed(0)
    FalconForCausalLM(
        FalconConfig(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=50, alibi=alibi, bias=True
        )
    ).save_pretrained(tmp_path)
    plain, packed = load(tmp_path, dtype="fp32"), load(tmp_path, "int8", "fp32")
    assert packed.quant == "int8" and len(packed_layers(packed.model)) == 8
    ours, theirs = packed.model(IDS).logits, plain.model(IDS).logits
    assert 0 < (ours - theirs).norm() / theirs.norm() < 0.02
    export(packed, tmp_path / "out", to="hf")
    assert_close(load(tmp_path / "out", dtype="fp32").model(IDS).logits, ours, atol=1e-5, rtol=0)


def test_a_model_without_a_table_of_tokens_is_refused(tmp_path):
    sizes = {"num_latents": 4, "d_latents": 16, "d_model": 16, "num_blocks": 1, "vocab_size": 30,
             "num_self_attends_per_block": 1, "num_self_attention_heads": 2,
             "num_cross_attention_heads": 2}  # fmt: skip
    PerceiverForMaskedLM(PerceiverConfig(**sizes)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="PerceiverForMaskedLM has no table of embeddings"):
        load(tmp_path)
