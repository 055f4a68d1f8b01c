"""What survives a merge, by hand; certificates say it, and `verify` finds what was changed."""

import hashlib
import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_folder import write_model
from torch import nn
from transformers import AutoModelForCausalLM

from graft import storage
from graft.base.base import Base
from graft.cli.export import certificate_line
from graft.errors import GraftError, MergeError, ModelError, UsageError
from graft.methods.full import Full
from graft.methods.lora import LoRA
from graft.methods.task_head import TaskHead
from graft.models.load import load
from graft.quant import QuantLinear, Scheme, quantise_model
from graft.shipping import prompts
from graft.shipping.certificate import CERTIFICATE
from graft.shipping.export import choices, export
from graft.shipping.fidelity import Tally, perplexity, survival
from graft.shipping.updates import ideal
from graft.shipping.verify import SHAPE, verify
from models import inputs, randomise, tiny_base, tiny_model


def certified(folder):
    return json.loads((folder / CERTIFICATE).read_text())


def states(folder):
    return {check.what: check.state for check in verify(folder)}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("certified") / "model")


def trained(model_folder, tmp_path, *, scale=0.2, **how):
    """A base from a folder with an adapter from another, as a command opens them."""
    base = load(model_folder, **how)
    randomise(base.attach("new", LoRA(r=4, target_modules="all-linear")), scale=scale)
    base.adapters["new"].save(tmp_path / "sql")
    base.detach("new")
    base.load_adapter(tmp_path / "sql", "sql")
    return base


def one_linear(weight, change):
    """Return a base whose first q_proj is `weight`, with an adapter of the rank-1 `change` (column, row)."""
    base = Base(tiny_model("llama").to(weight.dtype), name="tiny")
    adapter = base.attach("sql", LoRA(r=1, lora_alpha=1, target_modules=["layers.0.self_attn.q_proj"]))
    site, insert = adapter.inserts[0]
    site.module.weight = nn.Parameter(weight, requires_grad=False)
    with torch.no_grad():
        insert.B.copy_(change[0][:, None])
        insert.A.copy_(change[1][None])
    return base, adapter, site


def test_survival_in_bf16_is_the_rounding_done_by_hand():
    # Next to 1.0, numbers of bf16 lie 2**-7 apart. Row 0 adds a whole step (kept), row 1 a quarter (lost),
    # row 2 three quarters (a whole step is written), and the rest nothing.
    step = 2.0**-7
    column = torch.zeros(64)
    column[:3] = torch.tensor([1.0, 0.25, 0.75])
    _, adapter, site = one_linear(torch.ones(64, 64, dtype=torch.bfloat16), (column, torch.full((64,), step)))
    found = survival(adapter)["tensors"][site.name]
    own = 1 + 0.25**2 + 0.75**2
    assert found["kept"] == pytest.approx((1 * 1 + 0 * 0.25 + 1 * 0.75) / own, rel=1e-6)
    assert found["noise"] == pytest.approx(math.sqrt((0.25**2 + 0.25**2) / own), rel=1e-6)
    assert found["norm"] == pytest.approx(math.sqrt(own * 64) * step, rel=1e-6)


def test_survival_in_nf4_is_the_nearest_level_found_by_hand():
    # Rows of 64 are one block each. A 1 in column 0 keeps the scale of a block at 1, so levels are NF4's own.
    # All else lies on level 8, which is 0.0796 above zero; the next is 0.1609, and half way there is a change
    # of 0.0407.
    at, above = 0.07958029955625534, 0.16093020141124725
    weight = torch.full((64, 64), at)
    weight[:, 0] = 1.0
    column, row = torch.zeros(64), torch.ones(64)
    column[:2], row[0] = (
        torch.tensor([0.03, 0.05]),
        0.0,
    )  # row 0 is rounded away, row 1 goes to the next level
    base, adapter, site = one_linear(weight, (column, row))
    base.model.set_submodule(site.name, QuantLinear.pack(weight, Scheme("nf4", 64, double=False)))
    assert torch.allclose(site.weight(), weight, atol=1e-6)
    found = survival(adapter, repack=True)["tensors"][site.name]
    assert found["kept"] == pytest.approx((above - at) * 0.05 / (0.03**2 + 0.05**2), rel=1e-4)
    assert survival(adapter)["tensors"][site.name]["kept"] == pytest.approx(
        1, rel=1e-6
    )  # in fp32 nothing is lost
    base.merge("sql", repack=True)
    packed = base.model.get_submodule(site.name)
    expected = weight.clone()
    expected[1, 1:] = above
    assert isinstance(packed, QuantLinear) and torch.allclose(packed.weight, expected, atol=1e-6)
    base.unmerge("sql")
    assert torch.allclose(site.weight(), weight, atol=1e-6)


def test_a_tally_of_several_tensors_weighs_them_by_their_changes():
    tally = Tally()
    one = torch.ones(2, 2)
    tally.add("kept", one, one + 3, one + 3)
    tally.add("lost", one, one + 1, one)
    tally.add("untouched", one, one, one)
    assert tally.kept == pytest.approx(9 / 10) and tally.noise == pytest.approx(math.sqrt(1 / 10))
    assert tally.max == 1 and tally.mean == pytest.approx(4 / 12) and tally.tensors.keys() == {"kept", "lost"}


def test_prompts_come_from_the_tokenizer_or_from_a_seed_and_fit_the_model(model_folder):
    base = load(model_folder)
    first = prompts.fixed(base).rows[0]
    assert first.ids == base.tokenizer(prompts.TEXTS[0])["input_ids"][: prompts.LONGEST]
    bare = tiny_base("roberta")
    asked = prompts.fixed(bare)
    assert asked == prompts.fixed(tiny_base("roberta"))
    assert all(4 <= id < 96 for row in asked.rows for id in row.ids)
    short = Base(tiny_model("gpt2", n_positions=16))
    assert {len(row.ids) for row in prompts.fixed(short).rows} == {16}


def test_the_digest_of_fixed_texts_is_that_of_their_ids_so_that_older_certificates_are_verified():
    asked = prompts.fixed(tiny_base())
    ids = [row.ids for row in asked.rows]
    assert asked.digest() == hashlib.sha256(json.dumps(ids).encode()).hexdigest()
    assert asked.facts().keys() == {"rows", "tokens", "sha256"}


def test_perplexity_is_that_of_transformers():
    base = tiny_base()
    asked = prompts.fixed(base)
    texts = [torch.tensor([row.ids]) for row in asked.rows]
    with torch.no_grad():
        outputs = [base.model(ids, labels=ids) for ids in texts]
    expected = math.exp(sum(float(out.loss) for out in outputs) / len(texts))  # rows of one length
    assert perplexity(base, asked, [out.logits for out in outputs]) == pytest.approx(expected, rel=1e-5)
    assert perplexity(tiny_base("bert"), asked, []) is None


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_a_certificate_says_how_far_the_folder_is_from_what_was_trained(family, tmp_path):
    base = tiny_base(family)
    base.model.to(torch.bfloat16)
    randomise(base.attach("sql", LoRA(r=4, target_modules="all-linear")))
    expected = {name: tensor for name, _, tensor in ideal(base, ["sql"])}
    folder = export(base, tmp_path / "out", adapter="sql")
    facts, written = certified(folder), load_file(folder / "model.safetensors")
    apart = {
        key: (written[key].float() - tensor.float()).abs()
        for key, tensor in expected.items()
        if key in written
    }
    assert len(apart) >= len(written) - 1 > 5  # T5 holds its shared table under a name of its own
    assert facts["weights"]["max"] == pytest.approx(float(max(a.max() for a in apart.values())), rel=1e-6)
    assert 0.99 < facts["weights"]["survived"] < 1.01 and not facts["weights"]["missing"]
    assert (
        facts["weights"]["mean"] < facts["weights"]["max"]
        and facts["logits"]["mean"] < facts["logits"]["effect"]
    )
    assert facts["perplexity"]["written"] == pytest.approx(facts["perplexity"]["adapted"], rel=0.1)
    assert (
        facts["base"]["fingerprint"] == base.fingerprint() and facts["versions"]["torch"] == torch.__version__
    )
    assert facts["adapters"][0]["fingerprint"] == base.adapters["sql"].fingerprint()
    assert "of what was learnt survives rounding" in certificate_line(facts) and set(facts["files"]) > {
        "config.json",
        "model.safetensors",
    }


def test_a_bare_base_and_an_adapter_get_certificates_of_no_difference(tmp_path):
    base = tiny_base()
    facts = certified(export(base, tmp_path / "bare"))
    assert facts["weights"]["max"] == facts["logits"]["max"] == 0 and facts["adapters"] == []
    base.attach("head", [LoRA(r=2), TaskHead(num_labels=3)])
    facts = certified(export(base, tmp_path / "head", to="peft"))
    assert facts["weights"]["max"] == facts["logits"]["max"] == 0 and facts["perplexity"]["written"] is None
    assert list(base.adapters) == ["head"]


def test_full_training_is_certified_exact(tmp_path):
    base = tiny_base("gpt2")
    randomise(base.attach("all", Full()), scale=0.05)
    facts = certified(export(base, tmp_path / "out", adapter="all"))
    assert (
        facts["weights"]["max"] == 0
        and facts["weights"]["survived"] is None
        and facts["logits"]["effect"] > 0.01
    )


def test_a_merge_into_packed_layers_stays_packed_and_answers_as_certified(tmp_path):
    model = tiny_model("gpt2").to(torch.bfloat16)
    quantise_model(model, "nf4")
    base = Base(model, name="packed")
    randomise(base.attach("sql", LoRA(r=4, target_modules=["c_attn"])))
    before = {name: p for name, p in base.model.named_parameters()}
    ids = inputs("gpt2")["ids"]
    folder = export(base, tmp_path / "out", adapter="sql", into="packed")
    assert all(p is before[name] for name, p in base.model.named_parameters())
    again = load(folder)
    assert sum(isinstance(m, QuantLinear) for m in again.model.modules()) == 8
    base.merge("sql", repack=True)
    assert torch.equal(again(ids)[0], base(ids)[0])
    facts = certified(folder)
    assert (
        facts["into"] == "packed" and 0.5 < facts["weights"]["survived"] < 1.1 and facts["logits"]["mean"] > 0
    )
    assert AutoModelForCausalLM.from_pretrained(folder).config.quantization_config.scheme == "nf4"


def test_the_three_ways_into_a_quantised_base_are_measured(model_folder, tmp_path):
    base = trained(model_folder, tmp_path, scale=0.02, quant="nf4", dtype="fp32")
    way = {one["into"]: one for one in choices(base, ["sql"])}
    assert way["original"]["kept"] >= way["dequantised"]["kept"] - 1e-4 > way["packed"]["kept"] + 0.02
    drifts = {into: one["logits"]["mean"] for into, one in way.items()}
    assert drifts["dequantised"] < 1e-4 < 1e-2 < min(drifts["packed"], drifts["original"])
    assert (way["dequantised"]["bits"], way["packed"]["bits"]) == (32, pytest.approx(4.127, abs=1e-3))
    assert not base.merged and base.adapters["sql"].folder == tmp_path / "sql"
    for into, measured in way.items():
        folder = export(base, tmp_path / into, adapter="sql", into=into, lossy=True)
        facts = certified(folder)
        assert facts["weights"]["survived"] == pytest.approx(measured["kept"], rel=1e-3)
        assert facts["logits"]["mean"] == pytest.approx(measured["logits"]["mean"], rel=1e-2, abs=1e-5)
        assert set(states(folder).values()) == {"same"}, into


def test_the_weights_before_quantisation_are_refused_where_they_answer_otherwise(model_folder, tmp_path):
    base = trained(model_folder, tmp_path, scale=0.02, quant="nf4")
    with pytest.raises(MergeError, match=r"moves the logits.*--lossy"):
        export(base, tmp_path / "out", adapter="sql", into="original")
    assert not (tmp_path / "out").exists()


def test_what_was_merged_packed_is_written_packed(model_folder, tmp_path):
    base = trained(model_folder, tmp_path, quant="nf4")
    base.merge("sql", repack=True)
    ids = inputs("llama")["ids"]
    expected = base(ids).logits
    again = load(export(base, tmp_path / "out"))
    assert again.quant == "nf4" and torch.equal(again(ids).logits, expected)
    assert torch.equal(base(ids).logits, expected) and base.merged[0].repacked


def test_a_way_that_cannot_be_had_says_why(tmp_path):
    model = tiny_model("llama")
    quantise_model(model, "nf4")
    base = Base(model, name=str(tmp_path / "nowhere"))
    randomise(base.attach("sql", LoRA(r=4)))
    way = {one["into"]: one for one in choices(base, ["sql"])}
    assert "there is no folder" in way["original"]["trouble"] and way["packed"]["kept"] > 0
    with pytest.raises(GraftError, match="there is no folder"):
        export(base, tmp_path / "out", into="original")
    with pytest.raises(UsageError, match="'packed'"):
        export(base, tmp_path / "out", into="paked")
    with pytest.raises(UsageError, match="a quantised base"):
        export(tiny_base(), tmp_path / "out", into="packed")
    folder = export(base, tmp_path / "out", into="packed", lossy=True)
    with pytest.raises(UsageError, match="is quantised itself"):
        export(base, tmp_path / "other", into="original", original=folder)


def test_a_change_that_packing_again_rounds_away_is_refused_with_what_to_do(model_folder, tmp_path):
    base = trained(model_folder, tmp_path, scale=1e-3, quant="nf4")
    with pytest.raises(MergeError, match=r"rounding to nf4.*into='dequantised'.*to='peft'.*--lossy"):
        export(base, tmp_path / "out", adapter="sql", into="packed")
    assert not (tmp_path / "out").exists() and not base.merged


def test_a_sound_folder_is_verified_from_its_references(model_folder, tmp_path):
    base = trained(model_folder, tmp_path)
    folder = export(base, tmp_path / "out", adapter="sql")
    assert set(states(folder).values()) == {"same"}
    assert set(states(export(base, tmp_path / "peft", to="peft")).values()) == {"same"}
    assert set(states(export(load(model_folder), tmp_path / "bare")).values()) == {"same"}


def test_tampering_is_found_in_files_and_in_what_they_mean(model_folder, tmp_path):
    folder = export(trained(model_folder, tmp_path), tmp_path / "out", adapter="sql")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][3] *= 1.5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    found = states(folder)
    assert found["files"] == found["weights"] == "differs" and found["base"] == found["adapter"] == "same"
    facts = certified(folder)
    facts["files"].pop("model.safetensors")  # a forger may hide the file, not what it holds
    del facts["sha256"]
    (folder / CERTIFICATE).write_bytes(storage.seal(json.dumps(facts).encode()))
    found = states(folder)
    assert found["files"] == "same" and found["weights"] == "differs"
    (folder / "model.safetensors").write_bytes(b"no weights")
    assert states(folder)["measures"] == "differs"


def test_another_adapter_in_the_place_of_the_first_is_found(model_folder, tmp_path):
    base = trained(model_folder, tmp_path)
    folder = export(base, tmp_path / "out", adapter="sql")
    with torch.no_grad():
        base.adapters["sql"].parameters()[0].mul_(2)
    base.adapters["sql"].save(tmp_path / "sql")
    assert states(folder)["adapter"] == "differs"


def test_what_is_no_longer_there_is_said_and_is_no_difference(model_folder, tmp_path):
    folder = export(trained(model_folder, tmp_path), tmp_path / "out", adapter="sql")
    (tmp_path / "sql").rename(tmp_path / "elsewhere")
    found = states(folder)
    assert found["adapter"] == found["measures"] == "not checked" and "differs" not in found.values()
    base = load(model_folder)
    randomise(base.attach("made", LoRA(r=2)))  # never saved
    assert states(export(base, tmp_path / "made"))["adapter"] == "not checked"
    nowhere = tiny_base()
    assert states(export(nowhere, tmp_path / "bare"))["base"] == "not checked"


def test_an_adapter_trained_beside_packed_weights_and_merged_into_others_is_noted(model_folder, tmp_path):
    packed = load(model_folder, quant="nf4")
    randomise(packed.attach("sql", LoRA(r=4)))
    packed.adapters["sql"].save(tmp_path / "sql")
    base = load(model_folder)
    base.load_adapter(tmp_path / "sql", "sql")
    note = json.loads((export(base, tmp_path / "out") / "merge_report.json").read_text())["note"]
    assert note == "sql was trained on nf4 weights and merged into unpacked ones"


def test_an_adapter_that_changed_lies_in_no_folder(model_folder, tmp_path):
    base = trained(model_folder, tmp_path)
    adapter = base.adapters["sql"]
    base.train()
    assert adapter.folder == tmp_path / "sql"
    with torch.no_grad():
        adapter.parameters()[0].add_(1.0)
    assert adapter.folder is None


def test_a_damaged_certificate_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="no adapter, no run and no model"):
        verify(tmp_path)
    sound = certified(export(tiny_base(), tmp_path / "out"))
    del sound["sha256"]
    sealed = [storage.seal(json.dumps(sound | {key: 7}).encode()) for key in SHAPE]
    for damage in (b"no JSON", b"[]", b"{}", json.dumps(sound | {"sha256": "0"}).encode(), *sealed):
        (tmp_path / "out" / CERTIFICATE).write_bytes(damage)
        with pytest.raises(ModelError, match="damaged"):
            verify(tmp_path / "out")


@pytest.mark.parametrize("to", ["peft", "hf"])
def test_a_model_that_answers_with_no_numbers_is_not_certified(to, model_folder, tmp_path):
    base = load(model_folder, dtype="fp32")
    randomise(base.attach("sql", LoRA(r=4)))
    with torch.no_grad():
        base.adapters["sql"].parameters()[0][0, 0] = 3e38  # finite, but no product with it is
        base.adapters["sql"].parameters()[1][0, 0] = 3e38
    for how in ({}, {"lossy": True}):
        with pytest.raises(GraftError, match=r"nan|not finite|inf") as error:
            export(base, tmp_path / "out", to=to, adapter="sql", **how)
        assert "nan%" not in str(error.value) and not (tmp_path / "out").exists()
