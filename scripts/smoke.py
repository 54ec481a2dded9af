"""
Try an installed package as somebody does who has no clone: what it holds, its commands, and what they write.

    make dist smoke                              # in a new environment, with what each extra is for
    python scripts/smoke.py .venv-smoke/bin      # the base install alone
    python scripts/smoke.py .venv-smoke/bin --extras pretrain eval explore

Commands run in a new directory, one after the other, and are timed; the first that is not as it should be ends it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

INSIDE = """
import importlib.resources, pathlib, sys
import scfusion_fm
place = pathlib.Path(scfusion_fm.__file__).parent
assert "site-packages" in place.parts, place
needed = ["py.typed", "configs/pretrain/demo.yaml", "configs/deepspeed/zero2.json", "demo/demo_teaseq_pbmc.h5mu"]
assert not [name for name in needed if not (place / name).exists()]
assert len(scfusion_fm.list_models()) >= 3
from scfusion_fm.data.vocabulary.reference import load_antibody_table, load_gene_table
print(len(load_gene_table()), "genes and", len(load_antibody_table()), "antibodies in the tables")
"""
DEMO = "data/demo_teaseq_pbmc.h5mu"
SMALL = "optim.epochs=0.1 model.hidden_size=16 model.intermediate_size=16 model.num_hidden_layers=1"
MODEL = "runs/demo/model"


@dataclass(frozen=True)
class Step:
    """
    A command and what it should do.

    Attributes
    ----------
    words
        The command; its program is one of the environment.
    writes
        What is there afterwards.
    says
        What it prints, among other things.
    code
        Its exit code.
    """

    words: Sequence[str]
    writes: str = ""
    says: str = ""
    code: int = 0


def scfusion(text: str, writes: str = "", says: str = "", code: int = 0) -> Step:
    """Describe a call of `scfusion`."""
    return Step(["scfusion", *text.split()], writes, says, code)


STEPS = {
    "base": [
        Step(["python", "-c", INSIDE], says="antibodies in the tables"),
        scfusion("--help", says="predict-protein"),
        scfusion("models", says="scfusion-human-blood"),
        scfusion("configs", says="configs/pretrain/demo.yaml"),
        scfusion("fetch demo", DEMO),
        scfusion(f"doctor {DEMO}", says="usable with warnings", code=1),
        scfusion(f"embed scfusion-human-blood {DEMO} embedded.h5mu", "embedded.h5mu"),
        scfusion("annotate scfusion-human-blood-types embedded.h5mu types.h5mu", "types.h5mu"),
        scfusion("predict-protein scfusion-human-blood-proteins types.h5mu proteins.h5mu", "proteins.h5mu"),
        scfusion("prepare --config configs/data/demo.yaml", "runs/demo/atlas.zarr/manifest.json"),
        scfusion("plan configs/pretrain/base.yaml --cells 1000000", says="GiB"),
    ],
    "missing": [
        scfusion("pretrain --config configs/pretrain/demo.yaml", says="pip install 'scfusion-fm[pretrain]'", code=2),
        scfusion(
            f"finetune annotation --model scfusion-human-blood --data {DEMO} --labels-key cell_type --output runs/none",
            says="pip install 'scfusion-fm[eval]'",
            code=2,
        ),
        scfusion("explore proteins.h5mu page.html", says="pip install 'scfusion-fm[explore]'", code=2),
    ],
    "pretrain": [
        scfusion(f"pretrain --config configs/pretrain/demo.yaml {SMALL}", "runs/demo/pretrain/metrics.jsonl"),
        scfusion(f"export runs/demo/pretrain {MODEL}", f"{MODEL}/config.json"),
        scfusion(f"embed {MODEL} {DEMO} own.h5mu", "own.h5mu"),
    ],
    "eval": [
        scfusion(
            f"finetune annotation --model scfusion-human-blood --data {DEMO} --labels-key cell_type --epochs 1 "
            "--allow-seen-test-cells --output runs/annotation",
            "runs/annotation/report.html",
        ),
        scfusion("report --annotation runs/annotation --output report.html", "report.html"),
    ],
    "explore": [scfusion("explore proteins.h5mu page.html", "page.html")],
}


def main() -> None:
    """Run the steps of the base install, and of each extra that is named, or that it is said to be missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", type=Path, help="directory with its commands, such as .venv-smoke/bin")
    parser.add_argument("--extras", nargs="+", choices=("pretrain", "eval", "explore"), help="that are installed")
    args = parser.parse_args()
    names = ["base", *(args.extras or ["missing"])]
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="scfusion-smoke-") as directory:
        for step in [step for name in names for step in STEPS[name]]:
            run_step(step, args.environment.absolute(), Path(directory), started)
    print(f"all is as it should be: {', '.join(names)}")


def run_step(step: Step, environment: Path, directory: Path, started: float) -> None:
    """Run a command, print how long it took, and end everything if it is not as it should be."""
    paths = {"PATH": f"{environment}{os.pathsep}{os.environ['PATH']}", "DS_ACCELERATOR": "cpu"}
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    begun = time.monotonic()
    command = [str(environment / step.words[0]), *step.words[1:]]
    done = subprocess.run(command, cwd=directory, env=kept | paths, capture_output=True, text=True, check=False)
    now = time.monotonic()
    told = " ".join("..." if "\n" in word else word for word in step.words)
    print(f"{now - started:6.0f} s {now - begun:6.1f} s  {told}", flush=True)
    is_there = not step.writes or (directory / step.writes).exists()
    if done.returncode != step.code or not is_there or step.says not in done.stdout + done.stderr:
        print(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
