"""Fine-tune the embedding of a pretrained model so that batches mix and cell types stay apart, and score it.

python finetune/batch_integration.py --model MODEL --data my.h5ad --batch-key donor --types-key cell_type --output out
python finetune/batch_integration.py --config configs/finetune/batch_integration.yaml
"""

from scfusion_fm.config.command import run_command
from scfusion_fm.config.flags import parse_flags
from scfusion_fm.config.integration import IntegrationConfig


def main() -> None:
    """Run the fine-tuning from top to bottom; what it does is told in `scfusion_fm/tasks/integration/run.py`."""
    config = parse_flags(IntegrationConfig, __doc__)
    from scfusion_fm.tasks.integration.run import run_integration  # slow, which the help is not

    print(run_integration(config))


if __name__ == "__main__":
    run_command(main)
