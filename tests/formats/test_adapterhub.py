"""Files of the `adapters` library: its own answers as the oracle, formulas by hand, and what is refused.

adapters_library.json holds what the library wrote and answered: settings, keys with shapes, last hidden
states. Its "origin" says by which versions, and how every tensor was filled.
"""

import json
import zlib
from functools import partial
from pathlib import Path

import pytest
import torch
from block_oracle import rewired
from safetensors.torch import save_file
from torch.nn import functional as F
from torch.testing import assert_close
from transformers.models.bert.configuration_bert import BertConfig
from transformers.models.bert.modeling_bert import BertModel
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaModel
from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5Model

from graft.base.base import Base
from graft.errors import AdapterError, GraftError
from graft.methods.adapter_fusion import AdapterFusion
from models import inputs, tiny_base, tiny_model

STORED = json.loads(Path(__file__).with_name("adapters_library.json").read_text())
SIZES = {
    "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 16,
    "vocab_size": 12, "max_position_embeddings": 8,
}  # fmt: skip
MODELS = {
    "bert": lambda: BertModel(BertConfig(**SIZES, pad_token_id=0)),
    "llama": lambda: LlamaModel(LlamaConfig(**SIZES, num_key_value_heads=1)),
    "t5": lambda: T5Model(
        T5Config(
            d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=12, decoder_start_token_id=0
        )
    ),
}
IDS = torch.tensor([[1, 5, 9], [7, 2, 4]])
SINGLE = [case for case in STORED["cases"] if case not in ("bert_fusion", "llama_par_bn")]


def filled(name, shape):
    """Numbers that a name and a shape decide."""
    n = torch.Size(shape).numel()
    wave = torch.sin(torch.arange(n, dtype=torch.float64) * 12.9898 + zlib.crc32(name.encode()) % 1000)
    return (wave * 0.5).float().view(shape)


def stored_base(family):
    model = MODELS[family]().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(
                filled(name, p.shape) + (1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0)
            )
    return Base(model)


def stored_folder(case, folder):
    """The folder that the library wrote."""
    tensors = {key: filled(key, shape) for key, shape in case["shapes"].items()}
    return written(folder, tensors, case["adapter_config"])


def written(folder, tensors, facts):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(facts))
    return folder


def answer(base, family, name=None):
    extra = {"decoder_input_ids": IDS.flip(1)} if family == "t5" else {}
    with base.using(name), torch.no_grad():
        return base(IDS, **extra).last_hidden_state.flatten()


@pytest.mark.parametrize("family", MODELS)
def test_the_base_is_the_one_that_the_library_had(family):
    assert_close(
        answer(stored_base(family), family), torch.tensor(STORED["bare"][family]), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("case", SINGLE)
def test_a_file_of_the_library_answers_as_there(case, tmp_path):
    stored = STORED["cases"][case]
    family = stored["family"]
    base = stored_base(family)
    adapter = base.load_adapter(stored_folder(stored, tmp_path / "theirs"), "x")
    assert_close(answer(base, family, "x"), torch.tensor(stored["answer"]), atol=2e-5, rtol=1e-4)
    assert (answer(base, family, "x") - answer(base, family)).abs().max() > 0.1
    adapter.save(tmp_path / "ours")
    again = stored_base(family)
    again.load_adapter(tmp_path / "ours", "x")
    assert torch.equal(answer(again, family, "x"), answer(base, family, "x"))


def test_fused_files_of_the_library_answer_as_there(tmp_path):
    stored = STORED["cases"]["bert_fusion"]
    base = stored_base("bert")
    folders = tuple(str(stored_folder(m, tmp_path / str(n))) for n, m in enumerate(stored["members"]))
    adapter = base.attach("x", AdapterFusion(adapters=folders))
    names = {"query.weight": "query.weight", "query.bias": "query.bias", "key.weight": "key.weight",
             "key.bias": "key.bias", "value.weight": "V"}  # fmt: skip
    with torch.no_grad():
        for block, (_, insert) in enumerate(adapter.inserts):
            own = dict(insert.named_parameters())
            for theirs, ours in names.items():
                key = f"encoder.layer.{block}.output.adapter_fusion_layer.a,b.{theirs}"
                own[ours].copy_(filled(key, stored["shapes"][key]))
    assert_close(answer(base, "bert", "x"), torch.tensor(stored["answer"]), atol=2e-5, rtol=1e-4)


def test_parallel_adapters_of_pre_norm_models_read_something_else_and_are_refused(tmp_path):
    folder = stored_folder(STORED["cases"]["llama_par_bn"], tmp_path)
    with pytest.raises(AdapterError, match="residual"):
        stored_base("llama").load_adapter(folder, "x")


HOULSBY = {
    "mh_adapter": True, "output_adapter": True, "cross_adapter": False, "is_parallel": False,
    "phm_layer": False, "original_ln_before": False, "original_ln_after": True, "residual_before_ln": True,
    "reduction_factor": 16, "non_linearity": "swish", "scaling": 0.5, "dropout": 0.0, "leave_out": [],
    "init_weights": "bert",
}  # fmt: skip


def by_hand(folder, prefix="bert.", name="sst.2", **changes):
    """Houlsby's adapters for the tiny BERT. Returns the folder and Δ by (block, kind)."""
    generator = torch.Generator().manual_seed(0)
    tensors, deltas = {}, {}
    for block in range(2):
        for kind, path in (("attention", "attention.output"), ("mlp", "output")):
            draw = lambda *shape: torch.randn(shape, generator=generator) * 0.3
            W_down, b_down, W_up, b_up = draw(4, 64), draw(4), draw(64, 4), draw(64)
            where = f"{prefix}encoder.layer.{block}.{path}.adapters.{name}"
            tensors |= {f"{where}.adapter_down.0.weight": W_down, f"{where}.adapter_down.0.bias": b_down}
            tensors |= {f"{where}.adapter_up.weight": W_up, f"{where}.adapter_up.bias": b_up}
            deltas[block, kind] = partial(lambda u, A, a, B, b: 0.5 * (F.silu(u @ A.T + a) @ B.T + b),
                                          A=W_down, a=b_down, B=W_up, b=b_up)  # fmt: skip
    facts = {"config": HOULSBY | changes, "name": name, "model_type": "bert", "version": "adapters.1.3.0"}
    return written(folder, tensors, facts), deltas


@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_the_blocks_answer_as_written_by_hand(prefix, tmp_path):
    folder, deltas = by_hand(tmp_path, prefix)
    model = tiny_model("bert")
    base = Base(model)
    base.load_adapter(folder, "x")
    ids = inputs("bert")["ids"]
    with base.using("x"), torch.no_grad():
        ours = base(ids).logits
    before = base(ids).logits
    ends = {at: lambda h, r, norm, d=d: norm(h + d(h) + r) for at, d in deltas.items()}
    assert_close(ours, rewired(model, ends)(input_ids=ids).logits, atol=2e-5, rtol=1e-4)
    assert (ours - before).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_gating": True}, "use_gating"),
        ({"original_ln_after": False}, "original_ln_after"),
        ({"inv_adapter": "nice"}, "inv_adapter"),
        ({"residual_before_ln": "post_add"}, "residual_before_ln"),
        ({"a_new_trick": 3}, "a_new_trick=3"),
        ({"is_parallel": True, "phm_layer": True}, "is_parallel"),
        ({"architecture": "union"}, "union"),
        ({"architecture": "lora", "r": 8, "alpha": 8}, "adapter_down"),
        ({"mh_adapter": False}, "4 places"),
        ({"leave_out": [1]}, "4 places"),
        ({"reduction_factor": 8}, "file .*, model"),
        ({"reduction_factor": "sixteen"}, "reduction_factor=.sixteen"),
        ({"reduction_factor": 1e-9}, "bottleneck"),
        ({"non_linearity": "gelu_old"}, "non_linearity"),
    ],
)
def test_what_is_not_known_here_is_refused_and_named(changes, said, tmp_path):
    folder, _ = by_hand(tmp_path, **changes)
    base = tiny_base("bert")
    with pytest.raises(GraftError, match=said):
        base.load_adapter(folder, "x")
    assert not base.adapters


def test_a_file_for_another_base_is_refused(tmp_path):
    folder, _ = by_hand(tmp_path)
    with pytest.raises(AdapterError, match=r"'bert.encoder.layer.\d"):
        tiny_base("llama").load_adapter(folder, "x")


def test_pickles_are_refused_with_a_way_out(tmp_path):
    folder, _ = by_hand(tmp_path)
    (folder / "adapter.safetensors").rename(folder / "pytorch_adapter.bin")
    with pytest.raises(AdapterError, match=r"graft convert .* reading the weights only"):
        tiny_base("bert").load_adapter(folder, "x")


def test_a_head_beside_the_adapter_is_told(tmp_path):
    folder, _ = by_hand(tmp_path)
    (folder / "head_config.json").write_text("{}")
    with pytest.warns(UserWarning, match="head is not read"):
        tiny_base("bert").load_adapter(folder, "x")


def test_old_loras_are_scaled_as_they_were_trained(tmp_path):
    stored = STORED["cases"]["bert_lora"]
    for version, alpha in (("adapters.1.3.0", 6), ("adapters.1.1.0", 6), ("adapters.1.0.1", 2)):
        case = stored | {"adapter_config": stored["adapter_config"] | {"version": version}}
        adapter = stored_base("bert").load_adapter(stored_folder(case, tmp_path / version), "x")
        assert adapter.methods[0].lora_alpha == alpha
