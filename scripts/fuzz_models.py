"""Damage model directories in many ways and run commands on them: one line and exit code 2, or the same as before.

python scripts/fuzz_models.py --cases 600 --seed 0

Every case changes one file of a model directory. It runs with the checksums as they were, made to fit, or removed, in a
process of its own with bounds on time and memory. Prints a table of outcomes, and every case that went wrong; exit code
1 if one did. A case with other results whose checksums fit is told as `other model`: no program can know that a
temperature of 2 was 3 before.
"""

import argparse
import copy
import hashlib
import io
import json
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

MORE_MEMORY = 1 << 30  # beyond what the parent has
TIME_S = 60
SUMS = "SHA256SUMS"
COMMANDS = [f"scfusion_fm.inference.{name}" for name in ("annotate", "embed", "predict_protein", "seen", "surprise")]
COMMANDS += ["scfusion_fm.data.inspect.doctor", "scfusion_fm.data.inspect.doctor_text"]
ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 2**31, 2**63, 10**30, -(10**9), 0.0, -0.5, 1e-320, 1e308, 1.5),
    *("", "x", "\x1b[31mred\x07", "\ud800", "a\nb", "x" * 5000, "1", "NaN", "../../etc/passwd", "__import__('os')"),
    *([], {}, [[]], [None], ["a", "a"], {"a": 1}, {"": {}}, [1] * 1000, [[[[[[[[1]]]]]]]]),
]


@dataclass(frozen=True)
class Target:
    """A command that reads a file of a model directory."""

    model: Path
    words: list[str]
    file: str


@dataclass(frozen=True)
class Outcome:
    """What came of a run: its exit code or signal, what it said, and a digest of its result."""

    code: int
    said: str
    result: str
    seconds: float
    more_memory: int


def places(content: Any, path: tuple = ()) -> list[tuple]:
    """Give the paths to all values in JSON, but few of each long list."""
    found = [path]
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for number, (key, value) in enumerate(items):
        if number < 60:
            found += places(value, (*path, key))
    return found


def change_value(content: Any, draw: random.Random) -> Any:
    """Change one value, remove it, double it or add one beside it."""
    content = copy.deepcopy(content)
    path = draw.choice(places(content)[1:] or [()])
    if not path:
        return draw.choice(ODD)
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    kind = draw.choice(["odd", "odd", "odd", "remove", "near", "swap", "grow", "add"])
    value = parent[path[-1]]
    if kind == "remove":
        del parent[path[-1]]
    elif kind == "near" and isinstance(value, (int, float)) and not isinstance(value, bool):
        parent[path[-1]] = draw.choice([value + 1, value - 1, -value, value * 10**9, value / 3])
    elif kind == "swap" and isinstance(value, list) and len(value) > 1:
        i, j = draw.sample(range(len(value)), 2)
        value[i], value[j] = value[j], value[i]
    elif kind == "grow" and isinstance(value, list):
        parent[path[-1]] = value * draw.choice([2, 100])
    elif kind == "add" and isinstance(parent, dict):
        parent[draw.choice(["extra", "", "quantization_config", "auto_map", "_attn_implementation"])] = draw.choice(ODD)
    else:
        parent[path[-1]] = draw.choice(ODD)
    return content


def change_bytes(data: bytes, draw: random.Random) -> bytes:
    """Flip, cut, insert or repeat bytes."""
    at = draw.randrange(len(data)) if data else 0
    kind = draw.choice(["flip", "flip", "cut", "insert", "zero", "repeat", "empty", "append"])
    return {
        "flip": lambda: data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :],
        "cut": lambda: data[:at],
        "insert": lambda: data[:at] + draw.randbytes(draw.choice([1, 8, 1000])) + data[at:],
        "zero": lambda: data[:at] + bytes(len(data[at : at + 64])) + data[at + 64 :],
        "repeat": lambda: data[:at] + data[at:] + data[at:],
        "empty": lambda: b"",
        "append": lambda: data + draw.randbytes(9),
    }[kind]()


def change_json(data: bytes, draw: random.Random) -> bytes:
    """Change a JSON file: its values mostly, its text now and then."""
    if draw.random() < 0.2:
        return change_bytes(data, draw)
    special = draw.random()
    text = data.decode()
    if special < 0.03:
        return b"[" * 200_000 + b"]" * 200_000
    if special < 0.06:
        return text.replace(
            "{", '{"a": ' * 5000 + "1" + "}" * 5000 + ', "b": 1, ' if draw.random() < 0.5 else "{{", 1
        ).encode()
    if special < 0.1:
        return text.replace(": ", draw.choice([": NaN, ", ": Infinity, ", ": 1e999, ", ": -"]), 1).encode()
    if special < 0.14:
        field = json.dumps(draw.choice(list(json.loads(text))))
        return text.replace("{", "{" + field + ": 1, ", 1).encode()
    changed = json.loads(text)
    for _ in range(draw.choice([1, 1, 1, 3])):
        changed = change_value(changed, draw)
    return json.dumps(changed).encode("utf-8", "surrogatepass")


def change_arrays(data: bytes, draw: random.Random) -> bytes:
    """Change the arrays of a .npz file or what it tells of them."""
    if draw.random() < 0.25:
        return change_bytes(data, draw)
    with np.load(io.BytesIO(data)) as file:
        arrays = dict(file)
    name = draw.choice(sorted(arrays))
    if name == "about" or draw.random() < 0.4:
        name = "about"
        text = change_json(str(arrays[name]).encode(), draw).decode("latin-1")
        arrays[name] = np.array(text)
    else:
        old = arrays[name]
        rng = np.random.default_rng(draw.randrange(1 << 30))
        options: list[Callable[[], Any]] = [
            lambda: np.full_like(old, 255),
            lambda: np.zeros_like(old),
            lambda: old[: len(old) // 2],
            lambda: np.zeros(0, np.uint8),
            lambda: np.tile(old, 3),
            lambda: old.astype(draw.choice(["<f8", "<i8", ">u4", "?", "<U8", "S3", "<c16"])),
            lambda: old[None],
            lambda: rng.integers(0, 256, len(old), dtype=np.uint8),
            lambda: np.array("text"),
            lambda: np.zeros(30_000_000, np.uint8),
        ]
        arrays[name] = draw.choice(options)()
    if draw.random() < 0.1:
        arrays.pop(draw.choice(sorted(arrays)))
    out = io.BytesIO()
    (np.savez_compressed if draw.random() < 0.2 else np.savez)(out, **arrays)
    if draw.random() < 0.1:
        with zipfile.ZipFile(out, "a") as file:
            file.writestr(draw.choice(["x.npy", "../x", "about.npy.npy"]), draw.randbytes(50))
    return out.getvalue()


def change_weights(data: bytes, draw: random.Random) -> bytes:
    """Change the header of a .safetensors file, its length, or its data."""
    length = struct.unpack("<Q", data[:8])[0]
    header, body = data[8 : 8 + length], data[8 + length :]
    kind = draw.choice(["flip", "bytes", "header", "header", "header text", "length", "nan", "cut"])
    if kind == "flip":
        at = 8 + length + draw.randrange(len(body))
        return data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]
    if kind == "bytes":
        return change_bytes(data, draw)
    if kind == "cut":
        return data[: -draw.choice([1, 4, 1000])]
    if kind == "length":
        wrong = draw.choice([0, 1, length - 1, length + 8, 2**31, 2**63, 2**64 - 1, len(data)])
        return struct.pack("<Q", wrong) + data[8:]
    if kind == "nan":
        at = 4 * draw.randrange(len(body) // 4)
        body = body[:at] + struct.pack("<f", draw.choice([float("nan"), float("inf")])) + body[at + 4 :]
        return data[: 8 + length] + body
    header = change_json(header, draw) if kind == "header" else change_bytes(header, draw)
    return struct.pack("<Q", len(header)) + header + body


def change_file(path: Path, draw: random.Random) -> None:
    """Change a file as its kind asks for, or put something in its place."""
    if draw.random() < 0.05:
        path.unlink()
        put = draw.choice(["nothing", "directory", "fifo", "device", "dangling"])
        if put == "directory":
            path.mkdir()
        elif put == "fifo":
            os.mkfifo(path)
        elif put in ("device", "dangling"):
            path.symlink_to("/dev/zero" if put == "device" else "nowhere")
        return
    change = {".json": change_json, ".npz": change_arrays, ".safetensors": change_weights}.get(
        path.suffix, change_bytes
    )
    path.write_bytes(change(path.read_bytes(), draw))


def run_bounded(words: list[str], folder: Path) -> Outcome:
    """Run a command of `scfusion` in a process of its own, which has all modules already."""
    folder.mkdir()
    began = time.monotonic()
    child = os.fork()
    if not child:
        _run_child(words, folder)
    while time.monotonic() - began < TIME_S:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.005)
    else:
        os.kill(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
    said = (folder / "err").read_text(errors="replace")
    result = _digest(folder)
    more = max(0, usage.ru_maxrss * 1024 - _resident())
    return Outcome(os.waitstatus_to_exitcode(status), said, result, time.monotonic() - began, more)


def _run_child(words: list[str], folder: Path) -> None:
    """Never returns."""
    code = 70
    try:
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), stream)
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", closefd=False) for stream in (1, 2))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MORE_MEMORY, used + MORE_MEMORY))
        sys.argv = ["scfusion", *(word.replace("OUT", str(folder)) for word in words)]
        from scfusion_fm.cli.main import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 99
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _digest(folder: Path) -> str:
    """Hash what a command printed and the numbers that it added."""
    digest = hashlib.sha256((folder / "out").read_bytes().replace(str(folder).encode(), b""))
    for path in folder.glob("*.h5ad"):
        import anndata as ad

        found = ad.read_h5ad(path)
        for table in (found.obs, *(found.obsm[name] for name in sorted(found.obsm))):
            digest.update(np.ascontiguousarray(table).tobytes() if isinstance(table, np.ndarray) else _text(table))
    return digest.hexdigest()


def _text(table: Any) -> bytes:
    return table.to_csv().encode()


def judge(outcome: Outcome, usual: Outcome, sums: str) -> str:
    """Name an outcome; those that begin with BAD must not be."""
    lines = outcome.said.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if outcome.code < 0:
        return "BAD: hung" if outcome.seconds >= TIME_S else f"BAD: signal {-outcome.code}"
    if outcome.more_memory > MORE_MEMORY:
        return "BAD: memory"
    if any(line.startswith("Traceback") or not line.isprintable() for line in lines):
        return "BAD: traceback or control characters"
    if outcome.code == 2 and len(errors) == 1 and lines[-1] == errors[0]:
        return "refused"
    if outcome.code not in ((0, 1) if usual.code == 1 else (0,)) or errors:  # 1 says that cells were seen
        return f"BAD: code {outcome.code}, {len(lines)} lines"
    if outcome.result == usual.result:
        return "same"
    return "BAD: silent" if sums == "kept" else "other model"


def reseal(directory: Path) -> None:
    """Make the checksums of a directory fit."""
    files = sorted(p for p in directory.iterdir() if p.name != SUMS and p.is_file() and not p.is_symlink())
    lines = (f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in files)
    (directory / SUMS).write_text("".join(lines))


def copy_model(source: Path, target: Path) -> None:
    """Copy a model directory, but for its code."""
    target.mkdir()
    for path in source.iterdir():
        if path.suffix != ".py":
            (target / path.name).write_bytes(path.read_bytes())


def fuzz(targets: list[Target], cases: int, seed: int, folder: Path) -> tuple[Counter, list[str]]:
    """Run cases; how often each outcome came, by what was done with the checksums, and what went wrong."""
    for name in COMMANDS:
        import_module(name)
    commands = {t.words[0]: t for t in targets}
    usual = {
        name: run_bounded([w.replace("MODEL", str(t.model)) for w in t.words], folder / name)
        for name, t in commands.items()
    }
    for name, outcome in usual.items():
        if outcome.code not in (0, 1):
            raise SystemExit(f"{name} fails without damage: {outcome.said}")
    counts: Counter = Counter()
    wrong, largest, slowest = [], 0, 0.0
    for number in range(cases):
        draw = random.Random(f"{seed} {number}")
        target = targets[number % len(targets)]
        sums = draw.choice(["kept", "fitting", "fitting", "removed"])
        model = folder / f"model{number}"
        copy_model(target.model, model)
        change_file(model / target.file, draw)
        if sums == "removed":
            (model / SUMS).unlink(missing_ok=True)
        elif sums == "fitting" and target.file != SUMS:
            reseal(model)
        words = [w.replace("MODEL", str(model)) for w in target.words]
        outcome = run_bounded(words, folder / f"case{number}")
        found = judge(outcome, usual[target.words[0]], sums)
        counts[f"sums {sums}", found.split(",")[0]] += 1
        largest, slowest = max(largest, outcome.more_memory), max(slowest, outcome.seconds)
        if found.startswith("BAD"):
            wrong.append(
                f"case {number} ({target.words[0]}, {target.file}, sums {sums}): {found}\n{outcome.said[-1500:]}"
            )
        if found == "other model":
            counts[target.file, "other model"] += 1
    print(f"at most {largest / 2**20:,.0f} MiB more memory and {slowest:.1f} s")
    return counts, wrong


def make_targets(folder: Path) -> list[Target]:
    """Make small models of every kind from the demo data, and a file for them."""
    import mudata
    import torch

    from scfusion_fm import (
        ScFusionTTTConfig,
        ScFusionTTTFeatureExtractor,
        ScFusionTTTForCellTypeAnnotation,
        ScFusionTTTForCrossModalPrediction,
        ScFusionTTTForPreTraining,
        align_cells,
        build_vocabulary,
        read_cells,
    )
    from scfusion_fm.data.fingerprints.cells import fingerprint_cells
    from scfusion_fm.data.fingerprints.seen import SeenCells, SeenPart
    from scfusion_fm.evaluation.calibration.classifier import AnnotationCalibration, calibrate_input
    from scfusion_fm.evaluation.calibration.fit_intervals import fit_intervals
    from scfusion_fm.evaluation.calibration.interval_file import write_intervals
    from scfusion_fm.evaluation.calibration.unknown import CellOutputs, ClassGaussians
    from scfusion_fm.inference.export import export_model

    demo = mudata.read_h5mu(Path(__file__).parent.parent / "data/demo_teaseq_pbmc.h5mu")
    part = mudata.MuData({"rna": demo["rna"][:60, :300].copy(), "adt": demo["adt"][:60].copy()})
    part.write(folder / "cells.h5mu")
    part["rna"][40:52].copy().write_h5ad(folder / "rna.h5ad")
    cells = read_cells(folder / "cells.h5mu")
    vocabulary = build_vocabulary([cells])
    extractor = ScFusionTTTFeatureExtractor(**vocabulary.to_dict(), patch_size=4)
    sizes = {
        "num_rna_tokens": extractor.num_rna_tokens,
        "rna_patch_size": 4,
        "num_proteins": extractor.num_proteins,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_decoder_layers": 1,
    }
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    prints = fingerprint_cells(align_cells(cells, vocabulary), vocabulary.gene_ids, vocabulary.protein_names)
    seen = SeenCells((SeenPart.build("pretraining", prints[np.arange(45)]),))
    seen = seen + SeenPart.build("tuning", prints[np.arange(5)])
    outputs, codes = CellOutputs(rng.normal(size=(90, 3)), rng.normal(size=(90, 8))), rng.integers(0, 3, 90)
    gaussians = ClassGaussians.fit(outputs.embedding, codes)
    found = calibrate_input(outputs, codes, "mahalanobis", gaussians)
    calibration = AnnotationCalibration(["B", "T", "NK"], "mahalanobis", {"rna": found, "rna+adt": found})
    names = list(extractor.protein_names[:4])
    measured = rng.normal(size=(60, 4))
    intervals = fit_intervals(measured, measured + 0.1, np.ones((60, 4), bool), names, ["a"] * 40 + ["b"] * 20)
    heads = {
        "pretrained": (ScFusionTTTForPreTraining, {}, {}),
        "annotator": (
            ScFusionTTTForCellTypeAnnotation,
            {"num_labels": 3, "id2label": dict(enumerate(calibration.classes)), "num_coordinates": 2},
            {"annotation_calibration.json": calibration.to_json()},
        ),
        "predictor": (
            ScFusionTTTForCrossModalPrediction,
            {"predicted_features": names, "num_coordinates": 2, "num_landmarks": 3},
            {"protein_intervals.json": write_intervals(intervals)},
        ),
    }
    for name, (kind, settings, files) in heads.items():
        model = kind(ScFusionTTTConfig(**sizes, **settings))
        files = {file: text.encode() for file, text in files.items()}
        export_model(model, extractor, folder / name, {}, seen, files)
    return list_targets(folder, folder / "rna.h5ad")


def list_targets(models: Path, file: Path) -> list[Target]:
    """Give commands and the files that they read of the models `pretrained`, `annotator` and `predictor`."""
    commands = {
        "embed": ("pretrained", ["embed", "MODEL", str(file), "OUT/out.h5ad"]),
        "seen": ("pretrained", ["seen", "MODEL", str(file)]),
        "doctor": ("pretrained", ["doctor", str(file), "--model", "MODEL"]),
        "surprise": ("pretrained", ["surprise", "MODEL", str(file), "OUT/out.h5ad", "--draws", "1"]),
        "annotate": ("annotator", ["annotate", "MODEL", str(file), "OUT/out.h5ad", "--reject-rate", "0.05"]),
        "predict": ("predictor", ["predict-protein", "MODEL", str(file), "OUT/out.h5ad", "--level", "0.9"]),
    }
    reads = {
        "embed": ["config.json", "model.safetensors", "preprocessor_config.json", SUMS],
        "seen": ["seen_cells.npz", "seen_cells.npz", "seen_cells.npz", "config.json"],
        "doctor": ["config.json", "preprocessor_config.json"],
        "surprise": ["config.json", "model.safetensors"],
        "annotate": ["annotation_calibration.json", "annotation_calibration.json", "config.json", "model.safetensors"],
        "predict": ["protein_intervals.json", "protein_intervals.json", "config.json", "preprocessor_config.json"],
    }
    return [
        Target(models / commands[name][0], commands[name][1], file) for name, files in reads.items() for file in files
    ]


def main() -> None:
    """Run the cases and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        counts, wrong = fuzz(make_targets(Path(folder)), args.cases, args.seed, Path(folder))
    for (what, outcome), number in sorted(counts.items()):
        print(f"{what:30} {outcome:20} {number}")
    print("\n".join(wrong))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
