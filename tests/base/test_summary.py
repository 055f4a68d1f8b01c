"""A base and its adapters show what they are: sizes counted by hand, names escaped."""

import pytest

from graft.base.base import Base
from graft.core.part import Part
from graft.methods.ia3 import IA3
from graft.methods.lora import LoRA
from models import tiny_base, tiny_model


def test_a_base_shows_its_size_its_format_and_its_adapters():
    base = tiny_base()
    parameters = sum(p.numel() for p in base.model.parameters())
    assert 10_000 < parameters < 1_000_000
    assert repr(base) == f"Base tiny-llama, {parameters / 1000:.1f} k parameters, fp32, no adapters"
    base.attach("sql", LoRA(r=4, target_modules=("q_proj",)))  # 2 blocks, A (4, 64), B (64, 4)
    base.attach("two", [LoRA(r=4, target_modules=("q_proj",)), IA3()])
    assert "adapters: sql (lora, 1.02 k), two (lora + ia3, " in repr(base)
    base.merge("sql")
    assert repr(base).endswith("merged: sql")


def test_many_adapters_are_counted():
    base = tiny_base()
    for number in range(6):
        base.attach(f"a{number}", LoRA(r=1, target_modules=("q_proj",)))
    assert repr(base).endswith("a3 (lora, 256) and 2 more")


def test_an_adapter_shows_its_method_and_its_size():
    adapter = tiny_base().attach("sql", LoRA(r=4, target_modules=("q_proj",)))
    assert repr(adapter) == "Adapter sql (lora), 1.02 k parameters at 2 sites"
    assert "Adapter" in f"{adapter}"


def test_a_notebook_gets_tables_in_which_names_are_escaped():
    base = Base(tiny_model("llama"), name="<script>")
    adapter = base.attach("<b>", LoRA(r=4, target_modules=("q_proj",)))
    table = base._repr_html_()
    assert "<script>" not in table and "&lt;script&gt;" in table and "&lt;b&gt;" in table
    assert "<td>1.02 k</td>" in table and "LlamaForCausalLM (causal)" in table
    table = adapter._repr_html_()
    assert "&lt;b&gt;" in table and "LoRA(target_modules=(&#x27;q_proj&#x27;,), r=4)" in table


def test_sites_parts_and_inserts_are_short():
    base = tiny_base()
    adapter = base.attach("sql", LoRA(r=4, target_modules=("q_proj",)))
    site, insert = adapter.inserts[0]
    assert repr(site) == "Site model.layers.0.self_attn.q_proj, linear, 64 -> 64"
    assert "model.layers.0.self_attn.q_proj, 512 parameters" in repr(insert)
    assert repr(adapter.parts[0]) == "Part of 2 inserts, 1,024 parameters"
    assert repr(Part([])) == "Part of 0 inserts, 0 parameters"


@pytest.mark.parametrize("family", ["bert", "t5", "gpt2", "phi3"])
def test_every_site_of_every_family_can_be_shown(family):
    for site in tiny_base(family).sites:
        assert len(repr(site)) < 200 and repr(site).startswith("Site ")
