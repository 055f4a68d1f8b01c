"""The native decoder against transformers: logits, tokens, rows of different adapters, slots."""

import random

import pytest
import torch
from tests.support.models import SMALL, inputs, randomise, tiny_model

import graft
from graft.base import native_decoder
from graft.base.base import Base
from graft.base.native_decoder import NativeDecoder
from graft.kernels import native
from graft.kernels.decoder import FIXED
from graft.quant import Scheme, quantise_model

pytestmark = pytest.mark.skipif(not native.levels(), reason="no C compiler at the installation")

WIDE = {**SMALL, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64}
FAMILIES = [
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    (
        "llama",
        {"hidden_size": 60, "num_attention_heads": 3, "num_key_value_heads": 1, "intermediate_size": 100},
    ),
    ("mistral", {"sliding_window": 4}),
    ("qwen2", {}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    ("qwen3", {}),
    ("gemma", {}),
    ("gemma2", {"sliding_window": 4, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    ("gemma3_text", {**WIDE, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}),
]
SCHEMES = ("nf4", "fp4", "int8", "int4", "int3")


@pytest.fixture(params=native.levels())
def level(request):
    with native.at_level(request.param):
        yield request.param


def stepper(base, exact=True):
    found = NativeDecoder(base.model)
    made = found.stepper(base.adapters, exact=exact)
    assert made is not None, found.reason
    return made


def greedy(steps, prompts, new, names=None):
    """Return the tokens (n, new) and the logits (n, new, V) of texts that are decoded together."""
    steps.reserve(len(prompts), max(map(len, prompts)) + new)
    for slot in range(len(prompts)):
        steps.open(slot, names[slot] if names else None)
    logits = steps.prefill(list(enumerate(prompts)))
    tokens, seen = [], []
    for _ in range(new):
        seen.append(logits)
        tokens.append(logits.argmax(1))
        logits = steps.decode(list(range(len(prompts))), tokens[-1])
    for slot in range(len(prompts)):
        steps.free(slot)
    return torch.stack(tokens, 1), torch.stack(seen, 1)


def by_transformers(model, prompt, new):
    """Return the tokens that transformers' generate writes greedily."""
    ids = torch.tensor([prompt])
    model.generation_config.eos_token_id = None  # no text ends early
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0
    )
    return out[0, len(prompt) :]


def by_forward(base, prompt, answer, name=None):
    """Return the logits (new, V) of the base's own forward over a prompt and its answer."""
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad(), base.using(name):
        return base(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()


PROMPTS = [ids[: 3 + 4 * row].tolist() for row, ids in enumerate(inputs("llama", rows=3, length=12)["ids"])]


@pytest.mark.parametrize(("family", "changes"), FAMILIES, ids=[f"{f}{len(c)}" for f, c in FAMILIES])
def test_families_write_what_transformers_writes(level, family, changes):
    base = Base(tiny_model(family, **changes))
    tokens, logits = greedy(stepper(base), PROMPTS, 8)
    for prompt, got, seen in zip(PROMPTS, tokens, logits, strict=True):
        assert torch.equal(got, by_transformers(base.model, prompt, 8))
        wanted = by_forward(base, prompt, got.tolist())
        assert torch.allclose(seen.log_softmax(1), wanted.log_softmax(1), atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma"])
def test_a_base_in_bf16_agrees_within_its_rounding(level, family):
    base = Base(tiny_model(family).bfloat16())
    tokens, logits = greedy(stepper(base), PROMPTS, 6)
    for prompt, got, seen in zip(PROMPTS, tokens, logits, strict=True):
        wanted = by_forward(base, prompt, got.tolist())
        assert (seen - wanted).abs().max() <= 0.03 * wanted.abs().max()  # bf16 holds 8 bits


@pytest.mark.parametrize("scheme", SCHEMES)
def test_packed_bases(level, scheme):
    model = tiny_model("llama")
    quantise_model(model, Scheme(scheme))
    base = Base(model)
    tokens, logits = greedy(stepper(base), PROMPTS, 6)
    for prompt, got, seen in zip(PROMPTS, tokens, logits, strict=True):
        wanted = by_forward(base, prompt, got.tolist())
        assert torch.allclose(seen.log_softmax(1), wanted.log_softmax(1), atol=1e-5)


def with_adapters(count, family="llama", scheme=None):
    model = tiny_model(family)
    if scheme:
        quantise_model(model, Scheme(scheme))
    base = Base(model)
    for number in range(count):
        targets = "all-linear" if number % 2 else ["q_proj", "down_proj"]
        method = graft.LoRA(r=1 + 3 * number, target_modules=targets, use_rslora=number == 2)
        randomise(base.attach(f"a{number}", method), seed=number)
    return base


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme("nf4"), Scheme("nf4", 32), Scheme("nf4", 96), Scheme("nf4", 256), Scheme("fp4"),
        Scheme("int4", 34), Scheme("int4", 64), Scheme("int8"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("inner", [64, 84, 100, 256])
def test_fixed_point_is_within_its_rounding_and_exact_elsewhere(level, scheme, inner):
    model = tiny_model("llama", intermediate_size=inner)
    quantise_model(model, scheme)
    base = Base(model)
    prompt, answer = PROMPTS[2], [5, 6, 7]
    exact, fixed = (logits_of(stepper(base, exact), prompt, answer) for exact in (True, False))
    differs = level in FIXED and scheme.block != 34  # such blocks are decoded to floats first
    assert torch.equal(exact, fixed) != differs
    assert (exact - fixed).abs().max() <= 3e-4 * exact.abs().max()
    wanted = by_forward(base, prompt, answer)
    assert torch.allclose(fixed.log_softmax(1), wanted.log_softmax(1), atol=1e-3)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("inner", [84, 96, 128])
@pytest.mark.parametrize(
    "scheme", [Scheme("nf4"), Scheme("nf4", 32), Scheme("nf4", 64, double=False), Scheme("fp4", 128)]
)
def test_where_scales_lie_changes_no_bit(level, scheme, inner, exact, monkeypatch):
    model = tiny_model("llama", intermediate_size=inner)
    quantise_model(model, scheme)
    base = Base(model)
    in_tiles = logits_of(stepper(base, exact), PROMPTS[2], [5, 6, 7])
    monkeypatch.setattr(native_decoder, "DECODED", 0)  # no room for other scales than the weight's own
    assert torch.equal(logits_of(stepper(base, exact), PROMPTS[2], [5, 6, 7]), in_tiles)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_sum_in_fixed_point_overflows(level, scheme):
    model = tiny_model("llama")
    with torch.no_grad():  # products of one sign, all as large as they can be
        for name, parameter in model.named_parameters():
            parameter.fill_(0.02 if "proj" in name else 1.0)
        model.lm_head.weight.normal_()
    quantise_model(model, Scheme(scheme))
    base = Base(model)
    exact, fixed = (logits_of(stepper(base, exact), PROMPTS[2], [5, 6, 7]) for exact in (True, False))
    assert exact.std() > 0.1 and (exact - fixed).abs().max() <= 3e-4 * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_logits_are_those_of_the_head_itself_where_others_are_estimated(
    level, dtype, monkeypatch
):
    model = tiny_model("llama", vocab_size=1001).to(dtype)
    quantise_model(model, Scheme("nf4"))
    base = Base(model)
    plain, wanted = greedy(stepper(base, False), PROMPTS, 8)
    monkeypatch.setattr(native_decoder, "LARGE_HEAD", 0)
    tokens, logits = greedy(stepper(base, False), PROMPTS, 8)
    assert torch.equal(tokens, plain)
    best, rest = wanted.topk(100).indices, wanted.topk(800, largest=False).indices
    assert torch.equal(logits.gather(2, best), wanted.gather(2, best))
    estimated = logits.gather(2, rest) != wanted.gather(2, rest)
    assert bool(estimated.float().mean() > 0.9) == (level in FIXED)
    assert (logits - wanted).std() <= 0.01 * wanted.std()
    assert (logits.logsumexp(2) - wanted.logsumexp(2)).abs().max() <= 1e-3
    for row, prompt in enumerate(PROMPTS):  # alone a row has the same bits
        assert torch.equal(greedy(stepper(base, False), [prompt], 8)[1][0], logits[row])
    exact, _ = greedy(stepper(base, True), PROMPTS, 8)
    assert torch.equal(exact, tokens)


@pytest.mark.parametrize("change", ["small", "bias", "not packed"])
def test_a_head_that_gains_nothing_by_estimates_is_read_itself(change, monkeypatch):
    model = tiny_model("llama")
    if change != "not packed":
        quantise_model(model, Scheme("nf4"))
    if change == "bias":
        model.lm_head.bias = torch.nn.Parameter(torch.ones(len(model.lm_head.weight)))
    if change != "small":
        monkeypatch.setattr(native_decoder, "LARGE_HEAD", 0)
    assert NativeDecoder(model)._current().rough is None


def logits_of(steps, prompt, answer):
    """Return the logits (n, V) before each token of an answer."""
    steps.reserve(1, len(prompt) + len(answer))
    steps.open(0, None)
    return torch.cat(
        [steps.prefill([(0, prompt)]), *(steps.decode([0], torch.tensor([t])) for t in answer[:-1])]
    )


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_seen_in_the_logits(level, exact, broken):
    base = with_adapters(1, scheme="nf4")
    base.adapters["a0"].parameters()[0].data[0, 0] = broken
    steps = stepper(base, exact)
    steps.reserve(2, 4)
    for slot, name in enumerate((None, "a0")):
        steps.open(slot, name)
    sound, unsound = steps.prefill([(0, PROMPTS[0]), (1, PROMPTS[0])])
    assert sound.isfinite().all() and not unsound.isfinite().any()


def test_log_probabilities_are_computed_exactly(monkeypatch):
    base = graft.load("seedling")
    asked, made = [], base._native.stepper
    monkeypatch.setattr(
        base._native, "stepper", lambda *a, exact, **kw: asked.append(exact) or made(*a, exact=exact, **kw)
    )
    for wanted in ({}, {"logprobs": 0}, {"exact": True}):
        base.generate(["a"], max_new_tokens=1, **wanted)
    assert asked == [False, True, True]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("scheme", [None, "nf4"])
def test_rows_of_different_adapters_are_as_alone_and_as_the_base_has_them(level, scheme, exact):
    base = with_adapters(4, scheme=scheme)
    names = [None, "a0", "a1", "a1", "a2", "a3", None, "a3"]
    prompts = [inputs("llama", rows=8, length=9)["ids"][row, : 2 + row % 5].tolist() for row in range(8)]
    steps = stepper(base, exact)
    tokens, logits = greedy(steps, prompts, 5, names)
    for row, name in enumerate(names):
        alone, seen = greedy(steps, [prompts[row]], 5, [name])
        assert torch.equal(tokens[row], alone[0])
        assert torch.equal(logits[row], seen[0])  # to the bit: a row does not depend on its neighbours
        wanted = by_forward(base, prompts[row], alone[0].tolist(), name)
        assert torch.allclose(logits[row].log_softmax(1), wanted.log_softmax(1), atol=1e-5 if exact else 1e-3)


def test_slots_come_and_go_in_any_order(level):
    base = with_adapters(2)
    prompts = inputs("llama", rows=24, length=40)["ids"].tolist()
    chance = random.Random(0)
    waiting = [
        (row, prompt[: chance.randint(1, 40)], [None, "a0", "a1"][row % 3])
        for row, prompt in enumerate(prompts)
    ]
    ends = {row: chance.randint(1, 12) for row, _, _ in waiting}
    steps, written, free, live = stepper(base), {}, list(range(6)), {}
    steps.reserve(6, 52)
    texts = {row: (prompt, name) for row, prompt, name in waiting}
    while waiting or live:
        while waiting and free and chance.random() < 0.7:
            row, prompt, name = waiting.pop()
            slot = free.pop(chance.randrange(len(free)))
            steps.open(slot, name)
            cut = chance.randint(0, len(prompt) - 1)  # some prompts come in two pieces
            if cut:
                steps.prefill([(slot, prompt[:cut])])
            written[row] = [int(steps.prefill([(slot, prompt[cut:])])[0].argmax())]
            live[slot] = row
        for slot in [slot for slot, row in live.items() if len(written[row]) >= ends[row]]:
            steps.free(slot)
            free.append(slot)
            del live[slot]
        if live:
            slots = chance.sample(sorted(live), len(live))
            last = torch.tensor([written[live[slot]][-1] for slot in slots])
            for slot, token in zip(slots, steps.decode(slots, last).argmax(1).tolist(), strict=True):
                written[live[slot]].append(token)
    for row, (prompt, name) in texts.items():
        tokens, _ = greedy(steps, [prompt], ends[row], [name])
        assert written[row][: ends[row]] == tokens[0].tolist()


def test_prefixes_are_copied_and_cut_and_the_cache_grows_and_shrinks(level):
    steps = stepper(Base(tiny_model("llama")))
    prompt = PROMPTS[2]
    wanted, _ = greedy(steps, [prompt], 4)
    steps.reserve(3, 12)
    for slot in (7, 8, 9):
        steps.open(slot, None)
    steps.prefill([(7, prompt)])
    steps.copy_prefix(7, 9, 6)
    assert int(steps.prefill([(9, prompt[6:])])[0].argmax()) == int(wanted[0, 0])
    steps.decode([9], torch.tensor([1]))
    steps.truncate(9, 3)
    steps.free(7)
    steps.free(8)
    steps.reserve(1, 30)  # slot 9 moves to the row that remains
    assert int(steps.prefill([(9, prompt[3:])])[0].argmax()) == int(wanted[0, 0])
    steps.reserve(4, 40)
    assert int(steps.decode([9], wanted[0, :1]).argmax()) == int(wanted[0, 1])


def test_changed_weights_and_merged_adapters_are_seen(level):
    base = with_adapters(1)
    found = NativeDecoder(base.model)
    before, _ = greedy(found.stepper(base.adapters), PROMPTS, 4, ["a0"] * 3)
    base.merge("a0")
    _, merged = greedy(found.stepper(base.adapters), PROMPTS, 4)
    assert torch.allclose(merged[0], by_forward(base, PROMPTS[0], before[0].tolist()), atol=1e-4)
    base.unmerge("a0")
    with torch.no_grad():
        base.model.model.norm.weight.mul_(1.5)
    tokens, logits = greedy(found.stepper(base.adapters), PROMPTS, 4)
    assert torch.allclose(logits[1], by_forward(base, PROMPTS[1], tokens[1].tolist()), atol=1e-4)


def test_a_head_of_16_bit_values_is_read_in_16_bits_without_loss(level):
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight.copy_(model.lm_head.weight.bfloat16().float())
    base = Base(model)
    steps = stepper(base)
    assert steps._decoder.model.head.dtype == torch.bfloat16
    tokens, logits = greedy(steps, PROMPTS, 3)
    assert torch.allclose(logits[0], by_forward(base, PROMPTS[0], tokens[0].tolist()), atol=1e-5)


def test_logits_are_the_same_on_any_number_of_threads(level):
    base, threads = with_adapters(4, scheme="nf4"), torch.get_num_threads()
    try:
        answers = []
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            answers.append(greedy(stepper(base), PROMPTS, 4, [None, "a1", "a3"])[1])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gpt2", {}),
        ("phi3", {}),
        ("granite", {**WIDE, "residual_multiplier": 0.5}),
        ("smollm3", {**WIDE, "no_rope_layers": [1, 0], "pad_token_id": 0}),
        ("olmo2", {**WIDE}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}),
    ],
)
def test_other_models_are_refused_with_a_reason(family, changes):
    found = NativeDecoder(tiny_model(family, **changes))
    assert found.stepper({}) is None
    assert found.reason


def test_a_module_that_computes_something_else_is_found_by_the_probe():
    model = tiny_model("llama")
    model.model.layers[
        1
    ].mlp.act_fn = torch.nn.Tanh()  # the first layer's is read, and all are taken for alike
    found = NativeDecoder(model)
    assert found.stepper({}) is None
    assert "differ" in found.reason


def test_a_hook_of_somebody_else_sees_the_models_own_forward():
    base = Base(tiny_model("llama"))
    assert base.native_stepper() is not None
    handle = base.model.model.layers[0].register_forward_hook(lambda module, args, output: None)
    assert base.native_stepper() is None
    handle.remove()
    assert base.native_stepper() is not None


def test_only_low_rank_updates_of_the_blocks_are_served():
    base = with_adapters(2)
    base.attach("dora", graft.LoRA(r=2, use_dora=True, target_modules="all-linear"))
    base.attach("head", graft.LoRA(r=2, target_modules=["lm_head"]))
    base.attach("prefix", graft.PrefixTuning(num_virtual_tokens=2))
    base.attach("pissa", graft.LoRA(r=2, init_lora_weights="pissa", target_modules=["v_proj"]))
    found = NativeDecoder(base.model)
    served = {name: found.serves(adapter) for name, adapter in base.adapters.items()}
    assert served == {"a0": True, "a1": True, "dora": False, "head": False, "prefix": False, "pissa": True}
    assert found.serves(None)


def test_there_is_none_without_the_library():
    with native.at_level("reference"):
        found = NativeDecoder(tiny_model("llama"))
        assert found.stepper({}) is None
    assert found.reason
