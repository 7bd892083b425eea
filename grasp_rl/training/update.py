"""One optimizer step's gradient from rollout groups: score, compare with old and reference, clip, backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from grasp_rl.config.schema import AlgorithmConfig, RolloutConfig
from grasp_rl.distributed.engine import Engine
from grasp_rl.grpo.loss import LossConfig, StepSize, policy_loss
from grasp_rl.interfaces import Policy, Surrogate
from grasp_rl.policies.transfer import restored, stored, together
from grasp_rl.policies.types import Sampling
from grasp_rl.runs import signals
from grasp_rl.training.collate import TrainBatch, batch_of, micro_batches, padded
from grasp_rl.types import RolloutGroup
from grasp_rl.utils.out_of_memory import halved, is_out_of_memory

TOKEN_MEANS = ("kl", "clip_fraction", "ratio", "entropy")
"""Statistics that are means over the tokens that are learned from; groups that the loss skips are not among them."""
STATISTICS = ("loss", *TOKEN_MEANS, "scored")
"""Sums over the tokens of a step, float64."""


def make_reference(policy: Policy, beta: float) -> Any:
    """A frozen copy of the policy as it is now; None where beta is 0, or where an adapter need only be disabled."""
    return policy.make_reference() if beta else None


class PolicyUpdater:
    """Makes optimizer steps from rollout groups.

    Where memory runs out, the gradient so far is thrown away and made anew with half as many groups a micro-batch, in
    this step and in those after it; the samples and the gradient are the same.

    Args:
        policy: trained in place.
        engine: its optimizer.
        reference: a frozen policy for the KL term; None where there is no such term, or where the policy without its
            adapter is the reference.
        algorithm: which loss, how often, how many groups together.
        rollout: the distribution that was drawn from.
        mismatch_cap: of the generator; see :class:`grasp_rl.interfaces.Generator`.
        surrogate: the policy term of the loss; None for what ``algorithm`` says.
    """

    def __init__(
        self,
        policy: Policy,
        engine: Engine,
        reference: Any,
        *,
        algorithm: AlgorithmConfig,
        rollout: RolloutConfig,
        mismatch_cap: float | None = None,
        surrogate: Surrogate | None = None,
    ) -> None:
        self.policy, self.engine, self.reference = policy, engine, reference
        self.algorithm, self.mismatch_cap, self.surrogate = algorithm, mismatch_cap, surrogate
        full = Sampling(temperature=rollout.temperature)
        cut = replace(full, top_k=rollout.top_k, top_p=rollout.top_p)
        self.sampling = cut if rollout.scored == "sampled" else full
        self.kl = algorithm.beta > 0
        self.reference_sampling = full
        """Never cut by top_k or top_p: a token that is drawn has a reference probability."""
        self.size = algorithm.micro_batch_groups
        """Groups per forward."""
        self.out_of_memory = 0
        self._last: RolloutGroup | None = None
        self.loss = LossConfig(
            loss=algorithm.loss,
            importance=algorithm.importance,
            clip_low=algorithm.clip_low,
            clip_high=algorithm.clip_high,
            beta=algorithm.beta,
            surrogate=algorithm.surrogate,
        )

    def __call__(self, groups: Iterable[RolloutGroup], size: StepSize) -> dict[str, float]:
        """``algorithm.iterations`` optimizer steps on one set of rollouts; returns the statistics of the last.

        The old log-probabilities are those of the first pass: at mu = 1 the detached new ones, so no extra forward is
        run. The sampled ones measure the mismatch between rollout and update and enter the loss only where the
        generator's numbers need correcting.

        Args:
            groups: of this rank, with their advantages; iterated anew for every pass.
            size: divisors of the loss, over all ranks.

        Raises:
            RuntimeError: memory does not suffice for one group at a time.
        """
        self._last = self._some_group(groups) if self.engine.process_group.world_size > 1 else None
        before = _Before()
        row: dict[str, float] = {}
        for number in range(self.algorithm.iterations):
            alone = (
                number == 0 and self.engine.process_group.world_size == 1
            )  # else the run cannot be left in the middle
            with signals.opened() if alone else signals.held():
                sums = self._accumulate_in_memory(groups, size, before, first=number == 0)
            with signals.held():
                row = self.engine.process_group.all_reduce_sum(sums)
                report = self.engine.step() if row["scored"] else self.engine.skip_step()
            row |= {"grad_norm": report.grad_norm, "lr": report.lr, "skipped": float(not report.applied)}
        mismatch = row.pop("mismatch") / max(1.0, row.pop("compared"))
        row["empty"] = float(not row["scored"])
        scored = max(1.0, row.pop("scored"))
        row |= {key: row[key] / scored for key in TOKEN_MEANS}
        row["mismatch"] = mismatch
        return row | {"update_out_of_memory": float(self.out_of_memory)}

    def _accumulate_in_memory(
        self, groups: Iterable[RolloutGroup], size: StepSize, before: _Before, *, first: bool
    ) -> dict[str, float]:
        while True:
            try:
                return self._accumulate(groups, size, before, first=first)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._shrink(error)

    def _accumulate(
        self, groups: Iterable[RolloutGroup], size: StepSize, before: _Before, *, first: bool
    ) -> dict[str, float]:
        """The gradient of one pass over the groups, and its statistics, fetched after the last backward pass."""
        sums: dict[str, Tensor | float] = dict.fromkeys(STATISTICS, 0.0)
        skip = not self.kl or self.algorithm.skip_zero_advantage
        batches = micro_batches(groups, size=self.size, skip_zero=skip)
        for batch, counts in self.engine.synchronized_batches(batches, lambda: self._dummy_batch(groups)):
            if not counts:
                self._dummy_backward(batch, reference=self.kl and first)
                continue
            reference = before.once(before.reference, batch, partial(self._score_reference, batch)) if self.kl else None
            prompts = [group.prompt for group in batch.groups]
            logp, entropy, valid, _ = self.engine.forward(
                prompts, batch.completions, sampling=self.sampling, **batch.forward
            )
            old = before.once(before.old, batch, logp.detach)
            given = together({"sampled": batch.sampled_logp, "advantages": batch.advantages}, logp.device)
            sampled = given["sampled"]
            before.compare(batch, old, sampled, valid)
            weights = None
            if self.mismatch_cap is not None:
                weights = ((old - sampled) * valid).exp().clamp(max=self.mismatch_cap)
            loss, shares = policy_loss(
                logp,
                old,
                reference,
                given["advantages"],
                valid,
                config=self.loss,
                step=size,
                weights=weights,
                own=self.surrogate,
            )
            self.engine.backward(loss)
            for key, value in shares.items():
                sums[key] += value
            sums["entropy"] += entropy.sum().double()
            sums["scored"] += valid.sum().double()
        return _fetched(sums | {"mismatch": before.mismatch, "compared": before.scored})

    def _score_reference(self, batch: TrainBatch) -> Tensor:
        """[N, G, C] log-probabilities under the reference policy."""
        prompts = [group.prompt for group in batch.groups]
        kwargs: dict[str, Any] = {"sampling": self.reference_sampling, "entropy": False, **batch.forward}
        with torch.no_grad():
            if self.reference is not None:
                return torch.as_tensor(self.reference(prompts, batch.completions, **kwargs)[0])
            with self.policy.adapter_disabled():
                return torch.as_tensor(self.engine.forward(prompts, batch.completions, **kwargs)[0])

    def _some_group(self, groups: Iterable[RolloutGroup]) -> RolloutGroup | None:
        """A group for forwards that do not count: this rank's first, an earlier step's, or another rank's.

        A rank may have none of its own, where a step has fewer questions than there are ranks.
        """
        group, ranks = next(iter(groups), self._last), self.engine.process_group
        if not ranks.any_rank(group is None):
            return group
        owners = ranks.all_gather(group is not None)
        if not any(owners):
            return None
        source = owners.index(True)
        sent = ranks.all_gather(stored(group) if ranks.rank == source else b"")[source]
        return group or restored(sent, self.policy.device)

    def _dummy_batch(self, groups: Iterable[RolloutGroup]) -> TrainBatch:
        """A batch for the forwards that only keep this rank in step with the others."""
        group = next(iter(groups), None) or self._last
        if group is None:
            raise AssertionError("a rank is asked for a batch where no rank has one")
        return batch_of([(0, group)])

    def _dummy_backward(self, batch: TrainBatch, *, reference: bool) -> None:
        """The same collective calls as for a batch that counts, and a gradient of zero."""
        if reference:
            self._score_reference(batch)
        prompts = [group.prompt for group in batch.groups]
        logp, *_ = self.engine.forward(prompts, batch.completions, sampling=self.sampling, **batch.forward)
        self.engine.backward(logp.sum() * 0.0)

    def _shrink(self, error: Exception) -> None:
        if self.engine.process_group.world_size > 1:
            rank = self.engine.process_group.rank
            raise RuntimeError(
                f"out of memory on rank {rank} with {self.size} groups a micro-batch; the other ranks wait inside the "
                "same step, so it cannot be tried again: lower algorithm.micro_batch_groups"
            ) from error
        self.engine.zero_grad()
        self.size = halved(
            error,
            self.size,
            unit="groups that are learned from",
            key="algorithm.micro_batch_groups",
            remedy="set policy.checkpoint_activations=full, or lower policy.image.max_pixels, algorithm.group_size or "
            "rollout.max_new_tokens",
        )
        self.out_of_memory += 1


@dataclass
class _Before:
    """What the first pass over an optimizer step's groups found, by the group's index: later passes compare with it."""

    old: dict[int, Tensor] = field(default_factory=dict)
    reference: dict[int, Tensor] = field(default_factory=dict)
    compared: set[int] = field(default_factory=set)
    mismatch: Tensor | float = 0.0
    """Sum over tokens of |old - sampled log-probability|."""
    scored: Tensor | float = 0.0
    """Tokens in that sum."""

    @staticmethod
    def once(known: dict[int, Tensor], batch: TrainBatch, score: Callable[[], Tensor]) -> Tensor:
        """[N, G, C] of ``batch``, scored where one of its groups is not known yet."""
        if any(index not in known for index in batch.group_indices):
            known.update(zip(batch.group_indices, score(), strict=True))
        width = batch.sampled_logp.shape[-1]
        return torch.stack([padded(list(known[index][:, :width]), width) for index in batch.group_indices])

    def compare(self, batch: TrainBatch, old: Tensor, sampled: Tensor, valid: Tensor) -> None:
        """Add the batch's mismatch, once."""
        if not self.compared.issuperset(batch.group_indices):
            self.compared.update(batch.group_indices)
            self.mismatch += ((old - sampled) * valid).abs().sum().double()
            self.scored += valid.sum().double()


def _fetched(sums: Mapping[str, Tensor | float]) -> dict[str, float]:
    """The numbers of scalars, on whatever device, by one transfer."""
    held = {key: value for key, value in sums.items() if isinstance(value, Tensor)}
    numbers = torch.stack(list(held.values())).tolist() if held else []
    return {key: float(value) for key, value in sums.items() if key not in held} | dict(zip(held, numbers, strict=True))
