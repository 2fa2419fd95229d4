"""Settings of another person's Trainer under which the rows that are selected would not be trained on."""

from __future__ import annotations

from typing import Any

from clusterucb.errors import ConfigError

__all__ = ["refuse_arguments"]

_REFUSED = {
    "dataloader_persistent_workers": "such workers never see the swapped rows; leave it False",
    "auto_find_batch_size": "a second attempt would go on with what was selected in the first; "
    "leave it False, and set per_device_train_batch_size",
    "packing": "packed sequences are made once, of the first period's rows; leave it False",
    "group_by_length": "lengths are taken once, of the first period's rows; leave it False",
    "deepspeed": "a row's gradient needs whole weights and Adam's moments; use FSDP 2",
}
_ORDERS = ("group_by_length", "batch_rebalance")


def refuse_arguments(arguments: Any) -> None:
    """Refuse training arguments, of transformers or trl, under which a swap does nothing or harm.

    Raises:
        ConfigError: names the first.
    """
    for name, reason in _REFUSED.items():
        if value := getattr(arguments, name, None):
            raise ConfigError(f"{name}={value}: {reason}")
    order = getattr(arguments, "train_sampling_strategy", None)
    if order in _ORDERS:
        raise ConfigError(
            f"train_sampling_strategy={order}: lengths are taken once, of the first period's rows; use random"
        )
