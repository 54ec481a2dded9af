"""Fine-tune a pretrained model to fill in proteins that panels lack, and compare it with baselines on the same cells.

python finetune/protein_imputation.py --model MODEL --data a.h5mu b.h5mu c.h5mu --test-groups c.h5mu --output out
python finetune/protein_imputation.py --config configs/finetune/protein_imputation.yaml
"""

from scfusion_fm.cli.training import finetune
from scfusion_fm.config.command import run_command

if __name__ == "__main__":
    run_command(lambda: finetune("protein-imputation"))
