"""The engine: a text is the same alone and among others, whenever they join and leave.

Oracles: transformers' generate on one row; the engine with one row; the forward that training uses.
"""

import random

import pytest
import torch

from graft.errors import UsageError
from graft.generate.cached import CachedStepper
from graft.generate.engine import Engine
from graft.generate.generate import evaluating
from graft.generate.request import Request
from graft.generate.rows import Row, common, join, leave
from graft.generate.sampling import Sampling
from graft.methods.houlsby import Houlsby
from graft.methods.ia3 import IA3
from graft.methods.lora import LoRA
from graft.methods.p_tuning import PTuning
from graft.methods.prefix import PrefixTuning
from graft.methods.prompt import PromptTuning
from graft.models.load import load
from models import randomise, tiny_base

ADAPTERS = {
    "lora": LoRA(r=2, target_modules="all-linear"),
    "prefix": PrefixTuning(num_virtual_tokens=3),
    "prompt": PromptTuning(num_virtual_tokens=4),
    "made": PTuning(num_virtual_tokens=2),
    "ia3": IA3(),
    "bottleneck": Houlsby(),
    "low": LoRA(r=3),
}
WINDOWS = {"mistral": {"sliding_window": 6}, "gemma2": {"sliding_window": 6}}  # shorter than the texts


def with_adapters(family):
    base = tiny_base(family)
    for seed, (name, method) in enumerate(ADAPTERS.items()):
        randomise(base.attach(name, method), seed, scale=0.1)
    return base


def written(base, requests, *, chance=None, **settings):
    """Write all requests in one engine; with `chance` they come in at random steps. Returns the stepper."""
    stepper = CachedStepper(base)
    engine, coming = Engine(stepper, **settings), list(requests)
    with torch.no_grad(), evaluating(base):
        while coming or not engine.idle:
            count = len(coming) if chance is None else chance.choice([0, 0, 1, 2, 5])
            for request in coming[:count]:
                engine.submit(request)
            coming = coming[count:]
            engine.step()
            if engine._limit is not None:
                assert stepper.table.size <= engine._limit
    assert all(request.finished for request in requests)
    return stepper


def drawn(count, size, names=(None,), seed=0, longest=30, sampled=0.5, new=12):
    """Return makers of requests of many lengths, greedy ones and others; each call makes them anew."""
    chance = random.Random(seed)
    common_start = [chance.randrange(4, size) for _ in range(20)]
    made = []
    for index in range(count):
        prompt = [chance.randrange(4, size) for _ in range(chance.randint(1, longest))]
        prompt = common_start + prompt[:8] if chance.random() < 0.2 else prompt
        how = Sampling(
            max_new_tokens=chance.randint(1, new),
            do_sample=chance.random() < sampled,
            temperature=chance.choice([0.7, 1.0, 1.5]),
            top_k=chance.choice([0, 5, 40]),
            top_p=chance.choice([1.0, 0.8]),
            min_p=chance.choice([0.0, 0.05]),
            repetition_penalty=chance.choice([1.0, 1.3]) if chance.random() < 0.3 else 1.0,
            seed=chance.randrange(100),
        )
        settings = {"adapter": chance.choice(names), "how": how, "index": index}
        made.append((prompt, settings | {"ends": frozenset(chance.sample(range(4, size), 3))}))
    return lambda: [Request(list(prompt), **settings) for prompt, settings in made]


def greedy(model, request):
    """Return the tokens that transformers writes to one greedy request."""
    ids = torch.tensor([request.prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=request.limit,
        do_sample=False,
        repetition_penalty=request.how.repetition_penalty,
        eos_token_id=sorted(request.ends),
        pad_token_id=0,
    )
    return out[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_two_hundred_prompts_are_continued_alike_alone_and_among_others(family):
    base = tiny_base(family)
    make = drawn(200, base.vocabulary, new=5)
    alone, mixed = make(), make()
    written(base, alone, max_rows=1)
    written(base, mixed, chance=random.Random(1), max_rows=7, chunk=16)
    assert [r.tokens for r in mixed] == [r.tokens for r in alone]
    plain = [request for request in alone if not request.how.do_sample]
    assert len(plain) > 60 and len({tuple(request.tokens) for request in alone}) > 150
    for request in plain[::8]:
        assert request.tokens == greedy(base.model, request)


def test_the_seedling_continues_alike_alone_and_among_others():
    base = load("seedling", dtype="fp32")
    make = drawn(12, base.vocabulary, seed=3, longest=60)
    alone, mixed = make(), make()
    written(base, alone, max_rows=1)
    written(base, mixed, chance=random.Random(2), max_rows=6, chunk=40)
    assert [r.tokens for r in mixed] == [r.tokens for r in alone]


@pytest.mark.parametrize(
    "family", ["llama", "qwen3", "mistral", "gemma2", "phi3", "gpt_neox", "opt", "qwen2", "gemma", "phi"]
)
def test_families_write_what_transformers_writes(family):
    base = tiny_base(family, **WINDOWS.get(family, {}))
    requests = drawn(8, base.vocabulary, seed=5, sampled=0)()
    written(base, requests, chance=random.Random(4), max_rows=3, chunk=16)
    for request in requests:
        assert request.tokens == greedy(base.model, request)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_rows_of_adapters_of_many_kinds_are_continued_as_alone(family):
    base = with_adapters(family)
    names = [None, *ADAPTERS]
    make = drawn(32, base.vocabulary, names, seed=7, longest=24, new=8)
    alone, mixed = make(), make()
    written(base, alone, max_rows=1)
    written(base, mixed, chance=random.Random(5), max_rows=8, chunk=16)
    for one, other in zip(alone, mixed, strict=True):
        assert (one.adapter, one.tokens) == (other.adapter, other.tokens)
    for name in names:  # the oracle: whole forwards without a cache
        request = next(r for r in alone if r.adapter == name and not r.how.do_sample)
        ids = torch.tensor([request.prompt + request.tokens[:-1]])
        with torch.no_grad():
            logits = base(ids, adapters=[name]).logits[0, len(request.prompt) - 1 :]
        if not request.how.penalised:
            assert logits.argmax(1).tolist() == request.tokens


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_log_probabilities_are_those_of_the_training_forward(family):
    base = with_adapters(family)
    how = Sampling(max_new_tokens=9, do_sample=True, temperature=1.7, top_k=30, seed=3, logprobs=4)
    names = [None, "lora", "prefix", "prompt"]
    requests = [
        Request(list(range(5 + row, 12 + 4 * row)), name, how, index=row) for row, name in enumerate(names)
    ]
    written(base, requests, max_rows=3)
    for request in requests:
        ids = torch.tensor([request.prompt + request.tokens])
        with torch.no_grad():
            logits = base(ids, adapters=[request.adapter], use_cache=False).logits[0]
        expected = logits.log_softmax(1)[len(request.prompt) - 1 : -1]
        chosen = expected.gather(1, torch.tensor(request.tokens)[:, None])[:, 0]
        done = request.completion
        torch.testing.assert_close(torch.tensor(done.logprobs), chosen, atol=1e-5, rtol=0)
        for given, place in zip(done.top_logprobs, expected, strict=True):
            best = place.topk(4)
            assert list(given) == best.indices.tolist()
            torch.testing.assert_close(torch.tensor(list(given.values())), best.values, atol=1e-5, rtol=0)


@pytest.mark.parametrize("limit", [60, 130])
def test_the_limit_of_the_cache_is_obeyed_and_changes_no_text(limit):
    base = tiny_base("llama")
    make = drawn(30, base.vocabulary, seed=11)
    free, limited = make(), make()
    written(base, free, max_rows=8)
    stepper = written(base, limited, chance=random.Random(6), max_rows=8, chunk=16, max_cache_tokens=limit)
    assert [r.tokens for r in limited] == [r.tokens for r in free]
    assert 0 < stepper.table.size <= limit


def test_a_request_that_can_never_fit_is_refused():
    engine = Engine(CachedStepper(tiny_base()), max_cache_tokens=20)
    with pytest.raises(UsageError, match=r"prompt of 15 tokens and an answer of 10.*max_cache_tokens"):
        engine.submit(Request([5] * 15, how=Sampling(max_new_tokens=10)))
    engine.submit(Request([5] * 15, how=Sampling(max_new_tokens=6)))


def test_a_long_prompt_does_not_stop_those_that_are_being_written():
    base = tiny_base()
    engine = Engine(CachedStepper(base), max_rows=2, chunk=8)
    short = engine.submit(Request([5, 6], how=Sampling(max_new_tokens=40)))
    with torch.no_grad(), evaluating(base):
        engine.step()
        long = engine.submit(Request(list(range(5, 45)), how=Sampling(max_new_tokens=2)))
        for step in range(5):
            assert not long.tokens and len(short.tokens) == 2 + step
            engine.step()
        assert long.tokens


def test_a_shared_beginning_is_read_once():
    base = tiny_base()
    start, read = list(range(10, 50)), []
    base.model.model.embed_tokens.register_forward_hook(lambda m, args, out: read.append(args[0].numel()))
    make = lambda: [
        Request([*start, row + 4, 7], how=Sampling(max_new_tokens=1), index=row) for row in range(5)
    ]
    together, apart = make(), make()
    written(base, together, max_rows=5)
    assert sum(read) == 42 + 4 * 2
    read.clear()
    written(base, make(), max_rows=2)  # those in the queue find it too
    assert sum(read) == 42 + 4 * 2
    for request in apart:
        written(base, [request])
    assert [r.tokens for r in together] == [r.tokens for r in apart]


def test_a_prefix_is_not_shared_between_adapters():
    base = with_adapters("llama")
    start = list(range(10, 40))
    make = lambda: [
        Request([*start, 4], name, Sampling(max_new_tokens=4)) for name in (None, "lora", "prompt")
    ]
    together, apart = make(), make()
    written(base, together, max_rows=3)
    for request in apart:
        written(base, [request])
    assert [r.tokens for r in together] == [r.tokens for r in apart]


def test_a_cancelled_request_leaves_its_slot_to_others():
    base = tiny_base()
    engine = Engine(CachedStepper(base), max_rows=1)
    gone = engine.submit(Request([5, 6], how=Sampling(max_new_tokens=30)))
    kept = engine.submit(Request([7, 8], how=Sampling(max_new_tokens=3)))
    with torch.no_grad(), evaluating(base):
        engine.step()
        assert engine.waiting == 1
        engine.cancel(gone)
        assert list(engine.run()) == [kept]
    assert not gone.finished and kept.tokens == greedy(base.model, kept)


@pytest.mark.parametrize("seed", range(5))
def test_rows_stay_in_the_order_of_their_adapters(seed):
    chance, rows = random.Random(seed), []
    for step in range(80):
        if rows and chance.random() < 0.45:
            place = chance.randrange(len(rows))
            before, gone = list(rows), rows[place]
            leave(rows, place)
            assert set(rows) == set(before) - {gone}
        else:
            row = Row(Request([1], chance.choice([None, "a", "b", "c"])), step, 1)
            before = list(rows)
            join(rows, row)
            assert set(rows) == {*before, row} and len(rows) == len(before) + 1
        assert [row.key for row in rows] == sorted(row.key for row in rows)
        stayed = sum(a is not b for a, b in zip(before, rows, strict=False))
        assert stayed <= 4  # one move for each adapter


@pytest.mark.parametrize("count", [0, 3, 16, 17, 30])
def test_the_common_beginning_leaves_one_token_to_read(count):
    same = list(range(count))
    assert common([*same, 100, 101], [*same, 200, 201]) == count
    assert common([*same, 5], [*same, 5, 6]) == count
