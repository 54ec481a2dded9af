"""Fine-tune a pretrained model to predict proteins from RNA, and compare it with baselines on the same cells.

python finetune/cross_modal_prediction.py --config configs/finetune/cross_modal_prediction.yaml
"""

from scfusion_fm.config.command import parse_config, run_command
from scfusion_fm.config.finetune import CrossModalConfig
from scfusion_fm.tasks.cross_modal.run import run_cross_modal


def main() -> None:
    """Run the fine-tuning from top to bottom; what it does is told in `scfusion_fm/tasks/cross_modal/run.py`."""
    run_cross_modal(parse_config(CrossModalConfig, __doc__))


if __name__ == "__main__":
    run_command(main)
