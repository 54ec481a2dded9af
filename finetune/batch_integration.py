"""Fine-tune the embedding of a pretrained model so that batches mix and cell types stay apart, and score it.

python finetune/batch_integration.py --model MODEL --data my.h5ad --batch-key donor --types-key cell_type --output out
python finetune/batch_integration.py --config configs/finetune/batch_integration.yaml
"""

from scfusion_fm.cli.training import finetune
from scfusion_fm.config.command import run_command

if __name__ == "__main__":
    run_command(lambda: finetune("batch-integration"))
