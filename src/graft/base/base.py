"""Base: the frozen pretrained model, and everything that is done with adapters on it.

There is one mechanism: a forward hook at a named place of the untouched model. A hook reads the Route of the
forward that runs, hands each span of rows to the inserts of its adapter, and returns what they make of it.
Attaching, detaching, routing rows, merging, checkpointing and compiling are written in this folder once; it
knows no method by name.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import torch

from graft.base import adapter_files, liveness
from graft.base.adapter import Adapter, require_same
from graft.base.adapter_checks import of_a_file
from graft.base.arguments import methods_given, require_name
from graft.base.attention import Attention
from graft.base.choice import Adapters, Choice, Rows, Wanted, named
from graft.base.compiled import Compiled, recompute_blocks
from graft.base.dropout import SilentDropout
from graft.base.entry import Entry
from graft.base.faster import Faster
from graft.base.fingerprint import contents, count, fingerprint, origin
from graft.base.heads import Heads
from graft.base.host import Host
from graft.base.last_hidden import LanguageHead, captured
from graft.base.merging import Merged, Merges
from graft.base.mixing import Mixing
from graft.base.module_hooks import ModuleHooks
from graft.base.native_decoder import NativeDecoder
from graft.base.native_stepper import NativeStepper
from graft.base.neighbours import Sharing
from graft.base.probes import leak
from graft.base.rehearsal import shapes_only
from graft.base.select import count_rows
from graft.base.summary import base_line, base_table
from graft.base.trainable import Trainable
from graft.base.virtual_tokens import VirtualTokenHooks
from graft.base.weight_shifts import WeightShifts
from graft.core import anatomy
from graft.core.insert import AdapterModule
from graft.core.method import Method
from graft.core.positions import obstacle
from graft.core.route import current, installed, spans
from graft.core.site import Site
from graft.errors import AdapterError, GraftError, ModelError, notice
from graft.generate.generate import complete, evaluating, generate
from graft.generate.prompts import several
from graft.generate.request import Completion
from graft.generate.writing import Asked, Writing
from graft.kernels.loss import Head
from graft.quant import is_packed
from graft.quant.finite import require_finite
from graft.recipe.places import place_of

TASK_TYPES = {
    "causal": "CAUSAL_LM",
    "seq2seq": "SEQ_2_SEQ_LM",
    "encoder": "FEATURE_EXTRACTION",
}  # PEFT's words


class Base:
    """A transformers model, frozen.

    model: class, code, keys and values stay as they are.  tokenizer: may be None.
    name: path or hub id, which is written into adapter files.
    file_dtype: of exported weights, if it is not that of the model's.
    files: that hold its weights, if it was loaded.  rounded: weights that are not packed were rounded to
    fewer bits before, so that the model before that cannot be told by them.
    """

    has_values = True  # whether its tensors hold numbers; those of a sketch do not

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        name: str = "",
        *,
        file_dtype: torch.dtype | None = None,
        files: Sequence[Path] = (),
        rounded: bool = False,
    ) -> None:
        self.model = model.requires_grad_(False).eval()
        self._file_dtype = file_dtype
        self.files, self._rounded = tuple(files), rounded
        self.tokenizer, self.name = tokenizer, name or getattr(model.config, "name_or_path", "")
        self.family = anatomy.family(model)
        self.adapters: dict[str, Adapter] = Adapters()
        self._modules, self._heads = ModuleHooks(), Heads()
        attention, virtual_tokens = Attention(model), VirtualTokenHooks(model)
        shifts = WeightShifts(model)
        self._merges = Merges(model)
        self._choice = Choice(self.adapters, self._merges)
        self._entry = Entry(model, self._choice, self.cacheable)
        # The entry is the last: its hooks lie around all others.
        hosts = (self._modules, attention, virtual_tokens, self._heads, shifts, self._entry)
        self._hosts: tuple[Host, ...] = hosts
        # Every other kind of site is hooked at its module. In-place parameters come in with the Route.
        self._hosts_by_kind: dict[str, tuple[Host, ...]] = {
            "kv": (attention, virtual_tokens),  # a prefix may reserve positions
            "prompt": (virtual_tokens,),
            "final": (self._heads,),
            "module": (),
            "parameter": (shifts,),
        }
        self._liveness, self._mixing = liveness.Liveness(model), Mixing(model, self._choice)
        self._dropout = SilentDropout(model)
        self._compiled = Compiled(model)
        self._native = NativeDecoder(model)
        self._head = LanguageHead(model, self.family, values=self.has_values)
        self._known_by: tuple[str, str | None] | None = None
        self._faster = Faster(model, attention)
        self.faster(self.device.type == "cpu")

    def __repr__(self) -> str:
        return base_line(self)

    def _repr_html_(self) -> str:
        return base_table(self)

    @property
    def device(self) -> torch.device:
        """The device of the embeddings, where ids must be."""
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations."""
        return self.model.get_input_embeddings().weight.dtype

    @property
    def file_dtype(self) -> torch.dtype:
        """The dtype of exported weights: the checkpoint's, where `load` chose to compute in a wider one."""
        return self._file_dtype or self.dtype

    @file_dtype.setter
    def file_dtype(self, dtype: torch.dtype | None) -> None:
        self._file_dtype = dtype

    @property
    def quant(self) -> str:
        """The scheme in which the linears of the blocks are packed, such as nf4 or int4, or none."""
        return next((m.scheme.name for m in self.model.modules() if is_packed(m)), "none")

    @property
    def sites(self) -> list[Site]:
        """Every place that a method can go to."""
        return self._liveness.sites()

    def count(self) -> int:
        """Count the base's parameters; packed weights as the numbers they stand for, tied ones once."""
        return count(self.model)

    def fingerprint(self) -> str:
        """Return a hash that identifies the base, quantised or not (`graft.base.fingerprint`)."""
        return self._samples()[0]

    def origin(self) -> str | None:
        """Return a hash of the weights before they were packed; None where it is unknown."""
        return self._samples()[1]

    def contents(self) -> dict[str, Any]:
        """Return what tells this base from every other: all weights, and settings (`graft.base.fingerprint`).

        Large files are read to their end for it, once; a model without files is read each time.
        """
        return contents(self.model, self.files)

    def _samples(self) -> tuple[str, str | None]:
        """Return fingerprint and origin: of the base as it was when they were first asked for, unmerged."""
        if self._known_by is None:
            self._known_by = fingerprint(self.model), None if self._rounded else origin(self.model)
        return self._known_by

    # Adapters come and go

    def attach(self, name: str, method: Method | Sequence[Method]) -> Adapter:
        """Put a newborn adapter on the base. Nothing changes until it is used (`using`, `adapters=`)."""
        self._require_free(name)
        return self.seat(self._newborn(name, methods_given(method)))

    def _require_free(self, name: str) -> None:
        """Raise AdapterError for a name that is none, or is taken."""
        require_name(name)
        if name in self.adapters:
            raise AdapterError(
                f"the name {name!r} is taken", "a new name", f"use another, or detach({name!r}) first"
            )

    def _newborn(self, name: str, methods: Sequence[Method]) -> Adapter:
        """Return what methods build on this base, hooked in nowhere."""
        sites = self.sites
        adapter = Adapter(name, methods, [self._checked(m, sites) for m in methods], self.identity)
        self._liveness.check(adapter.inserts)
        adapter.trained_on = self.quant
        for _, insert in adapter.inserts:
            self._settle(insert)
        self._tell(adapter, sites)
        return adapter

    def seat(self, adapter: Adapter) -> Adapter:
        """Put an adapter on the base that was built for it and is not on it: one that `read_adapter` gave."""
        self._require_free(adapter.name)
        try:
            self._mixing.attempt(adapter, self._seat)
        except GraftError:
            self.detach(adapter.name)
            raise
        return adapter

    def _tell(self, adapter: Adapter, sites: list[Site]) -> None:
        """Say so where all linears are adapted, and experts, which are no linears, are not."""
        adapted = {site.name for site, _ in adapter.inserts}
        bare = [site for site in anatomy.experts(sites) if site.name not in adapted]
        if bare and any(getattr(m, "target_modules", None) == "all-linear" for m in adapter.methods):
            size = sum(site.held.shape.numel() for site in bare)
            names = dict.fromkeys(".".join(site.name.split(".")[-2:]) for site in bare)
            notice(
                f"all-linear leaves {size / self.count():.0%} of the weights out: the experts of the mixture "
                f"are not linears. LoRA trains them with target_parameters=[{', '.join(names)}]"
            )

    def _settle(self, insert: AdapterModule) -> None:
        """Move a newborn insert to the base's device."""
        insert.to(self.device)

    def detach(self, name: str | Adapter) -> Adapter:
        """Take an adapter off. The base is as it was before `attach`, bit for bit."""
        name = named(name, self.adapters)
        if name in self._merges:
            raise AdapterError(
                f"{name!r} is merged", "an adapter that is not merged", f"call unmerge({name!r}) first"
            )
        for host in self._hosts:
            host.remove(name)
        self._compiled.forget()
        self._mixing.forget()
        return self.adapters.pop(name)

    def load_adapter(self, folder: str | Path, name: str, *, force: bool = False) -> Adapter:
        """Read an adapter from a folder or a file, and attach it under this name.

        folder: ours, PEFT's, the `adapters` library's or mlx-lm's; or the GGUF file of a LoRA.
        force: load an adapter although its fingerprint says that it was trained on another base, or its
        settings were edited since it was saved.
        Raises AdapterError for a file that is damaged or does not fit this base.
        """
        self._require_free(name)
        adapter = self.read_adapter(folder, name, force=force)
        with of_a_file(folder):
            return self.seat(adapter)

    def read_adapter(self, folder: str | Path, name: str, *, force: bool = False) -> Adapter:
        """Read an adapter as `load_adapter` does, whole and checked, without putting it on the base: `seat`.

        Another thread may do this while the base runs, if no adapter on it changes the base's own weights
        (`Adapter.in_place`).
        """
        methods, tensors, base = adapter_files.read(Path(folder), self.sites, force=force)
        if not force:
            adapter_files.check_base(folder, base, self.identity())
        tensors = self._liveness.without_dead(tensors, folder)
        with of_a_file(folder):
            wanted = self._rehearsed(name, methods)
            named = adapter_files.named_here(tensors, wanted, self.model)
            named = adapter_files.without_base_copies(named, wanted, self.model)
            require_same(wanted, named, name)
            adapter = self._newborn(name, methods)
        adapter.load_file_state(named)
        if adapter.in_place:  # the base's dtype may be narrower than the file's
            require_finite(adapter.file_state().items(), AdapterError, "use another base", folder)
        adapter.folder, adapter.trained_on = Path(folder).resolve(), base.get("quant") or ""
        return adapter

    def _rehearsed(self, name: str, methods: Sequence[Method]) -> dict[str, torch.Tensor]:
        """Return tensors without numbers, of the shapes that these methods save on this base."""
        with shapes_only():
            sites = self.sites
            parts = [self._checked(method, sites) for method in methods]
            return Adapter(name, methods, parts, self.identity).file_state()

    def _checked(self, method: Method, sites: list[Site]) -> list[tuple[Site, Any]]:
        """Return what a method puts on this base. Raises AdapterError if it refuses packed weights."""
        if not method.quantisable and self.quant != "none":
            raise AdapterError(
                f"{type(method).__name__} on a quantised base: {method.quantisable}",
                "a base in 16 or 32 bits",
                "load the base without quant=, or use LoRA",
            )
        return method.assemble(sites)

    def _seat(self, adapter: Adapter) -> Adapter:
        """Hook an adapter in."""
        self.adapters[adapter.name] = adapter
        for site, insert in adapter.inserts:
            for host in self._hosts_by_kind.get(site.kind, (self._modules,)):
                host.add(adapter.name, site, insert)
        self._entry.rehook()
        self._compiled.forget()
        self._mixing.forget()
        return adapter.train(False)

    def identity(self) -> dict[str, Any]:
        """Return what an adapter's files say about this base."""
        task_type = TASK_TYPES.get(self.family)
        known = {"fingerprint": self.fingerprint(), "origin": self.origin()}
        return {"name": place_of(self.name), **known, "task_type": task_type}

    # Which adapter answers

    def using(self, name: str | Adapter | None) -> contextlib.AbstractContextManager[None]:
        """Let this adapter answer every row inside the block; None is the bare (or merged) base.

        It answers calls of the base, and of `model` by itself: in own loops, in transformers' Trainer and
        `generate`, in lm-eval.
        """
        return self._choice.using(name)

    @property
    def active(self) -> str | None:
        """The adapter of the `using` block that this runs in."""
        return self._choice.active

    @contextlib.contextmanager
    def routed(self, rows: Rows, *, seated: bool = False) -> Iterator[list[int]]:
        """Route the forwards of `model` inside the block by these rows.

        seated: their virtual tokens are in the cache already, and mask and positions count them.
        Yields the order in which the rows must be given.
        """
        order, groups = spans(rows)
        route = self._choice.route(groups, len(rows))
        with installed(replace(route, seated=True) if seated else route):
            yield order

    def unpackable(self, length: int) -> str | None:
        """Return why documents cannot share a row of `length` tokens here, or None if they can."""
        methods = [method for adapter in self.adapters.values() for method in adapter.methods]
        refusals = (str(method.packable) for method in methods if not method.packable)
        return obstacle(self.model.config, length) or next(refusals, None) or self._leak

    @functools.cached_property
    def _leak(self) -> str | None:
        """Why documents in one row would not be as alone, or None; see `probes`."""
        self.probe()
        with evaluating(self), installed(None):
            return leak(self.model, self._states_or_logits, causal=self.family == "causal")

    def positions(self, names: Rows) -> int:
        """Return the largest number of positions that one of these adapters takes, tokens not counted."""
        return max(host.positions(names) for host in self._hosts)

    # Forward

    def __call__(
        self, ids: torch.Tensor | None = None, adapters: Wanted | None = None, **keywords: Any
    ) -> Any:
        """Run one forward over all rows, whatever adapters they use.

        ids: (B, T).  adapters: one for all rows, or one or None per row, by name or itself; left out: the
        adapter of the `using` block for all.
        keywords: transformers' own.

        Returns transformers' output. If the adapters have task heads, it returns a list of the heads' logits
        instead, one tensor per adapter in the order of `route.spans`: (rows, classes), or (rows, T, classes)
        of a head that classifies every token.
        """
        rows = self._choice.rows(adapters, count_rows(ids, keywords))
        run = self._task_logits if self._heads.answer(rows) else self._forward
        return self._mixing.run(run, ids, rows, keywords)

    def hidden(
        self, ids: torch.Tensor | None = None, adapters: Wanted | None = None, **keywords: Any
    ) -> torch.Tensor:
        """Return the last hidden state (B, T, D), which is what enters the language head if there is one.

        The few models whose logits do not follow from it give the logits instead (see `last_hidden`).
        """
        self.probe()
        rows = self._choice.rows(adapters, count_rows(ids, keywords))
        return self._mixing.run(self._states_or_logits, ids, rows, keywords)

    def _states_or_logits(self, ids: torch.Tensor | None, keywords: dict[str, Any]) -> torch.Tensor:
        if not self._head.whole:
            return self._states(ids, keywords)
        logits: torch.Tensor = self._forward(ids, self._uncached(keywords)).logits
        return logits

    def _uncached(self, keywords: dict[str, Any]) -> dict[str, Any]:
        return keywords if self.family == "masked" else {"use_cache": False, **keywords}

    def _states(self, ids: torch.Tensor | None, keywords: dict[str, Any]) -> torch.Tensor:
        keywords = self._uncached(keywords)
        if self.family == "encoder":
            output = self._forward(ids, keywords)
            if getattr(output, "last_hidden_state", None) is None:
                raise ModelError(
                    f"{type(self.model).__name__} answers without its last hidden state",
                    "a language model, or a model without a head",
                    "load it with task='encoder'",
                )
            return output.last_hidden_state
        with captured(self.model) as caught:
            self._forward(ids, keywords)
        return caught[0]

    def logits(self, hidden: torch.Tensor, adapters: Wanted | None = None) -> torch.Tensor:
        """Return the model's logits for hidden states (B, T, D) of any part of a sequence."""
        self.probe()

        def project(states: torch.Tensor, _: dict[str, Any]) -> torch.Tensor:
            return self._head.logits(states)

        return self._mixing.run(project, hidden, self._choice.rows(adapters, len(hidden)), {})

    def plain_head(self, adapters: Rows | None = None) -> Head | None:
        """Return the language head if it is frozen and linear for these rows; None: only `logits` knows it.

        adapters: as in `__call__`; left out: the adapter of the `using` block.
        """
        self.probe()
        with self.routed(self._choice.rows(adapters, 1 if adapters is None else len(adapters))):
            return self._head.plain()

    def head_logits(self, states: torch.Tensor, adapter: str | Adapter | None = None) -> torch.Tensor:
        """Return the logits (N, classes) of the task head of the adapter in use, or of another one.

        states: (N, D), one for each text, from `hidden`. Raises AdapterError for an adapter without a head.
        """
        name = self.active if adapter is None else named(adapter, self.adapters)
        return self._heads.of_states(name, states)

    @property
    def looks_ahead(self) -> bool:
        """Whether a state depends on later tokens, so that the next one is no secret to it."""
        self.probe()
        return self._head.looks_ahead

    def probe(self) -> None:
        """Try the model and its language head on a few tokens, once. Raises ModelError if that fails."""
        if self.family != "encoder" and not self._head.probed:
            with evaluating(self) if self.model.training else contextlib.nullcontext():
                self._head.probe()

    def generate(
        self, prompts: Asked, adapters: Wanted | None = None, **settings: Unpack[Writing]
    ) -> list[str]:
        """Return only the new text, one string per prompt.

        prompts: a list of texts or conversations; one alone is a list of one, and so is the answer.
        adapters: as in `__call__`.
        settings: max_new_tokens, temperature, stop, ...: those of `Sampling` and of the batch, which
        `graft.generate.generate.generate` explains.
        """
        texts = several(prompts)
        return generate(self, texts, self._choice.rows(adapters, len(texts)), **settings)

    def complete(
        self, prompts: Asked, adapters: Wanted | None = None, **settings: Unpack[Writing]
    ) -> list[Completion]:
        """Return what `generate` does, with tokens, log-probabilities and the reason of each end."""
        texts = several(prompts)
        return complete(self, texts, self._choice.rows(adapters, len(texts)), **settings)

    def mixable(self, names: Rows) -> bool:
        """Return whether rows of these adapters may share a forward; if not, they are run apart."""
        return self._mixing.mixable(names)

    def together(self, names: Rows) -> bool:
        """Return whether rows of these adapters can share a forward; False too for those that must not."""
        try:
            return self.mixable(names)
        except AdapterError:
            return False

    def seats(self, name: str | None) -> int:
        """Return how many places of a cache an adapter's virtual tokens take."""
        return sum(host.seats(name) for host in self._hosts)

    def in_slots(self, name: str | None) -> bool:
        """Return whether text under this adapter can be written in a slot of a shared cache.

        A narrow stack has a cache of its own beside the base's, which follows no slots.
        """
        inserts = self.adapters[name].inserts if name else []
        return self.cacheable([name]) and not any(site.kind == "stack" for site, _ in inserts)

    def native_stepper(self, *, exact: bool = False) -> NativeStepper | None:
        """Return the kernels' stepper of this model as it is now; None if they do not compute its kind."""
        return self._native.stepper(self.adapters, exact=exact, routed=self.routed)

    def in_native(self, name: str | None) -> bool:
        """Return whether that stepper writes text under an adapter."""
        return self._native.serves(self._choice.usable(name) if name else None)

    def sharing(self) -> Sharing:
        """Return which rows may share a batch in which text is written (`graft.base.neighbours`)."""
        return self._mixing.sharing()

    def cacheable(self, names: Rows) -> bool:
        """Return whether text can be written with a cache of keys and values under these adapters."""
        methods = [method for name in set(names) if name for method in self.adapters[name].methods]
        return all(m.cacheable for m in methods) and all(host.cacheable(names) for host in self._hosts)

    def _forward(self, ids: torch.Tensor | None, keywords: dict[str, Any]) -> Any:
        model = self._compiled.model(current())
        return model(**keywords) if ids is None else model(ids, **keywords)

    def _task_logits(self, ids: torch.Tensor | None, keywords: dict[str, Any]) -> list[torch.Tensor]:
        """Run one forward for each way in which the heads of these rows read states, then the heads."""
        route = current()
        assert route is not None, "rows are sorted inside a Route"
        worded = {name: any(m.word_head for m in self.adapters[name].methods) for name in route.names if name}
        states = {words: self._last_hidden(ids, keywords, word_head=words) for words in set(worded.values())}
        # In the Route of the forward: a head may read what other inserts left there.
        return self._heads.logits(route, lambda name: states[worded[name]], keywords.get("attention_mask"))

    def _last_hidden(
        self, ids: torch.Tensor | None, keywords: dict[str, Any], *, word_head: bool
    ) -> torch.Tensor:
        """Return the states (B, T, D) that a task head reads.

        word_head: a masked model's language head transforms them first.
        """
        if self.family == "masked" and not word_head:
            states: torch.Tensor = self.model.base_model(ids, **keywords).last_hidden_state
            return states
        self.probe()
        if self._head.whole:
            raise ModelError(
                f"no state of {type(self.model).__name__} enters its head",
                "a model whose head reads the last hidden state",
                "use a method without a task head, or another model",
            )
        return self._states(ids, keywords)

    # Training, checkpointing, compiling

    def trainable(self, name: str) -> Trainable:
        """Return a module whose parameters are this adapter's, and which calls the model under it.

        For transformers' Trainer, accelerate, and whatever else trains a module.
        """
        return Trainable(self, self._choice.usable(name))

    def faster(self, on: bool = True) -> None:
        """Run linears, norms, gated activations, rotary positions and attention by the C kernels, or not.

        They are on from the start on a processor. Modules whose code computes something else keep theirs.
        """
        if on:
            self._faster.on()
        else:
            self._faster.off()
        for host in self._hosts:
            host.rehook()
        self._compiled.forget()

    def train(self, mode: bool = True, *, dropout: bool = False, noise: bool = True) -> "Base":
        """Switch the adapters' dropout on or off.

        dropout: the base's own dropout is on as well in training.  noise: False keeps that of the adapters
        off, and every other random choice of theirs.
        """
        self.model.train(mode)
        self._dropout.off()
        if mode and not dropout:
            self._dropout.on()
        for adapter in self.adapters.values():
            adapter.train(mode and noise)
        return self

    @property
    def vocabulary(self) -> int:
        """How many tokens the base has an embedding for."""
        table: Any = self.model.get_input_embeddings()
        return int(table.weight.shape[0])

    @property
    def has_dropout(self) -> bool:
        """Whether the base has dropout of its own, on or off."""
        return self._dropout.found()

    def checkpointing(self, on: bool = True) -> None:
        """Recompute every block in backward instead of keeping its activations."""
        recompute_blocks(self.model, on)

    def compile(self, on: bool = True, **options: Any) -> None:
        """Run forwards through torch.compile with these options. Attach, detach and merge compile anew."""
        self._compiled.switch(options if on else None)

    # Merging

    def merge(self, name: str | Adapter, *, repack: bool = False) -> Merged:
        """Fold an adapter into the weights, so that the bare base answers with it.

        Layers of a quantised base that the adapter changes become 16-bit, made from their dequantised values,
        or take the change into the minima of their groups; the result says which.
        repack: pack layers that would become 16-bit again, which rounds away much of a small change
        (`shipping.merge_ways.choices` measures how much).
        """
        adapter = self._choice.usable(name)
        self._samples()  # while the weights are the base's own
        merged = self._merges.add(adapter, repack=repack)
        self._after_merge()
        return merged

    def unmerge(self, name: str | Adapter) -> None:
        """Put back the weights that were there before `merge(name)`, bit for bit."""
        self._merges.remove(named(name, self.adapters))
        self._after_merge()

    @property
    def merged(self) -> list[Merged]:
        """The merges in force, oldest first."""
        return self._merges.done

    def _after_merge(self) -> None:
        for host in self._hosts:
            host.rehook()
        self._compiled.forget()
