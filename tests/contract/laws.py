"""The laws that every method keeps on every base it supports.

Each is a function of a maker, which returns a new base at each call, and a method. It returns None when the
law holds, and a reason when the method declares that it does not apply. It raises AssertionError when the
method breaks it. `broken` has a method for each law that breaks it, and no other.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.testing import assert_close

from graft.base.base import Base
from graft.core.method import Method
from graft.layers.token_rows import Scores

Make = Callable[[], Base]
IDS = torch.randint(4, 90, (4, 6), generator=torch.Generator().manual_seed(7))


def answer(base: Base, name: str | None, rows: slice = slice(None), **keywords):
    """Return the logits of these rows of IDS under one adapter: the language head's, or its task head's."""
    with base.using(name):
        output = base(IDS[rows], **for_decoder(base, rows), **keywords)
    return output[0] if isinstance(output, list) else output.logits


def for_decoder(base: Base, rows: slice = slice(None)):
    """Return the keywords that the decoder of an encoder-decoder reads; other bases have none."""
    return {"decoder_input_ids": IDS[rows, :4]} if base.family == "seq2seq" else {}


def moved(base: Base, method: Method, name: str = "x", seed: int = 0):
    """Attach an adapter with random values in every trained tensor, so that no equality is one of zeros."""
    torch.manual_seed(seed)
    adapter = base.attach(name, method)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in adapter.parameters():
            p.add_((torch.randn(p.shape, generator=generator) * 0.1).to(p))
    return adapter


def close(base: Base, ours, wanted, halves: bool = False):
    """Assert equality up to the order of additions in the base's dtype.

    halves: constants of the base were rounded to half precision on the way.
    """
    loose = halves or base.dtype == torch.bfloat16
    assert_close(ours.float(), wanted.float(), atol=0.15 if loose else 2e-5, rtol=0.05 if loose else 1e-4)


def newborn_changes_nothing(make: Make, method: Method):
    if not method.newborn:
        return str(method.newborn)
    base = make()
    with (
        torch.no_grad()
    ):  # where a bias needs a gradient, attention takes another kernel, which rounds differently
        before = answer(base, None)
        adapter = base.attach("x", method)
        after = answer(base, "x")
    if any(isinstance(insert, Scores) for _, insert in adapter.inserts):
        # Some processors round a few rows of a product otherwise than the whole.
        assert_close(after, before, atol=1e-6, rtol=0)
    else:
        assert torch.equal(after, before), "a newborn adapter changes the answer"


def detach_leaves_no_trace(make: Make, method: Method):
    base = make()
    before = answer(base, None)
    keys = list(base.model.state_dict())
    values = copy.deepcopy(base.model.state_dict())
    moved(base, method)
    answer(base, "x")
    base.detach("x")
    assert torch.equal(answer(base, None), before) and list(base.model.state_dict()) == keys
    assert all(torch.equal(v, values[k]) for k, v in base.model.state_dict().items()), (
        "a value of the base changed"
    )
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in base.model.modules()), (
        "a hook was left behind"
    )


def only_inserts_receive_gradients(make: Make, method: Method):
    base = make()
    adapter = moved(base, method)
    base.train()
    answer(base, "x").float().square().mean().backward()
    base.train(False)
    leaked = [name for name, p in base.model.named_parameters() if p.grad is not None or p.requires_grad]
    assert not leaked, f"the base is trained: {leaked[:3]}"
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.parameters()), (
        "nothing is trained"
    )


def saved_equals_loaded(make: Make, method: Method):
    base, again = make(), make()
    adapter = moved(base, method)
    with TemporaryDirectory() as folder:
        adapter.save(Path(folder))
        again.load_adapter(folder, "x")
    assert torch.equal(answer(again, "x"), answer(base, "x")), "the loaded adapter gives another answer"


def checkpoint_state_restores(make: Make, method: Method):
    base, again = make(), make()
    adapter = moved(base, method)
    other = moved(again, method, seed=1)
    other.restore_checkpoint_state({k: v.clone() for k, v in adapter.checkpoint_state().items()})
    assert torch.equal(answer(again, "x"), answer(base, "x")), "the restored adapter gives another answer"


def merged_equals_attached(make: Make, method: Method):
    if not method.mergeable:
        return str(method.mergeable)
    base = make()
    before = answer(base, None)
    moved(base, method)
    attached = answer(base, "x")
    assert (attached - before).abs().max() > 1e-2, "random values do not move the answer"
    merged = base.merge("x")
    close(base, answer(base, None), attached, halves=bool(merged.shifted))
    base.unmerge("x")
    assert torch.equal(answer(base, None), before), "unmerge did not put everything back"


def mixed_equals_separate(make: Make, method: Method):
    if not method.routable:
        return str(method.routable)
    base = make()
    for seed, name in enumerate(("x", "y")):
        moved(base, method, name, seed)
    rows = ["y", "x", "y", "x"] if not method.newborn else ["y", "x", None, "y"]
    output = base(IDS, adapters=rows, **for_decoder(base))
    if isinstance(output, list):
        output = torch.cat(output)[[2, 0, 3, 1]]
    else:
        output = output.logits
    for row, name in enumerate(rows):
        close(base, output[row], answer(base, name, slice(row, row + 1))[0])


def planned_equals_counted(make: Make, method: Method):
    base = make()
    with torch.device("meta"):
        shape = copy.deepcopy(base.model).to("meta")
        shape.tie_weights()
        planned = Base(shape).attach("x", method).count()
    assert planned == base.attach("x", method).count(), "the plan counts other parameters than the adapter"


def checkpointing_changes_nothing(make: Make, method: Method):
    base = make()
    adapters = [moved(base, method, name, seed) for seed, name in enumerate(("x", "y"))]
    parameters = [p for adapter in adapters for p in adapter.parameters()]
    base.train()
    uncached = {} if base.family == "masked" else {"use_cache": False}
    gradients = []
    for on in (False, True):
        base.checkpointing(on)
        torch.manual_seed(0)
        loss = sum(answer(base, name, **uncached).float().square().mean() for name in ("x", "y"))
        loss.backward()
        gradients.append([p.grad for p in parameters])
        for p in parameters:
            p.grad = None
    assert [g is None for g in gradients[0]] == [g is None for g in gradients[1]]
    for plain, recomputed in zip(*gradients, strict=True):
        if plain is not None:
            assert_close(recomputed, plain, atol=1e-6, rtol=1e-4)


def compiled_equals_eager(make: Make, method: Method):
    base = make()
    moved(base, method)
    eager = answer(base, "x")
    base.compile(backend="eager")
    close(base, answer(base, "x"), eager)
    base.compile(False)


def config_survives_json(make: Make, method: Method):
    text = json.dumps(method.config())
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(text).items()}
    assert type(method)(**settings) == method, "the configuration is not the same after JSON"


def seed_decides_everything(make: Make, method: Method):
    tensors = []
    for _ in range(2):
        base = make()
        torch.manual_seed(3)
        tensors.append(base.attach("x", method).checkpoint_state())
    assert all(torch.equal(a, b) for a, b in zip(tensors[0].values(), tensors[1].values(), strict=True)), (
        "two births differ"
    )


def outputs_keep_their_dtype(make: Make, method: Method):
    base = make()
    moved(base, method)
    assert answer(base, "x").dtype == (torch.float32 if method.classifies() else base.dtype)


@torch.no_grad()
def cached_equals_recomputed(make: Make, method: Method):
    if not method.cacheable:
        return str(method.cacheable)
    base = make()
    if base.family == "masked" or method.classifies():
        return "writes no text"
    if base.dtype != torch.float32:
        return "rounding to 16 bits may choose another token; compared in fp32"
    moved(base, method)
    how = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with base.routed(["x"] * len(IDS)):
        steps = [
            base.model.generate(
                IDS, use_cache=cache, output_logits=True, return_dict_in_generate=True, **how
            ).logits
            for cache in (True, False)
        ]
    for kept, again in zip(*steps, strict=True):
        close(base, kept, again)


LAWS = {
    law.__name__: law
    for law in (
        newborn_changes_nothing,
        detach_leaves_no_trace,
        only_inserts_receive_gradients,
        saved_equals_loaded,
        checkpoint_state_restores,
        merged_equals_attached,
        mixed_equals_separate,
        planned_equals_counted,
        checkpointing_changes_nothing,
        compiled_equals_eager,
        config_survives_json,
        seed_decides_everything,
        outputs_keep_their_dtype,
        cached_equals_recomputed,
    )
}
