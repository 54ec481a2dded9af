"""Settings of the scripts in `finetune/`."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from scfusion_fm.config.ranges import (
    BELOW_ONE,
    COUNT,
    COUNT_OR_NONE,
    NOT_NEGATIVE,
    POSITIVE,
    PROPER_SHARE,
    SEED,
    SHARE,
    check_ranges,
)
from scfusion_fm.config.split import SplitConfig

FITS = {"seed": SEED, "calibration_fraction": PROPER_SHARE, "min_coverage": SHARE}
LABELLED_FITS = FITS | {"min_cells_per_class": COUNT_OR_NONE}

# What is shown of cells, by the names of settings and tables.
INPUTS = {"rna": ("rna",), "adt": ("adt",), "rna+adt": ("rna", "adt")}


FINETUNE_RANGES = {
    "epochs": POSITIVE,
    "batch_size": "[1, 1000000]",
    "lr": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "embedding_lr_ratio": NOT_NEGATIVE,
    "head_lr_ratio": NOT_NEGATIVE,
    "num_coordinates": "[0, 10000]",
    "num_landmarks": COUNT_OR_NONE,
    "token_dropout": BELOW_ONE,
    "warmup_ratio": SHARE,
    "patience": COUNT,
    "threads": "[1, 1024]",
    "lora_rank": "[0, 1024]",
}


@dataclass
class FinetuneOptimConfig:
    """Training of a task head and the model under it."""

    epochs: float = 20.0
    """Longest training, in passes over the training cells."""
    batch_size: int = 32
    """Cells per step, over all ranks."""
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
    """CPU threads of a rank."""
    deepspeed: str | None = None
    """DeepSpeed file, as for pretraining (configs/deepspeed), for models of which a device cannot hold all; null
    keeps the whole model on every rank."""
    lora_rank: int = 0
    """Rank of adapters that are trained, with the head, instead of all weights; 0 trains all. Needs peft."""

    def __post_init__(self):
        check_ranges(self, FINETUNE_RANGES, "optim.")


@dataclass
class AnnotationConfig:
    """`finetune/cell_type_annotation.py`: pretrained model and labelled file to a classifier."""

    model: str = MISSING
    """Directory of a pretrained model."""
    data: str = MISSING
    """Labelled file."""
    output_dir: str = MISSING
    """Directory of the run; must not exist."""
    batch_key: str | None = None
    """Column of obs whose groups may have panels of their own: what has no count in any cell of a group, and should
    have, was not measured there. Null: zeros are zeros, with a warning where they seem not to be."""
    min_coverage: float = 0.01
    """Share of the model's genes (proteins where there are none) below which a file is refused; 0 for none."""
    labels_key: str = "cell_type"
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

    def __post_init__(self):
        check_ranges(self, LABELLED_FITS | {"modality_dropout": SHARE})


@dataclass
class UnimodalTransferConfig:
    """`finetune/unimodal_transfer.py`: pretrained model and labelled RNA to a classifier of cells without proteins."""

    model: str = MISSING
    """Directory of a pretrained model."""
    data: str = MISSING
    """Labelled file; proteins in it are not shown."""
    output_dir: str = MISSING
    """Directory of the run; must not exist."""
    batch_key: str | None = None
    """Column of obs whose groups may have panels of their own: what has no count in any cell of a group, and should
    have, was not measured there. Null: zeros are zeros, with a warning where they seem not to be."""
    min_coverage: float = 0.01
    """Share of the model's genes (proteins where there are none) below which a file is refused; 0 for none."""
    projected_proteins: bool = True
    """Whether the latents of proteins, projected from the RNA, enter the fusion; false leaves proteins out."""
    proteins: list[str] | None = None
    """Proteins to project, by their names in the model. Null: those that the file measured; for a file without
    proteins all that the model knows, so name them where the vocabulary is wider than the data of its pretraining."""
    labels_key: str = "cell_type"
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

    def __post_init__(self):
        check_ranges(self, LABELLED_FITS)


@dataclass
class CrossModalConfig:
    """`finetune/cross_modal_prediction.py`: pretrained model and paired file to a protein predictor."""

    model: str = MISSING
    """Directory of a pretrained model."""
    data: str = MISSING
    """Paired file."""
    output_dir: str = MISSING
    """Directory of the run; must not exist."""
    batch_key: str | None = None
    """Column of obs whose groups may have panels of their own: what has no count in any cell of a group, and should
    have, was not measured there. Null: zeros are zeros, with a warning where they seem not to be."""
    min_coverage: float = 0.01
    """Share of the model's genes (proteins where there are none) below which a file is refused; 0 for none."""
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

    def __post_init__(self):
        check_ranges(self, FITS)
