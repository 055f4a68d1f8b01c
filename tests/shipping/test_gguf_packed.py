"""Bases in groups and GGUF blocks: codes pass as they are, and certificates name those that did not."""

import json
import sys

import numpy as np
import pytest
import torch
from test_gguf_export import PROMPTS, rounded

from graft.base.base import Base
from graft.data.chat_templates import jinja
from graft.data.templates import Template
from graft.errors import MergeError, UsageError
from graft.methods.lora import LoRA
from graft.methods.qa_lora import QALoRA
from graft.models.load import load
from graft.quant import QuantLinear, Scheme, quantise_model
from graft.shipping.certificate import CERTIFICATE
from graft.shipping.export import export, minima_hold
from graft.shipping.gguf import file_name as name_of_file
from graft.shipping.gguf import usual_type, write_gguf
from graft.shipping.verify import verify
from models import randomise, tiny_model

gguf = pytest.importorskip("gguf")
WIDE = {
    "hidden_size": 256,
    "intermediate_size": 384,
    "vocab_size": 2048,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@pytest.fixture(scope="module")
def tokenizer():
    return load("seedling").tokenizer


def packed(scheme, block, tokenizer, **changes):
    """A tiny Llama in groups, all of whose widths are multiples of 128."""
    return Base(
        quantise_model(tiny_model("llama", **(WIDE | changes)), scheme, block=block), tokenizer, "tiny"
    )


def blocks(path, bits):
    """{tensor: (codes, d, m)} of the file's matrices in blocks with a minimum, read byte by byte in numpy."""
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.tensor_type.name not in ("Q4_1", "Q5_1"):
            continue
        raw = np.asarray(tensor.data).reshape(tensor.data.shape[0], -1, 20 if bits == 4 else 24)
        d, m = (raw[..., at : at + 2].copy().view(np.float16)[..., 0] for at in (0, 2))
        nibbles = np.concatenate([raw[..., -16:] & 15, raw[..., -16:] >> 4], -1)
        if bits == 5:
            nibbles |= np.unpackbits(raw[..., 4:8], axis=-1, bitorder="little") << 4
        found[tensor.name] = tuple(map(torch.from_numpy, (nibbles, d, m)))
    return found


def ours(name, rows):
    """Rows of a file's q or k in our order: it has the first and second half of a head's width by turns."""
    heads = {"attn_q": 4, "attn_k": 2}.get(name.split(".")[2], 0)
    size = rows.shape[0] // heads if heads else 0
    order = [h * size + 2 * (i % (size // 2)) + i // (size // 2) for h in range(heads) for i in range(size)]
    return rows[order] if heads else rows


PATHS = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip


def path_of(name):
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{PATHS[part]}"


@pytest.mark.parametrize(
    ("scheme", "block", "form"),
    [("int4", 32, None), ("int4", 64, None), ("int4", 128, None), ("int3", 64, None), ("int2", 32, "q5_1")],
)
def test_a_merged_base_goes_into_blocks_code_by_code(scheme, block, form, tokenizer, tmp_path):
    base, ids = packed(scheme, block, tokenizer), torch.arange(3, 40)[None]
    adapter = base.attach("sql", QALoRA(r=3, lora_alpha=6, target_modules="all-linear"))
    randomise(adapter, scale=0.05)
    inserts = {site.name: insert for site, insert in adapter.inserts}
    layers = {name: base.model.get_submodule(name) for name in inserts}
    before = {name: (layer.scale, layer.minimum, layer.weight.double()) for name, layer in layers.items()}
    effect = (base(ids, adapters=["sql"]).logits - base(ids).logits).abs().max()
    assert minima_hold(base, ["sql"]) and effect > 0.05
    folder = export(base, tmp_path / "out", to="gguf", type=form, adapter="sql")
    report = json.loads((folder / "merge_report.json").read_text())
    assert (report["into"], report["dequantised_layers"], report["note"]) == ("packed", 0, "")
    file = next(folder.glob(f"*-{(form or 'q4_1').upper()}.gguf"))
    found = blocks(file, 5 if form else 4)
    assert {path_of(name) for name in found} == inserts.keys() and len(found) == 14
    for name, parts in found.items():
        codes, d, m = (ours(name, part) for part in parts)
        scale, minimum, weight = before[path_of(name)]
        insert, repeat = inserts[path_of(name)], block // 32
        moved = minimum.float() + 2 * insert.B.detach() @ insert.A.detach()  # alpha / r is 2
        assert torch.equal(d, scale.repeat_interleave(repeat, 1))
        assert torch.equal(m, moved.half().repeat_interleave(repeat, 1)) and not torch.equal(
            moved.half(), minimum
        )
        wide, low = (t.double().repeat_interleave(block, 1) for t in (scale, minimum))
        assert torch.equal(codes.flatten(1), ((weight - low) / wide).round().to(torch.uint8))
    base.merge("sql")
    again = load(file, dtype="fp32")
    torch.testing.assert_close(again(ids).logits, base(ids).logits, atol=1e-5, rtol=1e-5)


def test_a_base_in_groups_goes_out_as_it_is_and_comes_in_again(tokenizer, tmp_path):
    base = packed("int4", 32, tokenizer)
    folder = export(base, tmp_path / "out", to="gguf")
    report, facts = (json.loads((folder / name).read_text()) for name in ("merge_report.json", CERTIFICATE))
    assert (report["into"], report["dequantised_layers"]) == ("packed", 0)
    assert facts["weights"]["max"] == facts["logits"]["max"] == 0 and not facts["weights"]["missing"]
    again = load(folder / "tiny-Q4_1.gguf", dtype="fp32")
    assert again.quant == "int4" and again.fingerprint() == base.fingerprint()
    mine, theirs = base.model.state_dict(), again.model.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_rows_that_no_block_divides_stay_in_16_bits_and_are_named(tokenizer, tmp_path):
    base = packed("int4", 32, tokenizer, hidden_size=64, intermediate_size=176)
    randomise(base.attach("sql", QALoRA(r=2, target_modules="all-linear")), scale=0.05)
    base.model.bfloat16()
    folder = export(base, tmp_path / "out", to="gguf", adapter="sql")
    report = json.loads((folder / "merge_report.json").read_text())
    assert report["dequantised_layers"] == 2 and report["note"].endswith(
        "values: model.layers.*.mlp.down_proj"
    )
    kinds = {
        tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(folder / "tiny-Q4_1.gguf").tensors
    }
    assert kinds["blk.0.ffn_down.weight"] == kinds["token_embd.weight"] == "BF16"
    assert kinds["blk.0.ffn_up.weight"] == "Q4_1"
    down = base.model.model.layers[0].mlp.down_proj.weight
    assert torch.equal(load(folder / "tiny-Q4_1.gguf").model.model.layers[0].mlp.down_proj.weight, down)


def test_what_a_lora_changes_is_not_packed_twice(tokenizer, tmp_path):
    base = packed("int4", 32, tokenizer)
    randomise(base.attach("sql", LoRA(r=2, target_modules=["q_proj"])), scale=0.05)
    folder = export(base, tmp_path / "out", to="gguf", adapter="sql")
    kinds = {
        tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(folder / "tiny-Q4_1.gguf").tensors
    }
    assert kinds["blk.1.attn_q.weight"] == "F32" and kinds["blk.1.attn_k.weight"] == "Q4_1"
    assert json.loads((folder / "merge_report.json").read_text())["into"] == "dequantised"
    assert usual_type(packed("int4", 48, tokenizer)) == usual_type(packed("int8g", 32, tokenizer)) == "q8_0"


FILES = [("q4_1", "int4", 0), ("q4_0", "int4", 8), ("q8_0", "int8g", 128)]


@pytest.mark.parametrize(("form", "scheme", "middle"), FILES)
def test_a_file_becomes_a_packed_base_with_its_own_codes(form, scheme, middle, tokenizer, tmp_path):
    source, ids = Base(tiny_model("llama", **WIDE), tokenizer, "tiny"), torch.arange(3, 40)[None]
    write_gguf(source, tmp_path, form)
    path = tmp_path / name_of_file(source, form)
    base, plain = load(path, dtype="fp32"), load(path, "none", dtype="fp32")
    assert (base.quant, plain.quant) == (scheme, "none") and base.fingerprint() == plain.fingerprint()
    matrices = [t for t in gguf.GGUFReader(path).tensors if t.name.startswith("blk") and len(t.shape) == 2]
    assert len(matrices) == 14
    for tensor in matrices:
        layer = base.model.get_submodule(path_of(tensor.name))
        assert layer.scheme == Scheme(scheme) and (layer.codes.dtype, layer.scale.dtype) == (
            torch.uint8,
            torch.float16,
        )
        raw = np.asarray(tensor.data).reshape(*layer.scale.shape, -1)
        d = torch.from_numpy(raw[..., :2].copy().view(np.float16)[..., 0])
        assert torch.equal(layer.scale, ours(tensor.name, d))
        if middle:
            assert torch.equal(layer.minimum, -middle * layer.scale)
        theirs = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type))
        assert torch.equal(layer.weight, ours(tensor.name, theirs))
        assert torch.equal(layer.weight, plain.model.get_submodule(path_of(tensor.name)).weight)
    torch.testing.assert_close(base(ids).logits, plain(ids).logits, atol=1e-5, rtol=1e-5)
    base.model.save_pretrained(tmp_path / "kept")
    assert torch.equal(load(tmp_path / "kept", dtype="fp32")(ids).logits, base(ids).logits)


def test_two_types_of_one_scheme_are_one_packed_base(tokenizer, tmp_path, monkeypatch):
    source = Base(tiny_model("llama", **WIDE), tokenizer, "tiny")
    form = lambda name, t, *_: "f32" if t.dim() == 1 else "q4_1" if "ffn_down" in name else "q4_0"
    monkeypatch.setattr(sys.modules["graft.shipping.gguf"], "_form", form)
    write_gguf(source, tmp_path, "q4_0")
    path, ids = tmp_path / name_of_file(source, "q4_0"), torch.arange(3, 40)[None]
    base = load(path, dtype="fp32")
    assert base.quant == "int4"
    plain = load(path, "none", dtype="fp32")
    torch.testing.assert_close(base(ids).logits, plain(ids).logits, atol=1e-5, rtol=1e-5)


def test_another_scheme_is_made_of_the_values_and_mixed_files_are_decoded(tokenizer, tmp_path):
    source = Base(tiny_model("llama", **WIDE), tokenizer, "tiny")
    write_gguf(source, tmp_path, "q4_0")
    path = tmp_path / name_of_file(source, "q4_0")
    layer = lambda **how: load(path, dtype="fp32", **how).model.model.layers[0].mlp.up_proj
    values = layer(quant="none").weight
    for quant, block in (("int4", 64), ("nf4", 0), ("int8g", 0)):
        expected = QuantLinear.pack(values, Scheme(quant, block)).packed()
        assert all(
            torch.equal(expected[key], t) for key, t in layer(quant=quant, group_size=block).packed().items()
        )
    assert (
        torch.equal(layer(quant="int4").codes, layer().codes) and not (layer().scale > 0).all()
    )  # d has a sign
    odd = Base(
        tiny_model("llama", **(WIDE | {"hidden_size": 64, "intermediate_size": 176})), tokenizer, "odd"
    )
    write_gguf(odd, tmp_path, "q4_0")  # its ffn_down is in 16 bits
    assert load(tmp_path / name_of_file(odd, "q4_0")).quant == "none"
    with pytest.raises(UsageError, match="quantised itself"):
        export(load(path), tmp_path / "out", into="original")


@pytest.mark.parametrize("form", ["q4_1", "q4_0"])
def test_qa_lora_trains_on_a_file_and_goes_back_into_its_blocks(form, tokenizer, tmp_path):
    source, ids = Base(tiny_model("llama", **WIDE), tokenizer, "tiny"), torch.arange(3, 40)[None]
    write_gguf(source, tmp_path, form)
    path = tmp_path / name_of_file(source, form)
    base = load(path, dtype="fp32")
    adapter = base.attach("sql", QALoRA(r=4, target_modules="all-linear"))
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = base(ids, adapters=["sql"], labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]
    folder = export(base, tmp_path / "out", to="gguf", adapter="sql", lossy=True)
    facts = json.loads((folder / CERTIFICATE).read_text())
    assert facts["weights"]["survived"] == pytest.approx(1, abs=2e-3) and facts["into"] == "packed"
    new = load(next(folder.glob("*-Q4_1.gguf")), dtype="fp32")
    for name, layer in new.model.named_modules():
        if isinstance(layer, QuantLinear):
            own = base.model.get_submodule(name)
            assert torch.equal(layer.codes, own.codes) and torch.equal(layer.scale, own.scale)
            assert not torch.equal(layer.minimum, own.minimum)
    base.merge("sql")
    assert torch.equal(new(ids).logits, base(ids).logits)


def test_llama_cpp_writes_what_the_merged_base_writes_but_for_its_8_bit_activations(tmp_path):
    """The merged base in fp32 gives the same tokens in llama.cpp: only the blocks' arithmetic is left.

    There activations are rounded to 8 bits. Rounding ours in the same way moves us as far as it is apart, and
    towards it. Tokens differ only where two are nearly as likely to us. The bounds are what was seen, rounded
    up.
    """
    from llama_cpp import LlamaCpp, compare

    base = load("seedling", quant="int4", dtype="fp32")
    base.tokenizer.chat_template = jinja("plain", bos=True)
    randomise(base.attach("sql", QALoRA(r=4, target_modules="all-linear")), scale=0.01)
    path = next(export(base, tmp_path / "out", to="gguf", adapter="sql").glob("*.gguf"))
    prompts = [base.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    with torch.no_grad():
        last = lambda name: torch.stack(
            [base(torch.tensor([p]), adapters=[name]).logits[0, -1] for p in prompts]
        )
        assert (last("sql") - last(None)).abs().mean() > 0.3
    base.merge("sql")
    plain = load(path, "none", dtype="fp32")
    write_gguf(plain, tmp_path, "f32")
    control, llama = LlamaCpp(tmp_path / name_of_file(plain, "f32")), LlamaCpp(path)
    exact = [compare(control, base.model, prompt, 24) for prompt in prompts]
    assert max(max(apart) for apart, _ in exact) < 1e-3 and max(max(behind) for _, behind in exact) < 1e-4
    found = [compare(llama, base.model, prompt, 24) for prompt in prompts]
    assert (
        sum(max(behind) == 0 for _, behind in found) >= 15 and max(max(behind) for _, behind in found) < 0.1
    )

    messages = [{"role": "user", "content": "Who are you?"}]
    ours = Template(base.tokenizer, base.tokenizer.chat_template).render(messages, ask=True)
    assert llama.render(messages) == ours.removeprefix("<bos>")
    ended = [
        (text, why)
        for text, why, _, _ in (llama.complete(prompt, 200) for prompt in PROMPTS)
        if why == "stop"
    ]
    assert ended and not any("<eos>" in text for text, _ in ended)

    def distance():
        return sum(compare(llama, base.model, prompt, 1, top=50)[0][0] for prompt in prompts) / len(prompts)

    def answers():
        with torch.no_grad():
            return [base.model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1) for prompt in prompts]

    apart, before = distance(), answers()
    for module in base.model.modules():
        if isinstance(module, QuantLinear):
            module.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0]),))
    likely = [
        (new - old)[old.topk(50).indices].abs().max() for new, old in zip(answers(), before, strict=True)
    ]
    assert float(sum(likely)) / len(prompts) == pytest.approx(apart, rel=0.25)
    assert distance() < 0.8 * apart


def states(folder):
    return {check.what: check.state for check in verify(folder)}


def spoilt(path):
    """One byte of a matrix in the middle of the file is another one."""
    whole = bytearray(path.read_bytes())
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name.startswith("blk.0.ffn_up"))
    whole[int(tensor.data_offset) + 1] ^= 0x18  # of the first scale, or number: sign or exponent
    path.write_bytes(whole)


def trained(name, method, tmp_path, **how):
    """The seedling with a random adapter that lies in a folder, as a command opens it."""
    base = load("seedling", dtype="fp32", **how)
    randomise(base.attach("new", method), scale=0.01)
    base.adapters["new"].save(tmp_path / name)
    base.detach("new")
    base.load_adapter(tmp_path / name, name)
    return base


def test_a_certificate_tells_blocks_that_hold_an_update_from_those_that_round_it(tmp_path):
    exact = trained("qa", QALoRA(r=4, target_modules="all-linear"), tmp_path, quant="int4")
    folder = export(exact, tmp_path / "exact", to="gguf")
    facts = json.loads((folder / CERTIFICATE).read_text())
    assert facts["weights"]["survived"] == pytest.approx(1, abs=1e-3)
    assert facts["logits"]["mean"] < 0.01 * facts["logits"]["effect"]
    assert (facts["base"]["quant"], facts["base"]["group"]) == ("int4", 32) and not facts["weights"][
        "missing"
    ]
    assert set(states(folder).values()) == {"same"}
    spoilt(next(folder.glob("*.gguf")))
    found = states(folder)
    assert found["files"] == found["weights"] == found["logits"] == "differs"
    assert found["base"] == found["adapter"] == "same"

    rounded_twice = trained("lora", LoRA(r=4, target_modules="all-linear"), tmp_path, quant="nf4")
    with pytest.raises(MergeError, match="moves the logits"):
        export(rounded_twice, tmp_path / "round", to="gguf", type="q4_0")
    folder = export(rounded_twice, tmp_path / "round", to="gguf", type="q4_0", lossy=True)
    worse = json.loads((folder / CERTIFICATE).read_text())
    assert abs(worse["weights"]["survived"] - 1) > 10 * abs(facts["weights"]["survived"] - 1)
    assert worse["weights"]["mean"] > 50 * facts["weights"]["mean"]
    assert set(states(folder).values()) == {"same"}


def test_a_lora_file_is_certified_and_found_where_it_was_changed(tmp_path):
    base = trained("lora", LoRA(r=4, target_modules="all-linear"), tmp_path)
    folder = export(base, tmp_path / "out", to="gguf-lora")
    facts = json.loads((folder / CERTIFICATE).read_text())
    assert facts["weights"] is None and facts["logits"]["max"] < 1e-4 < facts["logits"]["effect"]
    assert set(states(folder).values()) == {"same"}
    spoilt(next(folder.glob("*.gguf")))
    found = states(folder)
    assert found["files"] == found["logits"] == "differs" and found["base"] == found["adapter"] == "same"


def test_a_base_that_is_a_file_is_found_again(tokenizer, tmp_path):
    source = Base(tiny_model("llama", **WIDE), tokenizer, "tiny")
    write_gguf(source, tmp_path, "q4_1")
    base = load(tmp_path / name_of_file(source, "q4_1"), dtype="fp32")
    randomise(base.attach("sql", QALoRA(r=4, target_modules="all-linear")), scale=0.05)
    base.adapters["sql"].save(tmp_path / "sql")
    base.detach("sql")
    base.load_adapter(tmp_path / "sql", "sql")
    assert set(states(export(base, tmp_path / "out", to="gguf")).values()) == {"same"}
    assert set(states(export(base, tmp_path / "hf", to="hf")).values()) == {"same"}
