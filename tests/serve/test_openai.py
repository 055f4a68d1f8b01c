"""The surface of OpenAI's API as the official client sees it, over a real socket.

What shows which row:

    models         test_models_*
    chat           messages test_messages_*; streams and usage test_a_stream_*, test_only_the_last_*; lengths
                   test_a_chat_*; sampling test_seeds_*, test_eight_*, test_a_bias_*, test_a_frequency_*;
                   stops test_a_stop_*; log-probabilities test_log_*; forms test_answers_*, test_json_*; tools
                   test_calls_*, test_tools_*
    completions    prompts test_text_*; echo test_echo_*, test_an_echo_*; streams test_streamed_*; suffix
                   test_a_text_in_*
    embeddings     test_embeddings_*
    task heads     test_an_adapter_*

The client's exceptions, adapters, health and metrics: test_openai_refusals.py.
"""

import json
import math

import pytest

openai = pytest.importorskip("openai")
import torch  # noqa: E402
from openai_server import ADMIN, CHAT, listening, served_app  # noqa: E402

from graft.evaluate.answers import predictions  # noqa: E402
from graft.methods.task_head import TaskHead  # noqa: E402
from graft.models.load import load  # noqa: E402
from graft.serve.middle import between  # noqa: E402
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


def test_messages_of_all_roles_and_in_parts_are_one_text(client):
    parts = [{"type": "text", "text": "Write about "}, {"type": "text", "text": "a kettle."}]
    asked = {"model": "seedling", "temperature": 0, "max_tokens": 8}
    plain = client.chat.completions.create(messages=CHAT, **asked)
    in_parts = client.chat.completions.create(messages=[{"role": "user", "content": parts}], **asked)
    assert in_parts.choices[0].message.content == plain.choices[0].message.content
    assert in_parts.usage == plain.usage
    by_role = {
        role: client.chat.completions.create(
            messages=[{"role": role, "content": "Be short."}, *CHAT], **asked
        )
        for role in ("system", "developer")
    }
    assert by_role["system"].usage == by_role["developer"].usage != plain.usage
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    told = [
        *CHAT,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "It is red.", "tool_call_id": "1"},
    ]
    answer = client.chat.completions.create(messages=told, **asked)
    assert answer.usage.prompt_tokens > plain.usage.prompt_tokens


def test_only_the_last_chunk_tells_usage(client):
    for create, asked in (
        (client.chat.completions.create, {"messages": CHAT}),
        (client.completions.create, {"prompt": "The"}),
    ):
        options = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 4}
        chunks = list(create(model="seedling", **asked, **options))
        assert all(chunk.usage is None for chunk in chunks[:-1]) and chunks[-1].choices == []
        assert chunks[-1].usage.total_tokens == chunks[-1].usage.prompt_tokens + 4
        without = list(create(model="seedling", **asked, stream=True, max_tokens=4))
        assert all(chunk.choices and chunk.usage is None for chunk in without)


def test_an_echo_is_streamed_with_its_log_probabilities(client):
    asked = {"model": "lora-0", "prompt": "The kettle", "echo": True, "logprobs": 2, "temperature": 0}
    asked |= {"max_tokens": 4, "extra_body": {"min_tokens": 5}}
    whole = client.completions.create(**asked).choices[0]
    chunks = [chunk.choices[0] for chunk in client.completions.create(**asked, stream=True)]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    for column in ("tokens", "token_logprobs", "text_offset"):
        streamed = [one for chunk in chunks if chunk.logprobs for one in getattr(chunk.logprobs, column)]
        assert streamed == getattr(whole.logprobs, column)
    logs = whole.logprobs
    for token, offset in list(zip(logs.tokens, logs.text_offset, strict=True))[1:]:
        assert whole.text[offset:].startswith(token)
    assert logs.top_logprobs[0] is None and all(len(top) == 2 for top in logs.top_logprobs[1:])


def test_a_bias_forces_a_token(client, place):
    token = place["base"].tokenizer("kettle", add_special_tokens=False)["input_ids"][-1]
    got = client.completions.create(
        model="seedling", prompt="The", temperature=0, max_tokens=3, logprobs=0, logit_bias={str(token): 100}
    )
    assert len(set(got.choices[0].logprobs.tokens)) == 1


def test_a_frequency_penalty_ends_a_forced_repetition(client, place):
    """With +20 for one token, it is written until the penalty of its repetitions outweighs that: 10 times."""
    token = place["base"].tokenizer("kettle", add_special_tokens=False)["input_ids"][-1]
    asked = {"model": "seedling", "prompt": "The", "temperature": 0, "max_tokens": 32, "logprobs": 0}
    forced = client.completions.create(**asked, logit_bias={str(token): 50})
    punished = client.completions.create(**asked, logit_bias={str(token): 50}, frequency_penalty=2)
    word = forced.choices[0].logprobs.tokens[0]
    assert forced.choices[0].logprobs.tokens.count(word) == 32
    assert 10 <= punished.choices[0].logprobs.tokens.count(word) < 32


def test_eight_choices_are_the_most(client):
    got = client.chat.completions.create(
        model="seedling", messages=CHAT, n=8, max_tokens=2, temperature=2, seed=1
    )
    assert [choice.index for choice in got.choices] == list(range(8))
    with pytest.raises(openai.BadRequestError, match="at most 8"):
        client.completions.create(model="seedling", prompt=["a", "b", "c"], n=3)


def test_json_of_any_form(client):
    pytest.importorskip("llguidance")
    asked = {"model": "seedling", "messages": CHAT, "temperature": 0, "max_tokens": 40}
    got = client.chat.completions.create(**asked, response_format={"type": "json_object"})
    assert isinstance(json.loads(got.choices[0].message.content), dict)
    plain = client.chat.completions.create(**asked)
    text = client.chat.completions.create(**asked, response_format={"type": "text"})
    assert text.choices[0].message.content == plain.choices[0].message.content


def test_embeddings_of_ids(client, place):
    ids = place["base"].tokenizer("The kettle")["input_ids"]
    by_text, by_ids, both = (
        client.embeddings.create(model="seedling", input=given).data
        for given in ("The kettle", ids, [ids, ids])
    )
    assert by_ids[0].embedding == by_text[0].embedding == both[1].embedding and len(both) == 2


WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {}}}},
}
SHOWS_TOOLS = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}{% for m in messages %}{{ m.role }}: {{ m.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture
def tool_client():
    """A client of a model whose chat template shows tools, as those of many models do."""
    base = load("seedling", dtype="fp32")
    base.tokenizer.chat_template = SHOWS_TOOLS
    with served_app(base) as app, listening(app) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_calls_of_tools_are_parsed_whole_and_streamed(tool_client):
    pytest.importorskip("llguidance")
    arguments = {"type": "object", "properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"]}
    call = {
        "type": "object",
        "properties": {
            "name": {"const": "weather"},
            "arguments": arguments | {"additionalProperties": False},
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }  # this tiny model calls no tools by itself: the form of its answer makes it
    form = {"type": "json_schema", "json_schema": {"name": "call", "schema": call}}
    asked = {"model": "seedling", "messages": CHAT, "temperature": 0, "response_format": form}
    create = tool_client.chat.completions.create
    whole = create(**asked, tools=[WEATHER]).choices[0]
    assert whole.finish_reason == "tool_calls" and whole.message.content is None
    (found,) = whole.message.tool_calls
    assert found.function.name == "weather" and json.loads(found.function.arguments) == {"city": "Oslo"}
    chunks = [chunk.choices[0] for chunk in create(**asked, tools=[WEATHER], stream=True)]
    streamed = [part for chunk in chunks for part in chunk.delta.tool_calls or []]
    assert [part.function.to_dict() for part in streamed] == [found.function.to_dict()]
    assert streamed[0].index == 0 and streamed[0].id
    assert chunks[-1].finish_reason == "tool_calls" and not any(chunk.delta.content for chunk in chunks)
    none = create(**asked, tools=[WEATHER], tool_choice="none").choices[0]
    assert none.finish_reason == "stop" and json.loads(none.message.content)["name"] == "weather"


def test_tools_that_a_template_does_not_show_are_refused(client):
    with pytest.raises(openai.BadRequestError, match="no tools") as refused:
        client.chat.completions.create(model="seedling", messages=CHAT, tools=[WEATHER])
    assert refused.value.param == "tools"


def test_a_text_in_the_middle_is_asked_for_by_the_models_own_marks(client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="seedling", prompt="def f(", suffix="return x")
    assert refused.value.param == "suffix"
    tokenizer = load("seedling", dtype="fp32").tokenizer
    tokenizer.add_tokens(["<fim_prefix>", "<fim_suffix>", "<fim_middle>"], special_tokens=True)
    want = tokenizer("<fim_prefix>The kettle<fim_suffix>boils.<fim_middle>")["input_ids"]
    assert between(tokenizer, "The kettle", "boils.") == want
