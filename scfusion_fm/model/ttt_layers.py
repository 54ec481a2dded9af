"""Test-Time-Training layers: a sequence layer whose hidden state is a small model that learns while it reads.

Letters: B cells, L tokens, D hidden_size, H heads, K head width, M mini-batch, N mini-batches.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .compiled_scfusion_ttt import normalise_and_gate
from .configuration_scfusion_ttt import ScFusionTTTConfig
from .linear_scfusion_ttt import Linear, gelu_of
from .ttt_linear import TTTNorm, TTTState, reads_on_device, ttt_linear_packed
from .ttt_linear_lanes import runs_on_lanes
from .ttt_mlp import TTTMLPState, ttt_mlp

DIRECTIONS = ("forward", "reverse", "both")


def rotary_embedding(mini_batch_size: int, width: int, theta: float, like: Tensor) -> Tensor:
    """Give cosine and sine (2, M, K / 2) of the angle by which each position of a mini-batch is rotated."""
    position = torch.arange(mini_batch_size, device=like.device, dtype=like.dtype)
    frequency = theta ** (-torch.arange(0, width, 2, device=like.device, dtype=like.dtype) / width)
    angle = position[:, None] * frequency
    return torch.stack((torch.cos(angle), torch.sin(angle)))


class TTTOutput(NamedTuple):
    """What a TTT layer gives: (B, L, D) tokens, the fast weights at the end, and the inner loss (B, L, H) if asked."""

    tokens: Tensor
    state: TTTState | TTTMLPState
    inner_loss: Tensor | None = None


class TTTProjections(NamedTuple):
    """What the inner model gets: (B, L, 3, H, K) queries, keys, values; (B, L, H) learning rates; (M,) scale."""

    qkv: Tensor
    inner_lr: Tensor
    token_scale: Tensor


class TTTLayer(nn.Module, ABC):
    """
    Mix tokens by an inner model that takes one gradient step per token while the sequence is read.

    The inner loop always runs in at least float32, whatever the activations are.

    Parameters
    ----------
    config
        Widths and the options that start with `ttt_`.
    direction
        `forward`, `reverse` (from the last token to the first), or `both`: the same weights read both ways, and what
        the way back gives is added behind a learned gate that is nearly closed at first.

    Raises
    ------
    ValueError
        If the direction is none of these.

    Notes
    -----
    Sun et al. 2024 (arXiv 2407.04620).
    """

    def __init__(self, config: ScFusionTTTConfig, direction: str = "forward"):
        super().__init__()
        if direction not in DIRECTIONS:
            raise ValueError(f"`direction` must be one of {DIRECTIONS}, got {direction!r}.")
        self.config, self.direction = config, direction
        heads, width = config.num_attention_heads, config.head_dim
        self.qkv_proj = Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.lr_proj = Linear(config.hidden_size, heads)
        self.token_scale_offset = nn.Parameter(torch.zeros(config.ttt_mini_batch_size))
        self.norm_weight = nn.Parameter(torch.ones(heads, 1, width))
        self.norm_bias = nn.Parameter(torch.zeros(heads, 1, width))
        self.post_norm = nn.LayerNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.gate_proj = Linear(config.hidden_size, config.hidden_size, bias=False) if config.ttt_use_gate else None
        self.o_proj = Linear(config.hidden_size, config.hidden_size, bias=False)
        self.direction_gate = nn.Parameter(torch.zeros(heads, width)) if direction == "both" else None

    @abstractmethod
    def initial_state(self, batch: int, dtype: torch.dtype) -> TTTState | TTTMLPState:
        """Repeat the learned initial fast weights for every cell."""

    @abstractmethod
    def scan(
        self,
        projections: TTTProjections,
        state: TTTState | TTTMLPState,
        norm: TTTNorm,
        inner_loss: Tensor | None,
    ) -> tuple[Tensor, TTTState | TTTMLPState]:
        """
        Run the inner model over whole mini-batches; outputs (B, L, H, K) and the fast weights at the end.

        The inner loss of each token is written into `inner_loss` (B, L, H), if there is one. Tokens come in the order
        of reading and at least in float32, except where the inner model `reads_itself`.
        """

    def reads_itself(self, qkv: Tensor, token_scale: Tensor) -> bool:
        """Tell whether `scan` takes projections as they are, and reads them in the direction of the layer."""
        return False

    def token_scale(self) -> Tensor:
        """Give the factor of each position in a mini-batch, max(1 / (i + 1) + learned, 0), shape (M,)."""
        offset = self.token_scale_offset
        offset = offset.to(torch.promote_types(offset.dtype, torch.float32))
        position = torch.arange(1, offset.shape[0] + 1, device=offset.device, dtype=offset.dtype)
        return (1.0 / position + offset).clamp_min(0.0)

    def inner_learning_rate(self, x: Tensor, mask: Tensor) -> Tensor:
        """Give the learning rate of each token, (B, L, H), 0 where the mask is false."""
        rate = self.lr_proj(x)
        rate = torch.sigmoid(rate.to(torch.promote_types(rate.dtype, torch.float32)))
        rate = rate * (self.config.ttt_base_lr / self.config.head_dim)
        return rate * mask.unsqueeze(-1)

    def rotation(self, like: Tensor) -> Tensor:
        """Give the rotary embedding inside a mini-batch."""
        config = self.config
        return rotary_embedding(config.ttt_mini_batch_size, config.head_dim, config.rope_theta, like)

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        state: TTTState | TTTMLPState | None = None,
        return_inner_loss: bool = False,
        is_masked: bool = False,
    ) -> TTTOutput:
        """
        Read a sequence.

        Parameters
        ----------
        x
            (B, L, D) tokens.
        mask
            (B, L) true for real tokens. The others neither write to the state nor matter by their content.
        state
            Fast weights to start from, as an earlier call left them at the end of a mini-batch; the layer's own
            initial ones when None. Of a layer that reads both ways, they are those of the way forward.
        return_inner_loss
            Whether to give the inner loss of each token, at the fast weights that entered its mini-batch: how badly
            they predicted it; the mean of both ways where there are two. It carries no gradient, and is 0 where
            the mask is false.
        is_masked
            Whether tokens are 0 already where the mask is false.

        Returns
        -------
        Outputs, meaningful where the mask is true; the fast weights at the end; the inner loss.

        Raises
        ------
        ValueError
            If the state was left inside a mini-batch.
        """
        if state is not None and not state.at_border:
            raise ValueError(
                "`state` must come from a sequence of whole mini-batches to be continued, got one that ended inside "
                f"a mini-batch. Read a multiple of {self.config.ttt_mini_batch_size} tokens before it is handed on."
            )
        length = x.shape[1]
        missing = -length % self.config.ttt_mini_batch_size
        if missing:
            x, mask = F.pad(x, (0, 0, 0, missing)), F.pad(mask, (0, missing))
        x = x if is_masked else torch.where(mask.unsqueeze(-1), x, 0.0)
        out, state, inner_loss = self._mix(x, mask, state, return_inner_loss)
        gate = None if self.gate_proj is None else gelu_of(self.gate_proj, x)
        out = normalise_and_gate(self.post_norm, out.flatten(2).to(x.dtype), gate)
        if inner_loss is not None:
            inner_loss = inner_loss.masked_fill(~mask.unsqueeze(-1), 0.0)[:, :length]
        return TTTOutput(self.o_proj(out)[:, :length], state._replace(at_border=not missing), inner_loss)

    def _mix(
        self, x: Tensor, mask: Tensor, state: TTTState | TTTMLPState | None, with_loss: bool
    ) -> tuple[Tensor, TTTState | TTTMLPState, Tensor | None]:
        """Project and run the inner model in at least float32."""
        qkv = self.qkv_proj(x).unflatten(-1, (3, self.config.num_attention_heads, self.config.head_dim))
        inner_lr = self.inner_learning_rate(x, mask)
        dtype = torch.promote_types(x.dtype, torch.float32)
        if state is None:
            state = self.initial_state(x.shape[0], dtype)
        if self.direction == "both":  # the way back is read as so many cells more
            back = self.initial_state(x.shape[0], dtype)
            state = state._make((*map(torch.cat, zip(state[:-1], back[:-1], strict=True)), True))
        norm = TTTNorm(self.norm_weight.to(dtype), self.norm_bias.to(dtype), self.config.rms_norm_eps)
        with torch.autocast(x.device.type, enabled=False):
            inner_lr, token_scale = inner_lr.to(dtype), self.token_scale().to(dtype)
            turned = self.reads_itself(qkv, token_scale)
            if not turned:
                qkv, inner_lr = self._turn(qkv.to(dtype)), self._turn(inner_lr)
            inner_loss = inner_lr.new_empty(state[0].shape[0], *inner_lr.shape[1:]) if with_loss else None
            out, state = self.scan(TTTProjections(qkv, inner_lr, token_scale), state, norm, inner_loss)
            return self._join(out, state, inner_loss, turned)

    def _turn(self, x: Tensor) -> Tensor:
        """Put tokens (B, L, ...) into the order of reading; forward and reverse below each other if it is both."""
        if self.direction == "both":
            return torch.cat((x, x.flip(1)))
        return x.flip(1) if self.direction == "reverse" else x

    def _join(
        self, out: Tensor, state: TTTState | TTTMLPState, inner_loss: Tensor | None, turned: bool
    ) -> tuple[Tensor, TTTState | TTTMLPState, Tensor | None]:
        """Undo `_turn`, which `scan` may have done, and join the two ways."""
        turn = (lambda x: x) if turned else (lambda x: x.flip(1))
        if self.direction == "forward":
            return out, state, inner_loss
        if self.direction == "reverse":
            return turn(out), state, None if inner_loss is None else turn(inner_loss)
        forth, back = out.chunk(2)
        out = torch.addcmul(forth, turn(back), torch.tanh(self.direction_gate.to(out.dtype)))
        state = state._make((*(x.chunk(2)[0] for x in state[:-1]), state.at_border))
        if inner_loss is not None:
            forth, back = inner_loss.chunk(2)
            inner_loss = 0.5 * (forth + turn(back))
        return out, state, inner_loss


class TTTLinear(TTTLayer):
    """TTT layer whose inner model is linear."""

    def __init__(self, config: ScFusionTTTConfig, direction: str = "forward"):
        super().__init__(config, direction)
        heads, width = config.num_attention_heads, config.head_dim
        self.weight = nn.Parameter(torch.zeros(heads, width, width))
        self.bias = nn.Parameter(torch.zeros(heads, 1, width))

    def initial_state(self, batch: int, dtype: torch.dtype) -> TTTState:
        """Repeat the learned initial fast weights for every cell."""
        return TTTState(*(x.to(dtype).expand(batch, -1, -1, -1) for x in (self.weight, self.bias)))

    def scan(
        self, projections: TTTProjections, state: TTTState, norm: TTTNorm, inner_loss: Tensor | None
    ) -> tuple[Tensor, TTTState]:
        """Run the inner model over whole mini-batches; outputs (B, L, H, K) and the fast weights at the end."""
        qkv, _, token_scale = projections
        direction = self.direction if self.reads_itself(qkv, token_scale) else "forward"
        return ttt_linear_packed(*projections, state, norm, self.rotation(token_scale), inner_loss, direction)

    def reads_itself(self, qkv: Tensor, token_scale: Tensor) -> bool:
        """Tell whether `scan` takes projections as they are, and reads them in the direction of the layer."""
        if runs_on_lanes(qkv, token_scale):
            return self.direction != "both"
        return reads_on_device(qkv, token_scale)


class TTTMLP(TTTLayer):
    """TTT layer whose inner model is a two-layer network with GELU, four times as wide inside."""

    def __init__(self, config: ScFusionTTTConfig, direction: str = "forward"):
        super().__init__(config, direction)
        heads, width = config.num_attention_heads, config.head_dim
        self.weight_1 = nn.Parameter(torch.zeros(heads, width, 4 * width))
        self.bias_1 = nn.Parameter(torch.zeros(heads, 1, 4 * width))
        self.weight_2 = nn.Parameter(torch.zeros(heads, 4 * width, width))
        self.bias_2 = nn.Parameter(torch.zeros(heads, 1, width))

    def initial_state(self, batch: int, dtype: torch.dtype) -> TTTMLPState:
        """Repeat the learned initial fast weights for every cell."""
        fast = (self.weight_1, self.bias_1, self.weight_2, self.bias_2)
        return TTTMLPState(*(x.to(dtype).expand(batch, -1, -1, -1) for x in fast))

    def scan(
        self, projections: TTTProjections, state: TTTMLPState, norm: TTTNorm, inner_loss: Tensor | None
    ) -> tuple[Tensor, TTTMLPState]:
        """Run the inner model over whole mini-batches; outputs (B, L, H, K) and the fast weights at the end."""
        q, k, v = projections.qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, L, K)
        cos, sin = self.rotation(q).repeat(1, q.shape[2] // self.config.ttt_mini_batch_size, 1)
        q, k = (_rotated(y, cos, sin) for y in (q, k))
        inner_lr, losses = projections.inner_lr.transpose(1, 2), inner_loss
        if losses is not None:
            losses = losses.transpose(1, 2)
        out, state = ttt_mlp(q, k, v, inner_lr, projections.token_scale, state, norm, losses)
        return out.transpose(1, 2), state


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


TTT_LAYERS = {"linear": TTTLinear, "mlp": TTTMLP}
