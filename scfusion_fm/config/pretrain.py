"""Settings of `pretrain/run.py`."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from scfusion_fm.config.ranges import (
    BELOW_ONE,
    COUNT,
    COUNT_OR_NONE,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SHARE,
    check_ranges,
)


@dataclass
class MaskingConfig:
    """What pretraining hides."""

    rna_ratio: float = 0.15
    """Share of RNA tokens of a cell, in [0, 1)."""
    adt_ratio: float = 0.15
    """Share of protein tokens of a cell, in [0, 1)."""
    hide_rna_probability: float = 0.1
    """Probability that the whole RNA of a paired cell is hidden."""
    hide_adt_probability: float = 0.2
    """Probability that all proteins of a paired cell are hidden."""

    def __post_init__(self):
        check_ranges(self, dict.fromkeys(("rna_ratio", "adt_ratio"), BELOW_ONE), "masking.")
        hide = (self.hide_rna_probability, self.hide_adt_probability)
        if not (min(hide) >= 0 and sum(hide) <= 1):  # false for what is no number, too
            raise ValueError(
                "`masking.hide_rna_probability` and `masking.hide_adt_probability` must be at least 0 and at most 1 "
                f"together, got {hide[0]} and {hide[1]}."
            )


@dataclass
class OptimConfig:
    """Optimizer, schedule and batch."""

    epochs: float = 10.0
    """Passes over the training cells."""
    global_batch_size: int = 64
    """Cells per optimizer step, over all ranks and accumulation steps."""
    micro_batch_size: int = 32
    """Cells per rank and forward pass."""
    lr: float = 1e-3
    """Highest learning rate."""
    min_lr_ratio: float = 0.05
    """Last learning rate as a share of the highest."""
    warmup_ratio: float = 0.1
    """Share of steps with rising learning rate."""
    schedule: str = "cosine"
    """Way down of the learning rate: cosine, or wsd (constant, then linear)."""
    decay_ratio: float = 0.2
    """Share of steps with falling learning rate; of wsd only."""
    weight_decay: float = 0.05
    """AdamW weight decay, on matrices of linear layers only."""
    embedding_lr_ratio: float = 1.0
    """Learning rate of the weights that embed values of genes and proteins, as a share of the others'."""
    max_grad_norm: float = 1.0
    """Gradient clipping; 0 turns it off."""


@dataclass
class LoaderConfig:
    """In which neighbourhoods cells are read; all but `threads` decide the order of cells."""

    block_rows: int = 64
    """Neighbouring cells that are read together; fewer mix better and read slower."""
    window_blocks: int = 32
    """Blocks of a lane that are mixed with each other; more mix better and take more memory."""
    lanes: int = 16
    """Places of the atlas that each batch is drawn from; a multiple of the number of ranks, best a divisor of
    `optim.global_batch_size`."""
    threads: int = 2
    """Threads per rank that read ahead."""
    weights: dict[str, float] = field(default_factory=dict)
    """How often a cell of a data set is shown per epoch, by name of the data set; 1 where none is given. An epoch holds
    round(weight * cells) cells of each data set and the next epoch goes on where it stopped: 0.5 shows every cell once
    in two epochs."""

    def __post_init__(self):
        check_ranges(self, dict.fromkeys(("block_rows", "window_blocks", "lanes"), COUNT), "loader.")


@dataclass
class RunConfig:
    """When a run reports and saves, and how it uses its machines."""

    log_every: int = 10
    """Steps between progress lines."""
    eval_every: int = 50
    """Steps between evaluations on held-out cells."""
    eval_cells: int = 20_000
    """Held-out cells of an evaluation, at most; the same ones each time. A request to stop waits for it to end."""
    save_every: int = 50
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay."""
    keep_every: int = 0
    """Checkpoints of every so many steps stay too; 0: none."""
    tensorboard: bool = True
    """Whether to write TensorBoard events."""
    wandb_project: str | None = None
    """Weights & Biases project; null logs nothing there."""
    mlflow_experiment: str | None = None
    """MLflow experiment, at `MLFLOW_TRACKING_URI` or in the directory of the run; null logs nothing there."""
    threads_per_rank: int = 1
    """CPU threads of one rank."""
    activation_checkpointing: bool = False
    """Whether to recompute activations in the backward pass instead of keeping them."""
    peak_tflops: float | None = None
    """What the device of a rank can do at most, in TFLOP/s, in the precision of the run; gives the share used (MFU)."""
    timeout_s: float = 1800.0
    """Longest that ranks wait for each other, in seconds."""
    heartbeat_s: float = 5.0
    """Seconds between signs of life of a rank; after 12 without one it counts as dead. 0 turns the watch off."""


GUARD_ACTIONS = ("skip", "stop")


@dataclass
class GuardConfig:
    """
    What happens when a loss or gradient is not finite, or a loss jumps.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    action: str = "skip"
    """skip: leave out the update, count it, go on; stop: end the run."""
    loss_factor: float = 0.0
    """A loss of more than so many times the median of the last `window` is a jump; 0 turns this off."""
    window: int = 50
    """Steps that the median is taken over."""
    max_skips: int = 10
    """Steps without update in a row after which the run ends all the same."""

    def __post_init__(self):
        if self.action not in GUARD_ACTIONS:
            raise ValueError(f"`guard.action` must be one of {GUARD_ACTIONS}, got {self.action!r}.")
        if not (self.loss_factor == 0 or 1 < self.loss_factor <= 1e6):  # of what is no number, neither holds
            raise ValueError(f"`guard.loss_factor` must be 0 (off) or lie in (1, 1e6], got {self.loss_factor}.")
        check_ranges(self, dict.fromkeys(("window", "max_skips"), "[1, 1000000]"), "guard.")


PRETRAIN_RANGES = {
    "seed": SEED,
    "patch_size": COUNT,
    "start_cells": "[0, 1000000]",
    "optim.epochs": NOT_NEGATIVE,
    "optim.global_batch_size": COUNT,
    "optim.micro_batch_size": COUNT,
    "optim.lr": NOT_NEGATIVE,
    "optim.min_lr_ratio": SHARE,
    "optim.warmup_ratio": SHARE,
    "optim.decay_ratio": SHARE,
    "optim.weight_decay": NOT_NEGATIVE,
    "optim.embedding_lr_ratio": SHARE,
    "optim.max_grad_norm": NOT_NEGATIVE,
    "loader.threads": "[1, 1024]",
    "run.log_every": COUNT,
    "run.eval_every": COUNT,
    "run.eval_cells": COUNT_OR_NONE,
    "run.save_every": COUNT,
    "run.keep_checkpoints": COUNT,
    "run.keep_every": COUNT_OR_NONE,
    "run.threads_per_rank": "[1, 1024]",
    "run.peak_tflops": POSITIVE,
    "run.timeout_s": "[1, 1e12]",
    "run.heartbeat_s": NOT_NEGATIVE,
}


@dataclass
class PretrainConfig:
    """`pretrain/run.py`: atlas to checkpoints."""

    output_dir: str = MISSING
    """Directory of the run; a run found there is resumed."""
    atlas: str = MISSING
    """Atlas made by `scfusion prepare`."""
    seed: int = 0
    """Seed of weights, order and masks."""
    patch_size: int = 10
    """Genes per RNA token."""
    model: dict[str, Any] = field(default_factory=dict)
    """Fields of `ScFusionTTTConfig`; the vocabulary sets the numbers of tokens."""
    start_cells: int = 0
    """Training cells whose principal components the embeddings of values start from; 0 starts from random weights."""
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    """What is hidden."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """How it is trained."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """How cells are read."""
    run: RunConfig = field(default_factory=RunConfig)
    """When it reports and saves, and how it uses its machines."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """Which steps are left out."""
    deepspeed: str = "configs/deepspeed/zero2.json"
    """DeepSpeed settings; batch sizes and clipping come from `optim`."""

    def __post_init__(self):
        check_ranges(self, PRETRAIN_RANGES)
