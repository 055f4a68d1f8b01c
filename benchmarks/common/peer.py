"""The peer's side of a run: transformers, PEFT, bitsandbytes and torch's own AdamW, on exactly our batches.

An adapter starts from the file of our untrained one and a classifier from our untrained head, so that only
the tools differ. The loop is the plain one: mean loss over the step's supervised tokens, clip, AdamW, linear
schedule.
"""

import math
import time
import warnings
from collections.abc import Callable, Mapping
from tempfile import TemporaryDirectory
from typing import Any

import internals
import ours
import tasks
import torch
from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.utils import load_peft_weights
from torch import nn
from torch.nn import functional as F
from transformers.generation.configuration_utils import GenerationConfig
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.models.bert.modeling_bert import BertModel, BertPreTrainedModel
from transformers.optimization import get_linear_schedule_with_warmup
from transformers.utils.quantization_config import BitsAndBytesConfig

import graft

warnings.filterwarnings("error", message="Found missing adapter keys")  # it would start from another adapter
KEPT = ["lm_head", "classifier", "pooler"]  # modules that bitsandbytes leaves alone, as graft does


class Pooled(BertPreTrainedModel):
    """MiniLM with a linear classifier on the mean of the positions that are no padding.

    Its modules have the names that they have in an adapter file with a head.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.bert = BertModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, inputs_embeds: Any = None,
        past_key_values: Any = None, labels: Any = None, **_: Any,
    ) -> SequenceClassifierOutput:  # fmt: skip
        """Return the logits, and the loss if there are labels.

        Virtual tokens that are embedded are pooled like others; as a prefix they have no state to pool.
        """
        given = {"inputs_embeds": inputs_embeds, "past_key_values": past_key_values}
        hidden = self.bert(input_ids, attention_mask=attention_mask, **given).last_hidden_state
        live = attention_mask[:, -hidden.shape[1] :, None].to(hidden.dtype)
        logits = self.classifier((hidden * live).sum(1) / live.sum(1))
        return SequenceClassifierOutput(None if labels is None else F.cross_entropy(logits, labels), logits)


class Peer:
    """One model of the peer with the batches to train it on.

    more: settings for PEFT's config, which join or replace those in our file.  own_start: PEFT draws the
    adapter itself, where our file holds the result of a start or of an encoder, and not what is
    trained.  loaded: called when the base is there.
    """

    def __init__(
        self, cell: ours.Cell, recipe: graft.Recipe, more: Mapping[str, Any] | None = None, *,
        own_start: bool = False, loaded: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.cell = cell
        self.recipe = recipe
        self.more = dict(more or {})
        self.own_start = own_start
        self.base, self.feed, newborn = ours.newborn(recipe)
        model = self._model(newborn)
        loaded()
        self.model = self._adapted(model, newborn)
        head = [p for name, p in self.model.named_parameters() if ".classifier." in f".{name}"]
        if not any(p.requires_grad for p in head):  # PEFT freezes it when it trains tokens
            for p in head:
                p.requires_grad_(True)
        self.head = [p for p in head if p.requires_grad]  # PEFT keeps a frozen copy of what it trains
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        # AdaLoRA: ranks are allocated after a step, and a penalty joins every loss.
        self.allocate = getattr(getattr(self.model, "base_model", None), "update_and_allocate", None)

    def train(self) -> dict[str, Any]:
        """Train and return {losses, step_seconds} of all steps."""
        s = self.recipe.train
        losses = []
        seconds = []
        steps = s.max_steps or 0
        optimizer = torch.optim.AdamW(
            self._groups(), s.lr, tuple(s.betas), s.eps, weight_decay=s.weight_decay
        )
        schedule = get_linear_schedule_with_warmup(optimizer, math.ceil(steps * s.warmup), steps)
        self.model.train()
        for step in range(steps):
            begun = time.perf_counter()
            batches = self.feed.step(*divmod(step, self.feed.steps_per_epoch))
            tokens = sum(batch.tokens for batch in batches)
            total = 0.0
            for batch in batches:
                loss = self.loss(batch) * (batch.tokens / tokens)
                loss.backward()
                total += loss.item()
            torch.nn.utils.clip_grad_norm_(self.trained, s.clip)
            optimizer.step()
            schedule.step()
            if self.allocate:
                self.allocate(step)
            optimizer.zero_grad()
            losses.append(total)
            seconds.append(time.perf_counter() - begun)
        return {"losses": losses, "step_seconds": seconds}

    def _groups(self) -> list[dict[str, Any]]:
        """Return the parameter groups: a classifier has the rate that the recipe gives it."""
        last = self.recipe.methods[-1]
        if last["name"] != "task_head" or last["lr"] is None:
            return [{"params": self.trained}]
        rest = [p for p in self.trained if all(p is not one for one in self.head)]
        return [{"params": rest}, {"params": self.head, "lr": last["lr"]}]

    def loss(self, batch: Any) -> torch.Tensor:
        """Return the mean loss of the batch's supervised tokens, or rows."""
        return self._forward(self.model, batch).loss

    def _forward(self, model: nn.Module, batch: Any) -> Any:
        uncached = {} if self.recipe.stage == "classify" else {"use_cache": False}
        return model(**batch.inputs, labels=batch.labels, **uncached)

    @torch.no_grad()
    def held_loss(self, cases: list[tasks.Case]) -> float:
        """Return the mean loss of the supervised tokens, or rows, of these cases."""
        self._evaluating()
        model = self.model.get_base_model() if self.allocate else self.model  # beneath the penalty
        batches = self._batches(cases)
        total = sum(float(self._forward(model, batch).loss) * batch.tokens for batch in batches)
        return total / sum(batch.tokens for batch in batches)

    @torch.no_grad()
    def score(self) -> dict[str, Any]:
        """Return the measures of `ours.score`, by the peer's own model."""
        self._evaluating()
        cases, _ = tasks.test_of(self.cell.material())
        count = {"trained": sum(p.numel() for p in self.trained)}
        if self.recipe.stage == "classify":
            batches = self._batches(cases)
            predicted = [int(i) for batch in batches for i in self.model(**batch.inputs).logits.argmax(-1)]
            return ours.class_scores(predicted, [int(i) for batch in batches for i in batch.labels]) | count
        loss = self.held_loss(cases)
        return ours.text_scores(self._write([case.prompt for case in cases]), cases) | {"loss": loss} | count

    def _evaluating(self) -> None:
        # In evaluation mode bitsandbytes packs weights for a CPU kernel that refuses widths which are not
        # multiples of 32. There is no dropout here, so training mode computes the same.
        self.model.train(self.recipe.quant != "none")

    def _batches(self, cases: list[tasks.Case]) -> list[Any]:
        feed = ours.test_feed(self.recipe, self.base, cases)
        return [batch for step in range(feed.steps_per_epoch) for batch in feed.step(0, step)]

    def _model(self, newborn: Any) -> nn.Module:
        keywords: dict[str, Any] = {"dtype": torch.float32}
        if self.recipe.quant == "nf4":
            keywords["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.float32, llm_int8_skip_modules=KEPT,
            )  # fmt: skip
        cls = AutoModelForCausalLM
        if self.recipe.stage == "classify":
            dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
            cls, keywords = Pooled, keywords | dropout | {"num_labels": newborn.methods[-1].num_labels}
        model = cls.from_pretrained(
            self.recipe.model, trust_remote_code=False, local_files_only=True, **keywords
        )
        if self.recipe.stage == "classify":  # the classifier starts where ours does
            head = {
                name.rpartition(".")[2]: tensor
                for _, insert in newborn.parts[-1].inserts
                for name, tensor in insert.saved().items()
            }
            model.classifier.load_state_dict(head)
        return model

    def _adapted(self, model: nn.Module, newborn: Any) -> nn.Module:
        """Return the model with an adapter like ours; as it is if all of it is trained."""
        if newborn.in_place:
            return model
        with TemporaryDirectory() as folder:
            newborn.save(folder)
            settings = PeftConfig.from_json_file(f"{folder}/adapter_config.json") | self.more
            config = PeftConfig.from_peft_type(**settings | {"inference_mode": False})
            if not (self.own_start or config.is_prompt_learning):
                return PeftModel.from_pretrained(model, folder, is_trainable=True, config=config)
            torch.manual_seed(self.recipe.train.seed)
            adapted = get_peft_model(model, config)
            if not self.own_start:  # PEFT trains no prompts that it loads itself
                set_peft_model_state_dict(adapted, load_peft_weights(folder))
            return adapted

    def _write(self, prompts: list[str]) -> list[str]:
        """Return greedy answers by transformers' own generate; rows of similar length share a batch."""
        tokenizer = self.base.tokenizer
        answers = {}
        ids = [internals.prompt_ids(text, tokenizer) for text in prompts]
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        how = GenerationConfig(
            max_new_tokens=self.cell.setting.new_tokens, do_sample=False, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        for at in range(0, len(order), 50):
            rows = order[at : at + 50]
            width = max(len(ids[row]) for row in rows)
            padded = [[tokenizer.pad_token_id] * (width - len(ids[row])) + ids[row] for row in rows]
            live = [[0] * (width - len(ids[row])) + [1] * len(ids[row]) for row in rows]
            out = self.model.generate(
                input_ids=torch.tensor(padded), attention_mask=torch.tensor(live), generation_config=how
            )
            for row, answer in zip(rows, out[:, width:].tolist(), strict=True):
                end = (
                    answer.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in answer else len(answer)
                )
                answers[row] = tokenizer.decode(answer[:end], skip_special_tokens=True)
        return [answers[row] for row in range(len(prompts))]
