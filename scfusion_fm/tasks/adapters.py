"""Low-rank adapters (LoRA, Hu et al. 2021): fine-tune few parameters, and leave none of it in the saved model."""

import torch
from torch import nn
from transformers import PreTrainedModel

SCALE = 2.0
NOT_ADAPTED = ("lr_proj",)  # as many outputs as heads: an adapter would be as large as the layer


def add_adapters(model: PreTrainedModel, rank: int, seed: int = 0) -> None:
    """
    Put adapters on the linear layers of blocks and base model, in place, and freeze all but them and the head.

    Parameters
    ----------
    model
        A model with its head.
    rank
        Rank of each adapter, at least 1.
    seed
        Of the initial adapters; they change nothing, for one of their two factors is 0.

    Raises
    ------
    ValueError
        If peft is not installed.

    Notes
    -----
    The head is what is neither in the base model nor in a TTT block. Guarded by tests/tasks/test_adapters.py.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError(
            f"`optim.lora_rank` above 0 needs the package peft, got {rank} without it; `pip install scfusion-fm[lora]`."
        ) from error
    layers = [name for name, module in model.named_modules() if _is_adapted(name, module)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=SCALE * rank, target_modules=layers), model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or not _is_body(name))


def merge_adapters(model: PreTrainedModel) -> None:
    """Add the adapters to the layers that they sit on, in place, so that the model is as if it never had any."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, module.get_base_layer())
    model.requires_grad_(True)


def count_trained(model: PreTrainedModel) -> int:
    """Count the parameters that training may change; a task need not use all of them."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _is_body(name: str) -> bool:
    return name.startswith("model.") or ".layers." in name


def _is_adapted(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and _is_body(name) and not name.endswith(NOT_ADAPTED)
