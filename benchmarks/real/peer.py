"""The peer's side of a cell: transformers, PEFT, bitsandbytes and torch's own AdamW, on exactly our batches.

A LoRA starts from the file of our newborn adapter, a classifier from our newborn head, so that nothing but the tools
differs. The loop is the plain one: mean loss over the step's supervised tokens, clip, AdamW, linear schedule.
"""

import math
import time
from tempfile import TemporaryDirectory
from typing import Any

import ours
import tasks
import torch
from grid import Cell
from peft import PeftModel
from torch import nn
from torch.nn import functional as F
from transformers.generation.configuration_utils import GenerationConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.models.bert.modeling_bert import BertModel
from transformers.optimization import get_linear_schedule_with_warmup
from transformers.utils.quantization_config import BitsAndBytesConfig

from graft.data import prompt_ids
from graft.recipe import Recipe

KEPT = ["lm_head", "classifier", "pooler"]  # modules that bitsandbytes leaves alone, as graft does


class Pooled(BertModel):
    """MiniLM with a linear classifier on the mean of the live positions."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> torch.Tensor:
        hidden = super().forward(input_ids, attention_mask=attention_mask).last_hidden_state
        live = attention_mask[..., None].to(hidden.dtype)
        return self.classifier((hidden * live).sum(1) / live.sum(1))


class Peer:
    """One model of the peer with the batches to train it on."""

    def __init__(self, cell: Cell, recipe: Recipe) -> None:
        self.cell, self.recipe = cell, recipe
        self.base, self.feed, newborn = ours.newborn(recipe)
        self.model = self._model(newborn)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]

    def train(self) -> dict[str, Any]:
        """{losses, step_seconds} of all steps."""
        s, losses, seconds = self.recipe.train, [], []
        steps = s.max_steps or 0
        optimizer = torch.optim.AdamW(self.trained, s.lr, tuple(s.betas), s.eps, weight_decay=s.weight_decay)
        schedule = get_linear_schedule_with_warmup(optimizer, math.ceil(steps * s.warmup), steps)
        self.model.train()
        for step in range(steps):
            begun = time.perf_counter()
            batches = self.feed.step(*divmod(step, self.feed.steps_per_epoch))
            tokens, total = sum(batch.tokens for batch in batches), 0.0
            for batch in batches:
                loss = self.loss(batch) * (batch.tokens / tokens)
                loss.backward()
                total += loss.item()
            torch.nn.utils.clip_grad_norm_(self.trained, s.clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(total)
            seconds.append(time.perf_counter() - begun)
        return {"losses": losses, "step_seconds": seconds}

    def loss(self, batch: Any) -> torch.Tensor:
        """Mean over the batch's supervised tokens, or rows."""
        if self.recipe.stage == "classify":
            return F.cross_entropy(self.model(**batch.inputs), batch.labels)
        return self.model(**batch.inputs, labels=batch.labels, use_cache=False).loss

    @torch.no_grad()
    def score(self) -> dict[str, Any]:
        """The numbers of `ours.score`, by the peer's own model."""
        # In evaluation mode bitsandbytes packs weights for a CPU kernel that refuses widths which 32 does not divide.
        # There is no dropout here, so training mode computes the same.
        self.model.train(self.cell.method == "qlora")
        cases, _ = tasks.test_of(self.cell.material())
        feed = ours.test_feed(self.cell, self.recipe, self.base, cases)
        batches = [batch for step in range(feed.steps_per_epoch) for batch in feed.step(0, step)]
        count = {"trained": sum(p.numel() for p in self.trained)}
        if self.recipe.stage == "classify":
            predicted = [int(i) for batch in batches for i in self.model(**batch.inputs).argmax(-1)]
            return ours.class_scores(predicted, [int(i) for batch in batches for i in batch.labels]) | count
        loss = sum(float(self.loss(batch)) * batch.tokens for batch in batches) / sum(b.tokens for b in batches)
        return ours.text_scores(self._write([case.prompt for case in cases]), cases) | {"loss": loss} | count

    def _model(self, newborn: Any) -> nn.Module:
        keywords: dict[str, Any] = {"dtype": torch.float32}
        if self.cell.method == "qlora":
            keywords["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.float32, llm_int8_skip_modules=KEPT,
            )  # fmt: skip
        cls = AutoModelForCausalLM
        if self.recipe.stage == "classify":
            dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
            cls, keywords = Pooled, keywords | dropout | {"num_labels": newborn.methods[-1].num_labels}
        model = cls.from_pretrained(self.recipe.model, trust_remote_code=False, local_files_only=True, **keywords)
        if self.cell.method == "full":
            if self.recipe.stage == "classify":
                self._head(model, newborn)
            return model
        with TemporaryDirectory() as folder:
            newborn.save(folder)
            return PeftModel.from_pretrained(model, folder, is_trainable=True)

    def _head(self, model: Pooled, newborn: Any) -> None:
        """The classifier starts where ours does."""
        head = {name.rpartition(".")[2]: tensor for name, tensor in newborn.of(newborn.methods[-1]).state().items()}
        model.classifier.load_state_dict(head)

    def _write(self, prompts: list[str]) -> list[str]:
        """Greedy answers by transformers' own generate, rows of like length side by side."""
        tokenizer, answers = self.base.tokenizer, {}
        ids = [prompt_ids(text, tokenizer) for text in prompts]
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
                end = answer.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in answer else len(answer)
                answers[row] = tokenizer.decode(answer[:end], skip_special_tokens=True)
        return [answers[row] for row in range(len(prompts))]
