"""The engine of a server: texts of many adapters are what each is alone, while adapters come and go."""

import contextlib
import json
import random
import threading

import pytest
import torch
from safetensors.torch import save_file
from served import KINDS, Waited, write_adapters

from graft.errors import AdapterError, SiteError
from graft.generate.engine import Engine
from graft.models.load import load
from graft.serve.jobs import Busy, Cancelled, Ended, Late
from graft.serve.registry import Registry
from graft.serve.worker import Worker
from models import randomise

PROMPTS = ("The kettle", "Write a product", "Description:", "A lamp that")


@pytest.fixture(scope="module")
def base():
    return load("seedling", quant="nf4", dtype="fp32")


@pytest.fixture(scope="module")
def root(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    write_adapters(base, folder, 6)
    return folder


@pytest.fixture(scope="module")
def alone(base, root):
    """Return what an adapter writes alone, by `base.complete`, and remember it."""
    known = {}

    def answer(prompt, name, **how):
        key = prompt, name, str(how)
        if key not in known:
            if name is not None:
                base.load_adapter(root / name, "alone")
            known[key] = base.complete([prompt], [name and "alone"], **{"max_new_tokens": 8, **how})[0]
            if name is not None:
                base.detach("alone")
        return known[key]

    return answer


@pytest.fixture
def started(base, root):
    """Start a worker over all adapters, and stop it at the end."""
    workers = []

    def start(budget=None, **settings):
        worker = Worker(base, Registry(base, root, budget), **settings)
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        worker.close(60)
    for name in list(base.adapters):
        base.detach(name)


def test_eight_adapters_of_all_kinds_at_once_answer_as_each_alone(started, base, root, alone):
    names = [None, *sorted(path.name for path in root.iterdir())]
    plan = [(PROMPTS[i % 4], name) for i, name in enumerate(names)]
    wanted = [alone(prompt, name, logprobs=2) for prompt, name in plan]
    worker = started()
    jobs = [Waited(base, prompt, name, logprobs=2) for prompt, name in plan]
    for waited in jobs:
        worker.submit(waited.job)
    for waited, want in zip(jobs, wanted, strict=True):
        got = waited.result()
        assert (got.text, got.tokens, got.finish_reason) == (want.text, want.tokens, want.finish_reason)
        assert got.logprobs == pytest.approx(want.logprobs, abs=1e-5)  # the order of sums
        assert "".join(piece.text for piece in waited.pieces) == got.text
        told = [
            *(event for piece in waited.pieces for event in piece.logprobs),
            *waited.events[-1].last.logprobs,
        ]
        assert told == got.logprobs


def test_seeded_texts_do_not_depend_on_their_neighbours(started, base, alone):
    how = {"do_sample": True, "temperature": 1.5, "seed": 11}
    want = alone(PROMPTS[0], "lora-0", **how)
    worker = started()
    jobs = [Waited(base, prompt, "lora-0", **how) for prompt in PROMPTS]
    for waited in jobs:
        worker.submit(waited.job)
    assert jobs[0].result().tokens == want.tokens


def test_adapters_beyond_the_budget_take_turns(started, base, root, alone):
    names = sorted(path.name for path in root.iterdir() if path.name != "changing")
    wanted = {name: alone(PROMPTS[0], name, max_new_tokens=4) for name in names}
    size = max((root / name / "adapter_model.safetensors").stat().st_size for name in names)
    worker = started(budget=int(2.2 * size))
    jobs = [Waited(base, PROMPTS[0], name, max_new_tokens=4) for name in names * 2]
    for waited in jobs:
        worker.submit(waited.job)
    for waited, name in zip(jobs, names * 2, strict=True):
        assert waited.result().tokens == wanted[name].tokens
    assert worker.registry.bytes <= 2.2 * size and len(base.adapters) < len(names)


def write_one(base, folder, seed):
    """Write a LoRA with random values, over an older one."""
    adapter = base.attach("new", KINDS["lora"])
    randomise(adapter, seed, scale=0.3)
    adapter.save(folder)
    base.detach("new")


def test_a_replaced_adapter_ends_its_texts_as_it_began_them(started, base, root, alone, tmp_path):
    folder = root / "changing"
    write_one(base, folder, 100)
    before = alone(PROMPTS[1], "changing", max_new_tokens=40)
    worker = started()
    worker.call(lambda: worker.registry.load("changing")).result()
    first = Waited(base, PROMPTS[1], "changing", max_new_tokens=40)
    writing = threading.Event()
    take = first._take
    first.job.on_event = lambda event: (take(event), writing.set())
    worker.submit(first.job)
    assert writing.wait(60)

    def replace():
        write_one(base, folder, 101)
        worker.registry.load("changing")

    worker.call(replace).result()
    assert not first.done.is_set() or len(first.result().tokens) < 40
    second = Waited(base, PROMPTS[1], "changing", max_new_tokens=40)
    worker.submit(second.job)
    assert first.result().tokens == before.tokens
    assert second.result().tokens != before.tokens
    worker.call(lambda: worker.registry.unload("changing")).result()
    third = Waited(base, PROMPTS[1], "changing")
    worker.submit(third.job)
    with pytest.raises(AdapterError, match="changing"):
        third.result()
    assert not [name for name in base.adapters if name.startswith("changing")]


def test_a_cancelled_text_frees_its_slot_at_the_next_step(started, base):
    worker = started(rows=1)
    long = Waited(base, PROMPTS[0], max_new_tokens=100_000, min_new_tokens=50_000, stop=())
    long.job.room = 400
    steps = []
    take = long._take

    def seen(event):
        take(event)
        if len(long.pieces) == 3:
            long.job.cancel()
            steps.append(worker.stats.steps)

    long.job.on_event = seen
    after = Waited(base, PROMPTS[1])
    worker.submit(long.job)
    worker.submit(after.job)
    with pytest.raises(Cancelled):
        long.result()
    assert after.result().tokens
    assert worker.stats.steps - steps[0] <= 1 + 8  # the steps of the other text alone


def ends_in_order(worker, jobs):
    """Submit all jobs before the first one begins; return the places of those that end, in order."""
    held, order = threading.Event(), []
    worker.call(held.wait)
    for place, waited in enumerate(jobs):
        take = waited._take

        def taken(event, place=place, take=take):
            if isinstance(event, Ended):
                order.append(place)
            take(event)

        waited.job.on_event = taken
        worker.submit(waited.job)
    held.set()
    for waited in jobs:
        waited.result()
    return order


def test_a_flood_on_one_adapter_holds_up_another_by_one_text(started, base):
    worker = started(rows=2)
    worker.call(lambda: [worker.registry.load(name) for name in ("lora-0", "ia3-2")]).result()
    how = {"max_new_tokens": 4, "min_new_tokens": 4}
    flood = [Waited(base, PROMPTS[0], "lora-0", **how) for _ in range(6)]
    order = ends_in_order(worker, [*flood, Waited(base, PROMPTS[0], "ia3-2", **how)])
    assert order.index(6) <= 2  # beside the first text of the flood, or the second


def test_an_adapter_without_room_is_not_passed_by_for_ever(started, base, root):
    sizes = {n: (root / n / "adapter_model.safetensors").stat().st_size for n in ("lora-0", "dora-1")}
    worker = started(budget=max(sizes.values()) + min(sizes.values()) // 2, rows=2)
    worker.call(lambda: worker.registry.load("lora-0")).result()
    worker.call(lambda: None, needs="dora-1").result()  # its files are read: it waits for room alone
    # Of lengths by which two of them never end at one step, so that the first adapter is always held.
    lengths = [{"max_new_tokens": count, "min_new_tokens": count} for count in (3, 5) * 5]
    flood = [Waited(base, PROMPTS[0], "lora-0", **how) for how in lengths]
    order = ends_in_order(worker, [*flood[:3], Waited(base, PROMPTS[0], "dora-1"), *flood[3:]])
    assert order.index(3) <= 5


def test_a_long_prompt_is_read_in_pieces_while_others_are_written(started, base):
    worker = started(chunk=8)
    short = Waited(base, PROMPTS[0], max_new_tokens=120, min_new_tokens=120)
    long = Waited(base, "a lamp and " * 40, max_new_tokens=1)
    writing, told, seen = threading.Event(), short._take, []
    short.job.on_event = lambda event: (told(event), writing.set())
    read = long._take
    long.job.on_event = lambda event: (seen.append(len(short.pieces)), read(event))
    worker.submit(short.job)
    assert writing.wait(60)
    before = len(short.pieces)
    worker.submit(long.job)
    assert long.result().tokens
    assert seen[0] - before >= len(long.job.prompt) // 8 // 2  # a piece may be part of a character
    assert short.result().tokens


def test_a_text_that_is_not_done_in_time_is_told(started, base):
    worker = started(rows=1)
    late, slow = Waited(base, PROMPTS[1]), Waited(base, PROMPTS[0], max_new_tokens=300, min_new_tokens=300)
    late.job.timeout_s = 0.0
    told = slow.job.on_event

    def out_of_time(event):
        slow.job.timeout_s = 0.0  # with its first piece
        told(event)

    slow.job.on_event = out_of_time
    worker.submit(slow.job)
    worker.submit(late.job)
    for waited in (slow, late):
        with pytest.raises(Late):
            waited.result()


def test_a_full_queue_takes_nothing_more(base, root):
    worker = Worker(base, Registry(base, root), rows=1, waiting=1)
    held = threading.Event()
    worker.call(held.wait)  # nothing is written until then
    jobs = [Waited(base, prompt) for prompt in PROMPTS[:2]]
    for waited in jobs:
        worker.submit(waited.job)
    with pytest.raises(Busy) as busy:
        worker.submit(Waited(base, PROMPTS[2]).job)
    held.set()
    assert busy.value.retry_after_s >= 1 and all(waited.result().tokens for waited in jobs)
    assert worker.close(60)


def test_a_worker_that_closes_ends_what_it_has_taken(base, root):
    worker = Worker(base, Registry(base, root))
    jobs = [Waited(base, prompt) for prompt in PROMPTS]
    for waited in jobs:
        worker.submit(waited.job)
    assert worker.close(60) and not worker.alive
    assert all(isinstance(waited.events[-1], Ended) for waited in jobs)
    with pytest.raises(Busy):
        worker.submit(Waited(base, PROMPTS[0]).job)


def test_a_failing_listener_does_not_disturb_the_others(started, base, alone):
    worker = started()
    broken = Waited(base, PROMPTS[0])
    broken.job.on_event = lambda event: 1 / 0
    good = Waited(base, PROMPTS[1])
    worker.submit(broken.job)
    worker.submit(good.job)
    assert good.result().tokens == alone(PROMPTS[1], None).tokens


def test_an_adapter_of_another_model_fails_for_itself_alone(base, tmp_path, alone):
    """Also where a call needs it, as embeddings and classes do: the texts go on."""
    (tmp_path / "alien").mkdir()
    config = {"peft_type": "LORA", "r": 2, "target_modules": ["query_key_value"], "task_type": "CAUSAL_LM"}
    (tmp_path / "alien" / "adapter_config.json").write_text(json.dumps(config))
    site = "base_model.model.transformer.h.0.self_attention.query_key_value"
    tensors = {f"{site}.lora_A.weight": torch.ones(2, 64), f"{site}.lora_B.weight": torch.ones(192, 2)}
    save_file(tensors, tmp_path / "alien" / "adapter_model.safetensors")
    registry = Registry(base, tmp_path)
    worker = Worker(base, registry, rows=2)
    try:
        text = Waited(base, PROMPTS[0])
        worker.submit(text.job)
        call = worker.call(lambda: registry.acquire("alien"), needs="alien")
        with pytest.raises(SiteError):
            call.result(60)
        assert text.result().tokens == alone(PROMPTS[0], None).tokens
        assert worker.load == 0
    finally:
        worker.close(60)


def test_every_text_ends_where_its_engine_is_in_disorder(base, monkeypatch, alone):
    worker = Worker(base, Registry(base, None), rows=2)
    jobs = [Waited(base, PROMPTS[0], max_new_tokens=300, min_new_tokens=300) for _ in range(2)]
    broken = threading.Event()

    def breaks(engine, *arguments):
        broken.set()
        raise RuntimeError("in disorder")

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", breaks)
        patch.setattr(Engine, "cancel", breaks)
        for waited in jobs:
            worker.submit(waited.job)
        for waited in jobs:
            with pytest.raises(RuntimeError, match="in disorder"):
                waited.result()
    assert broken.is_set() and worker.load == 0
    again = Waited(base, PROMPTS[1])
    worker.submit(again.job)
    assert again.result().tokens == alone(PROMPTS[1], None).tokens
    assert worker.close(60)


def test_many_requests_with_joins_cancels_and_loads_never_answer_for_another(started, base, root, alone):
    chance = random.Random(0)
    names = [None, *sorted(path.name for path in root.iterdir() if path.name != "changing")]
    for name in names:
        for prompt in PROMPTS[:2]:
            alone(prompt, name)
    largest = max((root / name / "adapter_model.safetensors").stat().st_size for name in names if name)
    worker = started(budget=6 * largest, waiting=100)
    jobs = []
    for _ in range(30):
        prompt, name = chance.choice(PROMPTS[:2]), chance.choice(names)
        waited = Waited(base, prompt, name)
        worker.submit(waited.job)
        if chance.random() < 0.15:
            waited.job.cancel()
        elif chance.random() < 0.1 and name:
            worker.call(lambda name=name: worker.registry.load(name))
        jobs.append((waited, prompt, name))
    for waited, prompt, name in jobs:
        with contextlib.suppress(Cancelled):
            assert waited.result().tokens == alone(prompt, name).tokens
    assert worker.load == 0
    assert worker.call(lambda: [v.users for v in worker.registry._versions.values()]).result().count(0) > 0
