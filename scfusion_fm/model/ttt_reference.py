"""The TTT-Linear layer spelled out token by token, to test the fast path against.

Letters: B cells, H heads, L tokens, K head width, M mini-batch.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .ttt_scan import TTTNorm, TTTState


def _inner_gradient(z: Tensor, target: Tensor, norm: TTTNorm) -> Tensor:
    """Take d/dz of 1/2 || LN(z) - target ||^2 by autograd, keeping the graph."""
    if not z.requires_grad:
        z = z.detach().requires_grad_()
    loss = 0.5 * (_layer_norm(z, norm) - target).square().sum()
    return torch.autograd.grad(loss, z, create_graph=True)[0]


def _layer_norm(z: Tensor, norm: TTTNorm) -> Tensor:
    return F.layer_norm(z, z.shape[-1:], eps=norm.eps) * norm.weight + norm.bias


def ttt_linear_reference(
    q: Tensor, k: Tensor, v: Tensor, inner_lr: Tensor, token_scale: Tensor, state: TTTState, norm: TTTNorm
) -> tuple[Tensor, TTTState]:
    """
    Run TTT-Linear one cell, one head and one token at a time; same arguments as `ttt_scan.ttt_linear`.

    Notes
    -----
    Sun et al. 2024 (arXiv 2407.04620), equations of the primal form: every gradient of a mini-batch is taken at
    the state that entered it, and a token sees the updates of the tokens up to and including itself. A sequence
    that does not fill its last mini-batch ends as if it were padded with tokens of inner learning rate 0.
    """
    outputs, weights, biases = [], [], []
    for cell in range(q.shape[0]):
        for head in range(q.shape[1]):
            at = (cell, head)
            out, weight, bias = _scan_one_head(
                (q[at], k[at], v[at], inner_lr[at]),
                token_scale,
                (state.weight[at], state.bias[at][0]),
                TTTNorm(norm.weight[head, 0], norm.bias[head, 0], norm.eps),
            )
            outputs.append(out)
            weights.append(weight)
            biases.append(bias[None])
    shape = q.shape[:2]
    final = TTTState(
        torch.stack(weights).unflatten(0, shape),
        torch.stack(biases).unflatten(0, shape),
    )
    return torch.stack(outputs).unflatten(0, shape), final


def _scan_one_head(
    tokens: tuple[Tensor, Tensor, Tensor, Tensor],
    token_scale: Tensor,
    state: tuple[Tensor, Tensor],
    norm: TTTNorm,
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, inner_lr = tokens  # (L, K) three times, (L,)
    weight, bias = state  # (K, K), (K,)
    mini_batch_size = token_scale.shape[0]
    outputs = []
    for start in range(0, q.shape[0], mini_batch_size):
        steps = range(start, min(start + mini_batch_size, q.shape[0]))
        gradients = [_inner_gradient(k[j] @ weight + bias, v[j] - k[j], norm) for j in steps]
        for i in steps:
            seen = [(j, inner_lr[j] * gradients[j - start]) for j in steps if j <= i]
            scale = token_scale[i - start]
            weight_i = weight - scale * sum(torch.outer(k[j], step) for j, step in seen)
            bias_i = bias - scale * sum(step for _, step in seen)
            outputs.append(q[i] + _layer_norm(q[i] @ weight_i + bias_i, norm))
        taken = [(j, inner_lr[j] * gradients[j - start]) for j in steps]
        weight = weight - token_scale[-1] * sum(torch.outer(k[j], step) for j, step in taken)
        bias = bias - token_scale[-1] * sum(step for _, step in taken)
    return torch.stack(outputs), weight, bias
