"""AdamW, with its moments in fp32 or in 8 bits, on the device or in pages.

    m ← β₁ m + (1-β₁) g        v ← β₂ v + (1-β₂) g²
    θ ← θ - η [ m̂ / (√v̂ + ε) + λ θ ]        m̂ = m / (1-β₁ᵗ),  v̂ = v / (1-β₂ᵗ)

Loshchilov & Hutter 2019, arXiv 1711.05101. 8-bit states: Dettmers et al. 2022, arXiv 2110.02861 (blocks of
256, the dynamic map, signed for m and unsigned for v; tensors under 4096 elements keep fp32 states).
A bf16 or fp16 parameter is updated through an fp32 master: without it, steps smaller than 2⁻⁸ of a weight
would be lost. For bf16 the states keep only the half that the parameter has lost (`master`), for fp16 a copy.
On a CPU the C kernels update all tensors in one call (`graft.kernels.optimizer`), on a GPU Triton's update
each tensor in one pass. Elsewhere, and as their definition, torch does it: large tensors in pieces, so that a
step needs little memory besides the states.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from graft.errors import one_of
from graft.kernels import gpu, native
from graft.kernels.optimizer import AdamWTensors
from graft.quant.dynamic import SIGNED, UNSIGNED, dequantise_state, quantise_state
from graft.training.master import joined, split_
from graft.training.paging import Layout, Pages, State, States

BLOCK = 256  # values that share one scale
PIECE = 1 << 20  # elements that are updated at a time; a multiple of BLOCK
OPTIMIZERS = ("adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit")


@dataclass(frozen=True)
class _Plan:
    """How the parameters of one turn are updated: `fast` ones in one call, `slow` ones by torch.

    places: where the parameters lie; none if the kernels are switched off.
    """

    places: list[int]
    fast: list[int]
    slow: list[int]
    fused: AdamWTensors | None


class AdamW:
    """Updates all parameters that have a gradient.

    named: {name: parameter}; states are saved under these names.  groups: {"params", "lr", "weight_decay"}.
    """

    def __init__(
        self,
        named: Mapping[str, torch.nn.Parameter],
        groups: Sequence[Mapping[str, Any]],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        pages: Pages | None = None,
    ) -> None:
        self.betas, self.eps = betas, eps
        self._parameters = dict(named)
        self._groups = list(groups)
        by_id = {id(p): index for index, group in enumerate(groups) for p in group["params"]}
        self._group_of = {name: by_id[id(p)] for name, p in self._parameters.items()}
        self._steps = dict.fromkeys(self._parameters, 0)
        device = next(iter(self._parameters.values())).device
        self.states = States(
            {name: self._layout(p) for name, p in self._parameters.items()}, device, pages or Pages()
        )
        for name, state in self.states.visit():  # the low half of a fresh bf16 parameter is zero
            if "master" in state:
                state["master"].copy_(self._parameters[name].detach())
        self._plans: dict[str, _Plan] = {}  # by the first parameter of a turn

    @torch.no_grad()
    def step(self, factor: float, clip: float = 1.0) -> None:
        """Update every parameter once, with its group's learning rate times `factor`.

        clip: by which all gradients are multiplied first, in place.
        """
        rates = [(group["lr"] * factor, group.get("weight_decay", 0.0)) for group in self._groups]
        for turn in self.states.turns():
            plan = self._plan(turn)
            if plan.fused is not None:
                self._step_at_once(plan.fused, [turn[i][0] for i in plan.fast], rates, clip)
            for i in plan.slow:
                self._step_by_torch(*turn[i], rates, clip)

    def _plan(self, turn: list[tuple[str, State]]) -> "_Plan":
        """Return how the parameters of a turn are updated; it is made anew when one of them has moved."""
        parameters = [self._parameters[name] for name, _ in turn]
        places = [] if native.level() == "reference" else [p.data_ptr() for p in parameters]
        plan = self._plans.get(turn[0][0])
        if plan is not None and plan.places == places:
            return plan
        fast = [i for i, p in enumerate(parameters) if native.usable(p) and p.is_contiguous()]
        fused = AdamWTensors(
            [parameters[i] for i in fast],
            [turn[i][1] for i in fast],
            [self._group_of[turn[i][0]] for i in fast],
            (SIGNED, UNSIGNED),
        )
        slow = [i for i in range(len(turn)) if i not in set(fast)]
        plan = _Plan(places, fast, slow, fused if fast else None)
        self._plans[turn[0][0]] = plan
        return plan

    def _step_at_once(
        self, fused: AdamWTensors, names: list[str], rates: list[tuple[float, float]], clip: float
    ) -> None:
        gradients: list[int | None] = []
        for name in names:
            p = self._parameters[name]
            if p.grad is None:
                gradients.append(None)
                continue
            self._steps[name] += 1
            if not p.grad.is_contiguous():
                p.grad = p.grad.contiguous()
            gradients.append(p.grad.data_ptr())
        fused.step(gradients, [self._steps[name] for name in names], rates, self.betas, self.eps, clip)

    def _step_by_torch(self, name: str, state: State, rates: list[tuple[float, float]], clip: float) -> None:
        p = self._parameters[name]
        if p.grad is None:
            return
        self._steps[name] += 1
        rate = rates[self._group_of[name]]
        if gpu.fits(p, p.grad) and gpu.usable(*state.values()) and p.is_contiguous():
            p.grad = p.grad.contiguous()
            t, maps = self._steps[name], (SIGNED, UNSIGNED)
            gpu.adamw(p, p.grad, state, t, rate, self.betas, self.eps, clip, maps)
            return
        if clip != 1:
            p.grad.mul_(clip)
        for piece in _pieces(p, state):
            self._update(*piece, self._steps[name], *rate)

    def _update(
        self, p: torch.Tensor, grad: torch.Tensor, state: State, t: int, lr: float, weight_decay: float
    ) -> None:
        beta1, beta2 = self.betas
        weight = joined(p, state["low"]) if "low" in state else state.get("master", p)
        g = grad.to(weight.dtype)
        m, v = self._moments(state)
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        weight.mul_(1 - lr * weight_decay)
        denominator = (v.sqrt() / (1 - beta2**t) ** 0.5).add_(self.eps)
        weight.addcdiv_(m, denominator, value=-lr / (1 - beta1**t))
        self._keep(state, m, v)
        if "low" in state:
            split_(weight, p, state["low"])
        elif weight is not p:
            p.copy_(weight)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return every state and step counter, for saving."""
        counters = {f"{name}.t": torch.tensor(t) for name, t in self._steps.items()}
        return self.states.tensors() | counters

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Load the states that `tensors` returned."""
        self.states.load(tensors)
        self._steps = {name: int(tensors[f"{name}.t"]) for name in self._steps}

    def _layout(self, p: torch.nn.Parameter) -> Layout:
        dtype = torch.promote_types(p.dtype, torch.float32)
        master: Layout = {}
        if p.dtype == torch.bfloat16:
            master = {"low": (p.shape, torch.int16)}
        elif dtype != p.dtype:
            master = {"master": (p.shape, dtype)}
        return {**master, **self._moment_layout(p, dtype)}

    def _moment_layout(
        self, p: torch.nn.Parameter, dtype: torch.dtype
    ) -> dict[str, tuple[torch.Size, torch.dtype]]:
        return {"m": (p.shape, dtype), "v": (p.shape, dtype)}

    def _moments(self, state: State) -> tuple[torch.Tensor, torch.Tensor]:
        return state["m"], state["v"]

    def _keep(self, state: State, m: torch.Tensor, v: torch.Tensor) -> None:
        """Write changed moments back; does nothing if `_moments` returned the states themselves."""


class AdamW8bit(AdamW):
    """AdamW whose moments are kept as 8-bit codes with one fp32 scale per block of 256."""

    smallest = 4096  # elements; in smaller tensors 8-bit states save too little

    def _moment_layout(
        self, p: torch.nn.Parameter, dtype: torch.dtype
    ) -> dict[str, tuple[torch.Size, torch.dtype]]:
        if p.numel() < self.smallest:
            return super()._moment_layout(p, dtype)
        codes, scales = (p.shape, torch.uint8), (torch.Size([-(-p.numel() // BLOCK)]), torch.float32)
        return {"m": codes, "m_absmax": scales, "v": codes, "v_absmax": scales}

    def _moments(self, state: State) -> tuple[torch.Tensor, torch.Tensor]:
        if "m_absmax" not in state:
            return super()._moments(state)
        m = dequantise_state(state["m"], state["m_absmax"], signed=True)
        return m, dequantise_state(state["v"], state["v_absmax"], signed=False)

    def _keep(self, state: State, m: torch.Tensor, v: torch.Tensor) -> None:
        if "m_absmax" in state:
            for key, moment in (("m", m), ("v", v)):
                codes, absmax = quantise_state(moment, signed=key == "m", block=BLOCK)
                state[key].copy_(codes)
                state[f"{key}_absmax"].copy_(absmax)


def _pieces(p: torch.nn.Parameter, state: State) -> Iterator[tuple[torch.Tensor, torch.Tensor, State]]:
    """Yield views of a parameter, its gradient and its states, PIECE elements at a time."""
    assert p.grad is not None
    if p.numel() <= PIECE or not p.is_contiguous():
        yield p, p.grad, state
        return
    flat, grad = p.view(-1), p.grad.reshape(-1)
    for start in range(0, p.numel(), PIECE):
        stop = min(start + PIECE, p.numel())
        part = {
            key: tensor[start // BLOCK : -(-stop // BLOCK)]
            if key.endswith("_absmax")
            else tensor.view(-1)[start:stop]
            for key, tensor in state.items()
        }
        yield flat[start:stop], grad[start:stop], part


def build(
    name: str,
    named: Mapping[str, torch.nn.Parameter],
    groups: Sequence[Mapping[str, Any]],
    pages: Pages,
    **constants: Any,
) -> AdamW:
    """Return the optimizer of that name.  pages: for the paged ones.  constants: betas, eps."""
    one_of("train.optimizer", name, OPTIMIZERS)
    cls = AdamW8bit if name.endswith("8bit") else AdamW
    return cls(named, groups, pages=pages if name.startswith("paged") else None, **constants)
