"""Teach a pretrained model to name cell types from RNA alone, through the protein latents that it projects.

python finetune/unimodal_transfer.py --model MODEL --data my.h5ad --output runs/mine
python finetune/unimodal_transfer.py --config configs/finetune/unimodal_transfer.yaml
"""

from scfusion_fm.cli.training import finetune
from scfusion_fm.config.command import run_command

if __name__ == "__main__":
    run_command(lambda: finetune("transfer"))
