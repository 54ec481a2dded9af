"""Run pretrain/run.py, and write down what its engine holds at the end: float32 weights and outputs.

The weights are gathered by DeepSpeed's own functions, not by ours.
"""

import runpy
import sys
from pathlib import Path

import torch
from deepspeed import comm
from deepspeed.utils import safe_get_full_fp32_param

from scfusion_fm.training.loop import VALIDATION_EPOCH, PretrainingLoop

ROOT = Path(__file__).parent.parent.parent
train = PretrainingLoop.run


def run_and_dump(loop: PretrainingLoop) -> bool:
    finished = train(loop)
    whole = loop.engine.zero_optimization_stage() == 0
    weights = {
        name: (p.detach() if whole else safe_get_full_fp32_param(p)).clone().cpu()
        for name, p in loop.engine.module.named_parameters()
    }
    cells, _ = next(loop.loader.deal_rows(loop.validation_rows[:4], VALIDATION_EPOCH))
    batch = cells.inputs
    loop.engine.eval()
    with torch.no_grad():
        output = loop.engine(**batch)
    if comm.get_rank() == 0:
        outputs = {name: output[name].float() for name in ("rna_reconstruction", "adt_reconstruction", "pooler_output")}
        torch.save({"weights": weights, "batch": batch, "outputs": outputs}, loop.directory.path / "engine.pt")
    return finished


PretrainingLoop.run = run_and_dump
sys.argv[0] = "pretrain/run.py"
runpy.run_path(str(ROOT / "pretrain" / "run.py"), run_name="__main__")
