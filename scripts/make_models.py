"""Make the models that come with the package, from public data to model cards; a finished step is not run again.

    python scripts/make_models.py OUT --data DIR              # all steps; the models are in OUT/shipped
    python scripts/make_models.py OUT --data DIR --install    # and replace those of the package (scfusion_fm/shipped)

DIR holds the files that configs/models/atlas.yaml names (docs/models.md). All settings are in configs/models. The cards
list how long each step took. `--figures RUN` adds the studies of further runs of `scfusion evaluate` to the cards.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from scfusion_fm.cli.limits import CODE
from scfusion_fm.comparison.study_figures import METRICS, StudyFigure, read_figures, save_figures
from scfusion_fm.config.command import run_command
from scfusion_fm.data.atlas.manifest import read_manifest
from scfusion_fm.data.fingerprints.seen import SeenCells
from scfusion_fm.evaluation.report import model_card
from scfusion_fm.inference.export import describe_seen
from scfusion_fm.inference.model_files import SHIPPED, list_shipped
from scfusion_fm.inference.ship import ship_model
from scfusion_fm.model.files_scfusion_ttt import SEEN_CELLS

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs" / "models"
PYTHON, SCFUSION = [sys.executable], [sys.executable, "-c", CODE]
# What lets weights be under a licence of our choice, as long as the source is named.
ALLOWED = ("Apache-2.0", "BSD-3-Clause", "CC BY 4.0", "CC0", "MIT")
NAME = "scfusion-human-blood"
TYPES, PROTEINS = f"{NAME}-types", f"{NAME}-proteins"


def main() -> None:
    """Make the models from top to bottom."""
    args = parse_arguments()
    recipe, threads = Recipe(args.output.absolute(), args.data.absolute()), args.threads
    out = recipe.output

    # From files to an atlas, and from there to the pretrained model.
    prepare = [*SCFUSION, "prepare", "--config", recipe.settings("atlas")]
    recipe.run("prepare the atlas", "atlas.zarr/manifest.json", prepare)
    check_licences(recipe.sources)
    ranks = min(threads, 2)  # of which each takes half of a batch
    launcher = [Path(sys.executable).parent / "deepspeed", "--num_accelerators", ranks] if ranks > 1 else PYTHON
    pretrain = [*launcher, "pretrain/run.py", "--config", recipe.settings("pretraining")]
    pretrain += [f"run.threads_per_rank={threads // ranks}"]
    recipe.run("pretrain", "pretrain/finished", pretrain, ["touch", out / "pretrain" / "finished"])
    export = [*PYTHON, "pretrain/export.py", out / "pretrain", out / "model"]
    recipe.run("export", "model/config.json", export)

    # The heads, which are tested and then learn from all cells; and the same fine-tuning scored on studies not seen.
    for task in ("cell_type_annotation", "cross_modal_prediction"):
        tune = [*PYTHON, f"finetune/{task}.py", "--config", recipe.settings(task), f"optim.threads={threads}"]
        recipe.run(f"fine-tune: {task}", f"{task}/results.json", tune)
    for task in ("new_studies_types", "new_studies_proteins"):
        evaluate = [*SCFUSION, "evaluate", "--config", recipe.settings(task), f"defaults.optim.threads={threads}"]
        recipe.run(f"score: {task}", f"{task}/report.html", evaluate)

    # Small directories with cards, made within seconds.
    runs = [out / "new_studies_types", out / "new_studies_proteins", *args.figures]
    figures = [figure for run in runs for figure in read_figures(run)]
    of_types, of_proteins = ([figure for figure in figures if figure.task == task] for task in METRICS)
    shutil.rmtree(out / "shipped", ignore_errors=True)
    ship(recipe, NAME, "model", figures)
    ship(recipe, TYPES, "cell_type_annotation/model", of_types)
    ship(recipe, PROTEINS, "cross_modal_prediction/model", of_proteins)
    if args.install:
        install(out / "shipped", SHIPPED)


def install(made: Path, target: Path) -> None:
    """Replace the models of the package by those that were made."""
    for path in list_shipped().values():
        shutil.rmtree(path)
    shutil.copytree(made, target, dirs_exist_ok=True)
    print(f"wrote {target}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, metavar="OUT", help="directory of all that is made; one is gone on with")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="directory of the public files")
    parser.add_argument("--figures", type=Path, nargs="*", default=[], metavar="RUN", help="further runs with figures")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="cores to use; all by default")
    parser.add_argument("--install", action="store_true", help="replace the models of the package by those made")
    return parser.parse_args()


class Recipe:
    """
    The steps in their directory, with the time that each took.

    Parameters
    ----------
    output
        Directory of all that is made.
    data
        Directory of the public files.
    """

    def __init__(self, output: Path, data: Path):
        self.output, self.data = output, data
        self.times_path = output / "seconds.json"
        self.seconds = json.loads(self.times_path.read_text()) if self.times_path.is_file() else {}
        (output / "configs").mkdir(parents=True, exist_ok=True)

    def settings(self, name: str) -> Path:
        """Write settings of configs/models with the directories of this run; their path."""
        text = (CONFIGS / f"{name}.yaml").read_text()
        text = text.replace("data/human", str(self.data)).replace("runs/models", str(self.output))
        path = self.output / "configs" / f"{name}.yaml"
        path.write_text(text)
        return path

    def run(self, step: str, made: str, *commands: list[str | int | Path]) -> None:
        """Run commands, one after the other, unless what they make is there; remember how long it took."""
        if (self.output / made).exists():
            print(f"== {step}: done before", flush=True)
            return
        print(f"== {step}", flush=True)
        start = time.monotonic()
        places = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        try:
            for command in commands:
                words = [str(word) for word in command]
                code = subprocess.run(words, cwd=ROOT, env=os.environ | {"PYTHONPATH": places}, check=False).returncode
                if code:
                    raise ValueError(f"`{step}` must end well, got exit code {code}. Run the same command again.")
        finally:  # what was stopped took its time, too
            self.seconds[step] = self.seconds.get(step, 0.0) + time.monotonic() - start
            self.times_path.write_text(json.dumps(self.seconds, indent=1) + "\n")

    @property
    def sources(self) -> list[dict]:
        """Data sets of the atlas."""
        return read_manifest(self.output / "atlas.zarr")["sources"]

    @property
    def num_cells(self) -> int:
        """Cells of the atlas."""
        return sum(source["cells"] for source in self.sources)

    def results(self, task: str) -> dict:
        """Results of a fine-tuning."""
        return json.loads((self.output / task / "results.json").read_text())

    def tell_final(self, task: str, calibrated: str) -> str:
        """Say how the model that is kept was made."""
        final = self.results(task)["final"]
        return (
            f"A twin that held out cells chose the length ({final['epochs']:.3g} passes; 0 where the head alone was "
            f"fitted) and gave the {calibrated}; the shipped one then learned from all {final['cells']:,} cells."
        )


def check_licences(sources: list[dict]) -> None:
    """
    Refuse data whose licence does not let weights be under ours.

    Raises
    ------
    ValueError
        If there are any.
    """
    others = {source["name"]: source["licence"] for source in sources if source["licence"] not in ALLOWED}
    if others:
        raise ValueError(f"`sources` must have one of the licences {list(ALLOWED)}, got {others}. Leave them out.")


def ship(recipe: Recipe, name: str, made: str, figures: list[StudyFigure]) -> None:
    """Write the small directory of a model, with its card and its figures."""
    model = recipe.output / made
    seen = describe_seen(SeenCells.load(model / SEEN_CELLS)).partition(";")[0]
    parts = DESCRIBE[name](recipe) | {
        "data": model_card.write_data(recipe.sources),
        "seen": seen,
        "cells": f"{recipe.num_cells:,}",
        "figures": model_card.write_figures(figures, METRICS),
        "cost": model_card.write_cost(recipe.seconds),
    }
    path, shipped = recipe.output / "figures.json", recipe.output / "shipped" / name
    save_figures(figures, path)
    ship_model(model, shipped, (CONFIGS / "card.md").read_text().format(name=name, **parts), path.read_bytes())
    print(f"wrote {shipped}: {sum(file.stat().st_size for file in shipped.iterdir()) / 1e6:.1f} MB", flush=True)


def describe_pretrained(recipe: Recipe) -> dict[str, str]:
    """Give what only the card of the pretrained model tells."""
    use = f'sf.embed(adata, "{NAME}")  # adata.obsm["X_scfusion_ttt"]'
    return {
        "purpose": (
            "Embeds cells of human blood and marrow, from RNA, surface proteins or both, and is a start for "
            f"fine-tuning. Pretrained on {recipe.num_cells:,} cells."
        ),
        "command": f"scfusion embed {NAME} IN.h5ad OUT.h5ad",
        "python": f'{use}\nsf.finetune.annotation(adata, model="{NAME}", labels_key="cell_type", output_dir="mine")',
        "training": (
            "Genes and proteins were hidden and filled in (`configs/models/pretraining.yaml`): three passes, 70 % of "
            "the tokens hidden, now and then all of a modality. Embeddings start from principal components of 20,000 "
            "cells. 5 % of the cells were held out to watch it. The figures are of heads that were made on it."
        ),
    }


def describe_types(recipe: Recipe) -> dict[str, str]:
    """Give what only the card of the classifier tells."""
    return {
        "purpose": "Names coarse types of human blood and marrow cells, or calls them unknown, from RNA or proteins.",
        "command": f"scfusion annotate {TYPES} IN.h5ad OUT.h5ad --reject-rate 0.05",
        "python": (
            f'sf.annotate(adata, "{TYPES}", reject_rate=0.05)  # adata.obs["cell_type_pred"]\n'
            "# without reject_rate, no cell is called unknown"
        ),
        "training": (
            f"`{NAME}`, fine-tuned (`configs/models/cell_type_annotation.yaml`). "
            f"{recipe.tell_final('cell_type_annotation', 'temperatures and thresholds')} Labels are those of the "
            "studies, brought to common names; those of the sets of 10x Genomics and of dsb were gated on proteins."
        ),
    }


def describe_proteins(recipe: Recipe) -> dict[str, str]:
    """Give what only the card of the predictor tells."""
    results = recipe.results("cross_modal_prediction")
    return {
        "purpose": (
            f"Predicts {len(results['proteins'])} surface proteins of human blood and marrow cells from RNA, with "
            "intervals for new studies."
        ),
        "command": f"scfusion predict-protein {PROTEINS} IN.h5ad OUT.h5ad",
        "python": f'sf.predict_protein(adata, "{PROTEINS}")  # adata.obsm["protein_scfusion_ttt"]',
        "training": (
            f"`{NAME}`, fine-tuned (`configs/models/cross_modal_prediction.yaml`). "
            f"{recipe.tell_final('cross_modal_prediction', 'intervals')} For them, one study was left out in turn."
        ),
    }


DESCRIBE = {NAME: describe_pretrained, TYPES: describe_types, PROTEINS: describe_proteins}

if __name__ == "__main__":
    run_command(main)
