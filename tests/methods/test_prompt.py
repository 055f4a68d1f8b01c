"""Prompt tuning against PEFT: outputs, gradients, generation, files; beyond PEFT: mixed, padded rows."""

import copy
import json

import peft
import pytest
import torch
from peft_oracle import tuned
from safetensors.torch import load_file
from tiny_folder import write_model
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from transformers.models.llama.modeling_llama import LlamaForSequenceClassification

from graft.base.base import Base
from graft.errors import AdapterError, UsageError
from graft.methods.lora import LoRA
from graft.methods.prompt import PromptTuning
from graft.methods.task_head import TaskHead
from graft.models.load import load
from models import inputs, randomise, tiny_base, tiny_model

P = 4
TASKS = {"llama": "CAUSAL_LM", "gpt2": "CAUSAL_LM", "bert": "FEATURE_EXTRACTION", "t5": "SEQ_2_SEQ_LM"}
HOW = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def config(family, **settings):
    return peft.PromptTuningConfig(task_type=TASKS[family], num_virtual_tokens=P, **settings)


def theirs(model, family, **more):
    """PEFT's answer at the text's own positions."""
    batch = inputs(family) | more
    output = model(input_ids=batch.pop("ids"), **batch)
    if family == "t5":
        return output.logits
    return (output.last_hidden_state if family == "bert" else output.logits)[:, P:]


def ours(base, family, name="x", **more):
    with base.using(name):
        output = base(**inputs(family) | more)
    return output.last_hidden_state if family == "bert" else output.logits


@pytest.mark.parametrize("family", TASKS)
def test_files_travel_both_ways(tmp_path, family):
    model = tiny_model(family, bare=family == "bert")
    wanted = theirs(tuned(model, config(family), tmp_path / "theirs", scale=0.5), family)
    base = Base(copy.deepcopy(model))
    adapter = base.load_adapter(tmp_path / "theirs", "x")
    assert isinstance(adapter.methods[0], PromptTuning)
    assert_close(ours(base, family), wanted, atol=1e-5, rtol=1e-5)
    assert (ours(base, family) - ours(base, family, None)).abs().max() > 1e-2
    adapter.save(tmp_path / "ours")
    assert load_file(tmp_path / "ours" / "adapter_model.safetensors").keys() == {"prompt_embeddings"}
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "ours").eval()
    assert_close(theirs(again, family), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_a_prompt_made_here_answers_in_peft(tmp_path, family):
    base = tiny_base(family)
    adapter = base.attach("x", PromptTuning(num_virtual_tokens=P))
    randomise(adapter)
    adapter.save(tmp_path)
    again = peft.PeftModel.from_pretrained(tiny_model(family), tmp_path).eval()
    assert_close(ours(base, family), theirs(again, family), atol=1e-5, rtol=1e-5)


def test_gradients_and_training_are_those_of_peft(tmp_path):
    model, ids = tiny_model("llama"), inputs("llama")["ids"]
    other = tuned(model, config("llama"), tmp_path).train()
    base = Base(copy.deepcopy(model))
    adapter = base.load_adapter(tmp_path, "x")
    base.train()
    table = other.prompt_encoder["default"].embedding.weight
    mine = adapter.parameters()[0]
    optimizers = [torch.optim.SGD([p], lr=0.5) for p in (table, mine)]
    for _ in range(3):
        # PEFT's own loss has one target more: the first token, predicted by the last virtual one.
        logits = [other(input_ids=ids).logits[:, P:], ours(base, "llama")]
        losses = [cross_entropy(part[:, :-1].flatten(0, 1), ids[:, 1:].flatten()) for part in logits]
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert_close(mine.grad, table.grad, atol=1e-5, rtol=1e-4)
    assert_close(mine, table, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_padding_on_the_right_is_as_in_peft(tmp_path, family):
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, 4:] = 0
    model = tiny_model(family)
    wanted = theirs(tuned(model, config(family), tmp_path, scale=0.5), family, attention_mask=mask)
    base = Base(copy.deepcopy(model))
    base.load_adapter(tmp_path, "x")
    seen = mask[:, : wanted.shape[1]].bool() if family != "t5" else torch.ones(3, 4, dtype=torch.bool)
    assert_close(ours(base, family, attention_mask=mask)[seen], wanted[seen], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_padding_on_the_left_changes_nothing(family):
    base, ids = tiny_base(family), inputs(family)["ids"]
    randomise(base.attach("x", PromptTuning(num_virtual_tokens=P)))
    padded = torch.cat([torch.zeros(3, 3, dtype=torch.long), ids], 1)
    mask = (torch.arange(10) >= 3).long().expand(3, -1)
    with base.using("x"):
        assert_close(base(padded, attention_mask=mask).logits[:, 3:], base(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_generation_is_that_of_peft_with_and_without_cache(tmp_path, family):
    model, ids = tiny_model(family), inputs(family)["ids"]
    other = tuned(model, config(family), tmp_path, scale=0.5)
    wanted = other.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **HOW)
    base = Base(copy.deepcopy(model))
    base.load_adapter(tmp_path, "x")
    for cache in (True, False):
        with torch.no_grad(), base.routed(["x"] * 3):
            out = base.model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=cache, **HOW)
        assert torch.equal(out[:, -6:], wanted[:, -6:])


def test_rows_of_prompts_loras_and_the_bare_base_are_generated_together():
    base, ids = tiny_base(), inputs("llama", rows=4)["ids"]
    randomise(base.attach("long", PromptTuning(num_virtual_tokens=6)), 1)
    randomise(base.attach("short", PromptTuning(num_virtual_tokens=2)), 2)
    randomise(base.attach("lora", LoRA(r=4)), 3)
    live = torch.ones_like(ids)
    live[0, :4], live[2, :2] = 0, 0
    rows = [None, "long", "lora", "short"]  # sorted, as `routed` wants them
    with torch.no_grad(), base.routed(rows) as order:
        assert order == [0, 1, 2, 3]
        mixed = base.model.generate(ids, attention_mask=live, **HOW)[:, 7:]
    for row, name in enumerate(rows):
        own = ids[row : row + 1, 7 - int(live[row].sum()) :]
        with torch.no_grad(), base.routed([name]):
            alone = base.model.generate(own, attention_mask=torch.ones_like(own), **HOW)[:, own.shape[1] :]
        assert torch.equal(alone[0], mixed[row])


def test_a_classifier_of_peft_loads_with_its_head_and_goes_back(tmp_path):
    model = tiny_model("llama", pad_token_id=0, num_labels=3)
    classifier = LlamaForSequenceClassification(copy.deepcopy(model.config)).eval()
    classifier.model.load_state_dict(model.model.state_dict())
    settings = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=P)
    ids = inputs("llama")["ids"]
    wanted = tuned(classifier, settings, tmp_path / "theirs", scale=0.5)(input_ids=ids).logits
    base = Base(model)
    adapter = base.load_adapter(tmp_path / "theirs", "x")
    assert [type(m) for m in adapter.methods] == [PromptTuning, TaskHead]
    with base.using("x"):
        assert_close(base(ids)[0], wanted, atol=1e-5, rtol=1e-5)
    adapter.save(tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(classifier, tmp_path / "ours").eval()
    assert_close(again(input_ids=ids).logits, wanted, atol=1e-5, rtol=1e-5)


def test_an_encoders_head_pools_the_first_token_of_the_text():
    base, ids = tiny_base("bert", bare=True), inputs("bert")["ids"]
    randomise(base.attach("x", PromptTuning(num_virtual_tokens=P)))
    with base.using("x"):
        output = base(ids)
    assert_close(output.pooler_output, base.model.pooler(output.last_hidden_state), atol=1e-6, rtol=1e-5)


def test_a_prompt_starts_from_words_as_in_peft(tmp_path):
    folder = write_model(tmp_path / "model")
    base = load(folder, dtype="fp32")
    text = "The cat wants a ball."
    table = base.attach(
        "x", PromptTuning(num_virtual_tokens=30, prompt_tuning_init="TEXT", prompt_tuning_init_text=text)
    ).parameters()[0]
    settings = peft.PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=30,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text=text,
        tokenizer_name_or_path=str(folder),
    )
    wanted = (
        peft.get_peft_model(copy.deepcopy(base.model), settings).prompt_encoder["default"].embedding.weight
    )
    assert len(base.tokenizer(text)["input_ids"]) < 30  # repeated
    assert torch.equal(table, wanted)
    assert torch.equal(
        base.attach(
            "y", PromptTuning(num_virtual_tokens=3, prompt_tuning_init="TEXT", prompt_tuning_init_text=text)
        ).parameters()[0],
        wanted[:3],
    )


def test_a_sampled_prompt_is_made_of_words():
    base = tiny_base("gemma")  # whose table scales what it gives
    table = base.attach("x", PromptTuning(num_virtual_tokens=P)).parameters()[0]
    words = base.model.get_input_embeddings()(torch.arange(96))
    assert (torch.cdist(table.double(), words.double()).min(1).values < 1e-6).all()
    normal = base.attach(
        "y", PromptTuning(num_virtual_tokens=200 // 4, prompt_tuning_init="RANDOM")
    ).parameters()[0]
    assert abs(float(normal.std()) - 1) < 0.1  # 3,200 draws: 8 standard errors


def test_what_was_said_of_the_start_is_not_needed_to_load(tmp_path):
    folder = write_model(tmp_path / "model")
    base = load(folder, dtype="fp32")
    base.attach(
        "x",
        PromptTuning(
            num_virtual_tokens=P,
            prompt_tuning_init="TEXT",
            prompt_tuning_init_text="a rope",
            tokenizer_name_or_path=str(folder),
        ),
    ).save(tmp_path / "adapter")
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert said["prompt_tuning_init"] == "RANDOM" and said["num_virtual_tokens"] == P
    assert base.load_adapter(tmp_path / "adapter", "y").count() == P * 32


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PromptTuning(num_virtual_tokens=0), "num_virtual_tokens=0"),
        (lambda: PromptTuning(prompt_tuning_init="VOCAB"), "SAMPLE_VOCAB"),
        (lambda: PromptTuning(prompt_tuning_init="TEXT"), "a text with TEXT"),
        (lambda: PromptTuning(prompt_tuning_init_text="a"), "none with the others"),
        (lambda: tiny_base().attach("x", PromptTuning(num_virtual_tokens=64)), "fewer than the 64 positions"),
        (
            lambda: tiny_base().attach(
                "x",
                PromptTuning(num_virtual_tokens=4, prompt_tuning_init="TEXT", prompt_tuning_init_text="a"),
            ),
            "tokenizer_name_or_path",
        ),
    ],
)
def test_mistakes_are_named(make, words):
    with pytest.raises(UsageError, match=words):
        make()


def test_a_text_that_no_longer_fits_and_packed_rows_are_refused():
    base = tiny_base("gpt2")
    base.attach("x", PromptTuning(num_virtual_tokens=60))
    assert "virtual tokens" in base.unpackable(32)
    with base.using("x"), pytest.raises(UsageError, match="67 positions"):
        base(inputs("gpt2")["ids"])


def test_a_file_for_another_width_is_refused(tmp_path):
    tiny_base().attach("x", PromptTuning(num_virtual_tokens=P)).save(tmp_path)
    with pytest.raises(AdapterError, match="prompt_embeddings"):
        tiny_base(hidden_size=32).load_adapter(tmp_path, "x", force=True)
