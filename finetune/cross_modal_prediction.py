"""Fine-tune a pretrained model to predict proteins from RNA, and compare it with baselines on the same cells.

python finetune/cross_modal_prediction.py --model MODEL --data my.h5ad --output runs/mine
python finetune/cross_modal_prediction.py --config configs/finetune/cross_modal_prediction.yaml
"""

from scfusion_fm.cli.training import finetune
from scfusion_fm.config.command import run_command

if __name__ == "__main__":
    run_command(lambda: finetune("protein-prediction"))
