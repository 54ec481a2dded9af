"""Test-Time-Training layers: a sequence layer whose hidden state is a small model that learns while it reads.

Letters: B cells, L tokens, D hidden_size, H heads, K head width, M mini-batch, N mini-batches.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_scfusion_ttt import ScFusionTTTConfig
from .ttt_scan import TTTNorm, TTTState, ttt_linear_packed


def rotary_embedding(mini_batch_size: int, width: int, theta: float, like: Tensor) -> Tensor:
    """Give cosine and sine (2, M, K / 2) of the angle by which each position of a mini-batch is rotated."""
    position = torch.arange(mini_batch_size, device=like.device, dtype=like.dtype)
    frequency = theta ** (-torch.arange(0, width, 2, device=like.device, dtype=like.dtype) / width)
    angle = position[:, None] * frequency
    return torch.stack((torch.cos(angle), torch.sin(angle)))


class TTTLinear(nn.Module):
    """
    Mix tokens by a linear model that takes one gradient step per token while the sequence is read.

    The inner loop always runs in at least float32, whatever the activations are.

    Notes
    -----
    Sun et al. 2024 (arXiv 2407.04620), TTT-Linear.
    """

    def __init__(self, config: ScFusionTTTConfig):
        super().__init__()
        self.config = config
        heads, width = config.num_attention_heads, config.head_dim
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.lr_proj = nn.Linear(config.hidden_size, heads)
        self.token_scale_offset = nn.Parameter(torch.zeros(config.ttt_mini_batch_size))
        self.weight = nn.Parameter(torch.zeros(heads, width, width))
        self.bias = nn.Parameter(torch.zeros(heads, 1, width))
        self.norm_weight = nn.Parameter(torch.ones(heads, 1, width))
        self.norm_bias = nn.Parameter(torch.zeros(heads, 1, width))
        self.post_norm = nn.LayerNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.gate_proj = (
            nn.Linear(config.hidden_size, config.hidden_size, bias=False) if config.ttt_use_gate else None
        )
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def token_scale(self) -> Tensor:
        """Give the factor of each position in a mini-batch, max(1 / (i + 1) + learned, 0), shape (M,)."""
        offset = self.token_scale_offset
        offset = offset.to(torch.promote_types(offset.dtype, torch.float32))
        position = torch.arange(1, offset.shape[0] + 1, device=offset.device, dtype=offset.dtype)
        return (1.0 / position + offset).clamp_min(0.0)

    def inner_learning_rate(self, x: Tensor, mask: Tensor) -> Tensor:
        """Give the learning rate of each token, (B, L, H), 0 where the mask is false."""
        rate = torch.sigmoid(self.lr_proj(x)) * (self.config.ttt_base_lr / self.config.head_dim)
        return rate * mask.unsqueeze(-1)

    def forward(self, x: Tensor, mask: Tensor, state: TTTState | None = None) -> tuple[Tensor, TTTState]:
        """
        Read a sequence.

        Parameters
        ----------
        x
            (B, L, D) tokens.
        mask
            (B, L) true for real tokens. The others neither write to the state nor matter by their content.
        state
            Fast weights to start from; the layer's own initial ones when None.

        Returns
        -------
        (B, L, D) outputs, meaningful where the mask is true, and the fast weights at the end.
        """
        length = x.shape[1]
        missing = -length % self.config.ttt_mini_batch_size
        if missing:
            x, mask = F.pad(x, (0, 0, 0, missing)), F.pad(mask, (0, missing))
        x = x.masked_fill(~mask.unsqueeze(-1), 0.0)
        out, state = self.mix(x, mask, state)
        out = self.post_norm(out.flatten(2).to(x.dtype))
        if self.gate_proj is not None:
            out = out * F.gelu(self.gate_proj(x), approximate="tanh")
        return self.o_proj(out)[:, :length], state

    def mix(self, x: Tensor, mask: Tensor, state: TTTState | None) -> tuple[Tensor, TTTState]:
        """Run the inner model over whole mini-batches, in at least float32; outputs (B, L, H, K)."""
        config = self.config
        qkv = self.qkv_proj(x).unflatten(-1, (3, config.num_attention_heads, config.head_dim))
        inner_lr = self.inner_learning_rate(x, mask)
        dtype = torch.promote_types(x.dtype, torch.float32)
        if state is None:
            state = self.initial_state(x.shape[0], dtype)
        norm = TTTNorm(self.norm_weight.to(dtype), self.norm_bias.to(dtype), config.rms_norm_eps)
        with torch.autocast(x.device.type, enabled=False):
            qkv, inner_lr, token_scale = (y.to(dtype) for y in (qkv, inner_lr, self.token_scale()))
            rotation = rotary_embedding(config.ttt_mini_batch_size, config.head_dim, config.rope_theta, qkv)
            return ttt_linear_packed(qkv, inner_lr, token_scale, state, norm, rotation)

    def initial_state(self, batch: int, dtype: torch.dtype) -> TTTState:
        """Repeat the learned initial fast weights for every cell."""
        return TTTState(
            self.weight.to(dtype).expand(batch, -1, -1, -1), self.bias.to(dtype).expand(batch, -1, -1, -1)
        )
