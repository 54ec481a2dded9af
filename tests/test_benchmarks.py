"""The benchmarks run, and what they print can be read by a program."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_benchmark_of_the_ttt_layer(tmp_path):
    command = [sys.executable, "benchmarks/ttt_layer.py", "--lengths", "32", "64", "--repeats", "1"]
    command += [
        "--hidden-size",
        "32",
        "--heads",
        "2",
        "--json",
        tmp_path / "rows.json",
        "--plot",
        tmp_path / "plot.png",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    names = ["ours", "both ways", "plain", "attention", "projections"]
    assert [(row["tokens"], row["layer"]) for row in rows] == [(n, name) for n in (32, 64) for name in names]
    assert all(row["seconds"] > 0 and row["peak_mib"] > 0 for row in rows)
    assert all(name in done.stdout for name in names)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_benchmark_of_the_loader(tmp_path):
    command = [sys.executable, "benchmarks/loader.py", "--quick", "--seconds", "0.3", "--batch", "256"]
    done = subprocess.run(
        [*command, "--json", tmp_path / "rows.json"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "rows.json").read_text())
    names = ["ours", "ours 512", "memory map", "h5ad", "zarr"]
    assert [row["loader"] for row in found["rows"]] == names
    assert all(row["cells_per_s"] > 0 and row["peak_mib"] > 0 for row in found["rows"])
    assert 0 <= found["stall"]["stall"] < 1
    assert all(f"| {name} |" in done.stdout for name in names)
