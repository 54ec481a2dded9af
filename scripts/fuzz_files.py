"""Spoil files in many ways, and see that every one is refused in one line, or read with the counts that it holds.

    python scripts/fuzz_files.py --work /tmp/fuzz [--times 600] [--seed 0] [--only 17] [--seconds 30] [--gib 4]

Each file is a copy of a small h5ad, h5mu, 10x h5 or zarr store, in which tests/data/spoil_files.py changes something.
`read_cells`, `open_cells` and the commands `doctor`, `embed` and `prepare` read it in a process of its own with a limit
of memory and time. It reports tracebacks, signals, hangs, other exit codes than 0, 1 and 2, more than one line of an
error, readers and commands that disagree with the doctor, files that a refused command leaves, and counts that are not
those of the whole file where something else was changed. Exit code 1 where there is any. It needs the packages of the
tests and about two seconds per file.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "data")]
from spoil_files import spoil_hdf5, spoil_zarr  # noqa: E402

from scfusion_fm.cli.main import main as run_scfusion  # noqa: E402
from scfusion_fm.data.files.align import align_cells  # noqa: E402
from scfusion_fm.data.files.readers import load_cells, open_cells, read_cells  # noqa: E402
from scfusion_fm.data.vocabulary.vocabulary import Vocabulary, build_vocabulary  # noqa: E402

# Places where another value is another count, or the name of another cell or feature; all else must not matter.
COUNTS = ("data", "X", "indices", "indptr", "layers/counts", "raw", "protein_expression", "_index", "var", "matrix")
COUNTS += ("cut", "flip", "zero", "repeat", "mod", "obs:", "obsm:", "obsm/protein")


def make_files(folder: Path) -> list[Path]:
    """Write whole files of every format and of several layouts, with something in every slot."""
    import scipy.sparse as sp
    from make_files import WRITERS, make_adt, make_rna, write_zarr

    for name, write in WRITERS.items():
        write(folder / name, make_rna(), make_adt())
    full = make_rna()
    full.raw = full.copy()
    full.layers["counts"], full.layers["other"] = sp.csc_matrix(full.X), full.X * 2
    full.X = np.log1p(full.X.toarray())
    full.obs["score"], full.obs["type"] = np.arange(7.0), list("abababa")
    full.strings_to_categoricals()
    full.obsm["pca"], full.obsp["near"] = np.ones((7, 2)), sp.csr_matrix(np.eye(7))
    full.varm["loadings"] = np.ones((6, 2))
    full.uns = {"deep": {"a": np.arange(3), "b": "text"}, "m": sp.csc_matrix(np.eye(3))}
    full.write_h5ad(folder / "full.h5ad", compression="gzip")
    for version in (2, 3):
        write_zarr(folder / f"full_v{version}.zarr", full, version)
    dense = make_rna()
    dense.X = dense.X.toarray()
    dense.write_h5ad(folder / "dense.h5ad")
    return sorted(folder.iterdir())


def make_model(folder: Path, vocabulary: Vocabulary) -> None:
    """Write a model with random weights that knows what the files measure."""
    import torch

    from scfusion_fm import ScFusionTTTConfig, ScFusionTTTFeatureExtractor, ScFusionTTTForPreTraining
    from scfusion_fm.inference.export import export_model

    torch.manual_seed(0)
    extractor = ScFusionTTTFeatureExtractor(**vocabulary.to_dict(), patch_size=2)
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    config = ScFusionTTTConfig(
        num_rna_tokens=extractor.num_rna_tokens,
        rna_patch_size=2,
        num_proteins=extractor.num_proteins,
        num_hidden_layers=1,
        num_decoder_layers=1,
        **sizes,
    )
    export_model(ScFusionTTTForPreTraining(config), extractor, folder, {})


def warm_up() -> None:
    """Import and build once what every process needs."""
    from make_files import ANTIBODIES, GENES, make_cells

    names = ("data.inspect.doctor", "data.inspect.doctor_text", "data.prepare.job", "inference.embed", "cli.main")
    for name in names:
        importlib.import_module(f"scfusion_fm.{name}")
    importlib.import_module("scanpy")
    align_cells(make_cells(GENES, ANTIBODIES), build_vocabulary(None, "protein_coding", "all"))


def describe(cells: Any) -> dict[str, Any]:
    """Give the counts of cells in a form that can be compared."""
    found = {name: m for name, m in (("rna", cells.rna), ("adt", cells.adt)) if m is not None}
    return {name: m.counts.toarray().tolist() for name, m in found.items()}


def run(*words: str | Path) -> dict[str, Any]:
    """Run a command in this process; give its exit code, and what it said."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        sys.argv = ["scfusion", *map(str, words)]
        try:
            run_scfusion()
        except SystemExit as exit_:
            code = exit_.code
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


def examine(path: Path, *words: str | Path) -> dict[str, Any]:
    """Run the doctor; give its exit code and what it found."""
    found = run("doctor", "--json", *words, path)
    file = json.loads(found["out"])["files"][0] if found["out"] else {"verdict": "none", "warnings": []}
    return {"code": found["code"], **file}


def read_all(path: Path, model: Path) -> dict[str, Any]:
    """Read a file in every way; give what each says."""
    found: dict[str, Any] = {"doctor": examine(path), "doctor of a model": examine(path, "--model", model)}
    cells = None
    with warnings.catch_warnings(action="ignore"):
        for name, read in (("read", read_cells), ("open", lambda p: load_cells(open_cells(p)))):
            try:
                cells = read(path)
                found[name] = describe(cells)
            except ValueError as error:
                found[name] = str(error)
        if cells is not None:
            try:
                align_cells(cells, build_vocabulary(None, "protein_coding", "all"))
            except ValueError as error:
                found["align"] = str(error)
    suffix = ".zarr" if path.is_dir() else ".h5mu" if path.suffix == ".h5mu" else ".h5ad"
    with tempfile.TemporaryDirectory(dir=path.parent) as place:
        output, atlas = Path(place) / "embedded" / f"out{suffix}", Path(place) / "prepared" / "atlas.zarr"
        output.parent.mkdir()
        atlas.parent.mkdir()
        settings = Path(place) / "data.yaml"
        settings.write_text(json.dumps({"output": str(atlas), "sources": [{"path": str(path)}]}))
        found["embed"] = run("embed", model, path, output)
        found["prepare"] = run("prepare", "--config", settings)
        found["embed"]["left"] = [p.name for p in output.parent.iterdir()]
        found["prepare"]["left"] = [p.name for p in atlas.parent.iterdir()]
    return found


def run_limited(path: Path, model: Path, seconds: float, gib: float) -> tuple[str, dict[str, Any]]:
    """Read a file in a process of its own; give how it ended, and what it found."""
    report = path.with_name("report.json")
    report.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + int(gib * 2**30),) * 2)
        try:
            report.write_text(json.dumps(read_all(path, model)))
            os._exit(0)
        except BaseException:
            report.write_text(json.dumps({"traceback": traceback.format_exc()}))
            os._exit(1)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            found = json.loads(report.read_text()) if report.exists() else {}
            if os.WIFSIGNALED(status):
                return f"signal {signal.Signals(os.WTERMSIG(status)).name}", found
            return "traceback" if "traceback" in found else "", found
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hang", {}


def judge(found: dict[str, Any], whole: dict[str, Any], done: str) -> str:
    """Say what is wrong with what the readers found; '' where nothing is."""
    refused = {name: isinstance(found[name], str) for name in ("read", "open")}
    code = found["doctor"]["code"]
    if code not in (0, 1, 2):
        return f"exit code {code}"
    if refused["read"] != refused["open"] or (not refused["read"] and found["read"] != found["open"]):
        return "readers disagree"
    if (code == 2) != (refused["read"] or "align" in found):
        return "doctor disagrees"
    for text in (found[name] for name in refused if refused[name]):
        if "\n" in text:
            return "more than one line"
    if not refused["read"] and found["read"] != whole and not any(place in done for place in COUNTS):
        return "other counts"
    return judge_command("prepare", found["prepare"], code == 2) or judge_embed(found)


def judge_embed(found: dict[str, Any]) -> str:
    """Say what is wrong with what `embed` did."""
    doctor = found["doctor of a model"]
    is_refused = doctor["code"] == 2 or any("embed and its like refuse it" in text for text in doctor["warnings"])
    return judge_command("embed", found["embed"], is_refused)


def judge_command(name: str, found: dict[str, Any], is_refused: bool) -> str:
    """Say what is wrong with what a command did, that the doctor refused or did not."""
    if found["code"] not in (0, 2):
        return f"{name}: exit code {found['code']}"
    if (found["code"] == 2) != is_refused:
        return f"{name}: doctor disagrees"
    lines = found["err"].splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if is_refused and (len(errors) != 1 or lines[-1] != errors[0]):
        return f"{name}: more than one line"
    return f"{name}: left {found['left']}" if len(found["left"]) != (not is_refused) else ""


def render(found: dict[str, Any]) -> str:
    """Give what matters of what was found, a line each."""
    told = {name: found.get(name) for name in ("traceback", "align", "read", "open")}
    for name in ("doctor", "doctor of a model"):
        told[name] = [found.get(name, {}).get(key) for key in ("code", "refusal", "warnings")]
    for name in ("embed", "prepare"):
        told[name] = [found.get(name, {}).get(key) for key in ("code", "err", "left")]
    return "\n".join(f"    {name}: {str(value)[-1500:]}" for name, value in told.items() if value)


def try_file(base: Path, work: Path, seed: int, limits: tuple[Path, float, float]) -> tuple[str, str, dict[str, Any]]:
    """Spoil a copy of a file and read it."""
    path = work / base.name
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)
    (shutil.copytree if base.is_dir() else shutil.copyfile)(base, path)
    rng = np.random.default_rng(seed)
    spoil = spoil_zarr if base.is_dir() else spoil_hdf5
    done = "; ".join(spoil(path, rng) for _ in range(1 + int(rng.random() < 0.1)))
    problem, found = run_limited(path, *limits)
    return done, problem, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="new directory")
    parser.add_argument("--times", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one file, of this number")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--gib", type=float, default=4)
    args = parser.parse_args()
    for folder in ("whole", "spoiled"):
        (args.work / folder).mkdir(parents=True)
    model = args.work / "model"
    if os.fork() == 0:  # zarr starts a thread, which a process that forks must not have
        make_files(args.work / "whole")
        bases = sorted((args.work / "whole").iterdir())
        make_model(model, build_vocabulary([read_cells(base) for base in bases]))
        os._exit(0)
    os.wait()
    bases = sorted((args.work / "whole").iterdir())
    warm_up()
    limits = (model, args.seconds, args.gib)
    known = {base: run_limited(base, *limits)[1]["read"] for base in bases}
    (args.work / "whole" / "report.json").unlink()
    outcomes: Counter[str] = Counter()
    for number in range(args.times) if args.only is None else [args.only]:
        if number and number % 50 == 0:
            print(f"{number} files: {dict(outcomes)}", flush=True)
        base = bases[number % len(bases)]
        try:
            done, problem, found = try_file(base, args.work / "spoiled", args.seed * 10**6 + number, limits)
        except (ValueError, OSError, TypeError, KeyError, RuntimeError) as error:  # HDF5 itself may refuse to write it
            outcomes[f"not made ({type(error).__name__})"] += 1
            continue
        problem = problem or judge(found, known[base], done)
        outcomes[problem or found["doctor"]["verdict"]] += 1
        if problem or args.only is not None:
            print(f"{number} {base.name}: {done}: {problem}\n{render(found)}", flush=True)
    print(dict(outcomes))
    good = {"ok", "warnings", "refused", "none"}
    sys.exit(int(any(name not in good and not name.startswith("not made") for name in outcomes)))


if __name__ == "__main__":
    main()
