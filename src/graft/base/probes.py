"""Probes: what a model does with its head and its rows, tried on a few tokens instead of looked up by name.

    forward    the model computes logits of x at all
    causal     h_1(x) = h_1(x')                            where x and x' have the same first token
    head       f(W h + b) = the model's own logits of x        h: what enters the head; f: see `last_hidden`
    packing    ∂ h_t([A; B]) / ∂ E(A) = 0    and    h_t([A; B]) = h_t([B])      for every t in B

A and B are documents in one row, E(A) the embeddings of the first, h_t the state of a token of the second.
The gradient is exactly 0, in any number format, where no attention, convolution or state leads from A to B;
the second equation also notices positions that go on counting. Blocks that differ in their numbers only do
the same, so one of each kind runs and the others pass their input on: a probe costs a few blocks.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from graft.core.positions import first_position
from graft.data.pack import packed
from graft.errors import ModelError

LENGTHS = 12, 8  # tokens of the two documents
ZERO = 1e-6  # of the gradient within the second document: less is rounding
Result = TypeVar("Result")


@contextlib.contextmanager
def answering(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module answer with another forward inside the block; its hooks run as before."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


@contextlib.contextmanager
def thinned(model: nn.Module) -> Iterator[None]:
    """Run only the first block of each kind inside the block; the others return their input."""
    answers: dict[Any, Any] = {}
    with contextlib.ExitStack() as stack:
        for block in outer_blocks(model):
            kind = _kind(block)
            if kind in answers:
                stack.enter_context(answering(block, _passing_on(block, kind, answers)))
            else:
                answers[kind] = None
                hook = block.register_forward_hook(_remember(kind, answers))
                stack.callback(hook.remove)
        yield


def tried(model: nn.Module, forward: Callable[[], Result]) -> Result:
    """Return what a forward gives with few blocks, or, if that fails, with all of them.

    Raises ModelError if the model's own forward fails.
    """
    with contextlib.suppress(Exception), thinned(model):  # blocks may lean on each other
        return forward()
    try:
        return forward()
    except Exception as error:  # somebody else's code
        line = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ModelError(
            f"the forward of {type(model).__name__} fails on a few tokens ({type(error).__name__}: {line})",
            "a model that the installed transformers can run",
            "load it with dtype='fp32', or install the version of transformers that config.json names",
        ) from error


def few_ids(model: Any, count: int, start: int = 0) -> list[int]:
    """Return `count` ids of ordinary tokens: none that the config names, such as padding or images."""
    settings = {**model.config.to_dict(), **model.config.get_text_config().to_dict()}
    named = {value for key, value in settings.items() if key.endswith("_id") and isinstance(value, int)}
    size = model.get_input_embeddings().weight.shape[0]
    usable = [i for i in range(min(size, start + count + len(named))) if i not in named] or [0]
    return [usable[(start + i) % len(usable)] for i in range(count)]


def leak(
    model: Any, states: Callable[[torch.Tensor, dict[str, Any]], torch.Tensor], *, causal: bool
) -> str | None:
    """Return why two documents cannot share a row of this model, or None if the probe finds nothing.

    states: computes the last hidden states (B, T, D), or logits, from ids and the model's other keywords.
    """
    end = sum(LENGTHS)
    one, two = few_ids(model, LENGTHS[0]), few_ids(model, LENGTHS[1], start=LENGTHS[0])
    first = first_position(model.config.get_text_config())
    rows = [[(one, one), (two, two)], [(two, two)]]
    inputs, _ = packed(rows, pad=0, causal=causal, first_position=first)
    table = model.get_input_embeddings()
    inputs = {name: tensor.to(table.weight.device) for name, tensor in inputs.items()}
    ids = inputs.pop("input_ids")
    try:
        with torch.enable_grad(), _traced(table) as embedded:
            both = tried(model, lambda: states(ids, inputs))
            behind, alone = both[0, LENGTHS[0] : end], both[1, : LENGTHS[1]]
            weights = torch.linspace(-1, 1, behind.numel(), device=behind.device).view(behind.shape)
            found = torch.autograd.grad((behind.float() * weights).sum(), embedded, allow_unused=True)
            reach = torch.stack([of[0].float().abs().amax(-1) for of in found if of is not None]).sum(0)
    except (ModelError, RuntimeError) as error:
        given = error.given if isinstance(error, ModelError) else str(error).splitlines()[0]
        return f"it takes no packed row: {given}"
    if not reach[: LENGTHS[0]].max() <= ZERO * reach[LENGTHS[0] : end].max():
        return "one document reaches the next, through a state or a convolution that runs along the row"
    apart = (behind - alone).detach().float().norm(dim=-1) / alone.detach().float().norm(dim=-1)
    # The first token is next to the other document. Of the rest the middle: in a mixture of experts rounding
    # sends a token now and then to another expert.
    if not max(apart[0], apart.median()) <= near(alone.dtype):
        return "a document is not as alone: its positions or neighbours count along the whole row"
    return None


def near(dtype: torch.dtype) -> float:
    """Return how far states that mean the same may lie apart, relative to their length."""
    return 0.05 if dtype.itemsize < 4 else 1e-3


@contextlib.contextmanager
def _traced(table: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Let gradients reach the embeddings inside the block; they are put into the list that is yielded."""
    embedded: list[torch.Tensor] = []

    def trace(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1].clone()  # which the model may change in place

    handle = table.register_forward_hook(trace)
    try:
        yield embedded
    finally:
        handle.remove()


def outer_blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks that lie in no other block."""
    inside = ""
    for name, module in model.named_modules():
        if isinstance(module, GradientCheckpointingLayer) and not (inside and name.startswith(inside)):
            inside = f"{name}."
            yield module


def _kind(block: nn.Module) -> Any:
    """Return what is equal for blocks that differ in their numbers only.

    Whole numbers count by their type alone: one of them is the block's index.
    """
    return tuple(
        (
            name,
            type(module),
            tuple((key, tuple(p.shape)) for key, p in module._parameters.items() if p is not None),
            tuple(
                (key, value if isinstance(value, bool | str) else type(value))
                for key, value in sorted(vars(module).items())
                if not key.startswith("_")
            ),
        )
        for name, module in block.named_modules()
    )


def _remember(kind: Any, answers: dict[Any, Any]) -> Callable[..., None]:
    def hook(block: nn.Module, args: Any, output: Any) -> None:
        answers[kind] = output

    return hook


@functools.cache
def _first_parameter(forward: Callable[..., Any]) -> str:
    """Return the name of a method's first parameter after self."""
    return list(inspect.signature(forward).parameters)[1]


def _passing_on(block: nn.Module, kind: Any, answers: dict[Any, Any]) -> Callable[..., Any]:
    """Return a forward that returns its input, in the form in which blocks of this kind answer."""
    first = _first_parameter(type(block).forward)

    def forward(*args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else kwargs[first]
        answer = answers[kind]
        return (x, *answer[1:]) if isinstance(answer, tuple) else x

    return forward
