"""A base with an adapter as a model of lm-eval (EleutherAI's evaluation harness), which this file imports.

Texts become tokens exactly as in lm-eval's HFLM: a context and its continuation are tokenised together and
split where the context alone ends; an empty context is the start token; texts that begin with the start token
get no second one; what does not fit is cut on the left. So a base without an adapter has the scores that
`lm_eval --model hf` gives it. It differs in that log-softmaxes are taken in fp32 whatever the base's dtype.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
    resolve_max_length,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from graft.base.base import Base
from graft.core.positions import context_length
from graft.data.rows import BadRow
from graft.data.templates import Template, source
from graft.data.turns import OTHER_TEMPLATE
from graft.errors import DataError, UsageError, notice, one_of
from graft.evaluate.continuations import Told, loglikelihoods, silent

MARK = "\ue0f6end\ue0f7 "  # behind a turn that goes on: what follows it is cut off
NEW_TOKENS = 256  # of an answer, where the task does not say; HFLM's number
SETTINGS = ("do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class HarnessModel(TemplateLM):
    """What lm-eval asks of a model, answered by a causal base and the adapter of this name.

    adapter: None for the bare (or merged) base.  batch_size: texts at once.
    progress: is called with (done, total) of the requests of one kind.
    """

    backend = "causal"

    def __init__(
        self, base: Base, adapter: str | None = None, *, batch_size: int = 8, progress: Told = silent
    ) -> None:
        super().__init__()
        self.base, self.adapter, self.batch_size = base, adapter, batch_size
        self.tokenizer = base.tokenizer
        self.progress = progress
        self._device = base.device

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token in front of a text that has no context: the start token, else the end token."""
        start = self.tokenizer.bos_token_id
        return self.eot_token_id if start is None else int(start)

    @property
    def max_length(self) -> int:
        """How many tokens the model reads, besides an adapter's virtual ones."""
        limit = context_length(self.base.model.config)
        if limit is None:
            limit = resolve_max_length(self.base.model.config, self.tokenizer)
        return int(limit) - self.base.positions([self.adapter])

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the ids of a text, by default with the tokens that the tokenizer puts around texts."""
        if add_special_tokens is None:
            begun = has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id))
            return list(self.tokenizer.encode(string, **({"add_special_tokens": False} if begun else {})))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return (log p, greedy) of each request's continuation after its context."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        with self.base.using(self.adapter):
            return loglikelihoods(
                self.base,
                [context for _, context, _ in requests],
                [continuation for _, _, continuation in requests],
                limit=self.max_length,
                batch_size=self.batch_size,
                progress=self.progress,
            )

    def loglikelihood_rolling(self, requests: Iterable[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of whole texts, read in windows in which each token is scored once."""
        windows: list[tuple[None, list[int], list[int]]] = []
        ends = []
        for request in requests:
            ids = self.tok_encode(request.args[0])
            pairs = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
            windows += [(None, *make_disjoint_window(pair)) for pair in pairs]
            ends.append(len(windows))
        values = [value for value, _ in self._loglikelihood_tokens(windows)]
        return [sum(values[a:b]) for a, b in zip([0, *ends], ends, strict=False)]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the text after each context, up to the first stop; requests of equal settings together."""
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        texts = [""] * len(requests)
        done = 0
        for places in groups.values():
            contexts = [requests[i].args[0] for i in places]
            for i, text in zip(places, self._written(contexts, requests[places[0]].args[1]), strict=True):
                texts[i] = text
            done += len(places)
            self.progress(done, len(requests))
        return texts

    def _written(self, contexts: Sequence[str], asked: dict[str, Any]) -> list[str]:
        """Return the text after each of these contexts.  asked: the task's `generation_kwargs`."""
        settings: dict[str, Any] = dict(normalize_gen_kwargs(asked, NEW_TOKENS))
        most = settings.pop("max_gen_toks")
        stops = [stop for stop in handle_stop_sequences(settings.pop("until"), None) if stop]
        room = self.max_length - most
        if room < 1:
            raise UsageError(
                f"the task asks for {most} new tokens, and the model reads {self.max_length}",
                "fewer new tokens than the model reads",
                "set max_gen_toks in a copy of the task's file, and name its folder by --include-path",
            )
        prompts = [self.tok_encode(context) for context in contexts]
        long = sum(len(ids) > room for ids in prompts)
        if long:
            notice(f"{long:,} of {len(prompts):,} prompts lose their beginning: {most} of the model's "
                   f"{self.max_length:,} tokens are for the answer")  # fmt: skip
        completions = self.base.complete(
            [ids[-room:] for ids in prompts],
            adapters=[self.adapter] * len(prompts),
            batch_size=self.batch_size,
            max_new_tokens=most,
            stop=tuple(stops),
            **_sampling(settings),
        )
        # As HFLM: decoded without the prompt, and cut at the end token where the model spells it out.
        stops.append(self.tokenizer.decode(self.eot_token_id))
        return [
            str(postprocess_generated_text(self._decoded(done.tokens), stops, None)) for done in completions
        ]

    def _decoded(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation as the text of the tokenizer's chat template.

        Without its system message, if the template takes none.
        """
        template = Template(self.tokenizer, source(self.tokenizer))
        try:
            return _written(template, chat_history, add_generation_prompt)
        except BadRow as bad:
            turns = [turn for turn in chat_history if turn["role"] != "system"]
            if len(turns) == len(chat_history):
                raise _unwritten(bad) from None
        notice("the chat template takes no system message: it is left out")
        try:
            return _written(template, turns, add_generation_prompt)
        except BadRow as bad:
            raise _unwritten(bad) from None


def _written(template: Template, turns: list[dict[str, str]], ask: bool) -> str:
    """Return a conversation as text.  ask: for an answer; else its last turn is to be gone on with."""
    if ask:
        return template.render(turns, ask=True)
    marked = [*turns[:-1], turns[-1] | {"content": turns[-1]["content"] + MARK}]
    written = template.render(marked)
    text, found, _ = written.rpartition(MARK.strip())
    if not found:
        raise BadRow("template failed", "it does not write the last turn as it is", OTHER_TEMPLATE)
    return text if MARK in written[len(text) :] else text.rstrip()  # the template takes blanks off the end


def _unwritten(bad: BadRow) -> DataError:
    _, detail, _ = bad.args
    return DataError(
        f"the chat template fails: {detail}",
        "a template that writes the task's conversations",
        "leave --apply-chat-template out",
    )


def _sampling(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a task's settings as keywords of `Base.complete`. Raises UsageError for one that it lacks."""
    beams = settings.pop("num_beams", 1)
    if beams != 1:
        raise UsageError(f"num_beams={beams} of the task", "1: texts are not searched for", "set it to 1")
    for keyword in settings:
        one_of("generation_kwargs of the task", keyword, SETTINGS)
    if not settings["do_sample"]:  # greedy: HFLM drops the others too, or nothing follows from them
        return {key: value for key, value in settings.items() if key == "repetition_penalty"}
    return settings
