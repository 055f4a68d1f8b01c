"""What TRL's trainers make of given log-probabilities and rewards: their own loss code, without a model."""

from collections import defaultdict
from types import SimpleNamespace

import torch


def _same(tensor):
    return tensor


ACCELERATOR = SimpleNamespace(
    device=torch.device("cpu"), gather=_same, gather_for_metrics=_same, num_processes=1, process_index=0,
    reduce=lambda tensor, reduction: tensor,
)  # fmt: skip


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


def _answers(new, old, mask, **more):
    """Return (what gives these log-probabilities of tokens, the inputs of a loss): (A, T) each."""
    ids = torch.zeros(mask.shape, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :1], "prompt_mask": torch.ones_like(ids[:, :1]), "completion_ids": ids,
        "completion_mask": mask.long(), "num_items_in_batch": mask.sum(), **more,
    }  # fmt: skip
    return (lambda *_, **__: (new, torch.zeros_like(new), None)), inputs


def grpo(kind, new, old, reference, advantages, mask, *, low, high, beta, longest):
    """Return (loss, metrics) of GRPOTrainer.  advantages: (A,)."""
    from trl import GRPOTrainer

    forward, inputs = _answers(
        new, old, mask, advantages=advantages, old_per_token_logps=old, ref_per_token_logps=reference
    )
    trainer = _trainer(
        _get_per_token_logps_and_entropies=forward, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        importance_sampling_level="token", beta=beta, loss_type=kind, epsilon_low=low, epsilon_high=high,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        current_gradient_accumulation_steps=1, max_completion_length=longest, use_vllm=False,
        _entropy_bonus_enabled=False,
    )  # fmt: skip
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    return loss, {name: values[-1] for name, values in trainer._metrics["train"].items()}


def rloo(new, old, advantages, mask, *, low, high):
    """Return (loss, metrics) of RLOOTrainer.  advantages: (A,)."""
    from trl import RLOOTrainer

    forward, inputs = _answers(new, old, mask, advantages=advantages, old_logps=(old * mask).sum(1))
    trainer = _trainer(_get_per_token_logps_and_entropies=forward, epsilon_low=low, epsilon_high=high)
    loss = RLOOTrainer._compute_loss(trainer, None, inputs)
    return loss, {name: values[-1] for name, values in trainer._metrics["train"].items()}


def advantages(method, rewards, size, *, scale="group", old=None, reference=None, mask=None, beta=0.0):
    """Return (advantages (A,), metrics) that GRPOTrainer ("grpo") or RLOOTrainer ("rloo") makes of rewards.

    size: answers in each group.  old, reference, mask: (A, T) of the answers' tokens; only RLOO reads them.
    """
    from trl import GRPOTrainer, RLOOTrainer

    mask = torch.ones(len(rewards), 1) if mask is None else mask
    answers = [[1] * int(length) for length in mask.sum(1)]
    prompts, texts = [[1]] * len(rewards), [""] * len(rewards)
    generated = {
        "grpo": (prompts, answers, None, texts, None, {}, None, None),
        "rloo": (prompts, answers, texts),
    }
    trainer = _trainer(
        _generate=lambda _: generated[method], _tokenizer=SimpleNamespace(pad_token_id=0),
        pad_to_multiple_of=None, mask_truncated_completions=False, beta=beta, environment_factories=None,
        environments=None, tools=None, use_vllm=False, num_iterations=1, ref_model="reference",
        _get_per_token_logps_and_entropies=lambda model, *_, **__: (
            reference if model == "reference" else old, None, None,
        ),
        _calculate_rewards=lambda *_: rewards[:, None], reward_weights=torch.ones(1), reward_funcs=[None],
        reward_func_names=["reward"], num_generations=size, scale_rewards=scale, reward_clip_range=None,
        multi_objective_aggregation="sum_then_normalize", normalize_advantages=False, log_multimodal=False,
        args=SimpleNamespace(
            per_device_train_batch_size=len(rewards), gradient_checkpointing_kwargs=None,
            steps_per_generation=1, gradient_accumulation_steps=1,
        ),
        _logs=defaultdict(list) | {"rewards": defaultdict(list)}, _pending_extra_logs={}, _pending_metrics={},
    )  # fmt: skip
    trainer.model.is_gradient_checkpointing = False
    trainer_class = {"grpo": GRPOTrainer, "rloo": RLOOTrainer}[method]
    made = trainer_class._generate_and_score_completions(trainer, [{"prompt": ""} for _ in rewards])
    return made["advantages"], {name: values[-1] for name, values in trainer._metrics["train"].items()}
