"""What a run saves between steps, so that a resume continues it bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from saekit.models.normalizer import Normalizer
from saekit.training.inputs import BatchNormalizer, scale_from
from saekit.training.optim import adam_tensors, need_like, restore_adam
from saekit.typed import as_type

if TYPE_CHECKING:
    from saekit.training.loop import Trainer


def state_of(trainer: Trainer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors, JSON) of a run."""
    tensors = _fixed_tensors(trainer) | adam_tensors(trainer.optimizer, trainer.names)
    if trainer.players is not None:
        tensors |= trainer.players.tensors()
    state = {"step": trainer.step, "model": trainer.model.run_state()}
    if trainer.average is not None:
        tensors |= {f"average.{name}": value for name, value in trainer.average.tensors.items()}
        state["averaged"] = trainer.average.count
    if trainer.dead_order is not None:
        tensors["dead_order"] = trainer.dead_order
    return tensors, state


def restore_state(trainer: Trainer, tensors: dict[str, torch.Tensor], state: dict) -> None:
    """Continue from what `state_of` returned. Raises ValueError for what is not such a state."""
    # Check everything before anything changes.
    step = as_type(state.get("step"), int, "step")
    if not 0 <= step <= trainer.total:
        raise ValueError(f"step is {step} of {trainer.total}")
    need_like(tensors, _fixed_tensors(trainer))
    average_count = 0
    if trainer.average is not None:
        average_count = as_type(state.get("averaged"), int, "averaged")
    if average_count:
        weights = trainer.model.state_dict().items()
        floats = {f"average.{name}": value for name, value in weights if value.is_floating_point()}
        need_like(tensors, floats)
    if "dead_order" in tensors:
        _check_latents(tensors["dead_order"], trainer.model.latents)
    # Model, optimizer, random numbers.
    trainer.step = step
    if model_state := as_type(state.get("model"), dict[str, Any], "model"):
        trainer.model.continue_from(model_state)
    trainer.model.load_state_dict(_named(tensors, "model."))
    if trainer.players is None:
        restore_adam(trainer.optimizer, trainer.names, tensors)
    else:
        trainer.players.restore(tensors)
    trainer.generator.set_state(tensors["generator"])
    # The units of the rows.
    device = trainer.normalize.inputs.mean_D.device
    inputs = _normalizer(tensors, "", device)
    targets = _normalizer(tensors, "target_", device) if "target_mean" in tensors else None
    trainer.normalize = BatchNormalizer(inputs, targets)
    # The average of the weights, and the dead latents.
    if trainer.average is not None:
        averaged = {name: value.to(device) for name, value in _named(tensors, "average.").items()}
        trainer.average.restore(average_count, averaged)
    if trainer.dead is not None:
        trainer.dead.idle.copy_(tensors["idle"])
        order = tensors["dead_order"] if "dead_order" in tensors else trainer.dead.dead()
        trainer.dead_order = order.to(device)


def _fixed_tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The tensors of a state whose shapes are the same from the first step to the last."""
    tensors = {
        f"model.{name}": value.detach() for name, value in trainer.model.state_dict().items()
    }
    inputs, targets = trainer.normalize.inputs, trainer.normalize.targets
    tensors |= {"mean": inputs.mean_D, "generator": trainer.generator.get_state()}
    tensors["scale"] = torch.as_tensor(inputs.scale, dtype=torch.float64)
    if trainer.dead is not None:
        tensors["idle"] = trainer.dead.idle
    if targets is not None:
        tensors["target_mean"] = targets.mean_D
        tensors["target_scale"] = torch.as_tensor(targets.scale, dtype=torch.float64)
    return tensors


def _named(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}


def _normalizer(tensors: dict[str, torch.Tensor], prefix: str, device: torch.device) -> Normalizer:
    mean_D, scale = tensors[f"{prefix}mean"], tensors[f"{prefix}scale"]
    return Normalizer(mean_D.to(device), scale_from(scale, device))


def _check_latents(order: torch.Tensor, latents: int) -> None:
    is_list = order.dtype == torch.int64 and order.dim() == 1
    if not is_list or not torch.isin(order, torch.arange(latents)).all():
        raise ValueError("dead_order names latents that do not exist")
