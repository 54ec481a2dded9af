"""Compare models that `scripts/make_models.py` made with those that come with the package.

    python scripts/check_models.py OUT/shipped

Are the shipped weights what the recipe gives? Compared are the names of types and proteins, the figures by study (they
may differ by what seeds spread, and by 0.02), and what the models say of the demo file. Weights are not: another number
of threads or version rounds differently. The exit code is 1 where anything differs.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

import scfusion_fm as sf
from scfusion_fm.comparison.study_figures import compare_figures, load_figures
from scfusion_fm.config.command import run_command
from scfusion_fm.inference.model_files import ModelFiles, list_shipped, verify_model
from scfusion_fm.inference.ship import FIGURES, check_size

DEMO = Path(__file__).parents[1] / "data" / "demo_teaseq_pbmc.h5mu"
SAME_TYPES, SAME_PROTEINS = 0.95, 0.95
"""Share of the demo's cells with the same type; correlation of predicted proteins, mean over the proteins."""


def main() -> None:
    """Print what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("made", type=Path, help="directory of the models that were made, by name")
    made, sf.settings.verbosity = parser.parse_args().made, 0
    shipped = list_shipped()
    told = [] if shipped else ["the package comes without models"]
    for name, path in shipped.items():
        told += [f"{name}: {line}" for line in compare_models(path, made / name)]
    print("\n".join(told) or f"{len(shipped)} models are what the recipe gives")
    sys.exit(bool(told))


def compare_models(shipped: Path, made: Path) -> list[str]:
    """Say how a model differs from the one that comes with the package."""
    for path in (shipped, made):
        verify_model(ModelFiles.open(path).path)
        check_size(path)
    old, new = (ModelFiles.open(path).read_config() for path in (shipped, made))
    told = compare_figures(load_figures(shipped / FIGURES), load_figures(made / FIGURES))
    if (old.labels, old.predicted_features) != (new.labels, new.predicted_features):
        return [*told, "other types or proteins"]
    if old.labels:
        told += compare_types(*(sf.annotate(DEMO, path) for path in (shipped, made)))
    elif old.predicted_features:
        told += compare_proteins(*(sf.predict_protein(DEMO, path) for path in (shipped, made)))
    return told


def compare_types(old, new) -> list[str]:
    """Say whether two annotations differ."""
    same = (old.obs["cell_type_pred"].astype(str) == new.obs["cell_type_pred"].astype(str)).mean()
    return [] if same >= SAME_TYPES else [f"{same:.3f} of the demo's cells have the same type, below {SAME_TYPES}"]


def compare_proteins(old, new) -> list[str]:
    """Say whether two predictions differ."""
    x, y = (pd.DataFrame(np.asarray(found.obsm["protein_scfusion_ttt"])) for found in (old, new))
    same = x.corrwith(y).mean()
    return [] if same >= SAME_PROTEINS else [f"proteins of the demo correlate by {same:.3f}, below {SAME_PROTEINS}"]


if __name__ == "__main__":
    run_command(main)
