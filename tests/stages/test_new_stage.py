"""A stage is one file: dropped into the package's path it trains, evaluates, plans, resumes and is listed."""

import json
import subprocess
import sys

import pytest
from tiny_folder import write_model

import graft
from graft.errors import UsageError
from graft.recipe import read
from graft.recipe.stages import stage_cards
from graft.runs.open import open_model
from graft.runs.score import score
from graft.stages.stage import find, stage_of

FILE = '''"""Ranking: of two answers to one prompt the first must be likelier than the second.

    L = max(0, margin - (log p(completion) - log p(text)))        both means over tokens
"""

from dataclasses import dataclass
from typing import ClassVar


from graft.data.batches import Batch, Batches
from graft.data.encode import IGNORED, Encoder, Example
from graft.stages.stage import Stage

MARGIN = 5.0


@dataclass(frozen=True)
class Ranking(Stage):
    layouts: ClassVar = ("prompt_completion",)
    metrics: ClassVar = ("loss", "ranked")
    families: ClassVar = ("causal",)

    def encoder(self, tokenizer, family, settings, labels=()):
        return Pairs(tokenizer, settings.max_length)

    def batches(self, base, max_length, *, pack=False):
        return PairBatches(base.tokenizer, max_length)

    @staticmethod
    def loss(base, batch):
        inputs = dict(batch.inputs)
        logits = base(inputs.pop("input_ids"), **inputs).logits[:, :-1].float().log_softmax(-1)
        wanted = batch.labels[:, 1:]
        live = wanted != IGNORED
        told = logits.gather(2, wanted.clamp(min=0)[..., None])[..., 0] * live
        better, worse = (told.sum(1) / live.sum(1)).chunk(2)
        loss = (MARGIN - (better - worse)).clamp(min=0).sum()
        return loss, {"tokens": float(len(better)), "ranked": (better > worse).sum()}


class Pairs(Encoder):
    def encode(self, rows, encoded):
        for row in rows:
            better, worse = (self.cut(ids, self.room, row, encoded) for ids in self.ids(list(row.value)))
            yield row, [Example(better, better, row.source, parts={"worse": worse})]


class PairBatches(Batches):
    def padded(self, examples):
        both = [example.ids for example in examples] + [example.parts["worse"] for example in examples]
        ids, live = self.rectangle(both, self.pad)
        labels, _ = self.rectangle(both, IGNORED)
        inputs = {"input_ids": ids, "attention_mask": live}
        return Batch(inputs, labels, len(examples), [example.source for example in examples])

    def full(self, rows, length):
        inputs = self.full_inputs(2 * rows, length)
        return Batch(inputs, inputs["input_ids"], rows, [])
'''


@pytest.fixture
def package(tmp_path):
    """A folder beside the package with one more stage."""
    (tmp_path / "more" / "stages").mkdir(parents=True)
    (tmp_path / "more" / "stages" / "ranking.py").write_text(FILE)
    graft.__path__.append(str(tmp_path / "more"))
    yield tmp_path / "more"
    graft.__path__.pop()
    sys.modules.pop("graft.stages.ranking", None)


@pytest.fixture
def settings(tmp_path, package):
    write_model(tmp_path / "model")
    rows = [{"prompt": f"good {i} day", "completion": f"bad {i} night"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": str(tmp_path / "model"),
        "stage": "ranking",
        "dtype": "fp32",
        "data": {"train": str(tmp_path / "rows.jsonl"), "eval": 0.2, "max_length": 16},
        "train": {"lr": 0.02, "epochs": 3, "batch_size": 8, "save_every": 2, "warmup": 0.0},
        "output": str(tmp_path / "run"),
    }


def test_it_is_known_by_its_file(package):
    card = stage_cards()["ranking"]
    assert card.layouts == ("prompt_completion",) and card.title.startswith("Ranking: of two answers")
    assert read({"stage": "ranking"}).evaluate.metrics == ["loss", "ranked"]
    assert find("ranking").name() == "ranking"
    with pytest.raises(UsageError, match="ranking"):
        read({"stage": "rankin"})


def test_declarations_need_no_annotation(package):
    text = FILE.replace('metrics: ClassVar = ("loss", "ranked")', 'metrics = ("ranked",)')
    (package / "stages" / "ranking.py").write_text(text)
    assert stage_cards()["ranking"].metrics == ("ranked",) == find("ranking").metrics


def test_it_stands_in_the_help_of_the_command_line(package):
    program = "import sys, graft; graft.__path__.append(sys.argv[1]); from graft.cli import call; "
    for verb in ("train", "eval"):
        words = f"sys.exit(call(['{verb}', '--help']))"
        done = subprocess.run([sys.executable, "-c", program + words, str(package)], capture_output=True)
        assert b"ranking" in done.stdout and done.returncode == 0


def test_it_trains_evaluates_and_opens_again(settings):
    result = graft.run(settings)
    before, after = result.scores["before"], result.scores["after"]
    assert after["loss"] < before["loss"] and 0 <= before["ranked"] <= after["ranked"] <= 1
    opened = open_model(settings["output"])
    table = score(opened, opened.recipe)
    assert table.columns["after"] == pytest.approx(after)


def test_it_is_planned_by_its_own_loss(settings):
    plan = graft.plan(settings)
    doubled = graft.plan(settings | {"data": settings["data"] | {"max_length": 32}})
    assert plan.trained > 0 and doubled.parts["step"] > 1.5 * plan.parts["step"]


def test_it_resumes_bit_for_bit(settings, tmp_path):
    class Stop(graft.Observer):
        def step(self, record):
            if record["step"] == 5:
                raise KeyboardInterrupt

    whole = graft.run(settings)
    again = settings | {"output": str(tmp_path / "again")}
    with pytest.raises(KeyboardInterrupt):
        graft.run(again, observer=Stop())
    resumed = graft.run(again)
    first, second = (r.adapter / "adapter_model.safetensors" for r in (whole, resumed))
    assert first.read_bytes() == second.read_bytes()


def test_a_model_of_another_family_is_refused(settings):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    encoder = {"config": {"model_type": "bert", **sizes}, "tokenizer": settings["model"]}
    with pytest.raises(UsageError, match=r"stage ranking on .* a masked model"):
        graft.run(settings | {"model": encoder, "method": "full"})


def test_methods_that_compare_two_passes_are_refused_where_the_loss_has_no_such_form(settings):
    with pytest.raises(UsageError, match="two passes"):
        graft.run(settings | {"method": {"name": "adamix", "consistency": 0.5}})
    assert stage_of(read(settings)).name() == "ranking"
