"""The server as OpenAI's official client sees it, over a real socket."""

import json
import math

import pytest

openai = pytest.importorskip("openai")
import torch  # noqa: E402
from openai_server import ADMIN, CHAT  # noqa: E402

from graft.evaluate.answers import predictions  # noqa: E402
from graft.methods.task_head import TaskHead  # noqa: E402
from models import randomise  # noqa: E402


def test_models_are_the_base_and_every_adapter(client, place):
    models = client.models.list().data
    assert [model.id for model in models] == ["seedling", *sorted(place["names"])]
    lora = client.models.retrieve("lora-0")
    assert lora.owned_by == "graft" and lora.parent == "seedling" and lora.batched is True
    with pytest.raises(openai.NotFoundError, match="lora-0"):
        client.models.retrieve("lora-O")


def test_a_chat_answer_is_what_generate_writes(client, place):
    want = place["base"].complete([CHAT], [None], max_new_tokens=12)[0]
    got = client.chat.completions.create(
        model="seedling", messages=CHAT, temperature=0, max_completion_tokens=12
    )
    assert got.choices[0].message.content == want.text and got.choices[0].message.role == "assistant"
    assert got.choices[0].finish_reason == want.finish_reason
    assert got.usage.completion_tokens == len(want.tokens) and got.usage.prompt_tokens > 5
    assert got.system_fingerprint.startswith("fp_") and got.object == "chat.completion"


def test_a_stream_has_the_same_text_and_its_usage(client):
    asked = {"model": "lora-0", "messages": CHAT, "temperature": 0, "max_tokens": 20}
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert (
        "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        == whole.choices[0].message.content
    )
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage


def test_log_probabilities_and_alternatives(client):
    got = client.chat.completions.create(
        model="seedling", messages=CHAT, temperature=0, max_tokens=5, logprobs=True, top_logprobs=3
    )
    for one in got.choices[0].logprobs.content:
        assert len(one.top_logprobs) == 3 and one.logprob == one.top_logprobs[0].logprob <= 0
        assert bytes(one.bytes).decode() == one.token


def test_seeds_choices_and_penalties(client):
    asked = {"model": "seedling", "messages": CHAT, "temperature": 1.5, "max_tokens": 10, "seed": 5, "n": 3}
    first, second = (client.chat.completions.create(**asked) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices] and len(set(texts)) > 1
    changed = client.chat.completions.create(**asked, presence_penalty=2, frequency_penalty=2)
    assert [choice.message.content for choice in changed.choices] != texts


def test_a_stop_text_is_cut_off_and_never_streamed(client):
    asked = {"model": "seedling", "messages": CHAT, "temperature": 0, "max_tokens": 30}
    text = client.chat.completions.create(**asked).choices[0].message.content
    stop = text[6:9]
    got = client.chat.completions.create(**asked, stop=[stop])
    assert (
        got.choices[0].message.content == text[: text.index(stop)] and got.choices[0].finish_reason == "stop"
    )
    chunks = client.chat.completions.create(**asked, stop=stop, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == text[: text.index(stop)]


def test_a_bias_forbids_a_token(client, place):
    asked = {"model": "seedling", "messages": CHAT, "temperature": 0, "max_tokens": 1}
    first = place["base"].complete([CHAT], [None], max_new_tokens=1)[0].tokens[0]
    plain = client.chat.completions.create(**asked, logprobs=True).choices[0]
    banned = client.chat.completions.create(**asked, logprobs=True, logit_bias={str(first): -100}).choices[0]
    assert banned.logprobs.content[0].token != plain.logprobs.content[0].token


def test_text_completions_in_all_forms_of_prompts(client, place):
    base = place["base"]
    ids = base.tokenizer("The kettle")["input_ids"]
    one = client.completions.create(model="seedling", prompt="The kettle", temperature=0, max_tokens=6)
    assert one.choices[0].text == base.generate(["The kettle"], [None], max_new_tokens=6)[0]
    many = client.completions.create(
        model="seedling", prompt=["The kettle", "A"], temperature=0, max_tokens=6
    )
    assert many.choices[0].text == one.choices[0].text and len(many.choices) == 2
    by_ids = client.completions.create(model="seedling", prompt=ids, temperature=0, max_tokens=6)
    assert by_ids.choices[0].text == base.generate([ids], [None], max_new_tokens=6)[0]
    assert len(client.completions.create(model="seedling", prompt=[ids, ids], temperature=0).choices) == 2


def test_echo_and_log_probabilities_of_the_prompt(client, place):
    base = place["base"]
    got = client.completions.create(
        model="seedling", prompt="The kettle", temperature=0, max_tokens=4, echo=True, logprobs=2
    ).choices[0]
    assert got.text.startswith("The kettle")
    logs = got.logprobs
    assert logs.token_logprobs[0] is None and len(logs.tokens) == len(logs.token_logprobs)
    ids = torch.tensor([base.tokenizer("The kettle")["input_ids"]])
    with torch.no_grad():
        want = base(ids).logits[0, :-1].float().log_softmax(1).gather(1, ids[0, 1:, None])[:, 0]
    found = logs.token_logprobs[1 : len(want) + 1]
    assert found == pytest.approx(want.tolist(), abs=1e-4)


def test_streamed_completions(client):
    asked = {"model": "ia3-2", "prompt": "The kettle", "temperature": 0, "max_tokens": 8}
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text


def test_embeddings_as_numbers_and_in_base64(client, place):
    base = place["base"]
    plain = client.embeddings.create(
        model="seedling", input=["The kettle", "A lamp"], encoding_format="float"
    )
    packed = client.embeddings.create(model="seedling", input=["The kettle", "A lamp"])  # base64, by default
    for one, other in zip(plain.data, packed.data, strict=True):
        assert other.embedding == pytest.approx(one.embedding, abs=1e-6)
        assert math.isclose(sum(value * value for value in one.embedding), 1, abs_tol=1e-5)
    ids = torch.tensor([base.tokenizer("The kettle")["input_ids"]])
    with torch.no_grad():
        states = base.model(ids, output_hidden_states=True).hidden_states[-1][0].mean(0)
    assert plain.data[0].embedding == pytest.approx((states / states.norm()).tolist(), abs=1e-5)
    tuned = client.embeddings.create(model="lora-0", input="The kettle", encoding_format="float")
    assert tuned.data[0].embedding != plain.data[0].embedding and tuned.usage.prompt_tokens == ids.shape[1]


def test_an_adapter_with_a_task_head_classifies(place, http):
    base = place["base"]
    adapter = base.attach("new", [TaskHead(num_labels=2, labels=("good", "bad"))])
    randomise(adapter, 7)
    adapter.save(place["root"] / "judge")
    want = predictions(base, ["The kettle leaks."], ["new"])[0]
    base.detach("new")
    admin = {"Authorization": f"Bearer {ADMIN}"}
    assert http.post("/v1/load_lora_adapter", json={"lora_name": "judge"}, headers=admin).status_code == 200
    got = http.post("/v1/classify", json={"model": "judge", "input": "The kettle leaks."}).json()["data"][0]
    assert got["label"] == want.label and got["probs"] == pytest.approx(want.probabilities, abs=1e-5)
    assert http.post("/v1/classify", json={"model": "lora-0", "input": "x"}).status_code == 400
    assert http.post("/v1/chat/completions", json={"model": "judge", "messages": CHAT}).status_code == 400
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "judge"}, headers=admin).status_code == 200


def test_answers_are_held_to_a_json_schema(client):
    pytest.importorskip("llguidance")
    schema = {
        "type": "object",
        "properties": {
            "colour": {"enum": ["red", "green"]},
            "watts": {"type": "integer", "maximum": 99, "minimum": 10},
        },
        "required": ["colour", "watts"],
        "additionalProperties": False,
    }  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "kettle", "schema": schema}}
    for model in ("seedling", "prefix-3"):
        got = client.chat.completions.create(
            model=model, messages=CHAT, max_tokens=64, seed=1, response_format=form, temperature=0
        )
        facts = json.loads(got.choices[0].message.content)
        assert facts["colour"] in ("red", "green") and 10 <= facts["watts"] <= 99 and len(facts) == 2
        assert got.choices[0].finish_reason == "stop"
    with pytest.raises(openai.BadRequestError, match="response_format"):
        broken = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 5}}}
        client.chat.completions.create(model="seedling", messages=CHAT, response_format=broken)
