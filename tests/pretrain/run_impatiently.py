"""Run pretrain/run.py, but wait only a second for a directory that another run holds."""

import runpy
import sys
from pathlib import Path

from scfusion_fm.training import run_directory

run_directory.LOCK_PATIENCE_S = 1.0
sys.argv[0] = "pretrain/run.py"
runpy.run_path(str(Path(__file__).parents[2] / "pretrain" / "run.py"), run_name="__main__")
