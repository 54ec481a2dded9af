"""The TTT layers spelled out token by token, to test the fast paths against.

Letters: B cells, H heads, L tokens, K head width, M mini-batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .ttt_linear import TTTNorm, TTTState
from .ttt_mlp import TTTMLPState

FastWeights = tuple[Tensor, ...]
InnerModel = Callable[[FastWeights, Tensor], Tensor]


def ttt_linear_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    inner_lr: Tensor,
    token_scale: Tensor,
    state: TTTState,
    norm: TTTNorm,
    inner_loss: Tensor | None = None,
) -> tuple[Tensor, TTTState]:
    """Run TTT-Linear one cell, one head and one token at a time; same arguments as `ttt_linear.ttt_linear`."""
    tokens = _Tokens(q, k, v, inner_lr)
    return _run(_linear, tokens, token_scale, state, norm, inner_loss)


def ttt_mlp_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    inner_lr: Tensor,
    token_scale: Tensor,
    state: TTTMLPState,
    norm: TTTNorm,
    inner_loss: Tensor | None = None,
) -> tuple[Tensor, TTTMLPState]:
    """Run TTT-MLP one cell, one head and one token at a time; same arguments as `ttt_mlp.ttt_mlp`."""
    tokens = _Tokens(q, k, v, inner_lr)
    return _run(_mlp, tokens, token_scale, state, norm, inner_loss)


class _Tokens(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    inner_lr: Tensor


def _linear(fast: FastWeights, x: Tensor) -> Tensor:
    weight, bias = fast
    return x @ weight + bias[0]


def _mlp(fast: FastWeights, x: Tensor) -> Tensor:
    weight_1, bias_1, weight_2, bias_2 = fast
    return F.gelu(x @ weight_1 + bias_1[0], approximate="tanh") @ weight_2 + bias_2[0]


def _run(
    model: InnerModel,
    tokens: _Tokens,
    token_scale: Tensor,
    state: TTTState | TTTMLPState,
    norm: TTTNorm,
    inner_loss: Tensor | None,
) -> tuple[Tensor, TTTState | TTTMLPState]:
    """Scan every head of every cell by itself."""
    shape = tokens.q.shape[:2]
    heads = []
    for cell in range(shape[0]):
        for head in range(shape[1]):
            at = (cell, head)
            own = (x[at] for x in state[:-1])
            own_norm = TTTNorm(norm.weight[head, 0], norm.bias[head, 0], norm.eps)
            own_tokens = _Tokens(*(x[at] for x in tokens))
            heads.append(_scan_one_head(model, own_tokens, token_scale, tuple(own), own_norm))
    out, loss, *fast = (torch.stack(x).unflatten(0, shape) for x in zip(*heads, strict=True))
    if inner_loss is not None:
        inner_loss.copy_(loss.detach())
    at_border = tokens.q.shape[2] % token_scale.shape[0] == 0
    return out, type(state)(*fast, at_border=at_border)


def _scan_one_head(
    model: InnerModel, tokens: _Tokens, token_scale: Tensor, fast: FastWeights, norm: TTTNorm
) -> tuple[Tensor, ...]:
    """
    Read one sequence; give outputs (L, K), inner losses (L,) and the last fast weights.

    Notes
    -----
    Sun et al. 2024 (arXiv 2407.04620), equations of the primal form: every gradient of a mini-batch is taken at
    the state that entered it, and a token sees the updates of the tokens up to and including itself. A sequence
    that does not fill its last mini-batch ends as if it were padded with tokens of inner learning rate 0.
    """
    size, length = token_scale.shape[0], tokens.q.shape[0]
    outputs, losses = [], []
    for start in range(0, length, size):
        taken = [torch.zeros_like(x) for x in fast]
        for i in range(start, min(start + size, length)):
            loss, gradients = _inner_loss_and_gradients(model, fast, tokens.k[i], tokens.v[i], norm)
            taken = [t + tokens.inner_lr[i] * g for t, g in zip(taken, gradients, strict=True)]
            seen = tuple(x - token_scale[i - start] * t for x, t in zip(fast, taken, strict=True))
            outputs.append(tokens.q[i] + _layer_norm(model(seen, tokens.q[i]), norm))
            losses.append(loss)
        fast = tuple(x - token_scale[-1] * t for x, t in zip(fast, taken, strict=True))
    return torch.stack(outputs), torch.stack(losses), *fast


def _inner_loss_and_gradients(
    model: InnerModel, fast: FastWeights, k: Tensor, v: Tensor, norm: TTTNorm
) -> tuple[Tensor, FastWeights]:
    """Take the gradients at the fast weights by autograd, keeping the graph."""
    fast = tuple(x if x.requires_grad else x.detach().requires_grad_() for x in fast)
    loss = 0.5 * (_layer_norm(model(fast, k), norm) - (v - k)).square().sum()
    return loss, torch.autograd.grad(loss, fast, create_graph=True)


def _layer_norm(z: Tensor, norm: TTTNorm) -> Tensor:
    return F.layer_norm(z, z.shape[-1:], eps=norm.eps) * norm.weight + norm.bias
