"""Reward adapters on the base that writes: PEFT's numbers, in any layout; what gives none is refused."""

import peft
import pytest
import torch
from tiny_folder import write_model
from transformers import AutoModelForSequenceClassification

import graft
from graft.data.answer_batches import AnswerBatches
from graft.data.templates import prompt_ids
from graft.errors import AdapterError, DataError, UsageError
from graft.evaluate import rewards
from graft.models.load import load
from graft.stages.reward_adapters import attached, read

PROMPTS = [[5, 6, 7]] * 3 + [[8]] * 2 + [[9, 9, 5, 6], [5, 6, 7]]
ANSWERS = [[11, 12, 2], [13, 2], [14, 15, 16, 17, 2], [21, 22], [22, 23, 24, 2], [31, 2], [2]]
SOURCES = [f"f:{i}" for i in range(1, 8)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and a reward adapter with its `score` that PEFT wrote."""
    home = tmp_path_factory.mktemp("reward-adapters")
    write_model(home / "model")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(home / "model", num_labels=1)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(home / "theirs")
    return home


@pytest.fixture(scope="module")
def base(folder):
    return load(str(folder / "model"), dtype="fp32")


@pytest.fixture(scope="module")
def theirs(folder):
    """The rewards by PEFT and transformers, of each answer alone."""
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model", num_labels=1)
    model = peft.PeftModel.from_pretrained(model, folder / "theirs").eval()
    model.config.pad_token_id = None
    with torch.no_grad():
        return [
            float(model(input_ids=torch.tensor([p + a])).logits[0, 0])
            for p, a in zip(PROMPTS, ANSWERS, strict=True)
        ]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
@pytest.mark.parametrize("share", [True, False])
def test_rewards_are_those_of_peft_however_answers_are_put_together(
    folder, base, theirs, batch_size, share, monkeypatch
):
    name = attached(base, str(folder / "theirs"))
    built = []
    for layout in ("packed", "padded"):
        build = getattr(AnswerBatches, layout)
        monkeypatch.setattr(
            AnswerBatches, layout, lambda *a, b=build, n=layout: built.append((n, b(*a))) or built[-1][1]
        )
    if not share:
        monkeypatch.setattr(base, "unpackable", lambda length: "the test says so")
    done = []
    found = read(base, name, PROMPTS, ANSWERS, SOURCES, batch_size=batch_size, progress=done.append)
    assert found == pytest.approx(theirs, abs=1e-5)
    assert done[-1] == len(ANSWERS) and sorted(done) == done
    assert any(n == "packed" for n, _ in built) == (share and batch_size > 1)
    assert all(len(batch.last) <= batch_size for _, batch in built)
    assert base.active is None and not any(p.requires_grad for p in base.model.parameters())


def test_an_adapter_is_attached_once(folder, base):
    name = attached(base, str(folder / "theirs"))
    held = base.adapters[name]
    assert attached(base, str(folder / "theirs")) == name == f"reward {folder / 'theirs'}"
    assert base.adapters[name] is held


def test_the_ids_that_texts_have_in_training_give_the_rewards_of_texts(folder, base):
    name = attached(base, str(folder / "theirs"))
    tokenizer = base.tokenizer
    asked, said = ["What does the cat want? ", "Day 3. "], ["The cat wants a ball.", "A rope."]
    prompts = [[tokenizer.bos_token_id, *tokenizer(t, add_special_tokens=False)["input_ids"]] for t in asked]
    ids = [[*tokenizer(t, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for t in said]
    found = read(base, name, prompts, ids, SOURCES[:2])
    assert found == pytest.approx(rewards(base, asked, said, adapter=name), abs=1e-5)


def test_what_a_template_writes_behind_the_end_is_not_read(folder, base, tmp_path):
    """Rewards are trained at the token that ends an answer; this template goes on behind it."""
    name = attached(base, str(folder / "theirs"))
    text = "{% for m in messages %}{{ m.content }}{% if m.role[0] == 'a' %}{{ eos_token }} and on{% endif %}"
    (tmp_path / "goes_on.jinja").write_text(text + "{% endfor %}")
    tokenizer = base.tokenizer
    talk = [{"role": "user", "content": "What does the cat want? "}]
    prompt = prompt_ids(talk, tokenizer, template=text + "{% endfor %}")
    answer = [*tokenizer("A ball.", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    found = rewards(base, [talk], ["A ball."], adapter=name, template=str(tmp_path / "goes_on.jinja"))
    assert found == pytest.approx(read(base, name, [prompt], [answer], ["f:1"]), abs=1e-5)


def test_an_answer_that_does_not_fit_or_is_none_is_named(folder, base):
    name = attached(base, str(folder / "theirs"))
    with pytest.raises(DataError, match=r"f:2: an answer of 120 tokens, 129 with its prompt.*at most 128"):
        read(base, name, [[5], [6] * 9], [[5] * 127, [5] * 120], SOURCES[:2])
    with pytest.raises(DataError, match="f:1: an answer of 0 tokens"):
        read(base, name, [[5]], [[]], SOURCES[:1])
    assert read(base, name, [], [], []) == []


def test_adapters_that_give_no_rewards_are_refused_and_taken_off(base, tmp_path):
    methods = {
        "bare": graft.LoRA(r=2),
        "classes": [graft.LoRA(r=2), graft.TaskHead(num_labels=3)],
        "mean": [graft.LoRA(r=2), graft.TaskHead(num_labels=1, pool="mean")],
    }
    for name, method in methods.items():
        base.attach(name, method).save(tmp_path / name)
        base.detach(name)
        with pytest.raises(AdapterError, match=f"{name} gives no rewards.*train one with stage: reward"):
            attached(base, str(tmp_path / name))
    assert not {f"reward {tmp_path / name}" for name in methods} & base.adapters.keys()


def test_a_run_is_known_by_its_recipe(folder, base, tmp_path):
    with pytest.raises(UsageError, match="there is no such folder"):
        attached(base, str(tmp_path / "nowhere"))
    (tmp_path / "recipe.yaml").write_text("stage: reward\n")
    with pytest.raises(UsageError, match=r"has no adapter yet.*graft train"):
        attached(base, str(tmp_path))
    (tmp_path / "adapter").symlink_to(folder / "theirs")
    assert read(base, attached(base, str(tmp_path)), [[5]], [[6]], ["f:1"]) == read(
        base, attached(base, str(folder / "theirs")), [[5]], [[6]], ["f:1"]
    )
