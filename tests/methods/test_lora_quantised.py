import torch
from torch.testing import assert_close

from graft.base.base import Base
from graft.methods.lora import LoRA
from graft.models.load import load
from graft.quant import quantise_model
from models import inputs, tiny_model


def test_loftq_is_the_best_low_rank_repair_of_what_quantisation_took(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    original = dict(tiny_model("llama").named_parameters())
    base = load(tmp_path, quant="nf4", dtype="fp32")
    adapter = base.attach("x", LoRA(r=8, lora_alpha=8, init_lora_weights="loftq"))
    for site, insert in adapter.inserts:
        lost = original[f"{site.name}.weight"] - site.weight()
        left = lost - insert.B @ insert.A
        tail = torch.linalg.svdvals(lost)[8:]  # Eckart and Young: no matrix of rank 8 leaves less
        assert_close(left.norm(), tail.norm(), atol=1e-5, rtol=1e-4)


def test_lora_on_nf4_equals_lora_on_the_dequantised_weights():
    packed = Base(quantise_model(tiny_model("llama"), "nf4"))
    plain = tiny_model("llama")
    for name, module in packed.model.named_modules():
        if hasattr(module, "codes"):
            plain.get_submodule(name).weight.data = module.weight.detach().clone()
    batch, answers, grads = inputs("llama"), [], []
    for base in (packed, Base(plain)):
        torch.manual_seed(0)
        adapter = base.attach("x", LoRA(r=4, use_dora=True))
        with torch.no_grad():
            for p in adapter.parameters():
                p.add_(torch.randn_like(p) * 0.1)
        with base.using("x"):
            answers.append(base(**batch).logits)
        answers[-1].square().mean().backward()
        grads.append([p.grad for p in adapter.parameters()])
    assert_close(answers[0], answers[1], atol=1e-5, rtol=1e-4)
    for ours, theirs in zip(*grads, strict=True):
        assert_close(ours, theirs, atol=1e-6, rtol=1e-3)


def test_a_merge_says_which_layers_became_16_bit_and_unmerge_packs_them_again():
    base, batch = Base(quantise_model(tiny_model("llama"), "nf4")), inputs("llama")
    before, layers = base(**batch).logits, [n for n, m in base.model.named_modules() if hasattr(m, "codes")]
    base.attach("x", LoRA(target_modules=("q_proj",)))
    merged = base.merge("x")
    assert merged.dequantised == [n for n in layers if n.endswith("q_proj")]
    assert not hasattr(base.model.get_submodule(merged.dequantised[0]), "codes")
    base.unmerge("x")
    assert torch.equal(base(**batch).logits, before) and hasattr(
        base.model.get_submodule(merged.dequantised[0]), "codes"
    )


def test_a_merged_conv1d_is_a_conv1d_again_as_files_expect_it():
    base, batch = Base(quantise_model(tiny_model("gpt2"), "nf4")), inputs("gpt2")
    adapter = base.attach("x", LoRA(bias="all"))
    with torch.no_grad():
        for p in adapter.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    with base.using("x"):
        attached = base(**batch).logits
    base.merge("x")
    plain = tiny_model("gpt2")
    plain.load_state_dict(base.model.state_dict())
    assert_close(plain(batch["ids"]).logits, attached, atol=1e-4, rtol=1e-4)
