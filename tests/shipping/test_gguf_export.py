"""GGUF files answer in llama.cpp as here; what llama.cpp would refuse or misread is refused first."""

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import models
from graft.base.base import Base
from graft.data.chat_templates import BUILTIN, jinja
from graft.data.templates import Template
from graft.errors import GraftError, ModelError, UsageError
from graft.formats.gguf import FORMS, decode, encode
from graft.formats.gguf_file import read, tokenizer
from graft.formats.gguf_names import architecture, file_name, state_name
from graft.methods.lora import LoRA
from graft.models.load import load
from graft.shipping.export import export
from graft.shipping.gguf import file_name as name_of_file
from graft.shipping.gguf import write_gguf, write_lora
from graft.shipping.instructions import go_template, vllm
from graft.shipping.vocabulary import GPT2, LLAMA3, PRE, vocabulary
from models import randomise, tiny_model

gguf = pytest.importorskip("gguf")
REAL = Path(__file__).parents[3] / "shared/models"
TEXTS = (
    "Once upon a time, Lily's 1234 cats weren't HAPPY...",
    "  two  blanks\tand\n\n three lines \n",
    "naïve café, 漢字 and 🙂 €5.50",
    "x=_y_#[z]{0} <eos> </s> <|im_start|>",
    "",
)
CONTEXT = {"max_position_embeddings": 64, "num_hidden_layers": 8, "head_dim": 16, "query_pre_attn_scalar": 16}
ROPE = {"rope_theta": 10000.0, "factor": 8.0}
LLAMA3_ROPE = {**ROPE, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FAMILIES = {
    "llama": ("llama", {}),
    "llama with biases, tied": (
        "llama",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama, longer": ("llama", {"rope_parameters": {**ROPE, "rope_type": "linear"}}),
    "llama 3": ("llama", {"rope_parameters": {**LLAMA3_ROPE, "original_max_position_embeddings": 32}}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "gemma": ("gemma", {"head_dim": 32}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 16, "sliding_window": 8}),
    "gemma3": ("gemma3_text", {**models.LLAMA, **CONTEXT, "sliding_window": 8}),
}


@pytest.fixture(scope="module")
def seedling():
    return load("seedling", dtype="fp32")


@pytest.fixture
def base(seedling):
    """The seedling, whose tokenizer a test may change."""
    return Base(seedling.model, copy.deepcopy(seedling.tokenizer), "seedling")


def tiny(kind, tokenizer):
    family, changes = FAMILIES[kind]
    ids = {"vocab_size": 2048, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return Base(tiny_model(family, **{**changes, **ids}), tokenizer, f"tiny-{family}")


def written(base, folder, form="f32"):
    write_gguf(base, folder, form)
    return folder / name_of_file(base, form)


def retold(tokenizer, **changes):
    """The tokenizer with other parts of its tokenizer.json."""
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    for part, new in changes.items():
        whole[part] = {**whole[part], **new} if part == "model" else new
    special = {f"{name}_token": getattr(tokenizer, f"{name}_token") for name in ("bos", "eos", "pad")}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(whole)), **special)


IDS = [1, *((i * 37) % 2000 + 5 for i in range(40))]  # longer than the windows above


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_answers_in_llama_cpp_as_in_transformers(kind, seedling, tmp_path):
    from llama_cpp import LlamaCpp, compare

    base = tiny(kind, seedling.tokenizer)
    llama = LlamaCpp(written(base, tmp_path))
    for length in (3, 20, 41):
        (apart,), (behind,) = compare(llama, base.model, IDS[:length], 1, top=20)
        # llama.cpp looks GELU up in a table of fp16
        assert apart < (2e-3 if "gemma" in kind else 2e-5) and behind < 1e-5


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2"])
def test_a_lora_is_loaded_by_llama_cpp_beside_its_base(kind, seedling, tmp_path):
    from llama_cpp import LlamaCpp, compare

    base = tiny(kind, seedling.tokenizer)
    method = LoRA(
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        rank_pattern={"q_proj": 2},
        alpha_pattern={"up_proj": 3},
    )
    randomise(base.attach("sql", method), scale=0.1)
    lora = tmp_path / write_lora(base, tmp_path, "sql")
    with torch.no_grad():
        effect = (
            (base(torch.tensor([IDS]), adapters=["sql"]).logits - base(torch.tensor([IDS])).logits)
            .abs()
            .max()
        )
    base.merge("sql")
    apart, _ = compare(
        LlamaCpp(written(tiny(kind, seedling.tokenizer), tmp_path), lora), base.model, IDS, 1, top=20
    )
    assert max(apart) < (3e-3 if kind == "gemma2" else 1e-4) and effect > 0.5


def test_two_loras_at_one_place_are_one_in_the_file(seedling, tmp_path):
    base = tiny("llama", seedling.tokenizer)
    methods = [
        LoRA(r=2, lora_alpha=0, target_modules=["o_proj"]),
        LoRA(r=4),
        LoRA(r=3, target_modules=["q_proj"]),
    ]
    randomise(base.attach("sql", methods), scale=0.1)
    base.load_adapter(tmp_path / write_lora(base, tmp_path, "sql"), "again")
    with torch.no_grad():
        ours, again, bare = (base(torch.tensor([IDS]), adapters=[n]).logits for n in ("sql", "again", None))
    torch.testing.assert_close(again, ours, atol=1e-4, rtol=1e-4)
    assert (ours - bare).abs().max() > 0.5


@pytest.mark.parametrize("form", FORMS)
def test_the_file_holds_the_blocks_of_our_weights_and_loads_again(form, seedling, tmp_path):
    path = written(seedling, tmp_path, form)
    state, arch = seedling.model.state_dict(), architecture(seedling.model.config)
    again = load(path, "none", dtype="fp32")
    for tensor in gguf.GGUFReader(path).tensors:
        key = state_name(tensor.name, arch)
        own = tensor.tensor_type.name.lower()
        assert own == (
            "f32" if "norm" in key else "q8_0" if "embed" in key and form[:2] in ("q4", "q5") else form
        )
        weight = state[key].reshape(-1, state[key].shape[-1])
        expected = decode(encode(weight, own), own).float().reshape(state[key].shape)
        assert torch.equal(again.model.state_dict()[key], expected)
        if (
            "attn_q" not in tensor.name and "attn_k" not in tensor.name
        ):  # those have another order of rows in the file
            read = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type)).reshape(expected.shape)
            assert torch.equal(read, expected)
    assert all(again.tokenizer(text)["input_ids"] == seedling.tokenizer(text)["input_ids"] for text in TEXTS)
    assert again.model.generation_config.eos_token_id == 2 and again.tokenizer.eos_token_id == 2


def test_transformers_reads_the_same_weights(seedling, tmp_path):
    path = written(seedling, tmp_path, "q8_0")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32
    ).state_dict()
    ours = load(path, "none", dtype="fp32").model.state_dict()
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in ours)


@pytest.mark.parametrize("kind", ["qwen3", "gemma3", "llama with biases, tied", "gemma2"])
def test_a_file_comes_in_as_the_model_that_went_out(kind, seedling, tmp_path):
    base = tiny(kind, seedling.tokenizer)
    again = load(written(base, tmp_path), dtype="fp32")
    assert type(again.model) is type(base.model) and again.tokenizer.bos_token == "<bos>"
    with torch.no_grad():
        expected, found = (one.model(torch.tensor([IDS])).logits for one in (base, again))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)  # Gemma's norms went through 1 + w


def test_a_file_is_quantised_while_it_loads(seedling, tmp_path):
    packed = load(written(seedling, tmp_path, "q8_0"), quant="nf4")
    assert sum(hasattr(module, "codes") for module in packed.model.modules()) > 8
    assert packed.generate(["Day"], max_new_tokens=2)


def test_llama_3s_rotary_factors_come_in(seedling, tmp_path):
    kind = {**LLAMA3_ROPE, "original_max_position_embeddings": 8192}
    base = Base(
        tiny_model("llama", vocab_size=2048, eos_token_id=2, rope_parameters=kind), seedling.tokenizer, "l3"
    )
    rope = load(written(base, tmp_path), dtype="fp32").model.config.rope_parameters
    assert {key: rope[key] for key in kind} == kind
    with pytest.raises(ModelError, match="rope_freqs"):
        load(written(tiny("llama 3", seedling.tokenizer), tmp_path))


@pytest.mark.parametrize("rule", PRE, ids=PRE.values())
def test_text_is_cut_in_llama_cpp_as_here(rule, base, tmp_path):
    from llama_cpp import LlamaCpp

    cuts, whole_words = rule
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    steps = [{**step, "use_regex": GPT2 in cuts}]
    for cut in cuts:
        if cut == "single digits":
            steps.insert(0, {"type": "Digits", "individual_digits": True})
        elif cut != GPT2:
            steps.insert(
                0, {"type": "Split", "pattern": {"Regex": cut}, "behavior": "Isolated", "invert": False}
            )
    sequence = {"type": "Sequence", "pretokenizers": steps}
    base.tokenizer = retold(base.tokenizer, pre_tokenizer=sequence, model={"ignore_merges": whole_words})
    llama = LlamaCpp(written(base, tmp_path, "q8_0"))
    for text in TEXTS[:3]:
        assert llama.tokenize(text) == base.tokenizer(text)["input_ids"]


def test_every_token_that_ends_a_text_here_ends_it_in_llama_cpp(base, tmp_path):
    from llama_cpp import LlamaCpp

    prompt = "The day was over."
    tokens = base.tokenizer(prompt)["input_ids"]
    with torch.no_grad():
        likely = int(base.model(torch.tensor([tokens])).logits[0, -1].argmax())
    base.model = copy.deepcopy(base.model)
    base.model.config.eos_token_id = base.model.generation_config.eos_token_id = [2, likely]
    _, why, new, _ = LlamaCpp(written(base, tmp_path, "f32")).complete(prompt, 8)
    assert (why, new) == ("stop", [likely]) and base.generate([prompt], max_new_tokens=8) == [""]


@pytest.mark.parametrize("name", ["plain", "alpaca", "zephyr", "llama2"])
def test_the_chat_template_renders_in_llama_cpp_as_here(name, base, tmp_path):
    from llama_cpp import LlamaCpp

    base.tokenizer.chat_template = jinja(name, bos=True)
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "A model."},
        {"role": "user", "content": "Why?"},
    ]
    ours = Template(base.tokenizer, base.tokenizer.chat_template).render(messages, ask=True)
    llama = LlamaCpp(written(base, tmp_path, "q8_0"))
    assert llama.render(messages) == ours.removeprefix("<bos>")  # which it puts there by itself
    assert (
        llama.tokenize(llama.render(messages)) == base.tokenizer(ours, add_special_tokens=False)["input_ids"]
    )


def test_several_chat_templates_come_back_by_their_names(base, tmp_path):
    both = {"default": jinja("zephyr", bos=True), "tool_use": jinja("plain", bos=True)}
    base.tokenizer.chat_template = both
    export(base, tmp_path / "out", to="gguf")
    (file,) = (tmp_path / "out").glob("*.gguf")
    assert tokenizer(file).chat_template == both
    keys, _ = read(file)
    assert keys["tokenizer.chat_template"] == both["default"]  # where llama.cpp looks for it


def test_ollama_gets_the_template_in_its_own_language(base, tmp_path):
    base.tokenizer.chat_template = jinja("zephyr", bos=True)
    expected = (
        '{{ range .Messages }}{{ if eq .Role "user" }}<|user|>\n{{ .Content }}<eos>\n<|assistant|>\n'
        '{{ else if eq .Role "assistant" }}{{ .Content }}<eos>\n'
        '{{ else if eq .Role "system" }}<|system|>\n{{ .Content }}<eos>\n{{ end }}{{ end }}'
    )
    assert go_template(base.tokenizer) == expected
    base.tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ loop.index }}{{ m['content'] }}{% endfor %}"
    )
    assert go_template(base.tokenizer) is None  # turns differ
    base.tokenizer.chat_template = jinja("plain", bos=True)
    export(base, tmp_path / "out", to="gguf")
    lines = (tmp_path / "out/Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ./seedling-Q8_0.gguf" and lines[-2:] == [
        'PARAMETER stop "<eos>"',
        "PARAMETER num_ctx 512",
    ]
    card = (tmp_path / "out/README.md").read_text()
    assert "vllm serve ./seedling-Q8_0.gguf --tokenizer PATH_TO/seedling" in card
    assert "No other tool knows that name" in card and "library_name: gguf" in card


def test_every_builtin_template_is_given_to_ollama_or_left_to_it(base):
    for name in BUILTIN:
        base.tokenizer.chat_template = jinja(name, bos=True)
        found = go_template(base.tokenizer)
        assert found is None or found.count("{{ .Content }}") in (2, 3)


def test_an_export_merges_the_adapter_first(base, tmp_path):
    randomise(base.attach("sql", LoRA(r=4, target_modules="all-linear")), scale=0.05)
    with torch.no_grad():
        adapted, plain = (base(torch.tensor([IDS]), adapters=[name]).logits for name in ("sql", None))
    export(base, tmp_path / "out", to="gguf", type="f32", adapter="sql")
    again = load(tmp_path / "out/seedling-F32.gguf", dtype="fp32")
    with torch.no_grad():
        torch.testing.assert_close(again(torch.tensor([IDS])).logits, adapted, atol=1e-3, rtol=1e-3)
        assert torch.equal(base(torch.tensor([IDS])).logits, plain) and (adapted - plain).abs().max() > 0.1
    assert json.loads((tmp_path / "out/merge_report.json").read_text())["adapters"][0]["adapter"] == "sql"
    export(base, tmp_path / "lora", to="gguf-lora")
    assert "ADAPTER ./sql-lora.gguf" in (tmp_path / "lora/Modelfile").read_text()


def test_the_line_for_vllm_has_a_rank_that_it_takes():
    assert vllm("m", lora=("sql", "out/sql", 12)) == (
        "vllm serve m --enable-lora --lora-modules sql=out/sql --max-lora-rank 16"
    )


NO_BYTES = {
    "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    "pre_tokenizer": None,
}
UPPER = {"type": "Split", "pattern": {"Regex": "[A-Z]"}, "behavior": "Isolated", "invert": False}
REFUSED = {
    "no merges": ({"model": {"merges": []}}, "no merges"),
    "unknown cuts": ({"pre_tokenizer": UPPER}, "a rule that llama.cpp has no name for"),
    "another merge order": ({"pre_tokenizer": {**UPPER, "pattern": {"Regex": LLAMA3}}}, "no name for"),
    "changed text": ({"normalizer": {"type": "Lowercase"}}, "changes text before it is cut"),
    "no bytes": (NO_BYTES, "no pieces for the 256 bytes"),
    "words": ({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}, "of the kind WordLevel"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_tokenizer_that_llama_cpp_reads_otherwise_is_refused_with_the_reason(why, base):
    changes, reason = REFUSED[why]
    if why == "words":
        facts = json.loads(base.tokenizer.backend_tokenizer.to_str())
        facts |= {"model": changes["model"], "added_tokens": [], "post_processor": None}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(facts)))
    else:
        tokenizer = retold(base.tokenizer, **changes)
    with pytest.raises(UsageError, match=reason):
        vocabulary(tokenizer, 2048, [2])


def test_sizes_and_stops_that_do_not_fit_are_refused(base):
    with pytest.raises(UsageError, match="2,048 tokens and the model's table 2,000 rows"):
        vocabulary(base.tokenizer, 2000, [2])
    with pytest.raises(UsageError, match="0 tokens that end a text"):
        vocabulary(base.tokenizer, 2048, [])
    padded = vocabulary(base.tokenizer, 2050, [2])
    assert (
        padded["tokenizer.ggml.tokens"][-1] == "[UNUSED2049]" and padded["tokenizer.ggml.token_type"][-1] == 5
    )


DROPPED = {
    "merges": lambda keys: keys.pop("tokenizer.ggml.merges"),
    "cuts": lambda keys: keys.update({"tokenizer.ggml.pre": "mine"}),
    "size": lambda keys: [
        keys[f"tokenizer.ggml.{key}"].append(last) for key, last in (("tokens", "x"), ("token_type", 1))
    ],
}


@pytest.mark.parametrize("what", DROPPED)
def test_llama_cpp_refuses_such_files_indeed(what, base, tmp_path, monkeypatch):
    from llama_cpp import opens

    def spoilt(*arguments):
        keys = vocabulary(*arguments)
        DROPPED[what](keys)
        return keys

    assert opens(written(base, tmp_path, "q8_0"))
    monkeypatch.setattr(sys.modules["graft.shipping.gguf"], "vocabulary", spoilt)
    assert not opens(written(base, tmp_path, "q8_0"))


MODELS = {
    "gpt2": ({}, "a gpt2 model as GGUF"),
    "gemma2": ({}, "query_pre_attn_scalar 256"),
    "llama": ({"hidden_act": "relu"}, "hidden_act relu"),
    "qwen2": ({"use_sliding_window": True, "max_window_layers": 1}, "these layer_types"),
    "mistral": ({"rope_parameters": {**ROPE, "rope_type": "dynamic"}}, "rope_type dynamic"),
}


@pytest.mark.parametrize("family", MODELS)
def test_a_model_that_llama_cpp_computes_otherwise_is_refused(family, seedling, tmp_path):
    changes, reason = MODELS[family]
    with pytest.raises(UsageError, match=reason):
        write_gguf(Base(tiny_model(family, **changes), seedling.tokenizer, "x"), tmp_path, "f16")


def test_adapters_that_are_more_than_low_rank_are_refused(base, tmp_path):
    base.attach("dora", LoRA(r=2, use_dora=True))
    base.attach("head", LoRA(r=2, target_modules=["embed_tokens"]))
    for name in ("dora", "head"):
        with pytest.raises(UsageError, match="as a GGUF adapter"):
            write_lora(base, tmp_path, name)


def test_what_cannot_be_meant_is_named(base, tmp_path):
    with pytest.raises(UsageError, match="did you mean 'q8_0'"):
        export(base, tmp_path / "out", to="gguf", type="q8")
    wide = tiny("llama", base.tokenizer)
    with torch.no_grad():
        wide.model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e6
    with pytest.raises(ModelError, match=r"ffn_up.weight does not fit into f16.*bf16"):
        write_gguf(wide, tmp_path, "f16")
    write_gguf(wide, tmp_path, "bf16")


def test_damaged_files_and_adapters_are_refused_by_name(base, tmp_path):
    path = written(base, tmp_path, "q8_0")
    whole = path.read_bytes()
    for cut in (3, 40, len(whole) // 50, len(whole) - 1000):
        path.write_bytes(whole[:cut])
        with pytest.raises(ModelError, match="cannot be read"):
            load(path)
    base.attach("sql", LoRA(r=2))
    with pytest.raises(ModelError, match="is an adapter"):
        load(tmp_path / write_lora(base, tmp_path, "sql"))
    with pytest.raises(GraftError, match=r"a \.gguf file"):
        (tmp_path / "x.bin").write_bytes(b"x")
        load(tmp_path / "x.bin")


@pytest.mark.parametrize("kind", FAMILIES)
def test_names_are_those_of_the_package(kind, seedling):
    model = tiny(kind, seedling.tokenizer).model
    arch = architecture(model.config)
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == arch.name)
    theirs = gguf.get_tensor_name_map(number, model.config.num_hidden_layers)
    for key in model.state_dict():
        module, _, kind = key.rpartition(".")
        if key != "lm_head.weight":  # Gemma's is always the table
            assert file_name(key, arch) == f"{theirs.get_name(module)}.{kind}"
            assert state_name(file_name(key, arch), arch) == key


PROMPTS = (
    "Once upon a time", "Lily and Tom", "The big dog", "One day, a boy named Tim", "It was raining",
    "The cat sat on", "Mom said", "In the park", "There was a red ball", "She was very happy",
    "They went home", "A little bird", "Ben saw a", "The sun was", "My name is", "He did not want to",
    "Can I play?", "It is 12 o'clock", "Everyone laughed", "At the end",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("form", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("name", ["seedling", "stories260K", "babyllama-char", "book-llama-6m"])
def test_real_bases_write_the_same_in_llama_cpp(name, form, tmp_path):
    """In f32 they are the same to rounding. In other types llama.cpp also rounds what enters a product.

    For q8_0 that is 8 bits. A token may differ where two are nearly as likely to us: the bounds are what was
    seen, rounded up.
    """
    from llama_cpp import LlamaCpp, compare

    if name != "seedling" and not (REAL / name).exists():
        pytest.skip("the real models are not beside the checkout")
    base = load(name if name == "seedling" else REAL / name, dtype="fp32")
    path = written(base, tmp_path, form)
    again, llama = load(path, "none", dtype="fp32"), LlamaCpp(path)
    state, arch = base.model.state_dict(), architecture(base.model.config)
    for tensor in gguf.GGUFReader(path).tensors:
        key, own = state_name(tensor.name, arch), tensor.tensor_type.name.lower()
        weight = state[key].reshape(-1, state[key].shape[-1])
        expected = decode(encode(weight, own), own).float().reshape(state[key].shape)
        assert torch.equal(again.model.state_dict()[key], expected)
    apart, behind, same = [], [], 0
    for prompt in PROMPTS:
        tokens = again.tokenizer(prompt)["input_ids"]
        assert llama.tokenize(prompt) == tokens
        found = compare(llama, again.model, tokens, 24)
        apart, behind, same = apart + found[0], behind + found[1], same + (max(found[1]) == 0)
    assert max(apart) < {"f32": 1e-3, "f16": 0.03, "q8_0": 0.5}[form]
    assert max(behind) < {"f32": 1e-4, "f16": 0.01, "q8_0": 0.25}[form]
    assert same >= {"f32": 19, "f16": 17, "q8_0": 12}[form]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["seedling", "stories260K", "babyllama-char", "book-llama-6m"])
def test_what_differs_in_8_bits_is_the_rounding_of_activations(name, tmp_path):
    """The values of the 8-bit file, written in fp32, give our answers: weights and all else are the same.

    Rounding our own activations as llama.cpp does moves us as far as it is apart, and towards it. It does not
    move us onto it, since a number near a half may fall to either side, and all later layers follow.
    """
    from llama_cpp import LlamaCpp, compare

    if name != "seedling" and not (REAL / name).exists():
        pytest.skip("the real models are not beside the checkout")
    path = written(load(name if name == "seedling" else REAL / name, dtype="fp32"), tmp_path, "q8_0")
    base, llama = load(path, "none", dtype="fp32"), LlamaCpp(path)
    prompts = [base.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    control = LlamaCpp(written(base, tmp_path, "f32"))
    assert max(compare(control, base.model, prompt, 1, top=50)[0][0] for prompt in prompts) < 1e-3

    def distance():
        return sum(compare(llama, base.model, prompt, 1, top=50)[0][0] for prompt in prompts) / len(prompts)

    def answers():
        with torch.no_grad():
            return [base.model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1) for prompt in prompts]

    apart, plain = distance(), answers()
    for module in base.model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0]),))
    likely = [
        (new - old)[old.topk(50).indices].abs().max() for new, old in zip(answers(), plain, strict=True)
    ]
    assert float(sum(likely)) / len(prompts) == pytest.approx(apart, rel=0.25)
    assert distance() < 0.75 * apart


def rounded(x):
    """Round to 8 bits per 32 neighbours, halves to even; to fp16 where 32 does not divide the width."""
    if x.shape[-1] % 32:
        return x.half().float()
    blocks = x.unflatten(-1, (-1, 32))
    largest = blocks.abs().amax(-1, keepdim=True)
    codes = (blocks * torch.where(largest == 0, 0, 127 / largest)).round()
    return (codes * (largest / 127).half().float()).flatten(-2)
