"""Which cells are held out."""

from dataclasses import dataclass

from scfusion_fm.config.ranges import BELOW_ONE, HASH_SEED, check_ranges


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

    def __post_init__(self):
        check_ranges(self, {"val_fraction": BELOW_ONE, "test_fraction": BELOW_ONE, "seed": HASH_SEED}, "split.")
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                "`split.val_fraction` + `split.test_fraction` must be below 1 so that cells are left to train on, got "
                f"{self.val_fraction} + {self.test_fraction}."
            )
