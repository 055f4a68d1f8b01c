"""A reward run judges: its rewards are PEFT's and transformers' own, and the better answers win."""

import json

import peft
import pytest
import torch
from tiny_folder import ANIMALS, TOYS, write_model, write_rows
from transformers import AutoModelForSequenceClassification

import graft
from graft.cli import call
from graft.errors import AdapterError, DataError
from graft.models.tokenizer import tokenizer_in
from graft.runs.reward import rewards_of

ASKED = [f"Day {i}. What does the {ANIMALS[i % 4]} want? " for i in range(32)]
GOOD = [f"The {ANIMALS[i % 4]} wants a {TOYS[i % 3]}." for i in range(32)]
BAD = ["No.", "There is nothing at all that the day wants of what it does."] * 16


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model, and a reward run that prefers the answers with a toy."""
    folder = tmp_path_factory.mktemp("reward-judge")
    write_model(folder / "model")
    rows = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in zip(ASKED, GOOD, BAD, strict=True)]
    write_rows(folder / "pairs.jsonl", rows)
    graft.run(
        {
            "model": str(folder / "model"),
            "dtype": "fp32",
            "stage": "reward",
            "method": {"name": "lora", "r": 4, "target_modules": "all-linear"},
            "data": {"train": str(folder / "pairs.jsonl"), "eval": 0.25, "max_length": 64},
            "train": {"epochs": 3, "batch_size": 8, "lr": 5e-3, "warmup": 0.0},
            "output": str(folder / "run"),
        }
    )
    return folder


def test_rewards_are_those_of_peft_and_transformers(home):
    model = AutoModelForSequenceClassification.from_pretrained(home / "model", num_labels=1)
    theirs = peft.PeftModel.from_pretrained(model, home / "run" / "adapter").eval()
    tokenizer = tokenizer_in(home / "model")
    asked, answers = ASKED[:6] * 2, GOOD[:6] + BAD[:6]
    found = rewards_of(str(home / "run"))(asked, answers)
    for prompt, answer, reward in zip(asked, answers, found, strict=True):
        said = tokenizer(answer, add_special_tokens=False)["input_ids"]
        ids = [*tokenizer(prompt)["input_ids"], *said, tokenizer.eos_token_id]
        with torch.no_grad():
            wanted = theirs(input_ids=torch.tensor([ids])).logits[0, 0]
        assert reward == pytest.approx(float(wanted), abs=1e-4)


def test_the_adapters_folder_gives_the_same_and_order_and_neighbours_do_not_matter(home):
    score = rewards_of(str(home / "run"))
    alone = [score([p], [a])[0] for p, a in zip(ASKED[:10], BAD[:10], strict=True)]
    assert score(ASKED[:10], BAD[:10]) == pytest.approx(alone, abs=1e-5)
    opened_in_bf16 = rewards_of(str(home / "run" / "adapter"))(ASKED[:2], BAD[:2])
    assert opened_in_bf16 == pytest.approx(alone[:2], abs=0.1)


def test_the_better_answers_win_on_the_command_line(home, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, answers in (("good", GOOD), ("bad", BAD)):
        rows = [{"prompt": p, "answer": a} for p, a in zip(ASKED, answers, strict=True)]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    run = home / "run"
    assert call(["judge", "good.jsonl", "bad.jsonl", "--by", f"reward:{run}", "--json"]) == 0
    (pair,) = json.loads(capsys.readouterr().out)["pairs"]
    assert (pair["answers"], pair["no_verdict"]) == ("bad", 0) and pair["won"] < 0.1
    for wrong in (f"reward:{home / 'model'}", "reward:./nowhere"):
        assert call(["judge", "good.jsonl", "bad.jsonl", "--by", wrong, "--force"]) in (1, 2)
        assert "graft: error:" in capsys.readouterr().err


def test_what_cannot_be_read_is_named(home):
    score = rewards_of(str(home / "run"))
    with pytest.raises(DataError, match="answer 2"):
        score(["a", "a " * 200], ["b", "b"])
    with pytest.raises(DataError, match="answer 1 does not fit: the model reads 128 tokens"):
        score(["a"], ["long " * 200])
    with pytest.raises(AdapterError, match="gives no rewards"):
        rewards_of(str(home / "model"))
