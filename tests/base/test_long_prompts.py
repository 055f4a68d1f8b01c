"""Long prompts, read by the forward into the decoder's cache: the same alone and among others."""

import random

import pytest
import torch

import graft
from graft.base import native_decoder
from graft.base.base import Base
from graft.base.long_prompts import LongPrompts
from graft.base.native_decoder import NativeDecoder
from graft.generate.engine import Engine
from graft.generate.generate import evaluating
from graft.generate.request import Request
from graft.generate.sampling import Sampling
from graft.generate.stepper import BLOCK
from graft.kernels import native
from graft.quant import Scheme, quantise_model
from models import randomise, tiny_model

pytestmark = pytest.mark.skipif(not native.levels(), reason="no C compiler at the installation")

LONG = {"max_position_embeddings": 256}
FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": 20},
    "qwen3": {},
    "gemma2": {"sliding_window": 20, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3_text": {
        "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24,
        "num_hidden_layers": 2, "intermediate_size": 128, "vocab_size": 96, "sliding_window": 20,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}  # fmt: skip


@pytest.fixture
def read(monkeypatch):
    """The numbers of tokens that are read by forwards, of small models too."""
    counts, real = [], LongPrompts.read

    def counted(self, row, first, tokens, adapter):
        counts.append(len(tokens))
        real(self, row, first, tokens, adapter)

    monkeypatch.setattr(native_decoder, "LARGE_BLOCK", 0)
    monkeypatch.setattr(LongPrompts, "read", counted)
    return counts


def with_adapters(family="llama", scheme=None, **changes):
    model = tiny_model(family, **LONG, **changes)
    if scheme:
        quantise_model(model, Scheme(scheme))
    base = Base(model)
    for seed, name in enumerate("ab"):
        randomise(base.attach(name, graft.LoRA(r=4, target_modules="all-linear")), seed=seed)
    return base


def ids(count, seed=0):
    chance = random.Random(seed)
    return [chance.randrange(4, 96) for _ in range(count)]


def by_forward(base, prompt, name):
    """Return the log-probabilities (V,) after a prompt that the base's own forward computes."""
    with torch.no_grad():
        return base(torch.tensor([prompt]), adapters=[name], use_cache=False).logits[0, -1].log_softmax(0)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_whole_and_in_pieces_are_as_the_forward_has_them(family, read):
    base = with_adapters(family, **FAMILIES[family])
    prompts = {
        slot: (ids(count, slot), (None, "a", "b")[slot % 3]) for slot, count in enumerate((64, 65, 150))
    }
    with torch.no_grad(), evaluating(base):
        steps = base.native_stepper()
        steps.reserve(4, 160)
        for slot, (_, name) in prompts.items():
            steps.open(slot, name)
        logits = steps.prefill([(slot, prompt) for slot, (prompt, _) in prompts.items()])
        assert read == [64, 128]  # the last token is the decoder's
        steps.open(3, "b")
        whole = prompts[2][0]
        assert len(steps.prefill([(3, whole[:64])], {3})) == 0
        assert len(steps.prefill([(3, whole[64:128])], {3})) == 0
        again = steps.prefill([(3, whole[128:])])
        assert read[2:] == [64, 64]
        after = steps.decode([0, 1, 2], torch.tensor([5, 6, 7]))
    for slot, (prompt, name) in prompts.items():
        assert torch.allclose(logits[slot].log_softmax(0), by_forward(base, prompt, name), atol=1e-5)
        longer = by_forward(base, [*prompt, 5 + slot], name)
        assert torch.allclose(after[slot].log_softmax(0), longer, atol=1e-5)
    assert torch.allclose(again[0], logits[2], atol=1e-5)


def written(stepper, base, requests, chance=None, **settings):
    """Write requests, all at once or at random steps. Returns the log-probabilities of their tokens."""
    engine, coming = Engine(stepper, **settings), list(requests)
    with torch.no_grad(), evaluating(base):
        while coming or not engine.idle:
            count = len(coming) if chance is None else chance.choice([0, 0, 1, 3])
            for request in coming[:count]:
                engine.submit(request)
            coming = coming[count:]
            engine.step()
    return [torch.tensor(request.completion.logprobs) for request in requests]


def drawn():
    """Return a maker of requests, some of which begin alike, at the edges of blocks and elsewhere."""
    chance, start = random.Random(3), ids(200)
    lengths = [1, 20, 63, 64, 65, 66, 90, 127, 128, 129, 130, 180]
    how = Sampling(max_new_tokens=3, logprobs=0)
    made = []
    for index in range(36):
        length = lengths[index % len(lengths)]
        shared = chance.choice([0, length - 1, length, 40, 64, 100])
        prompt = (start[:shared] + ids(200, seed=index))[:length]
        made.append((prompt, (None, "a", "b")[index // 12], index))
    return lambda: [Request(list(prompt), name, how, index=index) for prompt, name, index in made]


@pytest.mark.parametrize("scheme", [None, "nf4"])
def test_a_text_is_the_same_alone_and_among_others(scheme, read, monkeypatch):
    # Also where the two ways differ, as with codes in fixed point.
    monkeypatch.setattr(NativeDecoder, "_reads_faster", lambda *_: True)
    base, make = with_adapters(scheme=scheme), drawn()
    with evaluating(base):
        stepper = base.native_stepper()
    alone = [written(stepper, base, [request], max_rows=1)[0] for request in make()]
    blocks = sum(read)
    requests = make()
    others = written(stepper, base, requests, random.Random(5), max_rows=6, chunk=2 * BLOCK)
    assert 0 < sum(read) - blocks < blocks  # beginnings were taken over
    for one, other in zip(alone, others, strict=True):
        assert torch.allclose(one, other, atol=1e-5), (one, other)


@pytest.mark.parametrize("first", [63, 64, 65, 100, 128, 129])
@pytest.mark.parametrize("second", [65, 70, 128, 129, 150])
def test_what_two_prompts_share_is_read_as_each_alone_reads_it(first, second, read, monkeypatch):
    monkeypatch.setattr(NativeDecoder, "_reads_faster", lambda *_: True)
    base, start = with_adapters(scheme="nf4"), ids(200)
    prompts = [start[:first], [*start[: min(first, second - 1)], *ids(200, seed=1)][:second]]
    how = Sampling(max_new_tokens=4, logprobs=0)
    with evaluating(base):
        stepper = base.native_stepper()
    make = lambda: [Request(list(prompt), how=how, index=index) for index, prompt in enumerate(prompts)]
    alone = [written(stepper, base, [request], max_rows=1)[0] for request in make()]
    together = written(stepper, base, make(), max_rows=2)
    for one, other in zip(alone, together, strict=True):
        assert torch.allclose(one, other, atol=1e-5), (one, other)


@pytest.mark.parametrize(
    ("scheme", "dtype", "exact", "faster"),
    [
        (None, torch.float32, False, True),
        ("nf4", torch.float32, True, True),
        ("nf4", torch.float32, False, False),
        ("nf4", torch.bfloat16, False, True),
    ],
)
def test_the_forward_reads_where_its_products_are_faster(scheme, dtype, exact, faster, read, monkeypatch):
    monkeypatch.setattr(native, "by_torch", lambda given: given == torch.bfloat16)
    model = tiny_model("llama", **LONG).to(dtype)
    if scheme:
        quantise_model(model, Scheme(scheme))
    base = Base(model)
    fixed = native.level() in native_decoder.FIXED
    with torch.no_grad(), evaluating(base):
        steps = base.native_stepper(exact=exact)
        steps.reserve(1, 100)
        steps.open(0, None)
        steps.prefill([(0, ids(100))])
    assert bool(read) == (faster or not fixed)


def test_a_small_model_is_left_to_the_decoder():
    base = graft.load("seedling")
    with evaluating(base):
        assert base.native_stepper()._long_prompts is None
