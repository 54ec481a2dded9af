"""Kill commands at random moments, run them again, and compare what is there with that of a run that nobody disturbed.

    python scripts/kill_runs.py --work /tmp/kills [--times 20] [--only embed prepare ...] [--seed 0]

Each command runs once undisturbed on a part of the demo data, and then `--times` times with SIGKILL to all of its
processes at a moment between its first write and its end. After the kill, what stands under a final name must be whole.
Then the same command runs to its end: its results must have the same content, but for times, and nothing else may be
left. Exit code 1 where anything differs. It needs the packages of the tests, and takes about twenty minutes with
`--times 5` on two cores that are otherwise idle.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mudata
import numpy as np
import psutil

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from launch import Job, free_port, start  # noqa: E402

TIMES = {"seconds", "cells_per_s", "tokens_per_s", "tflops", "data_stall", "memory_gib", "created", "model", "time"}
TIMES |= {"crc32c", "config.yaml"}  # checksums of files with times and names of the trial; their content is compared
IGNORED = (".html", ".png", ".lock")  # pages tell when they were made
GOING_ON = "training goes on from step"  # what a fine-tuning says
CELLS = 300
DATA = """
output: {work}/atlas.zarr
genes: sources
proteins: sources
obs_columns: [cell_type]
workers: 2
sources: [{{path: {work}/cells.h5mu, name: demo}}]
"""
PRETRAIN = """
output_dir: {work}/pretrain
atlas: {work}/atlas.zarr
patch_size: 64
model: {{hidden_size: 16, num_attention_heads: 2, intermediate_size: 16, num_hidden_layers: 1, num_decoder_layers: 1}}
masking: {{rna_ratio: 0.3, adt_ratio: 0.3}}
optim: {{epochs: 2, global_batch_size: 16, micro_batch_size: 8, lr: 0.01}}
run: {{log_every: 1, eval_every: 5, save_every: 4}}
deepspeed: {root}/configs/deepspeed/zero2.json
"""
FINETUNE = """
model: {work}/model
data: {work}/cells.h5mu
output_dir: {work}/fine_tuned
optim: {{epochs: 4, batch_size: 8, lr: 0.01, threads: 1, token_dropout: 0.2}}
"""
STUDIES = """
model: {work}/model
data: [{work}/cells.h5mu, {work}/others.h5mu]
output_dir: {work}/fine_tuned
allow_seen_test_cells: true
min_coverage: 0
report: false
optim: {{epochs: 2, batch_size: 16, lr: 0.003, threads: 1}}
"""
EVALUATE = """
output_dir: {work}/evaluation
data_dir: {work}
defaults:
  data: [cells.h5mu]
  split: {{kind: k_fold, folds: 3}}
  models: {{demo: {{path: {work}/model}}}}
  allow_seen_test_cells: true
  optim: {{epochs: 1, batch_size: 32, lr: 0.001}}
experiments:
  cell types: {{task: annotation, label_budgets: [50, null], baselines: [majority]}}
"""
SETTINGS = {
    "data": DATA,
    "pretrain": PRETRAIN,
    "finetune": FINETUNE,
    "studies": STUDIES,
    "evaluate": EVALUATE,
}
TASKS = {
    "annotation": ("cell_type_annotation", "finetune"),
    "cross-modal": ("cross_modal_prediction", "finetune"),
    "imputation": ("protein_imputation", "studies"),
    "integration": ("batch_integration", "studies"),
}
VERBS = {
    "embed": "",
    "surprise": "",
    "annotate": "annotation",
    "predict-protein": "cross-modal",
    "impute": "imputation",
}


class Processes:
    """A command with all of its processes."""

    def __init__(self, case: "Case", work: Path, output: Path, log: Path):
        words = [word.format(work=work, output=output) for word in case.words]
        if case.ranks:
            kind = type("CaseJob", (Job,), {"script": case.script})
            self.ranks = kind(case.ranks, log.with_suffix(".ranks"), *words).processes
        else:
            with log.open("w") as file:
                self.ranks = [start(*words, stdout=file, stderr=file, env={"MASTER_PORT": str(free_port())})]

    @property
    def running(self) -> bool:
        """Whether any of them has not ended."""
        return any(process.poll() is None for process in self.ranks)

    def kill(self) -> None:
        """Kill all, with what they have started."""
        for process in self.ranks:
            if process.poll() is None:
                family = psutil.Process(process.pid)
                for member in [*family.children(recursive=True), family]:
                    member.send_signal(signal.SIGKILL)
        self.wait()

    def wait(self) -> list[int]:
        """Wait for the end; give the exit codes."""
        return [process.wait() for process in self.ranks]


@dataclass
class Case:
    """
    A command that is killed.

    Attributes
    ----------
    words
        The command; where there are ranks, the arguments of the script.
    resumes
        Whether its output grows from the beginning and the same command goes on; otherwise it is absent or whole.
    ranks, script
        How many ranks of what, without a launcher; 0 for a command.
    needs
        A fine-tuning that must have been run before, out of `TASKS`; none where it is ''.
    killed, whole, went_on
        How often it was killed, its output was whole by then, and a training was gone on with afterwards.
    faults
        What was found.
    quickest_s
        How long the quickest run took that ended before its kill.
    """

    words: list[str]
    resumes: bool = False
    ranks: int = 0
    script: str = "pretrain/run.py"
    needs: str = ""
    killed: int = 0
    whole: int = 0
    went_on: int = 0
    faults: list[str] = field(default_factory=list)
    quickest_s: float = float("inf")


def build_cases() -> dict[str, Case]:
    """Name all commands; {output} is where their result goes."""
    pretrain = ["--config", "{work}/pretrain.yaml", "output_dir={output}"]
    evaluate = ["scfusion", "evaluate", "--config", "{work}/evaluate.yaml", "output_dir={output}"]
    cases = {
        "prepare": Case(["scfusion", "prepare", "--config", "{work}/data.yaml", "output={output}"]),
        "pretrain, 1 rank": Case(pretrain, resumes=True, ranks=1),
        "pretrain, 2 ranks": Case(pretrain, resumes=True, ranks=2),
        "evaluate": Case(evaluate, resumes=True),
    }
    more = {"annotation": ["labels_key=cell_type"], "cross-modal": ["optim.epochs=2"]}
    for name in TASKS:
        cases[name] = Case([sys.executable, *build_fine_tuning(name, "{work}", "{output}"), *more.get(name, [])])
    script, *words = build_fine_tuning("annotation", "{work}", "{output}")
    cases["annotation, 2 ranks"] = Case(words, ranks=2, script=script)
    for verb, needs in VERBS.items():
        model = f"{{work}}/{needs}/model" if needs else "{work}/model"
        cases[verb] = Case(["scfusion", verb, model, "{work}/cells.h5mu", "{output}.h5mu"], needs=needs)
    return cases


def build_fine_tuning(name: str, work: str, output: str) -> list[str]:
    """Give script and arguments of a fine-tuning."""
    script, settings = TASKS[name]
    return [f"finetune/{script}.py", "--config", f"{work}/{settings}.yaml", f"output_dir={output}"]


def set_up(work: Path, needed: set[str]) -> None:
    """Make cells, an atlas, a model, and the fine-tuned models that are needed."""
    work.mkdir(parents=True)
    mudata.set_options(pull_on_update=False)
    demo = mudata.read_h5mu(ROOT / "data/demo_teaseq_pbmc.h5mu")
    demo[:CELLS].copy().write(work / "cells.h5mu")
    others = demo[CELLS : CELLS + 200].copy()
    mudata.MuData({"rna": others["rna"], "adt": others["adt"][:, ::2].copy()}).write(work / "others.h5mu")
    for name, text in SETTINGS.items():
        (work / f"{name}.yaml").write_text(text.format(work=work, root=ROOT))
    python = sys.executable
    commands = [
        ["scfusion", "prepare", "--config", f"{work}/data.yaml"],
        [python, "pretrain/run.py", "--config", f"{work}/pretrain.yaml"],
        [python, "pretrain/export.py", f"{work}/pretrain", f"{work}/model"],
    ]
    commands += [[python, *build_fine_tuning(n, str(work), f"{work}/{n}"), "report=false"] for n in sorted(needed)]
    for words in commands:
        with tempfile.TemporaryFile() as log:
            process = start(*words, stdout=log, stderr=log)
            if process.wait() != 0:
                log.seek(0)
                sys.exit(f"{words} failed:\n{log.read().decode()}")


def read_content(directory: Path) -> dict[str, Any]:
    """Give the content of all files by their names, without times and names of the trial."""
    files = [p for p in sorted(directory.rglob("*")) if p.is_file() and not p.name.endswith(IGNORED)]
    return {str(p.relative_to(directory)): read_file(p, str(directory)) for p in files if "tfevents" not in p.name}


def read_file(path: Path, directory: str) -> Any:
    """Give what a file tells; its bytes where it is damaged."""
    try:
        return read_whole_file(path, directory)
    except (ValueError, OSError):
        return path.read_bytes()


def read_whole_file(path: Path, directory: str) -> Any:
    """Give the content that matters."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name].tobytes() for name in arrays.files}
    if path.suffix == ".h5mu":
        return read_tables(mudata.read_h5mu(path))
    if path.suffix in (".json", ".jsonl"):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        return [without_times(json.loads(line.replace(directory, "OUT"))) for line in lines]
    content = path.read_bytes()
    if path.suffix not in (".yaml", ".md"):
        return content
    lines = content.replace(directory.encode(), b"OUT").splitlines()
    return [line for line in lines if b"crc32c" not in line]  # the checksum of a path that differs


def read_tables(cells: mudata.MuData) -> dict[str, Any]:
    """Give what stands beside the counts of a file, and what was said of it."""
    found: dict[str, Any] = {"uns": without_times(json.loads(json.dumps(dict(cells.uns), default=str)))}
    for place, part in {"all": cells, **cells.mod}.items():
        found[f"{place}, obs"] = part.obs.to_csv()
        found |= {f"{place}, {name}": np.asarray(values).tobytes() for name, values in part.obsm.items()}
    return found


def without_times(value: Any) -> Any:
    """Leave out what differs from run to run."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES and "sha256" not in k}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> Iterator[str]:
    """Name files that differ."""
    for name in sorted(found.keys() | wanted.keys()):
        if name not in wanted:
            yield f"{name} is left over"
        elif name not in found:
            yield f"{name} is missing"
        elif found[name] != wanted[name]:
            yield f"{name} differs"


def run_undisturbed(case: Case, work: Path, place: Path) -> tuple[dict[str, Any], float, float]:
    """Give what a run leaves, when it first writes, and when it ends, in seconds."""
    place.mkdir()
    begin = time.monotonic()
    process, first = Processes(case, work, place / "out", place.with_suffix(".log")), None
    while process.running:
        if first is None and any(place.iterdir()):
            first = time.monotonic() - begin
        time.sleep(0.005)
    end = time.monotonic() - begin
    if any(process.wait()):
        sys.exit(f"{case.words} failed undisturbed, see {place.with_suffix('.log')}")
    return read_content(place), first or 0.0, end


def kill_once(case: Case, work: Path, place: Path, wanted: dict[str, Any], moment_s: float) -> Iterator[str]:
    """Kill a run at a moment, look, run it again, and compare."""
    place.mkdir()
    process = Processes(case, work, place / "out", place.with_suffix(".log"))
    begin = time.monotonic()
    while process.running and time.monotonic() < begin + moment_s:
        time.sleep(0.005)
    if process.running:
        case.killed += 1
    else:
        case.quickest_s = min(case.quickest_s, time.monotonic() - begin)
    process.kill()
    final = [p for p in place.iterdir() if not p.name.startswith(".")]
    if not case.resumes and final:
        case.whole += 1
        found = read_content(place)
        yield from (f"after the kill: {d}" for d in differences(found, wanted) if "left over" not in d)
        return
    again = place.with_suffix(".again.log")
    if any(Processes(case, work, place / "out", again).wait()):
        yield f"the second run failed, see {again}"
        return
    told = again.with_suffix(".ranks") / "rank0.txt" if case.ranks else again
    case.went_on += GOING_ON in told.read_text()
    yield from differences(read_content(place), wanted)
    yield from (f"{p.name} is left over" for p in place.iterdir() if p.name.endswith(".unfinished"))


def main() -> None:
    """Set up, kill, compare, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="new directory")
    parser.add_argument("--times", type=int, default=20, help="kills of each command")
    parser.add_argument("--only", nargs="+", choices=[*build_cases()], help="commands; all if absent")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    work, draw = arguments.work.absolute(), random.Random(arguments.seed)
    cases = {name: case for name, case in build_cases().items() if name in (arguments.only or build_cases())}
    set_up(work, {case.needs for case in cases.values()} - {""})
    for name, case in cases.items():
        stem = name.replace(", ", "-").replace(" ", "-")
        wanted, first, end = run_undisturbed(case, work, work / f"{stem}-undisturbed")
        for number in range(arguments.times):
            place = work / f"{stem}-{number}"
            moment_s = draw.uniform(first, min(end, max(case.quickest_s, first)))
            case.faults += [f"{place.name}: {d}" for d in kill_once(case, work, place, wanted, moment_s)]
            if not any(fault.startswith(f"{place.name}:") for fault in case.faults):
                shutil.rmtree(place)
        print(
            f"{name}: {case.killed} of {arguments.times} killed between {first:.1f} and {end:.1f} s, "
            f"{case.whole} whole by then, {case.went_on} trainings gone on with, {len(case.faults)} faults",
            flush=True,
        )
        for fault in case.faults:
            print(f"  {fault}", flush=True)
    sys.exit(any(case.faults for case in cases.values()))


if __name__ == "__main__":
    main()
