"""LoRA on the experts of a mixture, against PEFT's `target_parameters`, and weights changed by hand."""

import copy

import peft
import pytest
import torch
from mixtures import EXPERTS, MIXTURES, REGISTERED
from peft_oracle import assert_files_travel_both_ways, assert_gradients_agree, logits, tuned
from torch.testing import assert_close

import graft
from graft.base.base import Base
from graft.errors import SiteError, UsageError
from graft.methods.lora import LoRA
from models import inputs, randomise, tiny_model

# What PEFT turns `all-linear` into differs: experts and router of some families, linears alone of others.
WAYS = {
    "all_linear": {"target_modules": "all-linear"},
    "experts": {"target_modules": [], "target_parameters": list(EXPERTS)},
    "one": {"target_modules": ["q_proj", "o_proj"], "target_parameters": ["experts.down_proj"]},
    "other": {"target_modules": [], "target_parameters": ["0.mlp.experts.gate_up_proj"]},
    "rslora": {"target_modules": [], "target_parameters": ["down_proj"], "use_rslora": True, "lora_alpha": 3},
    "patterns": {
        "target_modules": ["q_proj"],
        "target_parameters": ["gate_up_proj", "down_proj"],
        "rank_pattern": {"gate_up_proj": 5},
        "alpha_pattern": {"down_proj": 20},
    },
}


def mixture(family):
    return tiny_model(family, **MIXTURES[family])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3"])
def test_files_of_peft_answer_alike_here_and_ours_there(tmp_path, family, way):
    if way == "other" and family == "deepseek_v3":
        pytest.skip("its first block is dense")
    settings = {"r": 4, "lora_alpha": 8, **WAYS[way]}
    if family == "deepseek_v3":  # it has no q_proj
        settings["target_modules"] = ["o_proj"] if settings["target_modules"] else []
        settings["target_modules"] = "all-linear" if way == "all_linear" else settings["target_modules"]
    assert_files_travel_both_ways(mixture(family), peft.LoraConfig(**settings), tmp_path)


@pytest.mark.parametrize("family", ["qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "jetmoe"])
def test_all_linear_of_peft_answers_alike_here_and_ours_there(tmp_path, family):
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    assert_files_travel_both_ways(mixture(family), config, tmp_path)


@pytest.mark.parametrize("family", ["jetmoe", "qwen2_moe"])
def test_experts_that_peft_does_not_take_by_itself_travel_when_named(tmp_path, family):
    names = ["mlp.input_linear.weight", "output_linear.weight"] if family == "jetmoe" else list(EXPERTS)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=[], target_parameters=names)
    assert_files_travel_both_ways(mixture(family), config, tmp_path)


def test_a_router_is_trained_where_its_weight_is_named(tmp_path):
    config = peft.LoraConfig(r=4, target_modules=[], target_parameters=["mlp.gate.weight"])
    base = assert_files_travel_both_ways(mixture("mixtral"), config, tmp_path, scale=0.5)
    assert [site.leaf for site, _ in base.adapters["x"].inserts] == ["weight", "weight"]


def test_the_weight_of_a_linear_may_be_named_too(tmp_path):
    config = peft.LoraConfig(r=4, target_modules=["k_proj"], target_parameters=["q_proj.weight"])
    assert_files_travel_both_ways(mixture("olmoe"), config, tmp_path)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_gradients_and_steps_are_those_of_peft(tmp_path, family):
    names = [*EXPERTS, "mlp.gate.weight"] if family == "qwen3_moe" else list(EXPERTS)
    config = peft.LoraConfig(r=4, target_modules=["v_proj"], target_parameters=names)
    assert_gradients_agree(mixture(family), config, tmp_path, scale=0.05)


@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3_moe"])
def test_our_all_linear_answers_alike_in_peft_though_it_renames_dense_projections(tmp_path, family):
    model = mixture(family)
    base = Base(copy.deepcopy(model))
    adapter = base.attach("x", LoRA(r=4, lora_dropout=0.1))
    randomise(adapter)
    adapter.save(tmp_path)
    with base.using("x"):
        ours = base(**inputs("llama")).logits
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()
    assert_close(logits(theirs), ours, atol=1e-5, rtol=1e-5)
    again = Base(copy.deepcopy(model)).load_adapter(tmp_path, "x")
    assert again.count() == adapter.count()
    assert again.fingerprint() == adapter.fingerprint()


@pytest.mark.parametrize("family", MIXTURES)
def test_the_update_is_that_of_the_weights(family):
    model = mixture(family)
    base = Base(copy.deepcopy(model))
    names = ("input_linear.weight", "output_linear.weight") if family == "jetmoe" else EXPERTS
    adapter = base.attach("x", LoRA(r=3, lora_alpha=6, target_modules=(), target_parameters=names))
    assert_close(bare := base(**inputs("llama")).logits, logits(model), atol=1e-5, rtol=1e-5)
    randomise(adapter)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for site, insert in adapter.inserts:
            weight, r = parameters[site.name], 3
            for e in range(4):
                A, B = insert.A[e * r : (e + 1) * r], insert.B[:, e::4]
                update = 2 * B @ A
                weight[e] += update.T if family == "gpt_oss" else update
    with base.using("x"):
        adapted = base(**inputs("llama")).logits
    assert_close(adapted, logits(model), atol=1e-5, rtol=1e-5)
    assert (adapted - bare).abs().max() > 0.05


@pytest.mark.parametrize("family", REGISTERED)
def test_an_expert_costs_r_times_its_two_sides(family):
    base = Base(mixture(family))
    adapter = base.attach("x", LoRA(r=3, target_modules=(), target_parameters=EXPERTS))
    moe = [site for site in base.sites if site.kind == "parameter" and site.name.endswith(EXPERTS)]
    assert adapter.count() == sum(3 * 4 * (site.in_features + site.out_features) for site in moe)
    assert [site.name for site, _ in adapter.inserts] == [site.name for site in moe]


def test_all_linear_says_which_share_of_the_weights_it_leaves_out():
    base = Base(mixture("mixtral"))
    experts = 2 * 4 * (2 * 48 * 32 + 32 * 48)
    share = f"{experts / base.count():.0%}"
    with pytest.warns(
        graft.Notice, match=rf"{share} of the weights.*experts\.gate_up_proj, experts\.down_proj"
    ):
        base.attach("x", LoRA())
    with pytest.warns(graft.Notice, match="experts.gate_up_proj]"):
        base.attach("y", LoRA(target_parameters=("down_proj",)))


@pytest.mark.parametrize("family", ["mixtral", "llama"])
def test_nothing_is_said_where_nothing_is_left_out(family, recwarn):
    base = Base(mixture("mixtral") if family == "mixtral" else tiny_model("llama"))
    base.attach("x", LoRA(target_parameters=EXPERTS if family == "mixtral" else ()))
    base.attach("y", LoRA(target_modules=("q_proj",)))
    assert not [w for w in recwarn if issubclass(w.category, graft.Notice)]


@pytest.mark.parametrize(
    "settings",
    [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}, {"init_lora_weights": "pissa"}],
)
def test_what_peft_refuses_on_parameters_is_refused(settings):
    with pytest.raises(UsageError, match="target_parameters"):
        LoRA(target_parameters=EXPERTS, **settings)


def test_a_name_that_matches_no_weight_is_an_error():
    base = Base(mixture("mixtral"))
    with pytest.raises(SiteError, match=r"experts\.gate_proj.*did you mean experts\.gate_up_proj"):
        base.attach("x", LoRA(target_parameters=("experts.gate_proj",)))


def test_entries_that_match_no_weight_beside_others_that_do_are_named(recwarn):
    base, experts = Base(mixture("mixtral")), {"target_modules": (), "target_parameters": EXPERTS}
    base.attach("x", LoRA(**experts, rank_pattern={"gate_up_proj": 4}))
    assert not [w for w in recwarn if issubclass(w.category, graft.Notice)]
    with pytest.warns(graft.Notice, match=r"feed_forward\.experts\.down_proj match nothing"):
        base.attach("y", LoRA(target_parameters=("experts.down_proj", "feed_forward.experts.down_proj")))
    with pytest.warns(graft.Notice, match="rank_pattern: w1 decide nothing"):
        base.attach("z", LoRA(**experts, rank_pattern={"w1": 4}))


def test_a_trained_file_of_peft_goes_on_where_it_was(tmp_path):
    config = peft.LoraConfig(r=4, target_modules="all-linear")
    theirs = tuned(mixture("mixtral"), config, tmp_path / "a")
    base = Base(mixture("mixtral"))
    adapter = base.load_adapter(tmp_path / "a", "x")
    trained = sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    assert adapter.count() == trained
