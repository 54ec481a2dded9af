"""The loss of a classifier."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


class BalancedCrossEntropy:
    """
    Cross-entropy in which all classes weigh the same, however many cells they have.

    Parameters
    ----------
    codes
        (n,) class index of each training cell.
    num_classes
        Number of classes; one without training cells gets weight 0.
    """

    def __init__(self, codes: NDArray[np.int64], num_classes: int):
        counts = np.bincount(codes, minlength=num_classes)
        weights = np.divide(len(codes), num_classes * counts, out=np.zeros(num_classes), where=counts > 0)
        self.weights = torch.tensor(weights, dtype=torch.float32)

    def __call__(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        """Average the weighted losses over the labelled cells of a batch."""
        logits = outputs["logits"].float()
        losses = torch.nn.functional.cross_entropy(logits, labels, self.weights.to(logits.device), reduction="none")
        return losses.sum() / (labels >= 0).sum().clamp_min(1)
