"""Forwards of rows with different adapters: sorted into spans, or run apart where rows cannot mix.

`neighbours` knows where rows cannot mix. Whatever is done to the rows is undone on the way out.
"""

from collections.abc import Callable
from typing import Any

import torch

from graft.base import liveness
from graft.base.adapter import Adapter
from graft.base.choice import Choice, Rows
from graft.base.neighbours import OUTSIDE, Neighbours, Sharing, joined
from graft.base.select import pick
from graft.core import anatomy
from graft.core.route import Span, installed, spans
from graft.errors import AdapterError, GraftError, SiteError, UsageError

MOST = 4096  # sets of adapters whose mixing is remembered

Run = Callable[[Any, dict[str, Any]], Any]  # of (ids or states, keywords)


class Mixing:
    """The forwards of one model."""

    def __init__(self, model: Any, choice: Choice) -> None:
        self._model, self._choice, self._family = model, choice, anatomy.family(model)
        self._neighbours = Neighbours(model)
        self._mixable: dict[frozenset[str | None], bool] = {}

    def forget(self) -> None:
        """Forget which adapters mix: another adapter may have a name by now."""
        self._mixable.clear()

    def run(self, run: Run, ids: torch.Tensor | None, rows: Rows, keywords: dict[str, Any]) -> Any:
        """Run over the rows sorted into one span per adapter, and undo the order on the way out.

        Raises UsageError for a filled cache, which would have to be cut or put in another order.
        """
        order, groups = spans(rows)
        count = len(rows)
        route = self._choice.route(groups, count)
        ordered, apart = order == list(range(count)), not self.mixable(rows)
        with installed(route):
            if ordered and not apart:
                return run(ids, keywords)
            if keywords.get("past_key_values") is not None:
                raise UsageError(
                    "a filled cache with rows out of order, or rows that are run apart",
                    "rows sorted by adapter, in a model that can mix them",
                    "use base.generate, or sort the rows",
                )
            if self._family in ("causal", "seq2seq"):
                keywords = {"use_cache": False, **keywords}  # not every cache can be put in another order
            index = torch.tensor(order, device=self._model.get_input_embeddings().weight.device)
            ids, keywords = pick(ids, index, count), {k: pick(v, index, count) for k, v in keywords.items()}
            output = self._apart(run, ids, groups, keywords) if apart else run(ids, keywords)
            return pick(output, index.argsort(), count)

    def _apart(
        self, run: Run, ids: torch.Tensor | None, groups: tuple[Span, ...], keywords: dict[str, Any]
    ) -> Any:
        """Run the rows of each adapter in a forward of their own, and join what they return."""
        if keywords.get("labels") is not None:
            raise AdapterError(
                f"labels for rows of several adapters, which {type(self._model).__name__} runs apart",
                "rows of one adapter",
                "run the rows of each adapter by themselves",
            )
        outputs, count = [], groups[-1][2]
        for name, first, end in groups:
            part = slice(first, end)
            with installed(self._choice.route(((name, 0, end - first),), end - first)):
                given = {key: pick(value, part, count) for key, value in keywords.items()}
                outputs.append(run(pick(ids, part, count), given))
        return joined(outputs, [end - first for _, first, end in groups])

    def mixable(self, names: Rows) -> bool:
        """Return whether rows of these adapters may share a forward; if not, they are run apart.

        Raises AdapterError for an adapter that shares no batch.
        """
        mixed = frozenset(names)
        if len(mixed) < 2:
            return True
        if mixed not in self._mixable:
            if len(self._mixable) >= MOST:
                self._mixable.clear()
            self._choice.route(spans(list(mixed))[1], len(mixed))
            seats = [seat for name in mixed if name for seat in self._choice.usable(name).inserts]
            self._mixable[mixed] = self._neighbours.mix(seats, lambda ids: self._compared(ids, mixed))
        return self._mixable[mixed]

    def sharing(self) -> Sharing:
        """Return which rows may share a batch in which text is written."""
        return self._neighbours.sharing()

    def attempt(self, adapter: Adapter, seat: Callable[[Adapter], Any]) -> None:
        """Hook an adapter in; run one small forward under it, if it acts on more than modules.

        Raises SiteError.
        """
        outside = sorted({site.kind for site, _ in adapter.inserts if site.kind in OUTSIDE})
        if not outside or not liveness.has_values(self._model):
            seat(adapter)
            return
        try:
            seat(adapter)
            self._answers(liveness.ids(self._model, 1, 4), [adapter.name])
        except GraftError:
            raise
        except Exception as error:  # every model fails in its own way
            methods = " + ".join(method.name() for method in adapter.methods)
            raise SiteError(
                f"{methods} at {', '.join(outside)} does not work on {type(self._model).__name__} "
                f"({type(error).__name__}: {error})",
                "a model whose forward takes what the method adds",
                "use LoRA",
            ) from error

    def _compared(self, ids: torch.Tensor, names: frozenset[str | None]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the answers to one row for each of these adapters and a bare one, in a batch and alone.

        Adapters that act on more than a module come first, as far as there are ids for them.
        """

        def inside(name: str) -> bool:
            return all(site.kind not in OUTSIDE for site, _ in self._choice.known(name).inserts)

        named = sorted((inside(name), name) for name in names if name)[: len(ids) - 1]
        rows = [None, *sorted(name for _, name in named)]
        alone = [self._answers(ids[row : row + 1], [name]) for row, name in enumerate(rows)]
        return self._answers(ids[: len(rows)], rows), torch.cat(alone)

    def _answers(self, ids: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Return logits, or states if there are none, of sorted rows."""
        extra = {"decoder_input_ids": ids[:, :4]} if self._family == "seq2seq" else {}
        route = self._choice.route(spans(rows)[1], len(rows))
        with liveness.quietly(self._model, training=False), installed(route):
            output = self._model(ids, attention_mask=torch.ones_like(ids), **extra)
        answers: torch.Tensor = output.logits if "logits" in output else output[0]
        return answers
