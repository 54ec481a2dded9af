"""Proteins of a new laboratory by study: the table of an evaluation, and other predictions scored in the same way.

    python benchmarks/new_laboratory.py table RUN [--predictions DIR] [--json OUT.json]
    python benchmarks/new_laboratory.py cells CONFIG OUT.tsv [data_dir=DIR]

RUN is the directory of `scfusion evaluate --config configs/evaluate/new_laboratory_proteins.yaml`. Scored is Pearson's
r over the test cells of a study, of each protein that the study and at least one training study measured, against the
centred log ratio over the panel of the study; then the mean over proteins, over seeds, and over studies. Intervals are
Student's t at 95 % over studies; differences are paired by study.

`--predictions DIR` scores those of another method: for each unit of RUN a file DIR/<unit>.npz with `cells` (as in
RUN/units/<unit>.npz), `names` (proteins) and `predicted` (cells, proteins), in any unit, since r is of each protein.
Units without a file are left out of all rows, so that methods are compared on the same studies and seeds.

`cells` writes which cells train, validate and test in each unit: columns experiment, seed, fold, part, cell.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t as student

from scfusion_fm.comparison.experiment import Experiment
from scfusion_fm.config.comparison import EvaluateConfig
from scfusion_fm.config.loading import load_config
from scfusion_fm.evaluation.metrics.proteins import protein_scores

OTHER = "given predictions"


def read_units(run: Path) -> dict[str, dict]:
    """Give the record and the arrays of each unit, by name."""
    units = {}
    for path in sorted((run / "units").glob("*.json")):
        with np.load(path.with_suffix(".npz")) as arrays:
            units[path.stem] = json.loads(path.read_text()) | {"arrays": dict(arrays)}
    if not units:
        raise ValueError(f"`RUN` must be a directory of `scfusion evaluate` with units, got {str(run)!r}.")
    return units


def find_panels(units: dict[str, dict]) -> dict[str, set[str]]:
    """Give the proteins that each study measured, from the unit in which it was tested."""
    return {unit["fold"]: name_measured(unit["arrays"]) for unit in units.values()}


def name_measured(arrays: dict[str, NDArray]) -> set[str]:
    """Name the proteins that were measured in the test cells of a unit."""
    return set(arrays["names"][np.isfinite(arrays["measured"]).any(axis=0)].tolist())


def find_scored(unit: dict, panels: dict[str, set[str]]) -> list[str]:
    """Name the proteins of the test study that a training study measured, too."""
    made = unit["made_with"]
    study_of = {file: name for name, files in made["settings"]["studies"].items() for file in files}
    trained = {study_of.get(file, file) for file in made["data"]} - {unit["fold"]}
    missing = sorted(trained - set(panels))
    if missing:
        raise ValueError(f"`RUN` must hold a unit that tests each study, got none of {missing}. Finish the run.")
    return sorted(name_measured(unit["arrays"]) & set().union(*(panels[name] for name in trained)))


def score_unit(unit: dict, scored: list[str], names: NDArray, predicted: NDArray) -> pd.Series:
    """
    Give Pearson's r of each scored protein.

    Parameters
    ----------
    unit
        With its arrays.
    scored
        Names of proteins.
    names
        Names of the columns of `predicted`.
    predicted
        (cells, proteins), for the test cells in the order of the unit.
    """
    arrays = unit["arrays"]
    own, given = ({name: i for i, name in enumerate(part.tolist())} for part in (arrays["names"], names))
    missing = [name for name in scored if name not in given]
    if missing:
        raise ValueError(f"`names` must hold all {len(scored)} scored proteins, got none of {missing[:5]}.")
    measured = arrays["measured"][:, [own[name] for name in scored]]
    table, _ = protein_scores(measured, predicted[:, [given[name] for name in scored]], np.isfinite(measured))
    return table["pearson"].set_axis(scored)


def score_file(unit: dict, scored: list[str], path: Path) -> pd.Series:
    """Score predictions of a file, whose cells may stand in any order."""
    with np.load(path) as given:
        place = {cell: i for i, cell in enumerate(given["cells"].tolist())}
        lost = [cell for cell in unit["arrays"]["cells"].tolist() if cell not in place]
        if lost:
            raise ValueError(f"`cells` of {path} must hold all test cells of the unit, got none for {lost[:3]}.")
        rows = [place[cell] for cell in unit["arrays"]["cells"].tolist()]
        return score_unit(unit, scored, given["names"], given["predicted"][rows])


def tabulate(run: Path, predictions: Path | None = None) -> pd.DataFrame:
    """Give a line for each method, unit and protein: experiment, study, seed, method, protein, pearson."""
    units = read_units(run)
    panels = find_panels(units)
    parts = []
    for name, unit in units.items():
        scored = find_scored(unit, panels)
        methods = {row["method"] for row in unit["scores"]}
        found = {m: score_unit(unit, scored, unit["arrays"]["names"], unit["arrays"][m]) for m in sorted(methods)}
        if predictions is not None:
            if not (predictions / f"{name}.npz").is_file():
                continue
            found[OTHER] = score_file(unit, scored, predictions / f"{name}.npz")
        keys = {"experiment": unit["experiment"], "study": unit["fold"], "seed": unit["seed"]}
        parts += [
            pd.DataFrame({**keys, "method": method, "protein": r.index, "pearson": r.to_numpy()})
            for method, r in found.items()
        ]
    if not parts:
        raise ValueError(f"`--predictions` must hold a file for a unit, got none in {str(predictions)!r}.")
    return pd.concat(parts, ignore_index=True)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Give methods in rows, the best first, and studies in columns: means over proteins and seeds; then intervals."""
    keys = ["study", "method"]
    wide = table.groupby([*keys, "seed"])["pearson"].mean().groupby(keys).mean().unstack("study").dropna(axis=1)
    ends = {method: give_interval(row.to_numpy()) for method, row in wide.iterrows()}
    best = wide.mean(axis=1).idxmax()
    apart = {method: give_interval((row - wide.loc[best]).to_numpy()) for method, row in wide.iterrows()}
    wide["mean"] = wide.mean(axis=1)
    wide["95 %"] = pd.Series({method: f"{low:.3f} to {high:.3f}" for method, (low, high) in ends.items()})
    wide[f"less {best}"] = wide["mean"] - wide.loc[best, "mean"]
    wide["95 % of it"] = pd.Series({method: f"{low:+.3f} to {high:+.3f}" for method, (low, high) in apart.items()})
    return wide.sort_values("mean", ascending=False)


def give_interval(values: NDArray) -> tuple[float, float]:
    """Give the 95 % interval of a mean over studies."""
    if len(values) < 2:
        return float("nan"), float("nan")
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def list_cells(config: EvaluateConfig) -> pd.DataFrame:
    """Give the part of each cell in each unit."""
    files: dict = {}
    parts = []
    for title, settings in config.experiments.items():
        experiment = Experiment.read(title, settings, Path(config.data_dir), files)
        cells = experiment.aligned.obs.index.to_numpy(str)
        for seed in settings.seeds:
            for fold in experiment.folds(seed):
                parts += [
                    pd.DataFrame({"experiment": title, "seed": seed, "fold": fold.name, "part": p, "cell": cells[rows]})
                    for p, rows in fold.partition.parts.items()
                ]
    return pd.concat(parts, ignore_index=True)


def main() -> None:
    """Print a table, or write the cells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    table = commands.add_parser("table")
    table.add_argument("run", type=Path)
    table.add_argument("--predictions", type=Path)
    table.add_argument("--json", type=Path)
    cells = commands.add_parser("cells")
    cells.add_argument("config", type=Path)
    cells.add_argument("output", type=Path)
    args, overrides = parser.parse_known_args()
    if args.command == "cells":
        list_cells(load_config(EvaluateConfig, args.config, overrides)).to_csv(args.output, sep="\t", index=False)
        return
    found = tabulate(args.run, args.predictions)
    is_several = found.groupby("experiment")["study"].nunique() > 1
    found["group"] = np.where(found["experiment"].map(is_several), found["experiment"], "one study each")
    for group, part in found.groupby("group", sort=False):
        print(f"{group}: {part['study'].nunique()} studies, {part['seed'].nunique()} seeds")
        print(summarise(part).round(3).to_string(), end="\n\n")
    if args.json:
        args.json.write_text(found.to_json(orient="records", indent=1))


if __name__ == "__main__":
    main()
