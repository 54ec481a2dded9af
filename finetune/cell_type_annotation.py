"""Fine-tune a pretrained model to annotate cell types, and compare it with baselines on the same cells.

python finetune/cell_type_annotation.py --model MODEL --data my.h5ad --output runs/mine
python finetune/cell_type_annotation.py --config configs/finetune/cell_type_annotation.yaml
"""

from scfusion_fm.cli.training import finetune
from scfusion_fm.config.command import run_command

if __name__ == "__main__":
    run_command(lambda: finetune("annotation"))
