"""Models that FSDP 2 shards: a process holds a part of every weight; a layer's are gathered while it runs.

Gathering takes all processes, so each has to run the model as often as the others (`alike`), with
micro-batches of its own. A layer then computes what it does in a model that is whole, bit for bit. Outside of
its passes a parameter is a DTensor, as are its moments; `whole` makes plain tensors of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn

from clusterucb.errors import ConfigError
from clusterucb.runtime.processes import World

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


def shard(model: nn.Module, device: torch.device) -> None:
    """Spread a transformers model that is in the host's memory over the devices of all processes.

    What is gathered at once is a layer, and the rest, as embeddings and vocabulary head.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    layers = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    for module in [m for m in model.modules() if type(m).__name__ in layers]:
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    """Whether all processes are needed to run the model."""
    return bool(_parts(model))


def alike(world: World, model: nn.Module) -> World:
    """The processes as the model needs them: those that share a sharded one compute equally many items."""
    return world.in_step() if is_sharded(model) else world


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as it is, or all of one that is sharded; that takes all processes."""
    gather = getattr(tensor, "full_tensor", None)
    found: torch.Tensor = gather() if gather else tensor
    return found


def whole_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same of each of them, without gradients."""
    return {name: whole(tensor.detach()) for name, tensor in tensors.items()}


def fill(parameter: torch.Tensor, tensor: torch.Tensor) -> None:
    """Give a parameter, sharded or not, the values of a plain tensor that every process has."""
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is not None:
        from torch.distributed.tensor import DTensor, Replicate

        everywhere = DTensor.from_local(
            tensor.to(parameter.device), mesh, [Replicate()] * mesh.ndim, run_check=False
        )
        tensor = everywhere.redistribute(placements=parameter.placements)  # type: ignore[attr-defined]
    parameter.copy_(tensor)


def reshard(model: nn.Module) -> None:
    """Let go of what a pass has gathered and kept: the parameters are again those that an optimizer knows."""
    for part in _parts(model):
        part.reshard()


def refuse_several_devices(model: nn.Module) -> None:
    """Raise ConfigError for a model whose layers lie on several devices, as device_map="auto" puts them."""
    places = sorted({str(parameter.device) for parameter in model.parameters() if parameter.requires_grad})
    if len(places) > 1:
        raise ConfigError(
            f"the adapter's layers are on {', '.join(places)}, and a row's gradient is taken on one device: "
            "load the model on one (device_map={'': 0}), or shard it by FSDP 2"
        )


def refuse_other_shards(model: nn.Module) -> None:
    """Raise ConfigError for a model that FSDP 1 has sharded, or whose shards FSDP 2 keeps on the host."""
    if not _distributed():
        return
    from torch.distributed.fsdp import FullyShardedDataParallel

    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise ConfigError(
            "FSDP 1: its flat weights are those of no layer, so no row has a gradient of its own; use FSDP 2 "
            "(fsdp_config={'version': 2}, or fsdp_version: 2 in accelerate's configuration)"
        )
    sharded = (p for p in model.parameters() if getattr(p, "device_mesh", None) is not None)
    if any(p.device.type != p.device_mesh.device_type for p in sharded):  # type: ignore[attr-defined]
        raise ConfigError(
            "FSDP: the shards are on the host, and a row's gradient is taken where the layers run; leave "
            "cpu_offload false"
        )


def _parts(model: nn.Module) -> list[FSDPModule]:
    """What is gathered at once, one by one: its layers, and the rest; none of a model that is whole."""
    if not _distributed():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
