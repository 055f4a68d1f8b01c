import math

import pytest
import torch
from train_toys import VOCABULARY, Adapter, Base, Feed, collate, objective

from graft.errors import TrainingError
from graft.training import rng
from graft.training.neftune import Neftune
from graft.training.step import measure, not_finite_error, preflight

SILENT = lambda mask: None


def rows():
    return [
        row
        for batch in Feed(rows=8, micro=1).step(0, 0)
        for row in [(batch.sources[0], batch.inputs["input_ids"][0].tolist())]
    ]


def gradient(splits, adapter, **keywords):
    base = Base(adapter, dropout=0.0)
    parts = torch.split(torch.arange(8), splits)
    batches = [collate([rows()[i] for i in part]) for part in parts]
    with base.using("toy"):
        measured = measure(base, adapter, objective, batches, SILENT)
    return measured, [p.grad.clone() for p in adapter.parameters()]


@pytest.mark.parametrize("splits", [[1] * 8, [2, 6], [3, 3, 2], [7, 1]])
def test_any_split_into_micro_batches_gives_the_same_step(splits):
    adapter = Adapter(dtype=torch.float64)
    whole, expected = gradient([8], adapter)
    parted, found = gradient(splits, adapter)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert math.isclose(whole.loss, parted.loss, rel_tol=1e-12) and math.isclose(
        whole.norm, parted.norm, rel_tol=1e-12
    )
    assert whole.tokens == parted.tokens and whole.metrics == parted.metrics


def test_the_loss_is_the_mean_over_tokens_by_hand():
    adapter = Adapter(dtype=torch.float64)
    base = Base(adapter, dropout=0.0)
    total, count = 0.0, 0
    with base.using("toy"), torch.no_grad():
        for _, ids in rows():
            for t, logits in enumerate(base.logits(torch.tensor([ids]))[0, :-1]):
                total -= float(logits.log_softmax(0)[ids[t + 1]])
                count += 1
    measured, _ = gradient([3, 5], adapter)
    assert measured.tokens == count and math.isclose(measured.loss, total / count, rel_tol=1e-12)


def test_passes_are_averaged_and_their_losses_reach_extra_loss_once_per_token():
    plain, _ = gradient([4, 4], Adapter(dtype=torch.float64))

    class Twice(Adapter):
        passes = 2

        def extra_loss(self, losses):
            assert len(losses) == 2
            return 0.5 * losses[0] + self.b.sum()

    adapter = Twice(dtype=torch.float64)
    measured, found = gradient([1, 7], adapter)
    _, expected = gradient([8], Adapter(dtype=torch.float64))
    assert math.isclose(measured.loss, plain.loss, rel_tol=1e-12)
    torch.testing.assert_close(found[0], 1.5 * expected[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[1], 1.5 * expected[1] + 1, rtol=0, atol=1e-12)


def test_a_step_without_supervised_token_names_its_rows():
    batch = collate(rows()[:2])
    batch.labels.fill_(-100)
    batch.tokens = 0
    base = Base(Adapter())
    with pytest.raises(TrainingError, match=r"toy.jsonl:0, toy.jsonl:1"), base.using("toy"):
        measure(base, base.adapters["toy"], objective, [batch], SILENT)


def test_a_micro_batch_without_supervised_token_changes_nothing_beside_others():
    empty = collate(rows()[:1])
    empty.labels.fill_(-100)
    empty.tokens = 0
    adapter = Adapter(dtype=torch.float64)
    base = Base(adapter, dropout=0.0)
    with base.using("toy"):
        measured = measure(base, adapter, objective, [empty, collate(rows())], SILENT)
    assert measured.loss == gradient([8], adapter)[0].loss


def test_a_loss_that_is_nan_names_the_rows_of_its_micro_batch_only():
    adapter = Adapter()
    base = Base(adapter)

    def broken(base, batch):
        loss, metrics = objective(base, batch)
        return (loss * float("nan") if "toy.jsonl:3" in batch.sources else loss), metrics

    with base.using("toy"):
        measured = measure(base, adapter, broken, [collate(rows()[:2]), collate(rows()[2:4])], SILENT)
    assert "loss is nan" in measured.trouble and measured.sources == ["toy.jsonl:2", "toy.jsonl:3"]
    message = str(not_finite_error(7, measured, 1e-3, base))
    assert all(
        part in message for part in ("step 7", "lr 0.001", "gradient norm nan", "float32", "toy.jsonl:2")
    )


def test_a_gradient_that_is_not_finite_is_named():
    adapter = Adapter()
    base = Base(adapter)
    adapter.b.register_hook(lambda gradient: gradient * float("inf"))
    with base.using("toy"):
        measured = measure(base, adapter, objective, [collate(rows())], SILENT)
    assert measured.trouble == "the gradient of b is not finite"


def test_a_broken_base_weight_is_named_in_the_error():
    adapter = Adapter()
    base = Base(adapter)
    base.model.embeddings.weight.data[3, 2] = float("nan")
    with base.using("toy"):
        measured = measure(base, adapter, objective, [collate(rows())], SILENT)
    assert "embeddings.weight" in str(not_finite_error(1, measured, 0.1, base))


def test_a_preflight_leaves_no_trace_in_generators_and_gradients():
    adapter = Adapter()
    base = Base(adapter)
    base.train(True)
    before, python = torch.get_rng_state(), rng.values()
    with base.using("toy"):
        preflight(base, adapter, objective, collate(rows()))
    assert torch.equal(before, torch.get_rng_state()) and python == rng.values()
    assert all(p.grad is None for p in adapter.parameters())


def test_neftune_noise_has_the_papers_size_for_each_rows_real_length():
    table = torch.nn.Embedding(VOCABULARY, 64)
    noise = Neftune(table, alpha=5.0)
    ids = torch.ones(2, 400, dtype=torch.long)
    mask = torch.ones(2, 400)
    mask[1, 100:] = 0
    clean = torch.nn.functional.embedding(ids, table.weight)
    noise.arm(mask)
    added = table(ids) - clean
    for row, length in ((0, 400), (1, 100)):
        bound = 5.0 / math.sqrt(length * 64)
        assert bound * 0.99 < added[row].abs().max() <= bound  # uniform: 25,600 draws come near the edge
        assert abs(float(added[row].detach().std()) - bound / math.sqrt(3)) < 0.02 * bound
    assert torch.equal(table(ids), clean)  # one forward for each arming: evaluation and decoders stay clean
    noise.arm(mask)
    noise.remove()
    assert torch.equal(table(ids), clean) and not table._forward_hooks


def test_neftune_counts_the_real_tokens_of_packed_rows():
    table = torch.nn.Embedding(VOCABULARY, 16)
    noise = Neftune(table, alpha=1.0)
    ids = torch.ones(1, 300, dtype=torch.long)
    live = torch.zeros(1, 1, 300, 300, dtype=torch.bool)
    live[..., :50, :50] = torch.ones(50, 50).tril().bool()
    noise.arm(live)
    bound = 1 / math.sqrt(50 * 16)
    assert 0.95 * bound < (table(ids) - table.weight[1]).abs().max() <= bound * 1.0001
