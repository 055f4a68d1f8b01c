"""Answer the rows of a batch file: by the engine, whatever adapters they name, or by task heads."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from graft.base.base import Base
from graft.core.positions import context_length
from graft.data.rows import BadRow
from graft.data.templates import Prompt, prompt_ids
from graft.data.vocabulary import lacking
from graft.errors import DataError, listed, notice
from graft.evaluate.answers import Prediction, predictions
from graft.evaluate.usable import WRITING
from graft.generate.generate import evaluating, write
from graft.generate.prompts import end_tokens
from graft.generate.request import Completion, Request
from graft.generate.sampling import Sampling
from graft.planning.fit import require_tokenizer
from graft.runs.answer_file import AnswerFile
from graft.runs.ask_adapters import Voice
from graft.runs.ask_rows import ADAPTER, AskedRow, prompt_in, text_in
from graft.storage.signals import check

ROW = "row_"  # before the name of a row's own column that an answer would hide


class Answering:
    """Asks the rows of a file that have no answer yet.

    names, wrong: the adapter of each row, and what is wrong with rows that name none that is there.
    voices: how each adapter is asked.  file: keeps the answers.
    """

    def __init__(
        self,
        base: Base,
        rows: Sequence[AskedRow],
        names: Sequence[str | None],
        wrong: dict[int, str],
        voices: dict[str | None, Voice],
        how: Sampling,
        file: AnswerFile,
        progress: Callable[[int, int], None] | None,
        batch_size: int,
    ) -> None:
        self.base, self.rows, self.names, self.wrong = base, rows, names, wrong
        self.voices, self.how, self.file, self.progress = voices, how, file, progress
        self.batch_size = batch_size
        self.hidden: set[str] = set()  # columns of rows that an answer would hide
        self.tokens = 0

    def run(self, seed: int) -> int:
        """Ask all of them; return the tokens that were written.  seed: of sampling, if nobody chose one."""
        left = [at for at in range(len(self.rows)) if at not in self.file.kept]
        requests: dict[int, Request] = {}
        texts: dict[int, Any] = {}
        for at in left:
            if at in self.wrong:
                self._fail(at, self.wrong[at])
                continue
            name = self.names[at]
            try:
                if name is not None and self.base.adapters[name].head is not None:
                    texts[at] = text_in(self.rows[at])
                else:
                    requests[at] = self._request(at, name, seed)
            except BadRow as bad:
                reason, detail, remedy = bad.args
                self._fail(at, f"{reason}: {detail}; {remedy}")
        for group in self._mixable([*texts]):
            self._classify(group, texts)
        for group in self._mixable([*requests]):
            self._write([requests[at] for at in group])
        if self.hidden:
            notice(
                f"the rows have columns {listed(sorted(self.hidden))}: in the answers each begins with {ROW}"
            )
        return self.tokens

    def _request(self, at: int, name: str | None, seed: int) -> Request:
        """Return the request of a row. Raises BadRow for one that cannot be asked."""
        base, voice = self.base, self.voices[name]
        if base.family not in WRITING:
            detail = f"{base.name} is a {base.family} model"
            raise BadRow("no answer", detail, "name an adapter with a task head")
        prompt = prompt_in(self.rows[at])
        if voice.by_template and isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        ids, ends = self._encoded(prompt, voice)
        room = self._room(len(ids), name)
        return Request(
            ids,
            name,
            self.how,
            ends,
            room,
            index=at,
            seed=seed,
            tokenizer=voice.tokenizer,
            alone=base.family == "seq2seq",
            on_end=lambda completion: self._written(at, completion),
        )

    def _encoded(self, prompt: Prompt, voice: Voice) -> tuple[list[int], frozenset[int]]:
        """Return the ids of a prompt, and the tokens that end its answer. Raises BadRow."""
        base, tokenizer = self.base, voice.tokenizer
        require_tokenizer(tokenizer, base.name, base.vocabulary)
        ids = prompt_ids(prompt, tokenizer, family=base.family)
        ids = ids or [t for t in (tokenizer.bos_token_id, tokenizer.eos_token_id, 0) if t is not None][:1]
        if max(ids) >= base.vocabulary:
            raise lacking(max(ids), base.vocabulary, tokenizer)
        ends = end_tokens(_As(base.model, tokenizer), self.how.stop, chat=not isinstance(prompt, str))
        return ids, frozenset([*ends, *self.how.stop_token_ids])

    def _room(self, tokens: int, name: str | None) -> int | None:
        """Return how many tokens the context leaves for an answer; None without a limit. Raises BadRow."""
        base = self.base
        limit = None if base.family == "seq2seq" else context_length(base.model.config)
        if limit is None:
            return None
        context = limit - base.positions([name])
        if tokens >= context:
            detail = f"{tokens} tokens, the model has room for {context}"
            raise BadRow("prompt too long", detail, "shorten the prompt")
        if context - tokens < self.how.max_new_tokens:
            notice(f"some answers may end at the model's {limit} positions")
        return context - tokens

    def _mixable(self, rows: Sequence[int]) -> Iterator[list[int]]:
        """Yield rows that may share a batch: all, but for adapters that must be used alone."""
        alone: dict[str | None, list[int]] = {}
        shared = []
        for at in rows:
            name = self.names[at]
            methods = self.base.adapters[name].methods if name is not None else ()
            if all(method.routable for method in methods):
                shared.append(at)
            else:
                alone.setdefault(name, []).append(at)
        yield from ([shared] if shared else [])
        yield from alone.values()

    def _write(self, requests: Sequence[Request]) -> None:
        with torch.no_grad(), evaluating(self.base):
            for _ in write(self.base, requests, self.batch_size):
                pass

    def _written(self, at: int, completion: Completion) -> None:
        self.tokens += len(completion.tokens)
        self._keep(
            at,
            answer=completion.text.strip(),
            tokens=len(completion.tokens),
            finish_reason=completion.finish_reason,
        )

    def _classify(self, rows: Sequence[int], texts: dict[int, Any]) -> None:
        """Ask task heads, in batches of texts of similar lengths."""
        ordered = sorted(rows, key=lambda at: len(texts[at]) if isinstance(texts[at], str) else 0)
        for first in range(0, len(ordered), self.batch_size):
            check()
            batch = ordered[first : first + self.batch_size]
            names = [str(self.names[at]) for at in batch]
            try:
                told: list[Prediction] = predictions(self.base, [texts[at] for at in batch], names)
            except DataError as error:
                if len(batch) == 1:
                    self._fail(batch[0], f"{error.given}; {error.remedy}")
                else:  # one of them cannot be read: each by itself tells which
                    for at in batch:
                        self._classify([at], texts)
                continue
            for at, prediction in zip(batch, told, strict=True):
                self._keep(at, **_in_json(prediction))

    def _fail(self, at: int, why: str) -> None:
        self._keep(at, error=f"{self.rows[at].source}: {why}")

    def _keep(self, at: int, **given: Any) -> None:
        """Keep the answer to a row, beside the row's own columns."""
        own = {name: value for name, value in self.rows[at].fields.items() if name != ADAPTER}
        hidden = [name for name in own if name in given or name in ("answer", "error")]
        self.hidden.update(hidden)
        fields = {f"{ROW}{name}" if name in hidden else name: value for name, value in own.items()}
        self.file.add(at, {**fields, ADAPTER: self.names[at], **given})
        if self.progress is not None:
            self.progress(len(self.file.kept), len(self.rows))


@dataclass(frozen=True)
class _As:
    """A model with the tokenizer of one of its adapters."""

    model: Any
    tokenizer: Any


def _in_json(prediction: Prediction) -> dict[str, Any]:
    """Return what a task head says, without what it does not say."""
    facts: dict[str, Any] = {"answer": prediction.answer}
    if prediction.label is not None:
        facts |= {"label": prediction.label, "probabilities": dict(prediction.probabilities)}
    if prediction.tags:
        facts["tags"] = list(prediction.tags)
    if prediction.reward is not None:
        facts["reward"] = prediction.reward
    return facts
