"""Runs that are killed, damaged, interrupted or out of space, in processes of their own."""

import contextlib
import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace

import pytest
import torch
import train_toys

from graft import storage
from graft.errors import CheckpointError, GraftError
from graft.training import Interrupted

PROCESSES = multiprocessing.get_context(
    "forkserver"
)  # torch is imported once, each child is a cheap fork of that
PROCESSES.set_forkserver_preload(["graft.training", "graft.recipe"])


def start(run, **keywords):
    run.mkdir(exist_ok=True)
    process = PROCESSES.Process(
        target=train_toys.child, args=(str(run), keywords.pop("keys", {})), kwargs=keywords
    )
    process.start()
    return process


def finish(run, **keywords):
    process = start(run, **keywords)
    process.join(60)
    return process.exitcode


def outcome(run):
    """What must not depend on how often the run was stopped."""
    names = ("metrics.jsonl", "samples.md", "adapter/adapter_model.safetensors", "finished.json")
    return {name: (run / name).read_bytes() for name in names}


def heard(run):
    return (run / "heard.txt").read_text() if (run / "heard.txt").exists() else ""


@pytest.mark.parametrize(
    "keys",
    [
        {"width": 16},
        {"width": 72, "optimizer": "paged_adamw_8bit", "patience": 2, "clip": 0.5, "weight_decay": 0.1},
    ],
    ids=["adamw", "paged_adamw_8bit"],
)
def test_a_run_killed_again_and_again_ends_with_the_bytes_of_an_undisturbed_one(keys, tmp_path):
    assert finish(tmp_path / "calm", keys=dict(keys)) == 0
    run = tmp_path / "killed"
    # In mid-step before and after the first commit, inside commits, and in the middle of writing the adapter.
    kills = [("forward", 4), ("forward", 12), ("fs", 17), ("forward", 6), ("fs", 9), ("fs", 40)]
    for kill in kills:
        assert finish(run, keys=dict(keys), kill=kill) == -signal.SIGKILL, kill
    assert finish(run, keys=dict(keys)) == 0
    assert outcome(run) == outcome(tmp_path / "calm")
    timing = (run / "timing.jsonl").read_text().splitlines()
    resumed = [json.loads(line)["resumed"] for line in timing if "resumed" in line]
    assert len(resumed) >= 4 and resumed == sorted(resumed) and not list(run.rglob(".tmp-*"))


def test_a_run_killed_at_every_operation_of_its_disk_can_always_go_on(tmp_path):
    keys = {"max_steps": 2, "save_every": 1, "eval_every": 2}
    assert finish(tmp_path / "calm", keys=dict(keys)) == 0
    for k in range(3, 75, 9):
        run = tmp_path / str(k)
        first = finish(run, keys=dict(keys), kill=("fs", k))
        assert first in (-signal.SIGKILL, 0)
        assert finish(run, keys=dict(keys)) == 0
        assert outcome(run) == outcome(tmp_path / "calm"), k


def test_a_damaged_checkpoint_is_set_aside_with_a_warning_and_the_one_before_it_serves(tmp_path):
    calm, run = tmp_path / "calm", tmp_path / "run"
    assert finish(calm) == 0
    assert finish(run, kill=("forward", 22)) == -signal.SIGKILL  # in step 11; saved are 6 and 9
    broken = run / "checkpoints" / "step-000009" / "optimizer.safetensors"
    data = bytearray(broken.read_bytes())
    data[-1] ^= 1
    broken.write_bytes(data)
    assert finish(run) == 0
    assert outcome(run) == outcome(calm)
    assert "optimizer.safetensors has SHA-256" in heard(run) and "continuing from step-000006" in heard(run)
    assert "warning" in (run / "timing.jsonl").read_text()
    assert list((run / "checkpoints").glob("damaged-step-000009-*"))


def test_sigterm_saves_after_the_step_exits_143_and_the_run_goes_on_from_there(tmp_path):
    calm, run = tmp_path / "calm", tmp_path / "run"
    assert finish(calm) == 0
    process = start(run, nap=0.1)
    wait_for(
        lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().count("\n") >= 2
    )
    process.terminate()
    process.join(30)
    assert process.exitcode == 143
    newest, damaged = storage.latest(run / "checkpoints")
    assert newest is not None and not damaged and "continues from step" in (run / "error.txt").read_text()
    assert finish(run) == 0
    assert outcome(run) == outcome(calm)


def test_a_second_signal_ends_the_process_at_once_and_the_run_goes_on_from_what_is_saved(tmp_path):
    calm, run = tmp_path / "calm", tmp_path / "run"
    assert finish(calm) == 0
    process = start(run, nap=0.1, slow=600)
    wait_for(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().count("\n"))
    process.terminate()
    wait_for(lambda: (run / "commits").exists())  # it saves the last step, for ten minutes
    process.terminate()
    process.join(60)
    assert process.exitcode == -signal.SIGTERM
    assert finish(run) == 0
    assert outcome(run) == outcome(calm)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("forward", range(2, 20, 3))
def test_a_signal_in_a_forward_throws_the_step_away_and_the_run_ends_with_the_same_bytes(
    forward, number, tmp_path
):
    calls = []

    def told(base, batch):
        calls.append(1)
        loss = train_toys.objective(base, batch)
        if len(calls) == forward:
            os.kill(os.getpid(), number)
        return loss

    train_toys.trainer(tmp_path / "calm").run()
    with usual_handlers(), pytest.raises(Interrupted) as stopped:
        train_toys.trainer(tmp_path / "run", task={"objective": told}).run()
    done = (forward - 2) // 2  # after the preflight two forwards make a step
    assert len(calls) == forward and stopped.value.exit_code == 128 + number
    assert (f"step {done} is saved" if done else "no step was taken") in str(stopped.value)
    train_toys.trainer(tmp_path / "run").run()
    assert outcome(tmp_path / "run") == outcome(tmp_path / "calm")


@pytest.mark.parametrize("what", ["evaluate", "sample"])
def test_what_was_due_when_a_signal_came_is_made_when_the_run_goes_on(what, tmp_path):
    """Evaluations come after steps 4, 8 and 12, and patience counts them."""
    train_toys.trainer(tmp_path / "calm", patience=2).run()
    for call in (1, 2, 3):
        run, calls = tmp_path / str(call), []
        trainer = train_toys.trainer(run, patience=2)
        real = getattr(trainer.task, what)

        def told(*step, real=real, calls=calls, call=call):
            calls.append(1)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(*step)

        trainer.task = replace(trainer.task, **{what: told})
        with pytest.raises(Interrupted, match=f"step {4 * call} is saved"):
            trainer.run()
        kept = (run / "metrics.jsonl").read_text().count("eval_loss")
        assert kept == call - (what == "evaluate")
        train_toys.trainer(run, patience=2).run()
        assert outcome(run) == outcome(tmp_path / "calm")


def test_a_signal_while_the_adapter_is_written_leaves_a_run_that_ends_when_it_is_started_again(tmp_path):
    train_toys.trainer(tmp_path / "calm").run()
    trainer = train_toys.trainer(tmp_path / "run")
    save = trainer.adapter.save
    trainer.adapter.save = lambda folder: (save(folder), os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="step 12 is saved"):
        trainer.run()
    assert not list((tmp_path / "run").rglob(".tmp-*"))
    train_toys.trainer(tmp_path / "run").run()
    assert outcome(tmp_path / "run") == outcome(tmp_path / "calm")


def test_a_full_disk_exits_74_keeps_the_last_checkpoint_and_tells_the_bytes(tmp_path):
    calm, run, keys = tmp_path / "calm", tmp_path / "run", {"width": 64}
    assert finish(calm, keys=dict(keys)) == 0
    assert finish(run, keys=dict(keys), kill=("forward", 16)) == -signal.SIGKILL
    before, _ = storage.latest(run / "checkpoints")
    assert finish(run, keys=dict(keys), limit=8_000) == 74
    after, damaged = storage.latest(run / "checkpoints")
    assert before == after and not damaged and not list(run.rglob(".tmp-*"))
    error = (run / "error.txt").read_text()
    assert "bytes are needed" in error and "are free" in error and str(run / "checkpoints") in error
    assert heard(run).count("trying again") == 2
    assert finish(run, keys=dict(keys)) == 0
    assert outcome(run) == outcome(calm)


def test_of_two_processes_in_one_folder_one_wins_and_the_other_names_it(tmp_path):
    first = start(tmp_path, nap=0.1)
    wait_for(lambda: (tmp_path / "metrics.jsonl").exists())
    with pytest.raises(CheckpointError, match=f"process {first.pid} on"):
        train_toys.trainer(tmp_path).run()
    first.kill()
    first.join()
    train_toys.trainer(tmp_path).run()  # the dead one's lock does not block


@pytest.mark.parametrize("key", ["train.lr", "base", "data"])
def test_a_checkpoint_of_other_settings_is_refused_with_what_changed(key, tmp_path):
    identity = {"train.lr": 0.05, "base": "b" * 8, "data": "d" * 8}
    interrupt(train_toys.trainer(tmp_path), 4)
    with pytest.raises(CheckpointError, match=f"{key}: .* -> other"):
        train_toys.trainer(tmp_path, task={"identity": identity | {key: "other"}}).run()


def test_the_observer_hears_from_which_step_a_run_goes_on(tmp_path):
    interrupt(train_toys.trainer(tmp_path), 4)
    heard = []
    train_toys.trainer(tmp_path, observer=train_toys.told(heard)).run()
    assert ("resumed", 4) in heard and heard[0][0] == "start" and heard[0][1]["done"] == 4
    assert [event[1]["step"] for event in heard if event[0] == "step"] == list(range(5, 13))


def test_at_most_save_every_steps_are_done_twice(tmp_path):
    done = []

    class Stop(Exception): ...

    def counted(base, batch):
        done.append(1)
        if len(done) == 21:  # preflight, then two micro-batches in each of ten steps
            raise Stop
        return train_toys.objective(base, batch)

    with pytest.raises(Stop):
        train_toys.trainer(tmp_path, task={"objective": counted}).run()
    heard = []
    train_toys.trainer(tmp_path, observer=train_toys.told(heard)).run()
    assert ("resumed", 9) in heard


def test_generators_of_torch_python_and_numpy_come_back(tmp_path):
    import random

    import numpy

    draw = lambda: (float(torch.rand(())), random.random(), float(numpy.random.rand()))
    from graft.training import rng

    rng.seed(3)
    states, values = rng.tensors(), json.loads(json.dumps(rng.values()))
    first = draw()
    rng.seed(4)
    assert draw() != first
    rng.restore(states, values)
    assert draw() == first


@contextlib.contextmanager
def usual_handlers():
    """Give SIGINT Python's own handler, also where the tests run in a background that ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt(trainer, step):
    """Run until SIGTERM arrives during this step."""
    trainer.observer.step = lambda record: (
        os.kill(os.getpid(), signal.SIGTERM) if record["step"] == step else None
    )
    with pytest.raises(Interrupted) as stopped:
        trainer.run()
    assert stopped.value.exit_code == 143 and isinstance(stopped.value, GraftError)


def wait_for(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen within 30 s")
