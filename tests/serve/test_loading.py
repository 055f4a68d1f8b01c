"""Adapters are read beside the model: others write on meanwhile, and those who wait learn how it went."""

import shutil
import threading
from collections.abc import Iterator

import pytest
from served import Waited, write_adapters

from graft.errors import AdapterError
from graft.generate.request import Completion
from graft.methods.full import Full
from graft.models.load import load
from graft.serve.registry import AHEAD, Loading, Registry
from graft.serve.worker import Worker

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base():
    return load("seedling", quant="nf4", dtype="fp32")


@pytest.fixture(scope="module")
def made(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    write_adapters(base, folder, 6)
    return folder


@pytest.fixture
def root(made, tmp_path):
    return shutil.copytree(made, tmp_path / "root")


@pytest.fixture
def start(base, root):
    workers = []

    def started(**settings):
        workers.append(Worker(base, Registry(base, root), **settings))
        return workers[-1]

    yield started
    for worker in workers:
        worker.close(60)
    for name in list(base.adapters):
        base.detach(name)


@pytest.fixture
def held(base, monkeypatch) -> Iterator[threading.Event]:
    """Reading waits for this event, and tells the one in its `began` that it waits."""
    release, read = threading.Event(), base.read_adapter
    release.began = threading.Event()

    def slow(folder, name, **how):
        release.began.set()
        assert release.wait(60)
        return read(folder, name, **how)

    monkeypatch.setattr(base, "read_adapter", slow)
    yield release
    release.set()


def test_others_are_written_while_an_adapter_is_read(base, start, held):
    worker = start()
    waits, others = Waited(base, "The kettle", "dora-1"), [Waited(base, "A lamp") for _ in range(3)]
    worker.submit(waits.job)
    assert held.began.wait(60)
    for one in others:
        worker.submit(one.job)
        assert isinstance(one.result(), Completion)
    assert not waits.done.is_set()
    held.set()
    assert waits.result().tokens


def test_a_loaded_adapter_answers_until_its_new_files_are_read(base, root, start, held):
    worker = start()
    held.set()
    before = Waited(base, "The kettle", "lora-0")
    worker.submit(before.job)
    old = before.result()
    shutil.rmtree(root / "lora-0")
    shutil.copytree(root / "dora-1", root / "lora-0")
    held.clear(), held.began.clear()
    loaded = worker.load_adapter("lora-0")
    assert held.began.wait(60)
    meanwhile, digest = Waited(base, "The kettle", "lora-0"), before.job.digest
    worker.submit(meanwhile.job)
    assert meanwhile.result().tokens == old.tokens and meanwhile.job.digest == digest
    held.set()
    assert loaded.result(60).found.digest != digest
    after = Waited(base, "The kettle", "lora-0")
    worker.submit(after.job)
    assert after.result().logprobs is None and after.job.digest == loaded.result().found.digest


def test_everybody_who_waits_for_a_damaged_adapter_is_told_and_nobody_else(base, root, start, held):
    worker = start()
    waiting = [Waited(base, "The kettle", "ia3-2") for _ in range(3)]
    for one in waiting:
        worker.submit(one.job)
    other = Waited(base, "The kettle", "lora-0")
    worker.submit(other.job)
    assert held.began.wait(60)
    (root / "ia3-2" / WEIGHTS).write_bytes(b"\xff" * 200)
    held.set()
    for one in waiting:
        with pytest.raises(AdapterError, match="ia3-2"):
            one.result()
    assert other.result().tokens and worker.load == 0
    with pytest.raises(AdapterError, match="ia3-2"):
        worker.load_adapter("ia3-2").result(60)


def test_a_file_that_changes_while_it_is_read_is_refused(base, root, monkeypatch):
    registry, read = Registry(base, root), base.read_adapter

    def changed(folder, name, **how):
        adapter = read(folder, name, **how)
        shutil.copy(root / "dora-1" / WEIGHTS, folder / WEIGHTS)
        return adapter

    monkeypatch.setattr(base, "read_adapter", changed)
    with pytest.raises(AdapterError, match="changed while it was read"):
        registry.load("lora-0")
    assert not base.adapters and registry.bytes == 0


def test_no_more_than_a_few_adapters_are_read_ahead(base, root, held):
    registry = Registry(base, root)
    names = sorted(path.name for path in root.iterdir())
    woken = threading.Event()
    for name in names:
        with pytest.raises(Loading):
            registry.acquire(name, woken.set)
    assert len(registry._ahead) == AHEAD < len(names)
    held.set()
    assert woken.wait(60)
    for name in names:  # those that were left out are read now
        registry.release(registry.acquire(name))
        base.detach(registry._versions[name].adapter)
    assert not registry._ahead


def test_nothing_is_read_beside_an_adapter_that_changes_the_bases_own_weights(root):
    base = load("seedling", dtype="fp32")
    base.attach("new", Full()).save(root / "whole")
    base.detach("new")
    registry = Registry(base, root)
    registry.acquire("whole")
    with_one = registry.acquire("lora-0", lambda: pytest.fail("nobody waits"))  # read at once, between steps
    assert with_one.adapter in base.adapters
