"""Fine-tune a pretrained model to fill in proteins that panels lack, and compare it with baselines on the same cells.

python finetune/protein_imputation.py --model MODEL --data a.h5mu b.h5mu c.h5mu --test-groups c.h5mu --output out
python finetune/protein_imputation.py --config configs/finetune/protein_imputation.yaml
"""

from scfusion_fm.config.command import run_command
from scfusion_fm.config.flags import parse_flags
from scfusion_fm.config.imputation import ImputationConfig


def main() -> None:
    """Run the fine-tuning from top to bottom; what it does is told in `scfusion_fm/tasks/imputation/run.py`."""
    config = parse_flags(ImputationConfig, __doc__)
    from scfusion_fm.tasks.imputation.run import run_imputation  # slow, which the help is not

    print(run_imputation(config))


if __name__ == "__main__":
    run_command(main)
