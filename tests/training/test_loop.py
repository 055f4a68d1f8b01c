import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
import train_toys
from safetensors.torch import load_file
from train_toys import Adapter, Base, Feed, objective, told, trainer

from graft import storage
from graft.errors import CheckpointError, SpaceError, TrainingError
from graft.training import Task, Trainer


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run):
    return [line["loss"] for line in lines(run) if "loss" in line]


def test_the_loss_falls_and_every_step_is_written_with_deterministic_fields(tmp_path):
    trainer(tmp_path, epochs=5).run()
    steps = [line for line in lines(tmp_path) if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 31)) and steps[-1]["epoch"] == 5.0
    assert set(steps[0]) == {"step", "epoch", "loss", "lr", "grad_norm", "tokens", "accuracy"}
    assert sum(losses(tmp_path)[-5:]) < 0.7 * sum(losses(tmp_path)[:5])
    timing = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    assert all(line["seconds"] > 0 and line["peak_mb"] >= line["memory_mb"] > 0 for line in timing)


def test_the_same_run_twice_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        trainer(tmp_path / name).run()
    for file in ("metrics.jsonl", "samples.md", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_loop_equals_a_naive_one_with_torch_adamw_clipping_and_a_linear_schedule(tmp_path):
    keys = {"neftune_alpha": 0, "epochs": 2, "lr": 0.02, "warmup": 0.25, "clip": 0.3, "weight_decay": 0.05}
    ours, theirs = Adapter(dtype=torch.float64), Adapter(dtype=torch.float64)
    Trainer(
        Base(ours, dropout=0), "toy", Task(Feed(), objective), train_toys.settings(**keys), tmp_path
    ).run()
    base = Base(theirs, dropout=0)
    groups = [
        {**group, "weight_decay": group.get("weight_decay", 0.05)} for group in theirs.param_groups(0.02)
    ]
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: (n + 1) / 3 if n < 3 else (12 - n) / 9)
    with base.using("toy"):
        for n in range(12):
            batches = Feed().step(*divmod(n, 6))
            loss = sum(objective(base, batch)[0] for batch in batches) / sum(
                batch.tokens for batch in batches
            )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.3)
            optimizer.step()
            schedule.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_micro_batches_of_another_size_give_the_same_run(tmp_path):
    runs = []
    for micro in (1, 3, 4):
        adapter = Adapter(dtype=torch.float64)
        task = Task(Feed(micro=micro), objective)
        settings = train_toys.settings(neftune_alpha=0)
        Trainer(Base(adapter, dropout=0), "toy", task, settings, tmp_path / str(micro)).run()
        runs.append(adapter.W.detach())
    assert all(torch.allclose(runs[0], run, rtol=0, atol=1e-6) for run in runs)


def test_a_run_whose_checkpoints_do_not_fit_the_disk_ends_before_its_first_step(tmp_path, monkeypatch):
    trainer(tmp_path / "measured", keep=2, save_every=1).run()
    newest = max((tmp_path / "measured/checkpoints").iterdir())
    tensors = [t for file in newest.glob("*.safetensors") for t in load_file(file).values()]
    each = sum(t.numel() * t.element_size() for t in tensors)

    def with_free(free, name):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=0, used=0, free=free))
        return trainer(tmp_path / name, keep=2, save_every=1).run()

    with pytest.raises(SpaceError, match=f"3 checkpoints of {each:,} bytes"):
        with_free(3 * each - 1, "short")
    assert not (tmp_path / "short/checkpoints").exists() and not list((tmp_path / "short").glob("adapter*"))
    with_free(3 * each, "enough")


def test_a_finished_run_says_so_and_does_nothing(tmp_path):
    trainer(tmp_path).run()
    before = {
        file: file.stat().st_mtime_ns
        for file in tmp_path.rglob("*")
        if file.is_file() and ".lock" not in file.name
    }
    heard = []
    result = trainer(tmp_path, observer=told(heard)).run()
    assert [event for event, *_ in heard] == ["finished"] and result.steps == 12
    assert result.adapter == tmp_path / "adapter" and result.best["step"] in (4, 8, 12)
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_a_finished_run_with_other_settings_is_refused(tmp_path):
    trainer(tmp_path).run()
    with pytest.raises(CheckpointError, match=r"train.lr: 0.05 -> 0.1"):
        trainer(tmp_path, task={"identity": {"train.lr": 0.1, "base": "b" * 8, "data": "d" * 8}}).run()


def test_every_switch_is_put_back_after_the_run(tmp_path):
    run = trainer(tmp_path, gradient_checkpointing=True)
    run.run()
    assert run.base.checkpointed == [True, False] and not run.base.training
    assert not run.base.model.embeddings._forward_hooks and run.adapter.steps_seen == list(range(1, 13))


def test_early_stopping_ends_the_run_and_keeps_the_best_adapter(tmp_path):
    curve = {1: 5.0, 2: 3.0, 3: 4.0, 4: 3.5, 5: 1.0}
    tensors = {}

    def evaluate(step):
        tensors[step] = run.adapter.W.detach().clone()
        return {"loss": curve[step]}

    keys = {"eval_every": 1, "patience": 2, "save_every": 1, "keep": 1}
    run = trainer(tmp_path, task={"evaluate": evaluate}, **keys)
    result = run.run()
    assert result.steps == 4 and result.best == {"step": 2, "loss": 3.0}
    assert torch.equal(load_file(tmp_path / "adapter" / "adapter_model.safetensors")["W"], tensors[2])
    assert {step for step, _ in storage.steps(tmp_path / "checkpoints")} == {2, 4}


def test_without_patience_the_last_adapter_is_kept(tmp_path):
    run = trainer(tmp_path, eval_every=1, task={"evaluate": lambda step: {"loss": float(step)}})
    assert run.run().steps == 12
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert torch.equal(saved["W"], run.adapter.W.detach())


def test_evaluations_come_after_every_epoch_or_every_n_steps_and_at_the_end(tmp_path):
    for every, expected in ((0, [6, 12]), (5, [5, 10, 12])):
        trainer(tmp_path / str(every), eval_every=every).run()
        assert [line["step"] for line in lines(tmp_path / str(every)) if "eval_loss" in line] == expected
    assert (tmp_path / "5" / "samples.md").read_text().count("## step") == 3


def failing(at, how):
    """An objective that breaks on the given steps (two micro-batches each, and one dry run before them)."""
    calls = [-1]

    def broken(base, batch):
        calls[0] += 1
        loss, metrics = objective(base, batch)
        return (how(loss) if (calls[0] + 1) // 2 in at else loss), metrics

    return broken


def test_a_nan_stops_the_run_before_it_is_applied_and_leaves_the_last_checkpoint(tmp_path):
    run = trainer(tmp_path, task={"objective": failing({5}, lambda loss: loss * float("nan"))})
    applied = []
    run.adapter.after_step = lambda step, total: applied.append(step)
    with pytest.raises(
        TrainingError, match=r"step 5: the loss is nan .*lr .*gradient norm .*float32.*toy.jsonl:40"
    ):
        run.run()
    assert applied == [1, 2, 3, 4]
    newest, damaged = storage.latest(tmp_path / "checkpoints")
    assert newest.name == "step-000003" and not damaged and not (tmp_path / "adapter").exists()


def test_skipping_leaves_weights_as_they_were_and_goes_on(tmp_path):
    heard = []
    task = {"objective": failing({3, 4, 9}, lambda loss: loss * float("inf"))}
    run = trainer(tmp_path, task=task, on_nan="skip", observer=told(heard))
    run.run()
    assert run.adapter.steps_seen == [1, 2, 5, 6, 7, 8, 10, 11, 12]
    assert [line["step"] for line in lines(tmp_path) if "skipped" in line] == [3, 4, 9]
    assert sum(event == "warn" for event, *_ in heard) == 3


def test_more_than_three_skipped_steps_in_a_row_stop_the_run(tmp_path):
    run = trainer(
        tmp_path, task={"objective": failing({2, 3, 4, 5}, lambda loss: loss * float("nan"))}, on_nan="skip"
    )
    with pytest.raises(TrainingError, match="step 5"):
        run.run()


def test_an_adapter_tensor_that_is_not_finite_is_never_saved(tmp_path):
    run = trainer(tmp_path)
    toy = run.adapter
    toy.after_step = lambda step, total: toy.frozen.fill_(float("nan")) if step == 5 else None
    with pytest.raises(TrainingError, match="step 6: NaN or infinity in frozen"):
        run.run()
    assert storage.latest(tmp_path / "checkpoints")[0].name == "step-000003"


def test_out_of_memory_lists_levers_with_their_keys_largest_first(tmp_path):
    calls = [0]

    def hungry(base, batch):
        calls[0] += 1
        if calls[0] == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return objective(base, batch)

    with pytest.raises(TrainingError) as error:
        trainer(tmp_path, task={"objective": hungry}).run()
    message = str(error.value)
    for key in (
        "train.micro_batch_size=1",
        "data.max_length=",
        "train.gradient_checkpointing=true",
        "quant=nf4",
    ):
        assert key in message
    units = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    savings = [float(n) * units[unit] for n, unit in re.findall(r"\(([\d.]+) ([KMG]?i?B)\)", message)]
    assert savings == sorted(savings, reverse=True) and len(savings) >= 3 and "peak" in message


def test_another_error_of_the_objective_is_not_taken_for_a_lack_of_memory(tmp_path):
    def wrong(base, batch):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        trainer(tmp_path, task={"objective": wrong}).run()
