"""The last hidden state and what comes after it.

    logits = f(W h + b)        h: what ENTERS the language head (W, b);  f: what the model does to its output

`captured` catches h and lets one position through the head, so that full logits, often the largest tensor of
all, never exist. `LanguageHead` computes logits of any h. f is a scale (Cohere, Granite), a soft cap (Gemma),
a bias (BART), and in most models nothing. It is never written down here: the model's own forward is run from
its head on, with an earlier answer of its backbone and W h + b in the place of its head's. A model whose
logits come about in another way gives them whole.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from graft.base.linears import is_on
from graft.base.probes import answering, few_ids, near, tried
from graft.core.route import installed
from graft.errors import notice
from graft.kernels.loss import Head
from graft.quant.replace import matrix

TOKENS = 8  # of the text on which a head is tried
SOME = 256  # logits on which numbers of the config are tried


@contextlib.contextmanager
def captured(model: Any) -> Iterator[list[torch.Tensor]]:
    """Let forwards inside the block put what enters the head, (B, T, D), into the list that is yielded."""
    caught: list[torch.Tensor] = []

    def one_position(module: nn.Module, args: tuple[Any, ...]) -> tuple[torch.Tensor]:
        caught.append(args[0])
        # A copy, as torch's products of a slice in bf16 are a hundred times slower on the CPU.
        return (args[0][:, :1].clone(memory_format=torch.contiguous_format),)

    handle = model.get_output_embeddings().register_forward_pre_hook(one_position)
    try:
        yield caught
    finally:
        handle.remove()


class LanguageHead:
    """The language head of a model, and what the model does behind it.

    family: of the model.  values: whether its tensors have values to compare; those of a sketch have none.
    """

    def __init__(self, model: Any, family: str, *, values: bool = True) -> None:
        self._model, self._family, self._values = model, family, values
        self._tried_on: tuple[torch.device, torch.dtype] | None = None
        self._inputs: dict[str, Any] = {}
        self._backbone_answer: Any = None
        self._bare = False
        self._scale_and_cap: tuple[float, float] | None = None  # f, if it is a scale or a soft cap
        self.whole = False  # no f is known: the model's own logits stand for the states
        self.looks_ahead = False  # a state depends on later tokens

    @property
    def probed(self) -> bool:
        """Whether the model has been tried, on the device and in the dtype that it has now."""
        return self._tried_on == self._place

    @property
    def _place(self) -> tuple[torch.device, torch.dtype]:
        table = self._model.get_input_embeddings().weight
        return table.device, table.dtype

    def probe(self) -> None:
        """Try the model on a few tokens: learn what it does behind its head.

        Raises ModelError if its forward fails. A Notice says that the logits do not follow from what enters
        the head.
        """
        first, *others = few_ids(self._model, 2 * TOKENS - 1)
        rows = [[first, *others[: TOKENS - 1]], [first, *others[TOKENS - 1 :]]]
        ids = torch.tensor(rows, device=self._place[0])
        self._inputs = {"input_ids": ids, **({} if self._family == "masked" else {"use_cache": False})}
        if self._family == "seq2seq":
            self._inputs["decoder_input_ids"] = ids
        with torch.no_grad(), installed(None):
            try:
                self._learn(*tried(self._model, self._run))
            except (
                Exception
            ):  # also of the model's own forward, if what was taken for a head is something else
                tried(self._model, lambda: self._model(**self._inputs))
                self.whole = True
        self._tried_on = self._place
        if self.whole and self._values:
            notice(
                f"the logits of {type(self._model).__name__} do not follow from what enters its head: "
                "its own forward makes all of them for the loss, which takes more memory"
            )

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Return the model's logits (B, T, V) of states that enter the head, (B, T, D); `probe` came before.

        With `whole` the states are the logits.
        """
        if self.whole:
            return states
        projected: torch.Tensor = self._model.get_output_embeddings()(states)
        return projected if self._bare else self._behind(projected)

    def plain(self) -> Head | None:
        """Return the head if all that happens is f(W h + b) with frozen W and b, and f a scale or a soft cap.

        Asked inside the Route of a forward, as adapters may put other tensors into the head. Whatever could
        change its output (a hook, a wrapper, another class, autocast) makes it None; `probe` came before.
        """
        head = self._model.get_output_embeddings()
        if self.whole or self._scale_and_cap is None or not _untouched(head):
            return None
        return Head(head.weight, head.bias, *self._scale_and_cap)

    def _run(self) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
        """Run the model with made-up answers of its head.

        Return what entered it and what was made up, one for each call, and the logits.
        """
        head = self._model.get_output_embeddings()
        entered: list[torch.Tensor] = []
        made: list[torch.Tensor] = []
        answers: list[torch.Tensor] = []

        def made_up(states: torch.Tensor) -> torch.Tensor:
            entered.append(states)
            numbers = torch.linspace(-40, 40, len(matrix(head)), dtype=states.dtype, device=states.device)
            places = torch.arange(states[..., 0].numel(), dtype=states.dtype, device=states.device)
            made.append((numbers + places[:, None]).view(*states.shape[:-1], -1))
            answers.append(made[-1].clone())  # which the model may change in place
            return answers[-1]

        def remember(module: nn.Module, args: Any, output: Any) -> None:
            self._backbone_answer = output

        with answering(head, made_up):
            handle = self._model.base_model.register_forward_hook(remember)
            try:
                own = self._model(**self._inputs).logits
            finally:
                handle.remove()
        # Without values to compare: what the head answered has come out as it was.
        self._bare = bool(answers) and own is answers[0]
        self._scale_and_cap = (1.0, 0.0) if self._bare else None
        return entered, made, own

    def _learn(self, entered: list[torch.Tensor], made: list[torch.Tensor], own: torch.Tensor) -> None:
        """Find out how these logits follow from the head's one answer, and whether its states look ahead."""
        self.whole = len(made) != 1
        if self._values and not self.whole:
            one, other = entered[0][:, 0].float()  # the first token is the same in both rows
            self.looks_ahead = bool((one - other).norm() > near(entered[0].dtype) * one.norm())
            self._bare = _same(made[0][:1], own[:1])
            # Turned around, as the model's own forward may make its logits of something else besides.
            self.whole = not self._bare and not _same(self._behind(made[0].flip(1)), own.flip(1))
            self._scale_and_cap = (1.0, 0.0) if self._bare else self._known(made[0], own)

    def _known(self, made: torch.Tensor, own: torch.Tensor) -> tuple[float, float] | None:
        """Return the (scale, cap), one of them from the config, that turns a head's answer into logits."""
        if made.shape != own.shape:
            return None
        settings = self._model.config.to_dict() | self._model.config.get_text_config().to_dict()
        numbers = {float(v) for v in settings.values() if type(v) in (int, float) and 0 < v < math.inf}
        guesses = [guess for n in sorted(numbers) for guess in ((n, 0.0), (1 / n, 0.0), (1.0, n))]
        few = slice(None, None, -(-made.shape[-1] // SOME))
        one, other = made[0, :1, few].float(), own[0, :1, few].float()

        def error(guess: tuple[float, float]) -> float:
            return float((_transformed(one, *guess) - other).abs().max())

        best = min(guesses, key=error, default=(1.0, 0.0))
        ours, own = _transformed(made.float(), *best), own.float()
        return best if torch.allclose(ours, own, rtol=4 * torch.finfo(made.dtype).eps, atol=1e-7) else None

    def _behind(self, projected: torch.Tensor) -> torch.Tensor:
        """Return what the model's own forward makes of its head's output."""
        model = self._model
        with contextlib.ExitStack() as stack:
            stack.enter_context(installed(None))  # the adapters' part is done
            stack.enter_context(answering(model.get_output_embeddings(), lambda *_, **__: projected))
            if model.base_model is not model:
                stack.enter_context(answering(model.base_model, lambda *_, **__: self._backbone_answer))
            logits: torch.Tensor = model(**self._inputs).logits
        return logits


def _transformed(logits: torch.Tensor, scale: float, cap: float) -> torch.Tensor:
    return cap * torch.tanh(logits * scale / cap) if cap else logits * scale


def _untouched(head: Any) -> bool:
    """Return whether a module is nn.Linear, nothing listens to it, and its own frozen tensors do the work."""
    if (
        type(head) is not nn.Linear
        or ("forward" in vars(head) and not is_on(head))
        or torch.is_autocast_enabled(head.weight.device.type)
    ):
        return False
    hooks = (head._forward_hooks, head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks)
    tensors = [t for t in (head.weight, head.bias) if t is not None]
    plain = all(type(t) in (nn.Parameter, FakeTensor) and not t.requires_grad for t in tensors)
    return plain and not any(hooks) and len({t.dtype for t in tensors}) == 1


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors are equal but for the last bits of fp32."""
    if one.shape != other.shape or torch.equal(one, other):
        return one.shape == other.shape
    one, other = one.float(), other.float()
    return torch.allclose(one, other, rtol=0, atol=1e-6 * float(other.abs().max()), equal_nan=True)
