"""Generation: only the new text, the same alone and in a batch. Oracle: transformers' generate on one row."""

import gc
import math
import weakref
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from graft.base.base import Base
from graft.errors import DataError, UsageError
from graft.generate.table import Table
from graft.kernels.decoder import Decoder
from graft.methods.lora import LoRA
from graft.methods.prompt import PromptTuning
from graft.models.load import load

STORIES = Path(__file__).parents[2] / "shared/models/stories260K"
PROMPTS = ["the cat sat", "a dog", "the cat sat on the mat and a dog", "mat"]


@pytest.fixture(scope="module")
def tokenizer():
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator(["the cat sat on the mat and a dog"] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def llama(tokenizer, positions=64):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=positions, bos_token_id=0,
        eos_token_id=1, initializer_range=0.4,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def gpt2(tokenizer, positions=64):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=positions, bos_token_id=0,
        eos_token_id=1, initializer_range=0.4,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


@pytest.fixture
def base(tokenizer):
    return Base(llama(tokenizer), tokenizer, "tiny")


def alone(model, tokenizer, prompt, new=12):
    """Greedy by transformers on one row, without padding."""
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=2
    )
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_padded_batch_gives_each_prompt_what_it_gets_alone(tokenizer, make):
    model = make(tokenizer)
    expected = [alone(model, tokenizer, prompt) for prompt in PROMPTS]
    assert Base(model, tokenizer, "tiny").generate(PROMPTS, max_new_tokens=12, batch_size=3) == expected
    assert len(set(expected)) > 1


def test_a_prompt_may_be_given_as_its_ids(tokenizer, base):
    """They are read as they are: no start token, no template, and no text that tokenises to other ids."""
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    assert base.generate(ids, max_new_tokens=12) == base.generate(PROMPTS, max_new_tokens=12)
    odd = [[*tokenizer("the")["input_ids"], *tokenizer("c")["input_ids"], *tokenizer("at")["input_ids"]], [0]]
    assert tokenizer(tokenizer.decode(odd[0]))["input_ids"] != odd[0]
    found = base.complete([*odd, PROMPTS[0]], max_new_tokens=6)
    for prompt, completion in zip(odd, found, strict=False):
        out = base.model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=6,
            do_sample=False, pad_token_id=2,
        )  # fmt: skip
        assert completion.tokens == out[0, len(prompt) :].tolist()
    assert found[2].text == base.generate(PROMPTS[:1], max_new_tokens=6)[0]
    with pytest.raises(DataError, match="prompt 1 has the token"):
        base.generate([[5], [10_000]], max_new_tokens=2)
    for beyond in (-1, -100_000_000, 2**40):
        with pytest.raises(DataError, match=f"prompt 1 has the token {beyond}"):
            base.generate([[5], [beyond, 5]], max_new_tokens=2)


def test_an_encoder_decoder_gives_each_prompt_what_it_gets_alone(tokenizer):
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
        initializer_factor=3.0, decoder_start_token_id=2, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).eval()
    expected = []
    for prompt in PROMPTS:
        out = model.generate(
            torch.tensor([tokenizer(prompt)["input_ids"]]), max_new_tokens=8, do_sample=False
        )
        expected.append(tokenizer.decode(out[0], skip_special_tokens=True))
    assert Base(model, tokenizer, "tiny").generate(PROMPTS, max_new_tokens=8) == expected


def test_rows_of_one_batch_follow_their_adapters(base):
    for seed, name in enumerate(["a", "b"]):
        torch.manual_seed(seed)
        for parameter in base.attach(name, LoRA(r=4, target_modules="all-linear")).parameters():
            parameter.data.normal_(std=0.3)
    names = ["b", None, "a", "b"]
    separate = [
        base.generate([p], adapters=[n], max_new_tokens=12)[0] for p, n in zip(PROMPTS, names, strict=True)
    ]
    assert base.generate(PROMPTS, adapters=names, max_new_tokens=12) == separate
    bare = base.generate(PROMPTS, max_new_tokens=12)
    assert separate[1] == bare[1] and sum(x != y for x, y in zip(separate, bare, strict=True)) == 3
    with base.using("a"):
        assert base.generate(PROMPTS[2:3], max_new_tokens=12) == separate[2:3]


def test_the_text_ends_in_front_of_a_stop_word(base):
    whole = base.generate(PROMPTS[:2], max_new_tokens=20)
    word = whole[0][3:5]
    stopped = base.generate(PROMPTS[:2], max_new_tokens=20, stop=[word])
    assert stopped == [text.split(word)[0] for text in whole]


def test_a_stop_that_is_a_special_token_ends_the_text(base, tokenizer):
    forced = tokenizer.convert_tokens_to_ids("<|im_end|>")
    head = base.model.lm_head
    hook = head.register_forward_hook(
        lambda m, i, o: torch.nn.functional.one_hot(torch.tensor(forced), o.shape[-1]).expand_as(o).float()
    )
    base.generate(["a"], max_new_tokens=1)  # a model is tried once before it writes
    counted = []
    count = base.model.register_forward_hook(lambda m, i, o: counted.append(1))
    try:
        assert base.generate(["a dog"], max_new_tokens=9, stop="<|im_end|>") == [""]
        assert len(counted) == 1
    finally:
        hook.remove(), count.remove()


def test_a_seed_fixes_the_samples_and_leaves_the_generator_alone(base):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    sample = lambda seed: base.generate(
        PROMPTS, do_sample=True, temperature=1.5, top_k=40, top_p=0.95, seed=seed, max_new_tokens=10
    )
    assert sample(1) == sample(1) != sample(2)
    assert torch.equal(torch.get_rng_state(), before)


def test_samples_without_a_seed_follow_torchs_generator_and_not_the_batch(base):
    def sample(size):
        torch.manual_seed(7)
        return base.generate(PROMPTS, do_sample=True, temperature=1.5, max_new_tokens=10, batch_size=size)

    assert sample(1) == sample(3) == sample(8)
    torch.manual_seed(8)
    assert sample(8) != base.generate(PROMPTS, do_sample=True, temperature=1.5, max_new_tokens=10)


def test_a_prompt_that_stands_twice_is_sampled_twice(base):
    one, two = base.generate(["a dog"] * 2, do_sample=True, temperature=2.0, seed=1, max_new_tokens=12)
    assert one != two


def test_texts_are_streamed_by_row(base):
    pieces = {}
    texts = base.generate(
        PROMPTS,
        max_new_tokens=12,
        stop=["mat"],
        batch_size=3,
        on_text=lambda row, piece: pieces.setdefault(row, []).append(piece),
    )
    assert texts == ["".join(pieces.get(row, [])) for row in range(len(PROMPTS))]
    assert max(map(len, pieces.values())) > 2


def test_a_completion_says_how_the_text_came_about(base, tokenizer):
    done = base.complete(PROMPTS, max_new_tokens=5, logprobs=2)
    assert [one.text for one in done] == base.generate(PROMPTS, max_new_tokens=5)
    assert all(one.finish_reason == "length" and len(one.tokens) == 5 == len(one.logprobs) for one in done)
    # Greedy: each token is the likeliest of its place.
    assert all([next(iter(top)) for top in one.top_logprobs] == one.tokens for one in done)
    stop = done[0].tokens[1]
    (ended,) = base.complete(PROMPTS[:1], max_new_tokens=5, stop_token_ids=[stop])
    assert (ended.finish_reason, ended.tokens) == ("stop", done[0].tokens[:2])


def test_progress_is_told_up_to_the_last_text(base):
    seen = []
    base.generate(PROMPTS, max_new_tokens=3, batch_size=2, progress=lambda *now: seen.append(now))
    assert seen == [(done, 4) for done in range(1, 5)]


def test_the_memory_of_the_cache_has_a_limit(base):
    texts = base.generate(PROMPTS, max_new_tokens=12)
    assert base.generate(PROMPTS, max_new_tokens=12, max_cache_tokens=40) == texts
    with pytest.raises(UsageError, match="max_cache_tokens"):
        base.generate(PROMPTS, max_new_tokens=12, max_cache_tokens=12)


def test_a_call_that_needs_two_engines_has_the_memory_of_one(base, monkeypatch):
    """A soft prompt has a table of its own, which is made when the decoder's cache is gone."""
    base.attach("soft", PromptTuning(num_virtual_tokens=5))
    alive, held = [], []
    for kind in (Decoder, Table):
        monkeypatch.setattr(kind, "resize", remembering(kind.resize, alive, held))
    base.generate(PROMPTS * 2, adapters=[None, "soft"] * 4, max_new_tokens=12, max_cache_tokens=60)
    assert len(held) > 1 and max(held) == 1


def remembering(resize, alive, held):
    """Let each call note how many of the objects that it was called with exist."""

    def counting(self, *arguments):
        if not any(known() is self for known in alive):
            alive.append(weakref.ref(self))
        held.append(sum(known() is not None for known in alive))
        return resize(self, *arguments)

    return counting


def test_a_call_leaves_no_cache_to_the_garbage_collector(base):
    """It counts objects, not their bytes."""
    base.attach("soft", PromptTuning(num_virtual_tokens=5))
    base.generate(PROMPTS, adapters="soft", max_new_tokens=2)  # a model is tried once
    gc.collect()
    gc.disable()
    try:
        base.generate(PROMPTS, adapters=[None, "soft"] * 2, max_new_tokens=4)
        left = [thing for thing in gc.get_objects() if isinstance(thing, Decoder | Table)]
    finally:
        gc.enable()
    assert not left


def test_top_k_of_one_is_greedy(base):
    assert base.generate(PROMPTS, do_sample=True, top_k=1, max_new_tokens=8) == base.generate(
        PROMPTS, max_new_tokens=8
    )


def test_settings_of_the_model_do_not_leak_in(base):
    greedy = base.generate(PROMPTS, max_new_tokens=8)
    settings = base.model.generation_config
    settings.do_sample, settings.num_beams, settings.repetition_penalty, settings.temperature = (
        True,
        3,
        3.0,
        9.0,
    )
    assert base.generate(PROMPTS, max_new_tokens=8) == greedy


def test_messages_go_through_the_chat_template(base, tokenizer):
    turns = "{% for m in messages %}{{ '<|im_start|>' + m['content'] + '<|im_end|>' }}{% endfor %}"
    template = turns + "{{ '<|im_start|>' if add_generation_prompt else '' }}"
    tokenizer.chat_template = template
    try:
        said = base.generate([[{"role": "user", "content": "a dog"}]], max_new_tokens=6)
        assert said == base.generate(
            ["<|im_start|>a dog<|im_end|><|im_start|>"], max_new_tokens=6, stop="<|im_end|>"
        )
    finally:
        tokenizer.chat_template = None


def test_a_prompt_may_bring_its_tools(base, tokenizer):
    tokenizer.chat_template = (
        "{{ tools | length if tools else 0 }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    seen = []
    base.model.register_forward_pre_hook(lambda m, a, k: seen.append(k["input_ids"]), with_kwargs=True)
    base.generate(["a"], max_new_tokens=1)  # tries the model first
    seen.clear()
    turns, tools = [{"role": "user", "content": "a dog"}], [{"name": "f"}, {"name": "g"}]
    try:
        base.generate([{"messages": turns, "tools": tools}, turns], max_new_tokens=1, batch_size=1)
    finally:
        tokenizer.chat_template = None
    assert sorted(tokenizer.decode(ids[0]) for ids in seen) == ["0a dog", "2a dog"]


def test_a_prompt_beyond_the_context_names_both_lengths(tokenizer):
    base = Base(gpt2(tokenizer, positions=16), tokenizer, "tiny")
    with pytest.raises(DataError, match=r"prompt 1 has \d+ tokens.*16 positions"):
        base.generate(["a dog", "mat " * 30])


def test_an_answer_ends_where_the_context_ends_and_neighbours_keep_theirs(tokenizer):
    base = Base(gpt2(tokenizer, positions=16), tokenizer, "tiny")
    long = "the cat sat on the mat and a dog mat mat"
    assert base.generate(["a dog", long], max_new_tokens=12) == [
        base.generate([p], max_new_tokens=12)[0] for p in ("a dog", long)
    ]


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": math.nan},
        {"batch_size": 0},
        {"max_cache_tokens": 0},
        {"stop": [""]},
        {"max_tokens": 5},
    ],
)
def test_settings_that_mean_nothing_are_refused_by_name(base, setting):
    with pytest.raises(UsageError, match=next(iter(setting))):
        base.generate(["a dog"], **setting)


def test_one_text_alone_is_a_list_of_one(base):
    assert base.generate("a dog", max_new_tokens=5) == base.generate(["a dog"], max_new_tokens=5)
    assert [done.text for done in base.complete("a dog", max_new_tokens=5)] == base.generate(
        "a dog", max_new_tokens=5
    )


@pytest.mark.skipif(not STORIES.exists(), reason="the real models are not beside the checkout")
def test_a_continuation_keeps_the_blank_that_a_sentencepiece_decoder_drops():
    base = load(STORIES, dtype="fp32")
    start = "Once upon a time, there was a little girl named"
    (text,) = base.generate([start], max_new_tokens=24)
    published = " Lily. She loved to play outside in the park."
    assert published.startswith(text[:20]) and text.startswith(" Lily")
