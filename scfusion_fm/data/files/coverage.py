"""How much of what a model knows a file measures, and how much of the file the model reads."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scfusion_fm.notices import warn

# Of random genes of the demo file, the demo model read 300 cells with 30% of its genes 0.4 of the mean distance between
# two cells from where they stood with all; with 1% 0.9 of it: as far as another cell. `docs/use.md` has the table.
MIN_COVERAGE = 0.01  # refused below
LOW_COVERAGE = 0.3  # warned of below


@dataclass(frozen=True)
class PanelCoverage:
    """
    Say how well a model and one modality of a file fit.

    Attributes
    ----------
    noun
        genes or proteins.
    measured, known
        Those of the model that the file measures, and all that it has.
    count_share
        Share of the file's counts that are of these.
    """

    noun: str
    measured: int
    known: int
    count_share: float

    @classmethod
    def of(cls, noun: str, observed: NDArray[np.bool_], known_counts: float, all_counts: float) -> "PanelCoverage":
        """Give the coverage of a modality from what is measured, and counts of known and of all features."""
        share = known_counts / all_counts if all_counts > 0 else 0.0
        return cls(noun, int(observed.sum()), len(observed), float(share))

    @property
    def share(self) -> float:
        """Share of what the model knows."""
        return self.measured / max(self.known, 1)

    def describe(self) -> str:
        """Tell it in half a line."""
        text = f"{self.measured:,} of the model's {self.known:,} {self.noun} ({self.share:.1%})"
        return f"{text} with {self.count_share:.0%} of the counts"


def check_panel(coverage: list[PanelCoverage], path: str, min_coverage: float = MIN_COVERAGE) -> None:
    """
    Refuse a file of which a model knows almost nothing, and warn of one of which it knows little.

    Parameters
    ----------
    coverage
        Of each modality, as a file over a vocabulary has it. Few proteins beside genes are no reason to warn.
    path
        What to call the file.
    min_coverage
        Share of the model's genes, or proteins where there are no genes, below which a file is refused; 0 for none.

    Raises
    ------
    ValueError
        If the share is below, or the setting is no share.
    """
    if not 0 <= min_coverage <= 1:
        raise ValueError(f"`min_coverage` must lie in [0, 1], got {min_coverage}.")
    for found in coverage[:1]:
        if found.share < min_coverage:
            raise ValueError(
                f"`{path}` must measure at least {min_coverage:.1%} of what the model knows, got {found.describe()}. "
                "Use a model of such panels; `min_coverage` 0 (--min-coverage 0) goes on all the same."
            )
        if min(found.share, found.count_share) < LOW_COVERAGE:
            message = f"{path}: the model knows little of this file: {found.describe()}. Results are less certain."
            warn(message)
