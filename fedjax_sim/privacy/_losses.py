"""Privacy loss distributions that are built once: a budget asks for the price of the same release many times over.

``dp_accounting`` is imported where it is used.
"""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def pld_accountant() -> type:
    """dp-accounting's PLD accountant, which keeps the distribution of one sampled Gaussian release between prices.

    Building it takes seconds, composing it with itself a tenth of that.
    """
    import dp_accounting as dp

    class Accountant(dp.pld.PLDAccountant):
        def _maybe_compose(self, event, count, do_compose):
            if not do_compose or not _is_sampled_gaussian(event):
                return super()._maybe_compose(event, count, do_compose)
            single = _single(event, self.neighboring_relation, self._value_discretization_interval)
            self._pld = self._pld.compose(single.self_compose(count))
            return None

    return Accountant


def _is_sampled_gaussian(event: Any) -> bool:
    """Whether it is one of the events whose distribution dp-accounting composes with itself; all of their numbers above 0."""
    import dp_accounting as dp

    if isinstance(event, dp.TruncatedSubsampledGaussianDpEvent):
        sampled = min(event.dataset_size, event.truncated_batch_size, event.sampling_probability) > 0
        return sampled and event.noise_multiplier > 0
    if not isinstance(event, dp.PoissonSampledDpEvent):
        return False
    inner = event.event
    return (
        isinstance(inner, dp.GaussianDpEvent)
        and inner.noise_multiplier > 0
        and event.sampling_probability > 0
    )


@functools.lru_cache(maxsize=32)
def _single(event: Any, relation: Any, interval: float) -> Any:
    """The distribution of one such release, as dp-accounting builds it."""
    import dp_accounting as dp
    from dp_accounting.pld import privacy_loss_distribution as pld

    if isinstance(event, dp.TruncatedSubsampledGaussianDpEvent):
        return pld.from_truncated_subsampled_gaussian_mechanism(
            dataset_size=event.dataset_size,
            sampling_probability=event.sampling_probability,
            truncated_batch_size=event.truncated_batch_size,
            noise_multiplier=event.noise_multiplier,
            value_discretization_interval=interval,
            neighboring_relation=relation,
        )
    return pld.from_gaussian_mechanism(
        standard_deviation=event.event.noise_multiplier,
        value_discretization_interval=interval,
        sampling_prob=event.sampling_probability,
        neighboring_relation=relation,
    )
