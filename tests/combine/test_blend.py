"""Blends against PEFT's `add_weighted_adapter`, and against what the changes of the weights say by hand."""

import copy

import peft
import pytest
import torch
from peft.utils import merge_utils
from torch.testing import assert_close

from graft.base.base import Base
from graft.combine.blend import HOWS, KINDS, SHORTENED, SPARSE, blend
from graft.core.registry import find, names
from graft.errors import AdapterError, UsageError
from graft.methods.full import Full
from graft.methods.lora import LoRA
from graft.methods.subset import Subset
from graft.methods.task_head import TaskHead
from models import inputs, randomise, tiny_base, tiny_model

QV = ("q_proj", "v_proj")


def two(*settings, family="llama", **shared):
    """A base with adapters "a" and "b" of random values."""
    base = tiny_base(family)
    for seed, (name, own) in enumerate(zip("ab", settings or ({}, {}), strict=True)):
        randomise(
            base.attach(name, LoRA(**{"r": 4, "lora_alpha": 8, "target_modules": QV, **shared, **own})), seed
        )
    return base


def changes(adapter):
    """{site: what the adapter adds to the weight}."""
    return {
        site.name: insert.merge(torch.zeros(site.weight().shape), None)[0] for site, insert in adapter.inserts
    }


def in_peft(base, folder):
    """The same two adapters in PEFT."""
    for name in "ab":
        base.adapters[name].save(folder / name)
    model = peft.PeftModel.from_pretrained(
        copy.deepcopy(tiny_model(base.name[5:])), folder / "a", adapter_name="a"
    )
    model.load_adapter(folder / "b", adapter_name="b")
    return model.eval()


def peft_changes(model, name):
    """{site: change} of PEFT's layers."""
    layers = {n: m for n, m in model.base_model.model.named_modules() if hasattr(m, "get_delta_weight")}
    active = {n: m for n, m in layers.items() if name in m.lora_A or name in m.lora_embedding_A}
    return {n: m.get_delta_weight(name).detach() for n, m in active.items()}


def assert_same_changes(ours, theirs, tolerance=1e-5):
    assert ours.keys() == theirs.keys()
    for site, change in ours.items():
        theirs_here = theirs[site] if theirs[site].shape == change.shape else theirs[site].T
        assert_close(change, theirs_here, atol=tolerance, rtol=1e-4)
        assert change.abs().max() > 1e-2


@pytest.mark.parametrize("weights", [(0.7, 0.4), (1.2, -0.5)], ids=["both", "one_taken_away"])
@pytest.mark.parametrize("how", [how for how in HOWS if how != "average" and "dare" not in how])
def test_every_blend_that_draws_nothing_equals_pefts(tmp_path, how, weights):
    base = two({}, {"lora_alpha": 4})
    theirs, density = in_peft(base, tmp_path), 0.5 if how.removesuffix("_svd") in SPARSE else None
    theirs.add_weighted_adapter(["a", "b"], list(weights), "both", combination_type=how, density=density)
    blended = blend(base, dict(zip("ab", weights, strict=True)), "both", how, density=density)
    assert_same_changes(changes(blended), peft_changes(theirs, "both"))
    theirs.set_adapter("both")
    batch = inputs("llama")
    with base.using("both"), torch.no_grad():
        assert_close(base(**batch).logits, theirs(input_ids=batch["ids"]).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("how", [how for how in HOWS if "dare" in how])
def test_dare_with_the_same_draws_equals_pefts(tmp_path, how, monkeypatch):
    base = two()
    theirs, generator = in_peft(base, tmp_path), torch.Generator().manual_seed(5)

    def drawn(tensor, density, rescale):  # PEFT's random_pruning, from a generator of our choice
        return tensor * torch.bernoulli(torch.full_like(tensor, density), generator=generator) / density

    monkeypatch.setattr(merge_utils, "random_pruning", drawn)
    theirs.add_weighted_adapter(["a", "b"], [0.7, 0.4], "both", combination_type=how, density=0.4)
    assert_same_changes(
        changes(blend(base, {"a": 0.7, "b": 0.4}, "both", how, density=0.4, seed=5)),
        peft_changes(theirs, "both"),
    )


def test_dare_keeps_the_density_and_the_expectation():
    base = two()
    own = dict(base.adapters["a"].inserts)
    total = 0
    for seed in range(200):
        blended = blend(base, {"a": 2.0}, "dropped", "dare_linear", density=0.5, seed=seed)
        total = total + torch.cat([insert.B.detach().flatten() for _, insert in blended.inserts])
        if seed == 0:
            zeros = torch.cat([(t == 0).flatten() for _, i in blended.inserts for t in (i.A, i.B)])
            assert 0.45 < zeros.float().mean() < 0.55  # 1792 draws: four standard deviations
        base.detach("dropped")
    expected = torch.cat([(2.0 * i.scale) ** 0.5 * i.B.detach().flatten() for i in own.values()])
    assert (total / 200 - expected).abs().mean() < 0.1 * expected.abs().mean()


@pytest.mark.parametrize("sign", ["total", "frequency"])
def test_signs_are_elected_by_sum_or_by_number_as_in_peft(tmp_path, sign):
    base = two()
    theirs = in_peft(base, tmp_path)
    theirs.add_weighted_adapter(
        ["a", "b"], [1.0, 1.0], "both", combination_type="ties_svd", density=0.6, majority_sign_method=sign
    )
    blended = blend(base, {"a": 1.0, "b": 1.0}, "both", "ties_svd", density=0.6, majority_sign=sign)
    assert_same_changes(changes(blended), peft_changes(theirs, "both"))


@pytest.mark.parametrize("how", ["cat", "linear", "svd", "ties_svd"])
@pytest.mark.parametrize(
    ("family", "targets"), [("gpt2", ("c_attn",)), ("llama", ("embed_tokens", "q_proj"))]
)
def test_transposed_layers_and_embeddings_blend_as_in_peft(tmp_path, family, targets, how):
    base = two(family=family, target_modules=targets)
    theirs, density = in_peft(base, tmp_path), 0.5 if "ties" in how else None
    theirs.add_weighted_adapter(["a", "b"], [0.7, 0.4], "both", combination_type=how, density=density)
    assert_same_changes(
        changes(blend(base, {"a": 0.7, "b": 0.4}, "both", how, density=density)), peft_changes(theirs, "both")
    )


@pytest.mark.parametrize("other", [{"r": 2}, {"target_modules": ("v_proj", "up_proj")}, {"use_rslora": True}])
def test_cat_is_the_exact_sum_whatever_the_ranks_sites_and_scales(other):
    base = two({}, other, rank_pattern={"layers.1.self_attn.v_proj": 3})
    a, b = (changes(base.adapters[name]) for name in "ab")
    blended = blend(base, {"a": 0.7, "b": -0.4}, "both", "cat")
    assert changes(blended).keys() == a.keys() | b.keys()
    for site, change in changes(blended).items():
        assert_close(
            change,
            0.7 * a.get(site, 0) - 0.4 * b.get(site, 0) + torch.zeros_like(change),
            atol=1e-5,
            rtol=1e-5,
        )


def test_svd_is_the_nearest_of_its_rank_to_the_sum():
    base = two({}, {"r": 3})
    exact = changes(blend(base, {"a": 1.0, "b": 1.0}, "exact", "cat"))
    short = changes(blend(base, {"a": 1.0, "b": 1.0}, "short", "svd", r=2))
    for site, change in exact.items():
        tail = torch.linalg.svdvals(change)[2:]  # Eckart and Young
        assert_close((change - short[site]).norm(), tail.norm(), atol=1e-5, rtol=1e-4)


def test_the_blend_is_an_adapter_like_any_other(tmp_path):
    base, batch = two({}, {"r": 2}), inputs("llama")
    blended = blend(base, {"a": 0.7, "b": 0.4}, "both", "cat")
    with base.using("both"):
        answer = base(**batch).logits
    again = tiny_base()
    again.load_adapter(blended.save(tmp_path), "both")
    with again.using("both"):
        assert torch.equal(again(**batch).logits, answer)
    base.merge("both")
    assert_close(base(**batch).logits, answer, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "method", [LoRA(r=4, use_dora=True), LoRA(bias="all"), TaskHead(), Subset(), Full()], ids=str
)
def test_average_is_the_weighted_mean_of_all_tensors_of_any_method(method):
    base = tiny_base()
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        randomise(base.attach(name, method), seed)
    a, b = (base.adapters[name].checkpoint_state() for name in "ab")
    blended = blend(base, {"a": 3.0, "b": 1.0}, "both").checkpoint_state()
    for key, tensor in blended.items():
        assert_close(tensor, 0.75 * a[key] + 0.25 * b[key], atol=1e-6, rtol=1e-5)
        assert (a[key] - b[key]).abs().max() > 1e-2


def test_linear_on_trained_weights_is_task_arithmetic():
    base = tiny_base()
    for seed, name in enumerate("ab"):
        randomise(base.attach(name, Full()), seed)
    start = base.attach("start", Full()).checkpoint_state()
    a, b = (base.adapters[name].checkpoint_state() for name in "ab")
    for key, tensor in blend(base, {"a": 0.4, "b": 0.9}, "both", "linear").checkpoint_state().items():
        expected = start[key] + 0.4 * (a[key] - start[key]) + 0.9 * (b[key] - start[key])
        assert_close(tensor, expected, atol=1e-5, rtol=1e-5)


def test_an_adapter_averages_with_one_that_was_saved_and_loaded(tmp_path):
    base = two(target_modules="all-linear", init_lora_weights="gaussian")
    base.load_adapter(base.adapters["b"].save(tmp_path), "c")
    both, loaded = (blend(base, {"a": 1, other: 1}, f"a{other}").checkpoint_state() for other in "bc")
    assert all(torch.equal(both[key], loaded[key]) for key in both)


@pytest.mark.parametrize("name", names())
def test_a_low_rank_form_is_the_whole_change_or_is_not_offered(name):
    base = tiny_base()
    adapter = base.attach("x", find(name)())
    randomise(adapter)
    for site, insert in adapter.inserts:
        form = insert.low_rank()
        if form is not None:
            A, B, scale = form
            change, bias = insert.merge(torch.zeros(site.weight().shape), None)
            assert_close(scale * (B @ A), change.T if site.kind == "embed" else change, atol=1e-6, rtol=1e-5)
            assert bias is None


def test_ties_by_hand():
    """One row: a keeps 4 and -3, b keeps -2 and 5; + and + are elected; each entry is averaged over those."""
    base = two(r=1, lora_alpha=1, target_modules=("q_proj",))
    rows = {"a": [4.0, -3.0, 1.0, 0.5], "b": [-2.0, 5.0, 1.0, 0.1]}
    for name, row in rows.items():
        for _, insert in base.adapters[name].inserts:
            insert.A.data, insert.B.data = torch.zeros_like(insert.A), torch.zeros_like(insert.B)
            insert.A.data[0, :4], insert.B.data[0] = torch.tensor(row), 1.0
    density = 2 / base.adapters["a"].inserts[0][1].A.numel()
    blended = blend(base, {"a": 1.0, "b": 1.0}, "both", "ties", density=density)
    assert blended.inserts[0][1].A[0, :4].tolist() == [4.0, 5.0, 0.0, 0.0]


BAD = {
    "an unknown way": (UsageError, "did you mean 'ties'", {"how": "tiess"}),
    "no density": (UsageError, "density=None", {"how": "ties"}),
    "a density of nothing": (UsageError, "density=0", {"how": "dare_ties_svd", "density": 0}),
    "a density without use": (UsageError, "keeps every entry", {"how": "cat", "density": 0.5}),
    "a rank without use": (UsageError, "r=4", {"how": "cat", "r": 4}),
    "an unknown election": (
        UsageError,
        "frequency",
        {"how": "ties", "density": 0.5, "majority_sign": "most"},
    ),
    "no weights": (UsageError, "a finite number", {"weights": {}}),
    "weights of nothing": (UsageError, "sum to 0", {"weights": {"a": 1.0, "b": -1.0}}),
    "an unknown adapter": (AdapterError, "did you mean 'a'", {"weights": {"aa": 1.0}}),
    "a name that is taken": (AdapterError, "taken", {"name": "a"}),
}


@pytest.mark.parametrize("case", BAD)
def test_arguments_that_mean_nothing_are_named(case):
    error, said, settings = BAD[case]
    base = two()
    with pytest.raises(error, match=said):
        blend(base, **{"weights": {"a": 1.0, "b": 1.0}, "name": "both", **settings})
    assert set(base.adapters) == {"a", "b"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_dora": True}, "lora_magnitude_vector"),
        ({"lora_bias": True}, "lora_B.bias"),
        ({"bias": "all"}, "Shift at model.layers"),
        ({"modules_to_save": ("lm_head",)}, "Replacement at lm_head"),
    ],
)
@pytest.mark.parametrize("how", ["cat", "svd"])
def test_what_two_factors_cannot_hold_is_refused_and_not_dropped(settings, said, how):
    base = Base(tiny_model("llama", attention_bias=True))
    for name in "ab":
        base.attach(name, LoRA(r=2, target_modules=QV, **settings))
    with pytest.raises(AdapterError, match=said):
        blend(base, {"a": 1.0, "b": 1.0}, "both", how)


@pytest.mark.parametrize("how", [*KINDS])
def test_unlike_ranks_are_refused_where_factors_are_summed(how):
    base = two({}, {"r": 2})
    with pytest.raises(AdapterError, match="ranks 2, 4 at model"):
        blend(base, {"a": 1.0, "b": 1.0}, "both", how, density=0.5 if how in SPARSE else None)


def test_unlike_settings_and_methods_are_refused_where_tensors_are_averaged():
    base = two({}, {"lora_alpha": 4})
    with pytest.raises(AdapterError, match=r"lora_alpha=8, 4"):
        blend(base, {"a": 1.0, "b": 1.0}, "both")
    base.attach("head", TaskHead())
    with pytest.raises(AdapterError, match="LoRA, TaskHead"):
        blend(base, {"a": 1.0, "head": 1.0}, "both")
    base.attach("c", LoRA(r=4, lora_alpha=8, target_modules=("k_proj",)))
    with pytest.raises(AdapterError, match="is in one only"):
        blend(base, {"a": 1.0, "c": 1.0}, "both")
    with pytest.raises(UsageError, match="sum to 2"):
        blend(base, {"head": 2.0}, "both", "linear")


def test_shortening_a_sparse_blend_gives_the_rank_that_was_asked_for():
    base = two()
    for how in SHORTENED:
        density = 0.5 if how != "svd" else None
        blended = blend(base, {"a": 1.0, "b": 0.5}, how, how, density=density, r=3)
        assert {len(insert.A) for _, insert in blended.inserts} == {3}
