"""What is learnt of a conversation: the answers and the tokens that end them, for every shape of template."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from graft.data.chat_templates import BUILTIN
from graft.data.mask import Rendered, tokenise
from graft.data.rows import BadRow, Row
from graft.data.templates import Template, affixes, prompt_ids, source
from graft.errors import DataError, UsageError

# Shapes as published models have them, written by hand, and the token that ends a turn.
SHAPES = {
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "<|im_end|>",
    ),
    "no generation prompt": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
        "<|im_end|>",
    ),
    "llama 2": (
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content | trim }} [/INST]"
        "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}",
        "</s>",
    ),
    "llama 3": (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        "<|eot_id|>",
    ),
    "gemma": (
        "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        "<end_of_turn>",
    ),
    "markers, blank after colon": (
        "{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} {% else %}ASSISTANT: {{ m.content }}"
        "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}",
        "</s>",
    ),
    "no ending token": (
        "{% for m in messages %}{% if m.role == 'user' %}### Human: {{ m.content }}\n{% else %}### Assistant: "
        "{{ m.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}### Assistant:{% endif %}",
        "</s>",
    ),
    "phi": (
        "{% for m in messages %}<|{{ m.role | capitalize }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|Assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        "<|end|>",
    ),
    "deepseek": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}{% else %}<|Assistant|>"
        "{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|Assistant|>{% endif %}",
        "</s>",
    ),
    "qwen 3, thinking": (
        "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% if loop.index0 > ns.last %}"
        "<think>\n{{ m.content.split('</think>')[0].split('<think>')[-1] | trim if '</think>' in m.content else '' }}"
        "\n</think>\n\n{% endif %}{{ m.content.split('</think>')[-1] | trim }}"
        "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "<|im_end|>",
    ),
}
TALK = [
    {"role": "user", "content": "What is two and two?"},
    {"role": "assistant", "content": "four"},
    {"role": "user", "content": "the cat sat on a mat"},
    {"role": "assistant", "content": "Hello there! a dog"},
]


def learnt(tokenizer, text, messages, first=0):
    """Ids, and the decoded runs that are learnt."""
    rendered = Template(tokenizer, text).learn(Row("f:1", "chat", messages, first=first))
    ((ids, flags, _),) = tokenise([rendered], tokenizer)
    runs, before = [], False
    for token, flag in zip(ids, flags, strict=True):
        if flag and not before:
            runs.append([])
        if flag:
            runs[-1].append(token)
        before = flag
    return ids, [tokenizer.decode(run, skip_special_tokens=False) for run in runs]


@pytest.mark.parametrize("shape", SHAPES)
def test_answers_and_the_token_that_ends_them_are_learnt(shape, bpe):
    text, end = SHAPES[shape]
    _, runs = learnt(bpe, text, TALK)
    assert len(runs) == 2 and runs[1].endswith(end)
    assert "four" in runs[0] and "Hello there! a dog" in runs[1]
    assert not any(asked["content"] in run for run in runs for asked in TALK[::2])
    if shape != "no ending token":  # here nothing ends the first answer, and nothing is put there
        assert runs[0].endswith(end)
    if shape not in ("qwen 3, thinking", "no generation prompt"):
        assert runs[0].removesuffix(end).strip() == "four"


@pytest.mark.parametrize("shape", SHAPES)
def test_training_ids_begin_with_the_ids_of_the_prompt(shape, bpe):
    text, _ = SHAPES[shape]
    for upto in (2, 4):
        ids, _ = learnt(bpe, text, TALK[:upto])
        prompt = prompt_ids(TALK[: upto - 1], bpe, template=text)
        assert ids[: len(prompt)] == prompt and len(ids) > len(prompt)


def test_a_first_answer_that_merges_with_its_prompt_is_cut_apart(bpe):
    text = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    talk = [{"role": "user", "content": "the c"}, {"role": "assistant", "content": "at sat"}]
    assert bpe("the cat")["input_ids"][:2] != bpe("the c")["input_ids"][:2]  # ' cat' is one token
    ids, runs = learnt(bpe, text, talk)
    prompt = prompt_ids(talk[:1], bpe, template=text)
    assert ids[: len(prompt)] == prompt and runs == ["at sat</s>"]


def test_a_thinking_template_is_learnt_as_it_stands_in_the_conversation(bpe):
    text, _ = SHAPES["qwen 3, thinking"]
    talk = [dict(m) for m in TALK]
    talk[1]["content"], talk[3]["content"] = "<think>a cat</think>four", "<think>a mat</think>Hello"
    rendered = Template(bpe, text).learn(Row("f:1", "chat", talk))
    _, runs = learnt(bpe, text, talk)
    assert runs == ["four<|im_end|>", "<think>\na mat\n</think>\n\nHello<|im_end|>"]
    assert rendered.altered == 1  # the first answer was generated with its thoughts and stands here without


def test_only_the_completion_of_a_conversational_prompt_is_learnt(bpe):
    _, runs = learnt(bpe, SHAPES["chatml"][0], TALK, first=3)
    assert runs == ["Hello there! a dog<|im_end|>"]


@pytest.mark.parametrize("name", BUILTIN)
def test_built_in_templates_end_every_answer_with_a_token_and_match_their_prompt(name, bpe):
    text = source(bpe, name)
    talk = [{"role": "system", "content": "a dog ran home"}, *TALK]
    ids, runs = learnt(bpe, text, talk)
    end = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>"}.get(name, "</s>")
    assert [run.removesuffix(end).strip() for run in runs] == ["four", "Hello there! a dog"]
    assert all(run.endswith(end) for run in runs)
    prompt = prompt_ids(talk[:-1], bpe, template=text)
    assert ids[: len(prompt)] == prompt


def test_plain_needs_no_character_that_a_small_alphabet_lacks(chars):
    talk = [
        {"role": "system", "content": "Be brief."},
        *({**m, "content": m["content"].replace("!", ".")} for m in TALK),
    ]
    ids, runs = learnt(chars, source(chars), talk)
    assert chars.unk_token_id not in ids
    assert runs == [" four</s>", " Hello there. a dog</s>"]


@pytest.mark.parametrize("name", ["plain", "llama2", "vicuna", "zephyr", "alpaca", "guanaco"])
def test_the_beginning_token_is_written_once_and_only_where_the_tokenizer_writes_it(name, llama, bpe):
    assert affixes(llama) == ([1], []) and affixes(bpe) == ([], [])
    for tokenizer, count in [(llama, 1), (bpe, 0)]:
        ids, _ = learnt(tokenizer, source(tokenizer, name), TALK[:2])
        assert ids.count(tokenizer.bos_token_id) == count
        assert prompt_ids("the cat", tokenizer).count(tokenizer.bos_token_id) == count


def test_the_tokenizers_own_template_comes_first_then_plain_then_files(bpe, llama, tmp_path):
    (tmp_path / "own.jinja").write_text("{{ messages }}")
    assert source(llama) == source(llama, "plain")
    assert source(llama, str(tmp_path / "own.jinja")) == "{{ messages }}"
    bpe.chat_template = SHAPES["chatml"][0]
    try:
        assert source(bpe) == SHAPES["chatml"][0]
    finally:
        bpe.chat_template = None


def test_templates_that_cannot_work_are_refused(llama):
    with pytest.raises(UsageError) as caught:
        source(llama, "chatlm")
    assert "chatml" in caught.value.remedy
    with pytest.raises(DataError, match="im_start"):
        source(llama, "chatml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[9]['content'] }}", "no element"),
        (
            "{% for m in messages if m.role == 'assistant' %}{{ m.content }}{% endfor %}",
            r"does not write turn 1 \(user\)",
        ),
        (
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
            r"writes nothing for turn 2",
        ),
    ],
)
def test_rows_that_a_template_refuses_or_loses_are_defects(text, said, bpe):
    with pytest.raises(BadRow, match=said):
        Template(bpe, text).learn(Row("f:1", "chat", TALK[:2]))


def test_tokenizers_without_offsets_find_the_same_mask(bpe):
    class Slow:
        is_fast = False

        def __call__(self, texts, **_):
            return {"input_ids": bpe(texts, add_special_tokens=False)["input_ids"]}

    rows = [Template(bpe, text).learn(Row("f:1", "chat", TALK)) for text, _ in SHAPES.values()]
    rows.append(Rendered("the cat sat</s>", [5], [(5, 15)]))  # begins inside the token ' cat'
    for fast, slow in zip(tokenise(rows, bpe), tokenise(rows, Slow()), strict=True):
        assert fast[:2] == slow[:2]


MODELS = Path(__file__).parents[3] / "shared" / "models"


@pytest.mark.skipif(not MODELS.exists(), reason="the real tokenizers lie beside the checkout")
@pytest.mark.parametrize("name", ["stories260K", "babyllama-char", "book-llama-6m", "gpt2-tokenizer"])
def test_real_tokenizers_learn_the_answer_and_its_end(name):
    tokenizer = AutoTokenizer.from_pretrained(MODELS / name, trust_remote_code=False)
    text = source(tokenizer)
    ids, runs = learnt(tokenizer, text, TALK)
    eos = tokenizer.eos_token
    assert [run.strip() for run in runs] == ["four" + eos, "Hello there! a dog" + eos]
    prompt = prompt_ids(TALK[:3], tokenizer, template=text)
    assert ids[: len(prompt)] == prompt
    begins = bool(
        affixes(tokenizer)[0]
    )  # GPT-2's beginning is its end token, which stands behind both answers
    assert ids.count(tokenizer.bos_token_id) == begins + 2 * (tokenizer.bos_token == eos)
