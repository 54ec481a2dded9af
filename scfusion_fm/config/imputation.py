"""Settings of `finetune/protein_imputation.py`."""

from dataclasses import dataclass, field

from scfusion_fm.config.finetune import FinetuneConfig
from scfusion_fm.config.ranges import check_ranges


@dataclass
class ImputationConfig(FinetuneConfig):
    """`finetune/protein_imputation.py`: pretrained model and cells of panels that differ to a model that fills gaps."""

    test_groups: list[str] = field(default_factory=list)
    """Files (by name), or groups of `batch_key`, of which all cells are test cells, instead of the share of `split`."""
    folds: int = 2
    """Sets into which the proteins of each panel are divided; to be scored, each is hidden once, with the others of its
    set. 2 hides half of a panel."""

    def __post_init__(self):
        super().__post_init__()
        self.refuse_final("proteins that panels lack")
        check_ranges(self, {"folds": "[2, 100]"})
