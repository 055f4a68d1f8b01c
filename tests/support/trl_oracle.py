"""What TRL's trainers make of given log-probabilities and rewards: their own loss code, without a model."""

from collections import defaultdict
from types import SimpleNamespace

import torch


def _same(tensor):
    return tensor


ACCELERATOR = SimpleNamespace(device=torch.device("cpu"), gather=_same, gather_for_metrics=_same)


def _trainer(**settings):
    return SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=ACCELERATOR,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        **settings,
    )


def _forward(logps, lengths):
    """Return (a model, its inputs) that give these summed log-probabilities, at the first answer token."""
    width = int(lengths.max())
    mask = torch.zeros(len(logps), width + 1, dtype=torch.long)
    for row, length in enumerate(lengths.tolist()):
        mask[row, 1 : length + 1] = 1
    per_token = torch.zeros(len(logps), width, dtype=logps.dtype)
    per_token = torch.cat([logps[:, None], per_token[:, 1:]], dim=1)
    zeros = torch.zeros(len(logps), width)
    outputs = SimpleNamespace(log_probs=per_token, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    return (lambda **_: outputs), {"input_ids": mask, "attention_mask": mask, "completion_mask": mask}


def dpo(kind, chosen, rejected, chosen_reference, rejected_reference, lengths, *, beta, label_smoothing=0.0):
    """Return (mean loss, metrics) of DPOTrainer.  lengths: of all chosen answers, then of all rejected."""
    from trl import DPOTrainer

    trainer = _trainer(
        ld_alpha=None, f_divergence_type="reverse_kl", loss_types=[kind], loss_weights=[1.0], beta=beta,
        label_smoothing=label_smoothing, use_weighting=False,
    )  # fmt: skip
    model, inputs = _forward(torch.cat([chosen, rejected]), lengths)
    inputs |= {"ref_chosen_logps": chosen_reference, "ref_rejected_logps": rejected_reference}
    loss = DPOTrainer._compute_loss(trainer, model, inputs, False)
    return loss, {name: values[-1] for name, values in trainer._metrics["train"].items()}


def kto(logps, reference, mismatched, mismatched_reference, good, *, beta, desirable, undesirable):
    """Return (mean loss, metrics) of KTOTrainer."""
    from trl import KTOTrainer

    trainer = _trainer(
        loss_type="kto", calculate_KL=True, beta=beta, desirable_weight=desirable,
        undesirable_weight=undesirable, _compute_kl_logps=lambda model, batch: mismatched,
    )  # fmt: skip
    model, inputs = _forward(logps, torch.ones(len(logps), dtype=torch.long))
    inputs |= {"label": good, "ref_logps": reference, "ref_KL_logps": mismatched_reference}
    loss = KTOTrainer._compute_loss(trainer, model, inputs, False)
    return loss, {name: values[-1] for name, values in trainer._metrics["train"].items()}


def orpo(chosen_mean, rejected_mean, *, beta):
    """Return what ORPOTrainer subtracts from the supervised loss, (P,), and its rewards."""
    from trl.experimental.orpo import ORPOTrainer

    trainer = SimpleNamespace(beta=beta, accelerator=ACCELERATOR)
    return ORPOTrainer.odds_ratio_loss(trainer, chosen_mean, rejected_mean)[:3]


def simpo(chosen_mean, rejected_mean, *, beta, gamma):
    """Return the losses (P,) of CPOTrainer with loss_type="simpo", and its rewards."""
    from trl.experimental.cpo import CPOTrainer

    trainer = SimpleNamespace(
        alpha=0.0, loss_type="simpo", simpo_gamma=gamma, beta=beta, label_smoothing=0.0,
        accelerator=ACCELERATOR,
    )  # fmt: skip
    return CPOTrainer.cpo_loss(trainer, chosen_mean, rejected_mean)


def reward(chosen, rejected, margin=None, *, centring=None):
    """Return (mean loss, metrics) of RewardTrainer."""
    from trl import RewardTrainer

    trainer = _trainer(args=SimpleNamespace(center_rewards_coefficient=centring))
    outputs = SimpleNamespace(logits=torch.cat([chosen, rejected])[:, None])
    inputs = {"attention_mask": torch.ones(2 * len(chosen), 3)}
    inputs |= {} if margin is None else {"margin": margin}
    loss = RewardTrainer.compute_loss(trainer, lambda **_: outputs, inputs)
    return loss, {name: values[-1] for name, values in trainer._metrics["train"].items()}
