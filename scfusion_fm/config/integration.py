"""Settings of `finetune/batch_integration.py`."""

from dataclasses import dataclass, field

from scfusion_fm.config.finetune import FinetuneConfig
from scfusion_fm.config.ranges import BELOW_ONE, NOT_NEGATIVE, check_ranges


@dataclass
class IntegrationConfig(FinetuneConfig):
    """`finetune/batch_integration.py`: pretrained model and cells of batches to an embedding that mixes them."""

    test_groups: list[str] = field(default_factory=list)
    """Files (by name), or groups of `batch_key`, that are held out entirely: batches that the model has not met."""
    labels_key: str | None = None
    """Column of obs with cell types to learn from and to score by. Null: types are not learned from."""
    types_key: str | None = None
    """Column of obs with cell types that are scored by alone. Null: `labels_key`; without it, clusters of the principal
    components around the mean of each batch stand for types, which flatters methods that are close to them."""
    unlabelled: list[str] = field(default_factory=lambda: ["unknown", "nan", ""])
    """Values of these columns that mean: no type."""
    modalities: list[str] = field(default_factory=lambda: ["rna", "adt"])
    """What is shown of the cells, in training and for the scores; `embed` shows all that a file has."""
    num_neighbours: int = 10
    """Cells of two batches are partners where each is among this many nearest of the other."""
    temperature: float = 0.1
    """By which similarities of cells are divided; the smaller, the more the most similar ones count."""
    pair_weight: float = 3.0
    """Weight of partners beside the reconstruction of masked genes and proteins."""
    mask_ratio: float = 0.3
    """Share of the tokens of a training cell that is masked, in [0, 1)."""

    def __post_init__(self):
        super().__post_init__()
        self.refuse_final("batches that mix")
        ranges = {"num_neighbours": "[1, 1000]", "temperature": "(0, 100]", "mask_ratio": BELOW_ONE}
        check_ranges(self, ranges | {"pair_weight": NOT_NEGATIVE})
        if not self.modalities or set(self.modalities) - {"rna", "adt"}:
            raise ValueError(f"`modalities` must be out of rna and adt, at least one, got {self.modalities}.")
