"""Rewards of answers: those of training, whatever stands beside them; what cannot be read is named."""

import pytest
import torch
from tiny_folder import rows, write_model

import graft
from graft.errors import AdapterError, DataError
from graft.evaluate import rewards
from graft.models.load import load
from models import randomise

TALK = [{"role": "user", "content": "What does the cat want?"}]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    base = load(str(write_model(tmp_path_factory.mktemp("rewards") / "model")), dtype="fp32")
    randomise(base.attach("r", [graft.LoRA(r=2), graft.TaskHead(num_labels=1)]))
    base.attach("bare", graft.LoRA(r=2))
    return base


def test_a_reward_is_that_of_the_head_at_the_end_token_of_the_answer_alone(base):
    given = rows(7)
    prompts, answers = (
        [row["prompt"] for row in given],
        [row["completion"] * (i % 3 + 1) for i, row in enumerate(given)],
    )
    found = rewards(base, prompts, answers, adapter="r", batch_size=3)
    tokenizer = base.tokenizer
    for prompt, answer, reward in zip(prompts, answers, found, strict=True):
        ids = [tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        ids += [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        with base.using("r"), torch.no_grad():
            assert reward == pytest.approx(float(base(torch.tensor([ids]))[0]), abs=1e-4)
    assert len({round(reward, 4) for reward in found}) > 3


def test_conversations_are_read_through_the_template(base):
    (plain,), (asked,) = (
        rewards(base, [p], ["A ball."], adapter="r") for p in ("What does the cat want?", TALK)
    )
    (with_tools,) = rewards(base, [{"messages": TALK}], ["A ball."], adapter="r")
    assert asked == with_tools != plain


def test_no_answers_have_no_rewards(base):
    assert rewards(base, [], [], adapter="r") == []


def test_an_answer_that_cannot_be_read_is_named(base):
    with pytest.raises(DataError, match="answer 2"):
        rewards(base, ["a ", "b "], ["x", "y " * 500], adapter="r")


def test_an_adapter_without_a_head_is_refused(base):
    with pytest.raises(AdapterError, match="no task head"):
        rewards(base, ["a "], ["x"], adapter="bare")
