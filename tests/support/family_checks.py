"""What must hold for every family of models: the checks of one tiny random model.

`examine(name, folder)` returns a cell for each of COLUMNS. A cell begins with one of VERDICTS:

    ok         the law holds; what follows says how, such as the number of packed layers
    -          does not apply: an encoder writes no text
    refused    a GraftError said so before anything was trained; its reason follows
    WRONG      another answer than the oracle's, by so much; or no effect, no gradient
    CRASH      an exception that is no GraftError

The oracle is transformers on the same folder, torch's cross-entropy, or the same row alone. A family that
transformers itself cannot load or run has "cannot run" in its first column, and nothing else.
"""

import contextlib
import copy
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import families
import torch
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

import graft
from graft.core.positions import first_position
from graft.data.batches import Batch, TokenBatches, WrittenBatches
from graft.data.encode import Example
from graft.data.feed import Feed
from graft.data.pack import packed
from graft.errors import GraftError, notice
from graft.models.load import quiet
from graft.objectives.lm import language_modelling
from graft.quant import is_packed
from graft.quant.experts import outer_modules, packed_experts, projections
from graft.recipe import Train
from graft.training import Task, Trainer
from models import randomise

VERDICTS = ("ok", "-", "refused", "WRONG", "CRASH")
METHODS = {
    "lora": lambda: graft.LoRA(r=4, lora_alpha=8, target_modules="all-linear"),
    "bottleneck": lambda: graft.Houlsby(reduction_factor=4),
    "prefix": lambda: graft.PrefixTuning(num_virtual_tokens=3),
    "prompt": lambda: graft.PromptTuning(num_virtual_tokens=3),
}
COLUMNS = ("transformers", "load", "loss", "packed", *METHODS, "experts", "mixed", "nf4")
ROWS, NEW = 3, 3  # rows of a batch, tokens of a text
# Of the largest number of the oracle. Sums in another order differ by 1e-6; rows of other lengths by 1e-5.
TOLERANCE = 2e-4
EFFECT = 1e-4  # the least change that counts as one


class Wrong(Exception):
    """A law does not hold; says which and by how much."""


def examine(name: str, folder: Path, columns: Sequence[str] = COLUMNS) -> dict[str, str]:
    """Save a family's tiny model in the folder, load it and check it. Return {column: cell}."""
    try:
        subject = Subject(name, folder)
        subject.oracle_logits  # noqa: B018  transformers' own forward
    except Exception as error:
        return {"transformers": f"cannot run: {_said(error)}"}
    cells = {"transformers": f"ok: {type(subject.oracle).__name__}"}
    for column in columns[1:]:
        method = METHODS.get(column)
        check = (lambda s, made=method: adapt(s, made())) if method else CHECKS[column]
        cells[column] = verdict(subject, check)
        if column == "load" and cells[column].startswith(("refused", "CRASH")):
            break
    return cells


def verdict(subject: "Subject", check: Callable[["Subject"], str]) -> str:
    """Return the cell of one check, whatever it raises."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", graft.Notice)
            text = check(subject)
        said = dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, graft.Notice))
        return "; ".join([text, *(f"notice: {_line(one)}" for one in said)])
    except GraftError as error:
        return f"refused: {_line(error.given)}".replace(str(subject.folder), "FOLDER")
    except Wrong as error:
        return str(error) if str(error).startswith("CRASH") else f"WRONG {error}"
    except Exception as error:
        return f"CRASH {_said(error)}"


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {_line(str(error))}"


def _line(text: str) -> str:
    return " ".join(text.split())[:300]


class Subject:
    """One family: its folder, transformers' own model of it, and ours, each loaded when it is first asked
    for."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.task = families.families()[name].task
        built = families.save(name, folder)
        self.inputs = families.inputs(built, ROWS)
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.oracle: Any = type(built).from_pretrained(folder, dtype=torch.float32).eval()

    @cached_property
    def oracle_logits(self) -> torch.Tensor:
        return numbers_of(self.oracle(**self.inputs))

    @cached_property
    def base(self) -> graft.Base:
        return self.load()

    @cached_property
    def again(self) -> graft.Base:
        """A second base of the same folder."""
        return self.load()

    def load(self, quant: str | None = None) -> graft.Base:
        base = graft.load(self.folder, quant=quant, dtype="fp32")
        base.tokenizer = families.words()
        if hasattr(base.model, "generation_config"):
            base.model.generation_config.eos_token_id = None  # all texts have one length
            base.model.generation_config.forced_eos_token_id = None
        return base

    def answer(
        self, base: graft.Base, adapters: Sequence[str | None], rows: slice = slice(None)
    ) -> torch.Tensor:
        """Return what these rows of the inputs give, (rows, T, V or D)."""
        inputs = {key: value[rows] for key, value in self.inputs.items()}
        return numbers_of(base(inputs.pop("input_ids"), adapters=list(adapters), **inputs))

    @cached_property
    def bare(self) -> torch.Tensor:
        """The base's answer without an adapter."""
        return self.answer(self.base, [None] * ROWS)

    @cached_property
    def rows_are_alone(self) -> bool:
        """Whether transformers' own model gives a row the same answer in a batch as alone."""
        alone = [
            numbers_of(self.oracle(**{key: value[i : i + 1] for key, value in self.inputs.items()}))
            for i in range(ROWS)
        ]
        return difference(torch.cat(alone), self.oracle_logits) < TOLERANCE

    @cached_property
    def feed(self) -> Feed:
        """The inputs as rows to learn."""
        tokenizer, rows = families.words(), self.inputs["input_ids"].tolist()
        if self.task == "seq2seq":
            written = [row[:5] for row in rows]
            examples = [Example(row, [], parts={"written": w}) for row, w in zip(rows, written, strict=True)]
            start = self.oracle.config.decoder_start_token_id
            batches: Any = WrittenBatches(tokenizer, families.LENGTH, decoder_start=start)
        else:
            examples = [Example(row, row) for row in rows]
            batches = TokenBatches(tokenizer, families.LENGTH, causal=self.task == "causal")
        return Feed(examples, batches, ROWS, ROWS)


def numbers_of(output: Any) -> torch.Tensor:
    """Return the logits of transformers' output, or the last hidden state of a model without a head."""
    logits = getattr(output, "logits", None)
    found: torch.Tensor = output[0] if logits is None else logits
    if not torch.isfinite(found).all():
        raise Wrong("not finite")
    return found.detach()


def difference(ours: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the largest difference, as a share of the oracle's largest number."""
    return float((ours - wanted).abs().max() / wanted.abs().max().clamp(min=1.0))


def require_close(what: str, ours: torch.Tensor, wanted: torch.Tensor) -> None:
    found = difference(ours, wanted)
    if not found < TOLERANCE:
        raise Wrong(f"{what} {found:.2g}")


@contextlib.contextmanager
def attached(base: graft.Base, **methods: Any) -> Iterator[None]:
    """Put methods on a base with random numbers in all they train, and take them off after the block."""
    try:
        for seed, (name, method) in enumerate(methods.items()):
            torch.manual_seed(seed)
            randomise(base.attach(name, method), seed, 0.1)
        yield
    finally:
        for name in [n for n in methods if n in base.adapters]:
            if any(merge.adapter == name for merge in base.merged):
                base.unmerge(name)
            base.detach(name)


# The base


@torch.no_grad()
def loaded(s: Subject) -> str:
    """Our model is of the same class and gives transformers' logits."""
    if type(s.base.model) is not type(s.oracle):
        raise Wrong(f"class {type(s.base.model).__name__}")
    require_close("logits", s.bare, s.oracle_logits)
    return "ok"


@torch.no_grad()
def loss(s: Subject) -> str:
    """The loss is torch's cross-entropy of transformers' logits; the cell says if the class has another."""
    if s.task == "encoder":
        return "-"
    batch = s.feed.step(0, 0)[0]
    ours = language_modelling(s.base, batch)[0] / batch.tokens
    logits, labels = numbers_of(s.oracle(**batch.inputs)).float(), batch.labels
    if s.task == "causal":
        logits, labels = logits[:, :-1], labels[:, 1:]
    require_close("loss", ours, F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100))
    inputs = {key: value for key, value in batch.inputs.items() if key != "decoder_input_ids"}
    try:
        own = s.oracle(**inputs, labels=batch.labels).loss
    except Exception as error:
        return f"ok: the class cannot compute its own ({type(error).__name__})"
    if difference(ours, own) < TOLERANCE:
        return "ok"
    return "ok: the class computes its own in another way, without the shift or with more terms"


@torch.no_grad()
def packing(s: Subject) -> str:
    """Documents that share a row are answered as alone, or packing says why it is not done."""
    if reason := s.base.unpackable(families.LENGTH):
        return f"ok: padded, {reason}"
    rows = s.inputs["input_ids"].tolist()
    groups = [[rows[0][:4], rows[1][:5], rows[2][:3]], [rows[1][:7], rows[0][:5]]]
    inputs, _ = packed(
        [[(document, document) for document in group] for group in groups],
        pad=0,
        causal=s.task == "causal",
        first_position=first_position(s.base.model.config),
    )
    together = numbers_of(s.base(inputs.pop("input_ids"), **inputs))
    for row, group in zip(together, groups, strict=True):
        at = 0
        for document in group:
            alone = numbers_of(s.oracle(input_ids=torch.tensor([document])))
            require_close("leaks", row[None, at : at + len(document)], alone)
            at += len(document)
    return "ok"


# Adapters


def adapt(s: Subject, method: Any) -> str:
    """A method acts, is trained whole, routed, saved, loaded, merged and written with; or it is refused."""
    base, bare = s.base, s.bare
    wrong: list[str] = []
    with attached(base, x=method):
        count = base.adapters["x"].count()
        with torch.no_grad():
            adapted = s.answer(base, ["x"] * ROWS)
        if difference(adapted, bare) < EFFECT:
            raise Wrong("no effect")
        wrong += _dead(s)
        for law in (_mixed, _reloaded, _merged, _written):
            wrong += _complaints(law, s, adapted)
    with torch.no_grad():
        if not torch.equal(s.answer(base, [None] * ROWS), bare):
            wrong.append("detach leaves a trace")
    wrong += _unmoved(s, method)
    if wrong:
        raise Wrong(", ".join(sorted(wrong, key=lambda one: not one.startswith("CRASH"))))
    return f"ok: {count:,} trained"


def _complaints(law: Callable[..., None], s: Subject, adapted: torch.Tensor) -> list[str]:
    """Return what is wrong with one law of a method; a refusal of part of the work is none, but is told."""
    try:
        law(s, adapted)
    except Wrong as error:
        return [str(error)]
    except GraftError as error:
        if law is _reloaded:  # its own file
            return [f"reload refused: {error.given}"]
        notice(f"{law.__name__[1:]} refused: {error.given}")
    except Exception as error:
        return [f"CRASH {law.__name__[1:]} {_said(error)}"]
    return []


def _objective(s: Subject) -> Any:
    """Return the loss that adapters are trained with; of a model without a head, one of all it answers."""
    if s.task != "encoder":
        return language_modelling

    def of_all_states(base: graft.Base, batch: Batch) -> Any:
        inputs = dict(batch.inputs)
        output = base(inputs.pop("input_ids"), **inputs)
        answers = [output[0], *filter(torch.is_tensor, [getattr(output, "pooler_output", None)])]
        sums = [(states * torch.linspace(-1, 1, states.shape[-1])).square().sum() for states in answers]
        return torch.stack(sums).sum(), {}

    return of_all_states


def _dead(s: Subject) -> list[str]:
    """Return the trained tensors that one backward leaves without a gradient, as one complaint or none."""
    adapter = s.base.adapters["x"]
    s.base.train()
    try:
        with s.base.using("x"):
            _objective(s)(s.base, s.feed.step(0, 0)[0])[0].backward()
    finally:
        s.base.train(False)
    named = dict(adapter.named_parameters())
    # Few tokens do not reach every expert: one of them speaks for its like.
    like = {key: re.sub(r"experts\.\w+", "experts.*", key.split(".", 2)[2]) for key in named}
    alive = {like[key] for key, p in named.items() if p.grad is not None and p.grad.any()}
    dead = [key for key in named if like[key] not in alive]
    for p in named.values():
        p.grad = None
    return [f"{len(dead)} of {len(named)} tensors without gradient, as {dead[0]}"] if dead else []


@torch.no_grad()
def _mixed(s: Subject, adapted: torch.Tensor) -> None:
    names = ["x", None, "x"]
    together = s.answer(s.base, names)
    for i, name in enumerate(names):
        require_close("mixed", together[i : i + 1], s.answer(s.base, [name], slice(i, i + 1)))


@torch.no_grad()
def _reloaded(s: Subject, adapted: torch.Tensor) -> None:
    with tempfile.TemporaryDirectory() as folder:
        s.base.adapters["x"].save(Path(folder))
        s.again.load_adapter(folder, "x")
    try:
        require_close("reload", s.answer(s.again, ["x"] * ROWS), adapted)
    finally:
        s.again.detach("x")


@torch.no_grad()
def _merged(s: Subject, adapted: torch.Tensor) -> None:
    if not all(method.mergeable for method in s.base.adapters["x"].methods):
        return
    s.base.merge("x")
    require_close("merge", s.answer(s.base, [None] * ROWS), adapted)
    s.base.unmerge("x")


@torch.no_grad()
def _written(s: Subject, adapted: torch.Tensor) -> None:
    """Texts with a cache are those of whole forwards. What a batch of them does is in the column `mixed`."""
    if s.task in ("causal", "seq2seq"):
        require_whole_forwards(s, "x")


def require_texts(s: Subject, names: Sequence[str | None]) -> None:
    prompts = [_text(row[: 5 + 3 * i]) for i, row in enumerate(s.inputs["input_ids"].tolist())]
    together = s.base.generate(prompts, adapters=names, max_new_tokens=NEW)
    alone = [
        s.base.generate([prompt], adapters=[name], max_new_tokens=NEW)[0]
        for prompt, name in zip(prompts, names, strict=True)
    ]
    if together != alone:
        raise Wrong(f"text in a batch: {together} for {alone}")


def require_whole_forwards(s: Subject, name: str | None) -> None:
    ids = s.inputs["input_ids"][:1, :8]
    given = s.base.generate([_text(ids[0].tolist())], adapters=[name], max_new_tokens=NEW)[0]
    start = [[s.oracle.config.decoder_start_token_id]] if s.task == "seq2seq" else ids.tolist()
    written = torch.tensor(start)
    for _ in range(NEW):
        inputs = {"decoder_input_ids": written} if s.task == "seq2seq" else {}
        read = ids if s.task == "seq2seq" else written
        logits = numbers_of(s.base(read, adapters=[name], use_cache=False, **inputs))
        written = torch.cat([written, logits[:, -1:].argmax(-1)], 1)
    whole = _text(written[0, len(start[0]) :].tolist())
    if given.strip() != whole:
        raise Wrong(f"text with a cache: {given} for {whole}")


def _text(ids: Sequence[int]) -> str:
    return " ".join(f"w{i}" for i in ids if i > 1)  # as the tokenizer writes them: special tokens left out


def _unmoved(s: Subject, method: Any) -> list[str]:
    """Train a newborn for one step, as a run does, and return a complaint if that moves nothing."""
    base = s.base
    torch.manual_seed(0)
    adapter = base.attach("x", method)
    before = {key: p.detach().clone() for key, p in adapter.named_parameters()}
    try:
        with tempfile.TemporaryDirectory() as folder:
            settings = Train(max_steps=1, batch_size=ROWS, micro_batch_size=ROWS, lr=1e-2)
            Trainer(base, "x", Task(s.feed, _objective(s)), settings, folder).run()
        moved = any(not torch.equal(p, before[key]) for key, p in adapter.named_parameters())
    finally:
        base.detach("x")
    return [] if moved else ["a step moves nothing"]


def experts(s: Subject) -> str:
    """LoRA on the experts of a mixture, which are no linears, is as lawful as elsewhere."""
    named = {
        f"{name.rpartition('.')[2]}.{projection}"
        for name, module in s.base.model.named_modules()
        for projection in projections(module)
    }
    if not named:
        return "-"
    return adapt(s, graft.LoRA(r=4, lora_alpha=8, target_modules=(), target_parameters=tuple(sorted(named))))


def mixed(s: Subject) -> str:
    """Rows without an adapter, with LoRA and with a prompt, out of order in one batch, are as alone."""
    try:
        return _mix(s, ["p", None, "l"])
    except GraftError as error:
        return f"{_mix(s, ['l', None, 'l'])}; notice: without a prompt: {_line(error.given)}"


@torch.no_grad()
def _mix(s: Subject, names: list[str | None]) -> str:
    methods = {"l": METHODS["lora"], "p": METHODS["prompt"]}
    with attached(s.base, **{name: make() for name, make in methods.items() if name in names}):
        together = s.answer(s.base, names)
        for i, name in enumerate(names):
            alone = s.answer(s.base, [name], slice(i, i + 1))
            require_close(f"row of {name or 'the base'}", together[i : i + 1], alone)
        if s.task in ("causal", "seq2seq"):
            require_texts(s, names)
    return "ok"


def nf4(s: Subject) -> str:
    """A base in four bits gives transformers' logits on the weights that the codes stand for; LoRA acts."""
    base = s.load("nf4")
    layers = {name: module for name, module in outer_modules(base.model) if is_packed(module)}
    layers |= packed_experts(base.model)
    if not layers:
        raise Wrong("nothing is packed")
    plain = copy.deepcopy(s.oracle)
    packed_count = 0
    with torch.no_grad():
        for name, layer in layers.items():
            parent, _, last = name.rpartition(".")
            place = getattr(plain.get_submodule(parent), last)
            weight = place if isinstance(place, torch.nn.Parameter) else place.weight
            weight.copy_(layer.weight.T if isinstance(place, Conv1D) else layer.weight)
            packed_count += weight.numel()
        require_close("logits", s.answer(base, [None] * ROWS), numbers_of(plain(**s.inputs)))
    with attached(base, x=METHODS["lora"]()), torch.no_grad():
        if difference(s.answer(base, ["x"] * ROWS), s.answer(base, [None] * ROWS)) < EFFECT:
            raise Wrong("LoRA has no effect")
    matrices = sum(p.numel() for p in plain.parameters() if p.ndim > 1)
    return f"ok: {len(layers)} packed, {100 * packed_count / matrices:.0f} % of all matrices"


CHECKS = {"load": loaded, "loss": loss, "packed": packing, "experts": experts, "mixed": mixed, "nf4": nf4}
