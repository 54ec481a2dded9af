"""Models that no rank ever holds whole: ZeRO 3 takes each module apart as soon as it is made.

A model that is built first and parted afterwards stands whole in the memory of every rank, so that the ranks of a host
need as many copies. Here a rank holds its share, and one module at a time. All values are those of a model that was
built whole: they are drawn on the host, in the same order.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from scfusion_fm.training.checkpoint import WEIGHT, Checkpoint
from scfusion_fm.training.collectives import own_rank
from scfusion_fm.training.settings import is_on, zero_stage


def can_build_in_parts(settings: dict[str, Any]) -> bool:
    """Tell whether models of these DeepSpeed settings are parted while they are built."""
    # With a second partition inside of each host, its parts would have to be kept up to date as well.
    return zero_stage(settings) == 3 and settings["zero_optimization"].get("zero_hpz_partition_size", 1) == 1


@contextmanager
def building(settings: dict[str, Any]) -> Iterator[None]:
    """
    Build models in the body of a `with` statement: in parts, where ZeRO 3 is to train them.

    Parameters
    ----------
    settings
        DeepSpeed settings as of `build_engine`. Ranks must have been started.

    Raises
    ------
    ValueError
        If DeepSpeed refuses the settings.
    """
    if not can_build_in_parts(settings):
        yield
        return
    from deepspeed import zero

    initialise = PreTrainedModel._initialize_weights

    def initialise_whole(model: PreTrainedModel, module: nn.Module, *options: Any, **more: Any) -> None:
        """Draw the values of a module as if it had not been parted."""
        fresh = not getattr(module, "_is_hf_initialized", False)
        with held_whole(module.parameters(recurse=False) if fresh else ()):
            initialise(model, module, *options, **more)

    with explained_refusals():
        # The number of cells is not known yet, and does not matter here. Without overrides, since DeepSpeed would make
        # tensors on the device, in the type of the training, and other values would be drawn.
        config = settings | {"train_micro_batch_size_per_gpu": 1}
        parting = zero.Init(config_dict_or_path=config, tensor_overrides=())
    PreTrainedModel._initialize_weights = initialise_whole
    try:
        with parting:
            yield
    finally:
        PreTrainedModel._initialize_weights = initialise


@contextmanager
def explained_refusals() -> Iterator[None]:
    """
    Say whose settings they are that DeepSpeed refuses in the body.

    Raises
    ------
    ValueError
        If it does.
    """
    from deepspeed.runtime.config import DeepSpeedConfigError
    from deepspeed.runtime.zero.utils import ZeRORuntimeException

    try:
        yield
    except (AssertionError, ValueError, DeepSpeedConfigError, ZeRORuntimeException) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"`deepspeed` must be settings that DeepSpeed can run, but it says: {said}") from error


def is_parted(parameter: nn.Parameter) -> bool:
    """Tell whether a parameter is parted over the ranks."""
    return hasattr(parameter, "ds_tensor")


def count_elements(model: nn.Module) -> int:
    """Count the parameters of a model, parted or not."""
    return sum(p.ds_numel if is_parted(p) else p.numel() for p in model.parameters())


@contextmanager
def held_whole(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """
    Hold parameters whole in the memory of the host while the body runs, and part them again as it left them.

    All ranks must do the same in the body. Parameters that are not parted are left alone.
    """
    parted = [parameter for parameter in parameters if is_parted(parameter)]
    devices = [parameter.device for parameter in parted]
    if parted:
        parted[0].all_gather(param_list=parted)
    for parameter in parted:
        parameter.data = parameter.data.cpu()
    yield
    for parameter, device in zip(parted, devices, strict=True):
        parameter.partition(has_been_updated=True)
        parameter.data = parameter.data.to(device)


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """
    Set the weights of a model, of which each rank reads what it holds.

    Raises
    ------
    ValueError
        If the checkpoint has other parameters.
    """
    named = dict(model.named_parameters())
    if not any(is_parted(parameter) for parameter in named.values()):
        checkpoint.load_into(model)
        return
    checkpoint.check_names(named)
    for name, parameter in named.items():
        part = parameter.ds_tensor
        start = own_rank() * part.numel()
        length = min(part.numel(), parameter.ds_numel - start)
        if length > 0:
            part[:length] = checkpoint.read(WEIGHT, name, start, length).to(part)


def finish_parts(model: nn.Module, settings: dict[str, Any], device: torch.device) -> None:
    """
    Make of a model that was built in parts what DeepSpeed expects: weights in its type, buffers on its device.

    Weights are rounded now and not before: what they start from is calculated in float32.
    """
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
    if is_on(settings, "bf16"):
        for parameter in model.parameters():
            part = parameter.ds_tensor
            rounded = part.to(torch.bfloat16)
            part.data = rounded.pin_memory() if part.is_pinned() else rounded
            parameter.data = parameter.data.to(torch.bfloat16)
