"""How much a model computes, how large it is, and what it keeps for its backward pass: all from its configuration.

Letters: D hidden_size, H heads, K head width, M mini-batch, I intermediate_size, S genes per token, N tokens of a
modality, L tokens of a sequence.
"""

import math
from collections import Counter
from dataclasses import dataclass

import torch

from scfusion_fm.model.configuration_scfusion_ttt import ScFusionTTTConfig
from scfusion_fm.model.modeling_scfusion_ttt import ScFusionTTTForPreTraining
from scfusion_fm.model.ttt_linear_groups import GROUP_ELEMENTS, KEPT_ELEMENTS, MOST_MINI_BATCHES_PER_GROUP
from scfusion_fm.planning.tokens import TokenCounts

INNER_BYTES = 4  # the inner loop runs in float32, whatever the activations are


def forward_flops(config: ScFusionTTTConfig, tokens: TokenCounts) -> float:
    """
    Count the operations of the matrix products of one cell in one forward pass of `ScFusionTTTForPreTraining`.

    Parameters
    ----------
    config
        The model.
    tokens
        Tokens of the cell. Tokens that fill up mini-batches count where they are computed.

    Returns
    -------
    Floating point operations, two per multiply-add; norms and other element-wise work are left out.

    Notes
    -----
    A block takes, per token, 2 (4 D^2 + D H + 3 D I) for queries, keys, values, output, inner learning rates and MLP,
    2 D^2 more for the gate, and the inner model of every head. With J = K + 1 (the bias is a row of the fast
    weights) that takes for `linear` 2 (3 J K + J M + M K): three products with the fast weights, the scores and
    their product with the inner gradients, both computed as whole M x M squares. For `mlp` it takes
    2 (28 K^2 + 10 M K + 5 K): seven products of 4 K^2, four triangles of together 10 M K, and two bias steps.
    `gated` reads every sequence twice.

    Around the blocks, whatever is visible: embeddings 4 S D and heads 2 S D on all tokens, and for each modality the
    projection of the other one, 2 D^2 per cell and 6 D I per token.

    `tests/planning/test_sizing.py` compares with what `torch.utils.flop_counter` counts: equal. It counts 3.0 times
    as many in forward and backward together for TTT-Linear (2.9 to 3.1), whose backward pass is in closed form and
    computes some products again, and 2.9 for TTT-MLP.
    """
    width, inner = config.hidden_size, config.intermediate_size
    per_token = _block_flops(config)
    flops = sum(blocks * length * per_token for blocks, length in tokens.sequences(config))
    for number, size in ((config.num_rna_tokens, config.rna_patch_size), (config.num_proteins, 1)):
        flops += number * (6 * size * width + 6 * width * inner) + 2 * width * width
    return flops


def train_flops(config: ScFusionTTTConfig, tokens: TokenCounts) -> float:
    """
    Count the operations of one cell in one training step: three times those of the forward pass.

    What activation checkpointing computes again is not counted: it is no progress, and takes up to one forward pass.
    """
    return 3.0 * forward_flops(config, tokens)


def _block_flops(config: ScFusionTTTConfig) -> float:
    """Count one block, per token."""
    width, heads, head, size = (
        config.hidden_size,
        config.num_attention_heads,
        config.head_dim,
        config.ttt_mini_batch_size,
    )
    if config.ttt_layer_type == "linear":
        scan = 3 * (head + 1) * head + (head + 1) * size + size * head
    else:
        scan = 28 * head * head + 10 * size * head + 5 * head
    products = 4 + config.ttt_use_gate
    outside = products * width * width + width * heads + 3 * width * config.intermediate_size
    return 2 * (outside + _ways(config) * heads * scan)


def _ways(config: ScFusionTTTConfig) -> int:
    """Count how often a layer reads its sequence."""
    return 2 if config.ttt_direction == "gated" else 1


@dataclass(frozen=True)
class ParameterCounts:
    """
    Parameters of a model.

    Attributes
    ----------
    blocks
        In TTT blocks.
    features
        Owned by genes and proteins: embeddings, positions and heads.
    other
        The rest.
    largest_module
        In the largest module with parameters of its own; what ZeRO-3 gathers at least.
    """

    blocks: int
    features: int
    other: int
    largest_module: int

    @property
    def total(self) -> int:
        """All parameters."""
        return self.blocks + self.features + self.other


def count_parameters(config: ScFusionTTTConfig) -> ParameterCounts:
    """Count the parameters of `ScFusionTTTForPreTraining` by building it without memory."""
    with torch.device("meta"):
        model = ScFusionTTTForPreTraining(config)
    counts = Counter()
    for name, parameter in model.named_parameters():
        owner = name.rpartition(".")[0]
        if ".layers." in name:
            counts["blocks"] += parameter.numel()
        elif owner.endswith("_embeddings") or parameter.shape[0] in (config.num_rna_tokens, config.num_proteins):
            counts["features"] += parameter.numel()
        else:
            counts["other"] += parameter.numel()
    own = [sum(p.numel() for p in module.parameters(recurse=False)) for module in model.modules()]
    return ParameterCounts(counts["blocks"], counts["features"], counts["other"], max(own))


def activation_bytes(
    config: ScFusionTTTConfig, tokens: TokenCounts, cells: int, checkpointing: bool, element_bytes: int
) -> float:
    """
    Estimate the most memory that activations take in a forward and backward pass.

    Parameters
    ----------
    config
        The model.
    tokens
        Tokens of the longest cell: the others of the batch are filled up to it, and it to whole mini-batches.
    cells
        Cells per forward pass.
    checkpointing
        Whether blocks keep their input alone, and compute the rest again.
    element_bytes
        Bytes of an activation: 4 in float32, 2 in bfloat16. The inner loop and norms take 4.

    Returns
    -------
    Bytes: all that is kept, and on top the larger of the gradient at the weights of a head and, in a block, the
    gradients in flight in its MLP with, under checkpointing, what is computed again.

    Notes
    -----
    Of the PyTorch path, as on a CPU; fused norms and Triton kernels of a GPU keep less. `tests/planning/test_sizing.py`
    compares with the bytes of all tensors that are alive at the peak of real passes.
    """
    width, inner, size = config.hidden_size, config.intermediate_size, config.ttt_mini_batch_size
    kept, largest = 0.0, 0.0
    for blocks, length in tokens.sequences(config):
        length = math.ceil(length / size) * size
        block = _kept_by_block(config, length, cells, element_bytes)
        kept += blocks * (_kept_by_checkpoint(config, length, cells, element_bytes) if checkpointing else block)
        in_flight = cells * length * (width + 2 * inner) * element_bytes
        largest = max(largest, in_flight + (block if checkpointing else 0.0))
    for number, patch in ((config.num_rna_tokens, config.rna_patch_size), (config.num_proteins, 1)):
        # The projection and its norm, what selects tokens and lays them out, and the cells with their targets.
        per_token = (7 * width + 4 * inner + 2 * patch) * element_bytes + (2 * width + 3 * patch) * INNER_BYTES
        kept += cells * number * per_token
        largest = max(largest, number * patch * width * element_bytes)  # the gradient at the weights of the head
    return kept + largest


def _kept_by_block(config: ScFusionTTTConfig, length: int, cells: int, element_bytes: int) -> float:
    """
    Count the bytes that a block keeps for its backward pass.

    Per token, in float32: both norms their input and its standardised rows, 4 D, and the scan. In the type of the
    activations: what the projections of the TTT layer read and give, 3 D, or 6 D with a gate; what the MLP reads, D,
    and computes, 4 I; D to join two ways.
    """
    width, heads = config.hidden_size, config.num_attention_heads
    outside = 3 + 3 * config.ttt_use_gate + 1
    both = _ways(config) == 2
    per_token = (outside * width + 4 * config.intermediate_size + heads) * element_bytes
    per_token += ((4 + both) * width + 4) * INNER_BYTES
    scan = _kept_by_linear if config.ttt_layer_type == "linear" else _kept_by_mlp
    return cells * length * per_token + scan(config, length, cells * _ways(config)) * INNER_BYTES


def _kept_by_checkpoint(config: ScFusionTTTConfig, length: int, cells: int, element_bytes: int) -> float:
    """Count the bytes of a block that is computed again: its input and mask, and what checkpointing cannot drop."""
    kept = cells * length * (config.hidden_size * element_bytes + 1)
    if config.ttt_layer_type == "linear":
        kept += _short_buffers(config, length, cells * _ways(config)) * INNER_BYTES
    return kept


def _groups(config: ScFusionTTTConfig, length: int, cells: int) -> int:
    """Count the groups of mini-batches, as `ttt_linear_groups.Settings.groups` cuts them."""
    rows = cells * config.num_attention_heads
    most = max(GROUP_ELEMENTS // (rows * config.ttt_mini_batch_size * config.head_dim), 2)
    return max(round(length // config.ttt_mini_batch_size / min(most, MOST_MINI_BATCHES_PER_GROUP)), 1)


def _kept_by_linear(config: ScFusionTTTConfig, length: int, cells: int) -> float:
    """
    Count the elements that `ttt_linear` keeps.

    Per token and head, queries, keys, values, outputs of the fast weights and inner gradients, 5 K, and their
    statistics; the fast weights at the start of every group of mini-batches; the buffers of short sequences.
    """
    head, rows = config.head_dim, cells * config.num_attention_heads
    kept = rows * (length * (5 * head + 4) + _groups(config, length, cells) * (head + 1) * head)
    return kept + _short_buffers(config, length, cells)


def _short_buffers(config: ScFusionTTTConfig, length: int, cells: int) -> float:
    """Count the elements of the buffers `ttt_linear_groups.Group`, which sequences of few elements keep; else 0."""
    head, size = config.head_dim, config.ttt_mini_batch_size
    rows = cells * config.num_attention_heads
    if rows * length * head > KEPT_ELEMENTS:
        return 0.0
    states = length // size + _groups(config, length, cells)
    return rows * (length * (3 * (head + 1) + 4 * head + 3 + 2 * size) + states * (head + 1) * head)


def _kept_by_mlp(config: ScFusionTTTConfig, length: int, cells: int) -> float:
    """
    Count the elements that autograd keeps of `ttt_mlp`.

    Per token and head 16 rows of the inner network, 4 K wide, 13 K of queries, keys, targets and outputs, and 5 M of
    scores; per mini-batch the fast weights, 8 K^2.
    """
    head, size = config.head_dim, config.ttt_mini_batch_size
    per_token = 16 * 4 * head + 13 * head + 5 * size + 8 * head * head / size
    return cells * config.num_attention_heads * length * per_token
