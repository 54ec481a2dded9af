"""Settings of the scripts in `finetune/`, and of `scfusion_fm.finetune`."""

from dataclasses import dataclass, field
from typing import cast

from omegaconf import MISSING, DictConfig, OmegaConf

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

FITS = {"seed": SEED, "calibration_fraction": PROPER_SHARE, "min_coverage": SHARE, "memory_gib": NOT_NEGATIVE}
AUTO = "auto"

# What is chosen where nothing is set: a file of 1,000 cells stops early long before 20 passes, and no file is read for
# much longer than an atlas of 200,000 cells once.
MOST_EPOCHS = 20.0
MOST_CELLS_READ = 200_000
MANY_CELLS = 50_000

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
class ScriptOptimConfig(FinetuneOptimConfig):
    """Training of a task head and the model under it, with what fits most data where nothing is set."""

    epochs: float | None = None  # type: ignore[assignment]  # what is null is filled in
    """Longest training, in passes over the training cells. Null: 20, and fewer from 10,000 training cells on, so that
    200,000 cells are read, but no fewer than one pass."""
    batch_size: int | None = None  # type: ignore[assignment]
    """Cells per device and step. Null: 32, and 128 from 50,000 training cells on."""
    lr: float | None = None  # type: ignore[assignment]
    """Highest learning rate. Null: 0.0005 for cell types, 0.001 for proteins, 0.003 for the transfer to RNA alone."""

    def settle(self, num_train: int, usual_lr: float) -> FinetuneOptimConfig:
        """Fill in what was not set, for a number of training cells."""
        usual = {
            "epochs": min(MOST_EPOCHS, max(1.0, round(MOST_CELLS_READ / num_train, 1))),
            "batch_size": 128 if num_train >= MANY_CELLS else 32,
            "lr": usual_lr,
        }
        given = {name: value for name, value in vars(self).items() if value is not None}
        return FinetuneOptimConfig(**(usual | given))


@dataclass
class FinetuneSplitConfig(SplitConfig):
    """Which cells are held out."""

    group_key: str | None = AUTO
    """Column of obs whose groups (a donor, a batch) stay together. auto: `batch_key` where there is one with at least
    five groups of which some are small enough to be held out; else, and for null, cells are held out one by one."""
    column: str | None = None
    """Column of obs that says of each cell train, val or test (nothing: not used), instead of the fractions. Without
    any val, `val_fraction` of the cells of train are."""

    def __post_init__(self):
        super().__post_init__()
        if self.val_fraction == 0:
            raise ValueError(
                "`split.val_fraction` must be above 0, for cells that choose the epoch and calibrate, got 0."
            )
        if self.column is not None and self.group_key not in (AUTO, None):
            raise ValueError(
                f"`split.column` and `split.group_key` each say how cells are divided, got {self.column!r} and "
                f"{self.group_key!r}; set one of them."
            )


@dataclass
class FinetuneConfig:
    """Settings that all fine-tunings have."""

    model: str = MISSING
    """Directory of a pretrained model, name of one of `scfusion models`, or id on the Hugging Face hub."""
    data: list[str] = MISSING
    """Files and atlases with the cells. Of several, each keeps its own genes and proteins: what a file did not measure
    is not zero. They get a column `dataset` with the name of the file, or of the data set in an atlas."""
    output_dir: str = MISSING
    """Directory of the run; must not exist."""
    batch_key: str | None = None
    """Column of obs with the batch or donor. Its groups may have panels of their own: what has no count in any cell of
    a group, and should have, was not measured there. Null: zeros are zeros, with a warning where they seem not to."""
    min_coverage: float = 0.01
    """Share of the model's genes (proteins where there are none) below which a file is refused; 0 for none."""
    seed: int = 0
    """Seed of head, order and dropout."""
    calibration_fraction: float = 0.5
    """Share of the validation cells that calibrates, and does not choose the epoch; in (0, 1)."""
    split: FinetuneSplitConfig = field(default_factory=FinetuneSplitConfig)
    """Held-out cells; of data of the model's own atlas, as the atlas holds them out."""
    final: bool = False
    """Whether the model that is kept learns from all cells, those of the test too, with what a run on the parts of
    `split` chose; all figures are of that run. False: the model that was tested is kept."""
    allow_seen_test_cells: bool = False
    """Whether to go on, and say so in the results, when the model was trained on some of the test cells."""
    memory_gib: float | None = None
    """Memory for cells of atlases; of those that need more, cells are read when they are used. Null: half of what is
    free."""
    report: bool = True
    """Whether to write `report.html`, with tables and pictures."""
    optim: ScriptOptimConfig = field(default_factory=ScriptOptimConfig)
    """How it is trained."""

    @staticmethod
    def complete(given: DictConfig) -> DictConfig:
        """Let one file stand for a list of one."""
        if isinstance(given.get("data"), str):
            return cast(DictConfig, OmegaConf.merge(given, {"data": [given["data"]]}))
        return given

    def __post_init__(self):
        if isinstance(self.data, str):
            self.data = [self.data]
        if not self.data:
            raise ValueError("`data` must name a file or an atlas, got none.")
        if len(set(self.data)) < len(self.data):
            raise ValueError(f"`data` must name each file once, got {self.data}.")
        check_ranges(self, FITS)

    def refuse_final(self, task: str) -> None:
        """
        Refuse what a task does not do.

        Raises
        ------
        ValueError
            If the kept model is to learn from all cells.
        """
        if self.final:
            raise ValueError(
                f"`final` must be false for {task}, got true: it is for cell types and for proteins from RNA. Leave it "
                "out, or hold out fewer cells by `split`."
            )

    @property
    def data_names(self) -> str:
        """What was given, in a line."""
        return ", ".join(self.data)


@dataclass
class LabelledConfig(FinetuneConfig):
    """Settings that fine-tunings for cell types have."""

    labels_key: str = "cell_type"
    """Column of obs with the labels; in every file."""
    unlabelled: list[str] = field(default_factory=lambda: ["unknown", "nan", ""])
    """Values of the column that mean: no label."""
    min_cells_per_class: int = 10
    """Classes with fewer cells are left out, and listed in the results."""
    unknown_score: str = "mahalanobis"
    """What cells of unknown types are recognised by: mahalanobis, energy or max_softmax."""

    def __post_init__(self):
        super().__post_init__()
        check_ranges(self, {"min_cells_per_class": COUNT_OR_NONE})


@dataclass
class AnnotationConfig(LabelledConfig):
    """`finetune/cell_type_annotation.py`: pretrained model and labelled cells to a classifier."""

    balance_classes: bool = True
    """Whether the loss gives every class the same weight, however many cells it has."""
    modality_dropout: float = 0.3
    """Probability that a paired training cell loses one of its modalities, in [0, 1]."""
    leave_out_types: list[str] = field(default_factory=list)
    """Cell types that are left out in turn, to tell how many of their cells are accepted; each costs a fine-tuning."""
    study_key: str | None = None
    """Column of obs with the study, for cells of new studies: their types are named from RNA in units of each study.
    `dataset` is the file, where there are several. Unknown cells are then recognised by their energy, if nothing else
    is set. Null: types are named as in studies like these."""

    @staticmethod
    def complete(given: DictConfig) -> DictConfig:
        """Let one file stand for a list of one, and choose how unknown cells of new studies are recognised."""
        given = FinetuneConfig.complete(given)
        if given.get("study_key") is not None and "unknown_score" not in given:
            return cast(DictConfig, OmegaConf.merge(given, {"unknown_score": "energy"}))
        return given

    def __post_init__(self):
        super().__post_init__()
        check_ranges(self, {"modality_dropout": SHARE})


@dataclass
class UnimodalTransferConfig(LabelledConfig):
    """`finetune/unimodal_transfer.py`: pretrained model and labelled RNA to a classifier of cells without proteins."""

    projected_proteins: bool = True
    """Whether the latents of proteins, projected from the RNA, enter the fusion; false leaves proteins out."""
    proteins: list[str] | None = None
    """Proteins to project, by their names in the model. Null: those that the files measured; for files without
    proteins all that the model knows, so name them where the vocabulary is wider than the data of its pretraining."""
    balance_classes: bool = False
    """Whether the loss gives every class the same weight; the paper's plain cross-entropy does not."""


@dataclass
class CrossModalConfig(FinetuneConfig):
    """`finetune/cross_modal_prediction.py`: pretrained model and paired cells to a protein predictor."""

    interval_group_key: str | None = None
    """Column of obs, such as a cell type, whose groups get intervals of their own beside the pooled ones."""
    background_key: str | None = None
    """Column of obs with groups in which genes and proteins have units of their own, such as laboratories: for cells of
    new groups. Proteins are learned in the units that the groups share, genes are read in those of each group, and
    predictions are centred over the panel that is asked for. No weights of the pretrained model are trained then: of
    `optim`, `num_coordinates` and `threads` are read. Null: no such groups."""
    interval_left_out_key: str | None = None
    """Column of obs, such as the donor, whose groups are left out of the fit in turn, so that intervals are made for
    cells of a new group; as many more fits as there are groups. Null: intervals are for cells like these."""
    coverage_key: str | None = None
    """Column of obs, such as the donor, by which the coverage of the intervals on test cells is told."""
