"""Settings of every command: YAML files checked against dataclasses, with dotted overrides."""

import dataclasses
import difflib
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar, get_args

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

T = TypeVar("T")


@dataclass
class SplitConfig:
    """Which cells are held out; the same names give the same split in every command."""

    val_fraction: float = 0.1
    """Share of cells for choosing among models, in [0, 1)."""
    test_fraction: float = 0.2
    """Share of cells for the final figures, in [0, 1)."""
    seed: int = 0
    """Seed of the hash that assigns cells."""
    group_key: str | None = None
    """Column of obs whose groups (a donor, a batch) stay together; `dataset` holds out whole data sets of an atlas;
    null splits cell by cell."""


@dataclass
class SourceConfig:
    """One file that goes into an atlas."""

    path: str = MISSING
    """An .h5ad, .h5mu, 10x .h5 or zarr store with raw counts; a path, or a URL such as s3://bucket/cells.h5ad."""
    name: str | None = None
    """Name of the data set; the stem of the file by default."""
    modality: str = "auto"
    """What a single AnnData holds: auto, rna or adt."""
    licence: str = "unknown"
    """Licence of the data, copied into the manifest."""
    reference: str = ""
    """Where the data come from, copied into the manifest."""


@dataclass
class PrepareConfig:
    """`scfusion prepare`: files to atlas."""

    output: str = MISSING
    """Directory or URL of the new atlas; must not exist."""
    sources: list[SourceConfig] = field(default_factory=list)
    """Files to read."""
    genes: str = "protein_coding"
    """Gene vocabulary: protein_coding (all human ones) or sources (what the files measured)."""
    proteins: str = "all"
    """Protein vocabulary: all known ones or sources."""
    obs_columns: list[str] = field(default_factory=list)
    """Columns of obs to carry into the atlas where a source has them."""
    split: SplitConfig = field(default_factory=SplitConfig)
    """Cells held out of pretraining."""
    seed: int = 0
    """Seed of the order of rows in the store."""
    codec: str = "lz4"
    """Compression: lz4, or zstd, which takes about a quarter less space and decodes 1.7 times slower."""
    workers: int = 1
    """Processes that read and write at a time."""
    dask: str | None = None
    """Address of a Dask scheduler whose workers see the same files; null works on this machine."""
    work_dir: str | None = None
    """Directory of unfinished work; by default a hidden one beside the output."""


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
    """How often a cell of a data set is shown per epoch, by name of the data set; 1 where none is given."""


@dataclass
class RunConfig:
    """Cadence of a run, in optimizer steps."""

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


@dataclass
class GuardConfig:
    """What happens when a loss or gradient is not finite, or a loss jumps."""

    action: str = "skip"
    """skip: leave out the update, count it, go on; stop: end the run."""
    loss_factor: float = 0.0
    """A loss of more than so many times the median of the last `window` is a jump; 0 turns this off."""
    window: int = 50
    """Steps that the median is taken over."""
    max_skips: int = 10
    """Steps without update in a row after which the run ends all the same."""


_MANY = 1e12
PRETRAIN_RANGES = {
    "optim.epochs": (0.0, _MANY),
    "optim.lr": (0.0, _MANY),
    "optim.min_lr_ratio": (0.0, 1.0),
    "optim.warmup_ratio": (0.0, 1.0),
    "optim.decay_ratio": (0.0, 1.0),
    "optim.weight_decay": (0.0, _MANY),
    "optim.embedding_lr_ratio": (0.0, 1.0),
    "start_cells": (0, 1_000_000),
    "optim.max_grad_norm": (0.0, _MANY),
    "run.log_every": (1, _MANY),
    "run.eval_every": (1, _MANY),
    "run.eval_cells": (0, _MANY),
    "run.save_every": (1, _MANY),
    "run.keep_checkpoints": (1, _MANY),
    "run.keep_every": (0, _MANY),
    "run.threads_per_rank": (1, 1024),
    "run.timeout_s": (1.0, _MANY),
    "run.heartbeat_s": (0.0, _MANY),
    "guard.loss_factor": (0.0, _MANY),
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
    """When it reports and saves."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """Which steps are left out."""
    deepspeed: str = "configs/deepspeed/zero2.json"
    """DeepSpeed settings; batch sizes and clipping come from `optim`."""

    def __post_init__(self):
        for name, (least, most) in PRETRAIN_RANGES.items():
            value = attrgetter(name)(self)
            if not least <= value <= most:  # false for what is no number, too
                raise ValueError(f"`{name}` must lie between {least:g} and {most:g}, got {value}.")


@dataclass
class FinetuneOptimConfig:
    """Training of a task head and the model under it."""

    epochs: float = 20.0
    """Longest training, in passes over the training cells."""
    batch_size: int = 32
    """Cells per device and step."""
    lr: float = 5e-4
    """Highest learning rate."""
    weight_decay: float = 0.01
    """AdamW weight decay."""
    embedding_lr_ratio: float = 0.1
    """Learning rate of the weights that embed values of genes and proteins, as a share of `lr`."""
    head_lr_ratio: float = 1.0
    """Learning rate of a classifier, as a multiple of `lr`."""
    num_coordinates: int = 50
    """Principal components of the training cells, of each modality, that a head reads beside the tokens; 0 for none."""
    num_landmarks: int = 1000
    """Training cells, at most, of a kernel regression that has a share in predicting proteins; 0 for none."""
    token_dropout: float = 0.0
    """Largest share of its tokens that a training cell loses, in [0, 1): each draws its share between 0 and this."""
    warmup_ratio: float = 0.1
    """Share of steps with rising learning rate."""
    patience: int = 5
    """Evaluations without improvement after which training stops."""
    threads: int = 2
    """CPU threads."""
    lora_rank: int = 0
    """Rank of adapters that are trained, with the head, instead of all weights; 0 trains all. Needs peft."""

    def __post_init__(self):
        if self.lora_rank < 0:
            raise ValueError(f"`optim.lora_rank` must be at least 0, got {self.lora_rank}.")
        for name in ("num_coordinates", "num_landmarks"):
            if getattr(self, name) < 0:
                raise ValueError(f"`optim.{name}` must be at least 0, got {getattr(self, name)}.")
        if not 0 <= self.token_dropout < 1:
            raise ValueError(f"`optim.token_dropout` must lie in [0, 1), got {self.token_dropout}.")


@dataclass
class AnnotationConfig:
    """`finetune/cell_type_annotation.py`: pretrained model and labelled file to a classifier."""

    model: str = MISSING
    """Directory of a pretrained model."""
    data: str = MISSING
    """Labelled file."""
    output_dir: str = MISSING
    """Directory of the run; must not exist."""
    label_key: str = "cell_type"
    """Column of obs with the labels."""
    unlabelled: list[str] = field(default_factory=lambda: ["unknown", "nan", ""])
    """Values of the column that mean: no label."""
    min_cells_per_class: int = 10
    """Classes with fewer cells are left out, and listed in the results."""
    balance_classes: bool = True
    """Whether the loss gives every class the same weight, however many cells it has."""
    modality_dropout: float = 0.3
    """Probability that a paired training cell loses one of its modalities, in [0, 1]."""
    calibration_fraction: float = 0.5
    """Share of the validation cells that sets temperature and thresholds, and does not choose the epoch; in (0, 1)."""
    unknown_score: str = "mahalanobis"
    """What cells of unknown types are recognised by: mahalanobis, energy or max_softmax."""
    leave_out_types: list[str] = field(default_factory=list)
    """Cell types that are left out in turn, to tell how many of their cells are accepted; each costs a fine-tuning."""
    seed: int = 0
    """Seed of head, order and dropout."""
    split: SplitConfig = field(default_factory=SplitConfig)
    """Held-out cells; keep it equal to that of the atlas."""
    allow_seen_test_cells: bool = False
    """Whether to go on, and say so in the results, when the model was trained on some of the test cells."""
    optim: FinetuneOptimConfig = field(default_factory=FinetuneOptimConfig)
    """How it is trained."""


@dataclass
class UnimodalTransferConfig:
    """`finetune/unimodal_transfer.py`: pretrained model and labelled RNA to a classifier of cells without proteins."""

    model: str = MISSING
    """Directory of a pretrained model."""
    data: str = MISSING
    """Labelled file; proteins in it are not shown."""
    output_dir: str = MISSING
    """Directory of the run; must not exist."""
    projected_proteins: bool = True
    """Whether the latents of proteins, projected from the RNA, enter the fusion; false leaves proteins out."""
    proteins: list[str] | None = None
    """Proteins to project, by their names in the model. Null: those that the file measured; for a file without
    proteins all that the model knows, so name them where the vocabulary is wider than the data of its pretraining."""
    label_key: str = "cell_type"
    """Column of obs with the labels."""
    unlabelled: list[str] = field(default_factory=lambda: ["unknown", "nan", ""])
    """Values of the column that mean: no label."""
    min_cells_per_class: int = 10
    """Classes with fewer cells are left out, and listed in the results."""
    balance_classes: bool = False
    """Whether the loss gives every class the same weight; the paper's plain cross-entropy does not."""
    calibration_fraction: float = 0.5
    """Share of the validation cells that sets temperature and thresholds, and does not choose the epoch; in (0, 1)."""
    unknown_score: str = "mahalanobis"
    """What cells of unknown types are recognised by: mahalanobis, energy or max_softmax."""
    seed: int = 0
    """Seed of head, order and dropout."""
    split: SplitConfig = field(default_factory=SplitConfig)
    """Held-out cells; keep it equal to that of the atlas."""
    allow_seen_test_cells: bool = False
    """Whether to go on, and say so in the results, when the model was trained on some of the test cells."""
    optim: FinetuneOptimConfig = field(default_factory=FinetuneOptimConfig)
    """How it is trained."""


@dataclass
class CrossModalConfig:
    """`finetune/cross_modal_prediction.py`: pretrained model and paired file to a protein predictor."""

    model: str = MISSING
    """Directory of a pretrained model."""
    data: str = MISSING
    """Paired file."""
    output_dir: str = MISSING
    """Directory of the run; must not exist."""
    seed: int = 0
    """Seed of order."""
    calibration_fraction: float = 0.5
    """Share of the validation cells that calibrates the intervals, and does not choose the epoch; in (0, 1)."""
    interval_group_key: str | None = None
    """Column of obs, such as a cell type, whose groups get intervals of their own beside the pooled ones."""
    background_key: str | None = None
    """Column of obs with groups in which proteins have levels of their own, such as batches; the model learns the level
    that they share, which is for cells of new groups. Null: no such groups."""
    interval_left_out_key: str | None = None
    """Column of obs, such as the donor, whose groups are left out of the fit in turn, so that intervals are made for
    cells of a new group; as many more fits as there are groups. Null: intervals are for cells like these."""
    coverage_key: str | None = None
    """Column of obs, such as the donor, by which the coverage of the intervals on test cells is told."""
    split: SplitConfig = field(default_factory=SplitConfig)
    """Held-out cells; keep it equal to that of the atlas."""
    allow_seen_test_cells: bool = False
    """Whether to go on, and say so in the results, when the model was trained on some of the test cells."""
    optim: FinetuneOptimConfig = field(default_factory=FinetuneOptimConfig)
    """How it is trained."""


def load_config(schema: type[T], path: str | Path, overrides: list[str] = ()) -> T:
    """
    Read a YAML file into a checked dataclass.

    Parameters
    ----------
    schema
        One of the dataclasses above.
    path
        YAML file.
    overrides
        Settings such as `optim.lr=3e-4` that replace those of the file.

    Raises
    ------
    ValueError
        If the file is missing or no YAML, a key is unknown, a value has the wrong type or is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"`--config` must be a YAML file, got {str(path)!r}, which does not exist.")
    bad = [o for o in overrides if "=" not in o]
    if bad:
        raise ValueError(f"Overrides must read `key=value`, got {bad[0]!r}.")
    try:
        read = OmegaConf.load(path)
    except (YAMLError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"`--config` must be readable YAML, got {str(path)!r}: {error}") from error
    if not OmegaConf.is_dict(read):
        raise ValueError(f"`--config` must hold settings as `key: value`, got a list in {str(path)!r}.")
    try:
        given = OmegaConf.merge(read, OmegaConf.from_dotlist(list(overrides)))
    except TypeError as error:  # of a mapping into a list
        raise ValueError(
            f"Overrides must replace a list as a whole, such as `sources=[{{path: a.h5ad}}]`, got {overrides}."
        ) from error
    if hasattr(schema, "complete"):
        given = schema.complete(given)
    _check_keys(schema, given, str(path))
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), given)
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ValueError(f"In {path}: {str(error).splitlines()[0]}") from error


def save_config(config: Any, path: Path) -> None:
    """Write a configuration as YAML."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))


def config_differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """List the settings in which two nested dicts differ, as `key: old -> new`."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [f"{prefix}: {old!r} -> {new!r}"]
    found = []
    for key in sorted({*old, *new}):
        found += config_differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
    return found


def _check_keys(schema: type, given: Any, where: str, prefix: str = "") -> None:
    """Refuse unknown keys with the nearest known one."""
    fields = {f.name: f for f in dataclasses.fields(schema)}
    for key in given:
        name = f"{prefix}{key}"
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f" Did you mean {prefix}{near[0]!s}?" if near else f" Known: {', '.join(fields)}."
            raise ValueError(f"Unknown setting `{name}` in {where}.{hint}")
        value = given._get_node(key)
        kind = fields[key].type
        inner = next(filter(dataclasses.is_dataclass, get_args(kind)), None)  # of list[X] and dict[str, X]
        if dataclasses.is_dataclass(kind) and OmegaConf.is_dict(value):
            _check_keys(kind, value, where, f"{name}.")
        elif inner and OmegaConf.is_list(value):
            for i, entry in enumerate(value):
                _check_keys(inner, entry, where, f"{name}[{i}].")
        elif inner and OmegaConf.is_dict(value):
            for entry in value:
                _check_keys(inner, value._get_node(entry), where, f"{name}.{entry}.")
