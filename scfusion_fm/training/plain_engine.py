"""An engine without DeepSpeed, for models that fit every rank: each holds all of it, and gradients are averaged."""

from typing import Any

import torch
from torch import Tensor, nn

from scfusion_fm.training.collectives import add_up, count_ranks
from scfusion_fm.training.optimizer import ClippingAdamW


class PlainEngine:
    """
    Do of DeepSpeed's engine at stage 0 what a training loop asks for; alone, it is plain torch.

    Parameters
    ----------
    model
        The model, the same on every rank, on the device on which it shall run.
    optimizer
        Of its parameters.
    """

    def __init__(self, model: nn.Module, optimizer: ClippingAdamW):
        self.module, self.basic_optimizer = model, optimizer
        self._trained = [p for group in optimizer.param_groups for p in group["params"]]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._trained[0].device

    def __call__(self, **inputs: Any) -> Any:
        """Run the model."""
        return self.module(**inputs)

    def train(self, mode: bool = True) -> None:
        """Switch between training and evaluation."""
        self.module.train(mode)

    def eval(self) -> None:
        """Switch to evaluation."""
        self.module.eval()

    def zero_optimization_stage(self) -> int:
        """Give the ZeRO stage: none."""
        return 0

    def backward(self, loss: Tensor) -> None:
        """Compute gradients."""
        loss.backward()

    def step(self) -> None:
        """Average the gradients over the ranks, and update."""
        if count_ranks() > 1:
            self._average_gradients()
        self.basic_optimizer.step()
        self.basic_optimizer.zero_grad(set_to_none=True)

    def destroy(self) -> None:
        """Do nothing; there is nothing to take down."""

    def _average_gradients(self) -> None:
        """Average in one message; a parameter without gradient on any rank stays without, as it would on one rank."""
        used = torch.tensor([float(p.grad is not None) for p in self._trained], device=self.device)
        parts = [p.new_zeros(p.numel()) if p.grad is None else p.grad.reshape(-1) for p in self._trained]
        total = add_up(torch.cat([used, *parts]))
        used, *parts = total.split([len(used), *(len(part) for part in parts)])
        for parameter, was_used, part in zip(self._trained, used.tolist(), parts, strict=True):
            parameter.grad = part.view_as(parameter).div_(count_ranks()) if was_used else None
