"""Base: the frozen pretrained model, and everything that is done with adapters on it.

There is one mechanism: a forward hook at a named place of the untouched model. A hook reads the Route of the
forward that runs, hands each span of rows to the inserts of its adapter, and returns what they make of it.
Attaching, detaching, routing rows, merging, checkpointing and compiling are written here once; no method is
known by name.
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch

from graft.base import adapter_files
from graft.base.adapter import Adapter
from graft.base.attention import Attention
from graft.base.dropout import SilentDropout
from graft.base.fingerprint import count, fingerprint
from graft.base.heads import Heads
from graft.base.host import Host
from graft.base.last_hidden import captured, transform
from graft.base.merging import Merged, Merges
from graft.base.module_hooks import ModuleHooks
from graft.base.select import count_rows, pick
from graft.base.virtual_tokens import VirtualTokenHooks
from graft.core import anatomy
from graft.core.insert import AdapterModule
from graft.core.method import Method
from graft.core.positions import obstacle
from graft.core.route import Route, current, installed, spans
from graft.core.site import Site
from graft.errors import AdapterError, UsageError, nearest
from graft.generate.generate import generate
from graft.quant import is_packed

Rows = Sequence[str | None]


class Base:
    """A transformers model, frozen.

    model: kept as it is: same class, code, keys and values.  tokenizer: may be None.  name: path or hub id,
    written into adapter files.
    """

    def __init__(self, model: Any, tokenizer: Any = None, name: str = "") -> None:
        self.model = model.requires_grad_(False).eval()
        self.tokenizer, self.name = tokenizer, name or getattr(model.config, "name_or_path", "")
        self.family = anatomy.family(model)
        self.adapters: dict[str, Adapter] = {}
        self._modules, self._heads = ModuleHooks(), Heads()
        attention, virtual_tokens = Attention(model), VirtualTokenHooks(model)
        self._hosts: tuple[Host, ...] = (self._modules, attention, virtual_tokens, self._heads)
        # By kind of site; every other kind is hooked at its module. In-place parameters come in with the Route.
        self._hosts_by_kind: dict[str, tuple[Host, ...]] = {
            "kv": (attention, virtual_tokens),  # a prefix may reserve positions
            "prompt": (virtual_tokens,),
            "final": (self._heads,),
            "module": (),
        }
        self._choice: ContextVar[str | None] = ContextVar("graft_adapter", default=None)
        self._merges = Merges(model)
        self._dropout = SilentDropout(model)
        self._compile_options: dict[str, Any] | None = None
        self._compiled: Any = None
        self._fingerprint = ""

    @property
    def device(self) -> torch.device:
        """The device of the embeddings, where ids must be."""
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations."""
        return self.model.get_input_embeddings().weight.dtype

    @property
    def quant(self) -> str:
        """The scheme in which the linears of the blocks are packed, such as nf4 or int4, or none."""
        return next((m.scheme.name for m in self.model.modules() if is_packed(m)), "none")

    @property
    def sites(self) -> list[Site]:
        """Every place that a method can go to."""
        return anatomy.sites(self.model)

    def count(self) -> int:
        """Count the base's parameters; packed weights as the numbers they stand for, tied ones once."""
        return count(self.model)

    def fingerprint(self) -> str:
        """Return a hash that identifies the base; the same for a model and its quantised form (`base.fingerprint`)."""
        if not self._fingerprint:
            self._fingerprint = fingerprint(self.model)
        return self._fingerprint

    # Adapters come and go

    def attach(self, name: str, method: Method | Sequence[Method]) -> Adapter:
        """Put a newborn adapter on the base. Nothing changes until it is used (`using`, `adapters=`)."""
        if name in self.adapters:
            raise AdapterError(
                f"the name {name!r} is taken", "a new name", f"use another, or detach({name!r}) first"
            )
        methods = [method] if isinstance(method, Method) else list(method)
        if not methods:
            raise UsageError(
                "no method was given", "one Method or a list of them", "for example graft.LoRA(r=16)"
            )
        sites = self.sites
        adapter = Adapter(name, methods, [self._checked(m, sites) for m in methods], self.identity)
        adapter.trained_on = self.quant
        for _, insert in adapter.inserts:
            self._settle(insert)
        return self._seat(adapter)

    def _settle(self, insert: AdapterModule) -> None:
        """Move a newborn insert to the base's device."""
        insert.to(self.device)

    def detach(self, name: str) -> Adapter:
        """Take an adapter off. The base is as it was before `attach`, bit for bit."""
        self._known(name)
        if name in self._merges:
            raise AdapterError(
                f"{name!r} is merged", "an adapter that is not merged", f"call unmerge({name!r}) first"
            )
        for host in self._hosts:
            host.remove(name)
        self._forget_compiled()
        return self.adapters.pop(name)

    def load_adapter(self, folder: str | Path, name: str, *, force: bool = False) -> Adapter:
        """Read an adapter folder (ours, PEFT's, the `adapters` library's or mlx-lm's) or a GGUF LoRA, and attach it.

        force: load an adapter although its fingerprint says that it was trained on another base.
        """
        methods, tensors, base = adapter_files.read(Path(folder), self.sites)
        if base.get("fingerprint") and base["fingerprint"] != self.fingerprint() and not force:
            raise AdapterError(
                f"{folder} was trained on another base: {base.get('name') or '?'}, {base['fingerprint'][:12]}",
                f"an adapter of {self.name}, {self.fingerprint()[:12]} (fingerprints)",
                "load that base, or pass force=True if you know that they fit",
            )
        adapter = self.attach(name, methods)
        try:
            wanted = adapter.file_state()
            named = adapter_files.named_here(tensors, wanted, self.model)
            adapter.load_file_state(adapter_files.without_base_copies(named, wanted, self.model))
        except AdapterError:
            self.detach(name)
            raise
        adapter.folder, adapter.trained_on = Path(folder).resolve(), base.get("quant", "")
        return adapter

    def _checked(self, method: Method, sites: list[Site]) -> list[tuple[Site, Any]]:
        if not method.quantisable and self.quant != "none":
            raise AdapterError(
                f"{type(method).__name__} on a quantised base: {method.quantisable}",
                "a base in 16 or 32 bits",
                "load the base without quant=, or use LoRA",
            )
        return method.assemble(sites)

    def _seat(self, adapter: Adapter) -> Adapter:
        self.adapters[adapter.name] = adapter
        for site, insert in adapter.inserts:
            for host in self._hosts_by_kind.get(site.kind, (self._modules,)):
                host.add(adapter.name, site, insert)
        self._forget_compiled()
        return adapter.train(False)

    def identity(self) -> dict[str, Any]:
        """Return what an adapter's files say about this base."""
        task = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "encoder": "FEATURE_EXTRACTION"}.get(
            self.family
        )
        return {"name": self.name, "fingerprint": self.fingerprint(), "task_type": task}

    def _known(self, name: str) -> Adapter:
        if name not in self.adapters:
            known = list(self.adapters)
            remedy = f"did you mean {nearest(name, known, 1)[0]!r}?" if known else "attach or load one first"
            raise AdapterError(f"no adapter {name!r} on this base", f"one of {known or 'none yet'}", remedy)
        return self.adapters[name]

    # Which adapter answers

    @contextlib.contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """Inside the block every row is answered by this adapter; None is the bare (or merged) base."""
        if name is not None:
            self._usable(name)
        token = self._choice.set(name)
        try:
            yield
        finally:
            self._choice.reset(token)

    @property
    def active(self) -> str | None:
        """The adapter of the `using` block this runs in."""
        return self._choice.get()

    @contextlib.contextmanager
    def routed(self, rows: Rows) -> Iterator[list[int]]:
        """Inside the block forwards of `model` follow these rows, which must come in the order that is yielded."""
        order, groups = spans(rows)
        route = self._route(groups, len(rows))
        with installed(route):
            yield order

    def _route(self, groups: tuple[tuple[str | None, int, int], ...], rows: int) -> Route:
        for name, _, _ in groups:
            if name is not None:
                self._usable(name)
        if len(groups) > 1:
            for name, _, _ in groups:
                self._routable(name)
        name = groups[0][0] if groups else None
        if name is not None and self.adapters[name].in_place:
            return Route(groups, rows, self.adapters[name].swapped)
        return Route(groups, rows)

    def unpackable(self, length: int) -> str | None:
        """Return why documents cannot share a row of `length` tokens on this model with its adapters, or None."""
        refusals = [
            m.packable for adapter in self.adapters.values() for m in adapter.methods if not m.packable
        ]
        return obstacle(self.model.config, length) or next((str(reason) for reason in refusals), None)

    def positions(self, names: Rows) -> int:
        """Return the largest number of positions that one of these adapters takes, besides the tokens."""
        return max(host.positions(names) for host in self._hosts)

    def _usable(self, name: str) -> None:
        self._known(name)
        if name in self._merges:
            raise AdapterError(
                f"{name!r} is merged: the base already answers with it",
                "an adapter that is not merged",
                f"use None, or call unmerge({name!r})",
            )

    def _routable(self, name: str | None) -> None:
        reasons = [m.routable for m in self.adapters[name].methods if not m.routable] if name else []
        if reasons:
            raise AdapterError(
                f"{name!r} in a batch with other adapters: {reasons[0]}",
                "rows that all use it",
                "run its rows in a batch of their own",
            )

    def _rows(self, adapters: Rows | None, count: int) -> Rows:
        if adapters is None:
            return [self._choice.get()] * count
        if len(adapters) != count:
            raise UsageError(
                f"adapters= has {len(adapters)} names for {count} rows",
                "one name (or None) per row",
                "repeat the name for each row",
            )
        return adapters

    # Forward

    def __call__(self, ids: torch.Tensor | None = None, adapters: Rows | None = None, **keywords: Any) -> Any:
        """Run one forward over all rows, whatever adapters they use.

        ids: (B, T).  adapters: one name or None per row; left out: the adapter of the `using` block for all.
        keywords: transformers' own.

        Returns transformers' output. If the adapters have task heads, it returns a list of the heads' logits
        instead, one tensor per adapter in the order of `route.spans`: (rows, classes), or (rows, T, classes)
        of a head that classifies every token.
        """
        rows = self._rows(adapters, count_rows(ids, keywords))
        run = self._task_logits if self._heads.answer(rows) else self._forward
        return self._sorted(run, ids, rows, keywords)

    def hidden(
        self, ids: torch.Tensor | None = None, adapters: Rows | None = None, **keywords: Any
    ) -> torch.Tensor:
        """Return the last hidden state (B, T, D), which is what enters the language head if there is one."""
        return self._sorted(self._states, ids, self._rows(adapters, count_rows(ids, keywords)), keywords)

    def _states(self, ids: torch.Tensor | None, keywords: dict[str, Any]) -> torch.Tensor:
        keywords = {"use_cache": False, **keywords} if self.family != "masked" else keywords
        if self.family == "encoder":
            return self._forward(ids, keywords).last_hidden_state
        with captured(self.model) as caught:
            self._forward(ids, keywords)
        return caught[0]

    def logits(self, hidden: torch.Tensor, adapters: Rows | None = None) -> torch.Tensor:
        """Return the language head's logits for hidden states (B, T, D) of any part of a sequence."""
        head = self.model.get_output_embeddings()

        def project(states: torch.Tensor, _: dict[str, Any]) -> torch.Tensor:
            return transform(self.model.config, head(states))

        return self._sorted(project, hidden, self._rows(adapters, len(hidden)), {})

    def generate(self, prompts: Sequence[Any], adapters: Rows | None = None, **settings: Any) -> list[str]:
        """Return only the new text, one string per prompt; `graft.generate` has the settings."""
        return generate(self, prompts, self._rows(adapters, len(prompts)), **settings)

    def _sorted(self, run: Any, ids: torch.Tensor | None, rows: Rows, keywords: dict[str, Any]) -> Any:
        """Run over the rows sorted into one span per adapter, and undo the order on the way out."""
        order, groups = spans(rows)
        count = len(rows)
        with installed(self._route(groups, count)):
            if order == list(range(count)):
                return run(ids, keywords)
            if keywords.get("past_key_values") is not None:
                raise UsageError(
                    "a filled cache with rows out of order",
                    "rows sorted by adapter",
                    "use base.generate, or sort the rows",
                )
            index = torch.tensor(order, device=self.device)
            output = run(pick(ids, index, count), {k: pick(v, index, count) for k, v in keywords.items()})
            return pick(output, index.argsort(), count)

    def _forward(self, ids: torch.Tensor | None, keywords: dict[str, Any]) -> Any:
        model, route = self.model, current()
        # One graph per span layout: mixed batches and in-place methods run eagerly (dynamo's recompile limit is 8).
        if self._compile_options is not None and route is not None and len(route.spans) == 1:
            if self._compiled is None:
                self._compiled = torch.compile(self.model, **self._compile_options)
            model = self._compiled
        return model(**keywords) if ids is None else model(ids, **keywords)

    def _task_logits(self, ids: torch.Tensor | None, keywords: dict[str, Any]) -> list[torch.Tensor]:
        """Run one forward for each way in which the heads of these rows read states, then the heads."""
        route = current()
        assert route is not None, "rows are sorted inside a Route"
        worded = {name: any(m.word_head for m in self._known(name).methods) for name in route.names if name}
        states = {words: self._last_hidden(ids, keywords, word_head=words) for words in set(worded.values())}
        # In the Route of the forward: a head may read what other inserts left there.
        return self._heads.logits(route, lambda name: states[worded[name]], keywords.get("attention_mask"))

    def _last_hidden(
        self, ids: torch.Tensor | None, keywords: dict[str, Any], *, word_head: bool
    ) -> torch.Tensor:
        """Return the states (B, T, D) that a task head reads; with `word_head`, as the masked head transforms them."""
        if self.family == "masked" and not word_head:
            states: torch.Tensor = self.model.base_model(ids, **keywords).last_hidden_state
            return states
        return self._states(ids, keywords)

    # Training, checkpointing, compiling

    def train(self, mode: bool = True, *, dropout: bool = False) -> "Base":
        """Switch the adapters' dropout on or off; `dropout=True` lets the base's own drop too (off by default)."""
        self.model.train(mode)
        self._dropout.off()
        if mode and not dropout:
            self._dropout.on()
        for adapter in self.adapters.values():
            adapter.train(mode)
        return self

    def checkpointing(self, on: bool = True) -> None:
        """Recompute every block in backward instead of keeping its activations.

        The recomputation finds the Route of its own forward again, also when another adapter is in use by
        then.
        """
        if on:

            def contexts() -> tuple[Any, Any]:
                """Return what surrounds a block's forward, and its recomputation."""
                return contextlib.nullcontext(), installed(current())

            self.model.activation_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})
            # Needless without reentry, and it would keep backward going to the bottom.
            self.model.disable_input_require_grads()
        else:
            self.model.activation_checkpointing_disable()

    def compile(self, on: bool = True, **options: Any) -> None:
        """Run forwards through torch.compile with these options.

        Attach, detach and merge throw compiled code away: dynamo does not notice a new hook and would go on
        without the new adapter.
        """
        self._compile_options = options if on else None
        self._forget_compiled()

    def _forget_compiled(self) -> None:
        if self._compiled is not None:
            self._compiled = None
            torch.compiler.reset()

    # Merging

    def merge(self, name: str, *, repack: bool = False) -> Merged:
        """Fold an adapter into the weights, so that the bare base answers with it.

        Layers of a quantised base that the adapter changes become 16-bit, made from their dequantised values,
        or take the change into the minima of their groups; the result says which. repack: layers that would
        become 16-bit are packed again, which rounds away much of a small change
        (`shipping.merge_ways.choices` measures how much).
        """
        adapter = self._known(name)
        self._usable(name)
        merged = self._merges.add(adapter, repack=repack)
        self._after_merge()
        return merged

    def unmerge(self, name: str) -> None:
        """Put back the weights that were there before `merge(name)`, bit for bit."""
        self._known(name)
        self._merges.remove(name)
        self._after_merge()

    @property
    def merged(self) -> list[Merged]:
        """The merges in force, oldest first."""
        return self._merges.done

    def _after_merge(self) -> None:
        for host in self._hosts:
            host.rehook()
        self._forget_compiled()
