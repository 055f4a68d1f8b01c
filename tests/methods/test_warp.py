"""WARP against the model's own parts put together by hand, on each family; its files, its place in a run."""

import copy
import json

import pytest
import torch
from tiny_folder import write_rows
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import gelu, linear
from torch.testing import assert_close
from transformers import PreTrainedTokenizerFast

from graft.base.base import Base
from graft.errors import UsageError
from graft.methods.lora import LoRA
from graft.methods.prompt import PromptTuning
from graft.methods.task_head import TaskHead
from graft.methods.warp import WARP
from graft.models.fresh import fresh
from graft.models.load import load
from graft.planning.plan import plan
from graft.recipe import read
from graft.runs.open import open_model
from graft.runs.run import run
from models import inputs, randomise, tiny_base, tiny_model

MASK = 3
SETTINGS = {"before_text": 3, "before_mask": 2, "after_mask": 1, "num_labels": 4}
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "very", "a", "film", "dull", "fine")


def parts(adapter):
    """(P₁, P₂, P₃, v)."""
    table, v = adapter.parameters()
    return *table.split([3, 2, 1]), v


def around(model, ids, adapter, *between):
    """[P₁; E(ids); P₂; between; P₃], from the model's own table."""
    front, middle, end, _ = parts(adapter)
    rows = lambda vectors: vectors[None].expand(len(ids), -1, -1)
    embed = model.get_input_embeddings()
    return torch.cat([rows(front), embed(ids), rows(middle), *(embed(t) for t in between), rows(end)], 1)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_masked_model_answers_by_its_word_head_at_the_mask(family):
    base, ids = tiny_base(family), inputs(family)["ids"]
    adapter = base.attach("x", WARP(**SETTINGS, mask_token_id=MASK))
    randomise(adapter)
    model, mask = base.model, torch.full((3, 1), MASK)
    state = model.base_model(inputs_embeds=around(model, ids, adapter, mask)).last_hidden_state[:, 3 + 7 + 2]
    if family == "bert":
        h = model.cls.predictions.transform(state)
    else:
        h = model.lm_head.layer_norm(gelu(model.lm_head.dense(state)))
    with base.using("x"):
        (ours,) = base(ids)
    assert_close(ours, linear(h, parts(adapter)[-1]), atol=1e-5, rtol=1e-5)
    assert (ours[0] - ours[1]).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_a_decoder_answers_by_the_last_vector(family):
    base, ids = tiny_base(family), inputs(family)["ids"]
    adapter = base.attach("x", WARP(**SETTINGS))
    randomise(adapter)
    decoder = getattr(base.model.base_model, "decoder", base.model.base_model)
    h = decoder(inputs_embeds=around(base.model, ids, adapter)).last_hidden_state[:, -1]
    with base.using("x"):
        (ours,) = base(ids)
    assert_close(ours, linear(h, parts(adapter)[-1]), atol=1e-5, rtol=1e-5)


def test_a_bare_encoder_answers_by_its_last_state():
    base, ids = tiny_base("bert", bare=True), inputs("bert")["ids"]
    adapter = base.attach("x", WARP(**SETTINGS, mask_token_id=MASK))
    randomise(adapter)
    state = base.model(
        inputs_embeds=around(base.model, ids, adapter, torch.full((3, 1), MASK))
    ).last_hidden_state
    with base.using("x"):
        assert_close(base(ids)[0], linear(state[:, 12], parts(adapter)[-1]), atol=1e-5, rtol=1e-5)


def test_an_encoder_decoder_answers_by_the_decoders_first_state():
    base, batch = tiny_base("t5"), inputs("t5")
    adapter = base.attach("x", WARP(**SETTINGS))
    randomise(adapter)
    model, given = base.model, batch["decoder_input_ids"]
    read = model.encoder(inputs_embeds=around(model, batch["ids"], adapter)).last_hidden_state
    h = model.decoder(given, encoder_hidden_states=read).last_hidden_state[:, 0]
    if model.config.tie_word_embeddings:
        h = h * model.config.d_model**-0.5
    with base.using("x"):
        assert_close(base(**batch)[0], linear(h, parts(adapter)[-1]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "side"), [("bert", "right"), ("llama", "left"), ("llama", "right")])
def test_padding_changes_nothing(family, side):
    base, ids = tiny_base(family), inputs(family)["ids"]
    randomise(base.attach("x", WARP(**SETTINGS, mask_token_id=MASK if family == "bert" else None)))
    fill = [torch.zeros(3, 2, dtype=torch.long), ids]
    live = [torch.zeros(3, 2, dtype=torch.long), torch.ones_like(ids)]
    order = (0, 1) if side == "left" else (1, 0)
    with base.using("x"):
        (wanted,) = base(ids)
        (padded,) = base(
            torch.cat([fill[i] for i in order], 1), attention_mask=torch.cat([live[i] for i in order], 1)
        )
    assert_close(padded, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_rows_of_other_lengths_and_heads_share_a_batch(family):
    """Two templates, a head behind a prompt, and a head behind a LoRA; each as alone."""
    base, ids = tiny_base(family), inputs(family, rows=4)["ids"]
    mask = {"mask_token_id": MASK} if family == "bert" else {}
    adapters = {
        "a": WARP(**SETTINGS, **mask),
        "b": [LoRA(r=2), WARP(before_text=1, before_mask=0, after_mask=4, **mask)],
        "c": [PromptTuning(num_virtual_tokens=2), TaskHead(num_labels=3)],
        "d": [LoRA(r=2), TaskHead(num_labels=5, pool="first")],
    }
    live = torch.ones_like(ids)
    live[1, 4:] = live[2, 5:] = 0
    for seed, (name, methods) in enumerate(adapters.items()):
        randomise(base.attach(name, methods), seed)
    rows = ["d", "a", "c", "b"]
    mixed = dict(zip(sorted(rows), base(ids, attention_mask=live, adapters=rows), strict=True))
    for row, name in enumerate(rows):
        with base.using(name):
            (alone,) = base(ids[row : row + 1, : int(live[row].sum())])
        assert_close(mixed[name], alone, atol=1e-5, rtol=1e-4)


def test_vectors_start_as_the_mask_or_as_the_vocabulary_is():
    base = tiny_base("bert")
    table = base.model.get_input_embeddings().weight
    start = base.attach("x", WARP(mask_token_id=MASK)).parameters()[0]
    assert start.shape == (20, 64) and torch.equal(start, table[MASK].expand(20, -1))
    decoder = tiny_base("gemma")  # whose table scales what it gives
    words = decoder.model.get_input_embeddings()(torch.arange(96))
    many = decoder.attach("x", WARP(before_text=50, before_mask=1, after_mask=0)).parameters()[0]
    assert_close(many.mean(), words.mean(), atol=0.1 * float(words.std()), rtol=0)
    assert_close(many.std(), words.std(), atol=0, rtol=0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny BERT with a tokenizer of twelve words."""
    path = tmp_path_factory.mktemp("bert")
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    named = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **named)
    tokenizer.save_pretrained(path)
    config = {"model_type": "bert", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
              "num_attention_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3}  # fmt: skip
    fresh(config, tokenizer, seed=3).model.save_pretrained(path)
    return path


def test_from_label_words_it_starts_as_the_models_own_choice_of_words(folder):
    base = load(folder, dtype="fp32")
    ids = torch.tensor([base.tokenizer("a very dull film")["input_ids"]])
    adapter = base.attach("x", WARP(labels=("yes", "no"), label_words=("good", "bad dull")))
    assert adapter.notices() == []
    mask = adapter.inserts[0][1].mask
    assert mask == WORDS.index("[MASK]")
    prompted = torch.cat(
        [torch.full((1, 10), mask), ids, torch.full((1, 11), mask)], 1
    )  # P starts as copies of it
    words = base.model(prompted).logits[0, 10 + ids.shape[1] + 5] - base.model.cls.predictions.bias
    good, bad, dull = (words[WORDS.index(word)] for word in ("good", "bad", "dull"))
    with base.using("x"):
        assert_close(base(ids)[0][0], torch.stack([good, (bad + dull) / 2]), atol=1e-5, rtol=1e-5)


def test_a_file_needs_no_tokenizer_and_reads_where_it_was_trained_to(folder, tmp_path):
    base = load(folder, dtype="fp32")
    ids = torch.tensor([base.tokenizer("a very dull film")["input_ids"]] * 2)
    bare = Base(copy.deepcopy(base.model))
    bare.model.config.name_or_path = ""
    for name, source in (("masked", base), ("last", bare)):
        adapter = source.attach(name, WARP(label_words=("good", "bad")) if name == "masked" else WARP())
        randomise(adapter)
        adapter.save(tmp_path / name)
        with source.using(name):
            (wanted,) = source(ids)
        for other in (base, bare):  # with and without a tokenizer
            other.load_adapter(tmp_path / name, f"{name} again")
            with other.using(f"{name} again"):
                assert torch.equal(other(ids)[0], wanted)
    said = json.loads((tmp_path / "masked" / "adapter_config.json").read_text())
    assert said["mask_token_id"] == WORDS.index("[MASK]") and said["label_words"] == []
    assert "no tokenizer says which token is [MASK]" in bare.adapters["last"].notices()[0]
    assert bare.adapters["last again"].notices() == []


def test_a_recipe_of_classes_takes_no_second_head_and_keeps_the_word_head(folder, tmp_path):
    texts = [f"a {'very ' * (i // 4)}{('good', 'fine', 'bad', 'dull')[i % 4]} film" for i in range(16)]
    labelled = [{"text": text, "label": "up" if i % 4 < 2 else "down"} for i, text in enumerate(texts)]
    file = str(write_rows(tmp_path / "rows.jsonl", labelled))
    recipe = read({
        "model": str(folder), "method": {"name": "warp", "before_text": 2, "before_mask": 1, "after_mask": 1},
        "stage": "classify", "dtype": "fp32", "output": str(tmp_path / "run"),
        "data": {"train": file, "eval": file, "max_length": 32},
        "train": {"epochs": 15, "batch_size": 6, "lr": 0.1, "samples": []},
        "evaluate": {"metrics": ["accuracy"]},
    })  # fmt: skip
    result = run(recipe)
    opened = open_model(str(result.folder))
    adapter = opened.base.adapters[opened.adapter]
    assert opened.base.family == "masked" and [type(m) for m in adapter.methods] == [WARP]
    assert adapter.methods[0].labels == ("down", "up") and adapter.count() == (4 + 2) * 32
    assert plan(recipe).trained == adapter.count()
    assert result.scores["after"]["accuracy"] > 0.8 > result.scores["majority"]["accuracy"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: WARP(num_labels=0), "num_labels=0"),
        (lambda: WARP(before_text=-1), "before_text=-1"),
        (lambda: WARP(before_mask=0, after_mask=0), "1 vector after the text"),
        (lambda: WARP(label_words=("a",)), "1 label_words for 2 classes"),
        (lambda: tiny_base("bert").attach("x", WARP(before_text=60)), "fewer than the 64 positions"),
        (lambda: tiny_base("bert").attach("x", WARP(label_words=("a", "b"))), "tokenizer_name_or_path"),
        (
            lambda: tiny_base("bert", bare=True).attach("x", WARP(label_words=("a", "b"))),
            "without a word head",
        ),
    ],
)
def test_mistakes_are_named(make, words):
    with pytest.raises(UsageError, match=words):
        make()


def test_documents_cannot_share_a_row():
    base = tiny_base()
    base.attach("x", WARP())
    assert "virtual tokens" in base.unpackable(32)


def test_dropout_of_the_base_is_silent_in_training():
    base, ids = Base(tiny_model("bert", hidden_dropout_prob=0.5)), inputs("bert")["ids"]
    base.attach("x", WARP(**SETTINGS))
    base.train()
    with base.using("x"):
        assert torch.equal(base(ids)[0], base(ids)[0])
