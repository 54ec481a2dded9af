"""Fine-tune a pretrained model to predict proteins from RNA, and compare it with baselines on the same cells.

python finetune/cross_modal_prediction.py --model MODEL --data my.h5ad --output runs/mine
python finetune/cross_modal_prediction.py --config configs/finetune/cross_modal_prediction.yaml
"""

from scfusion_fm.config.command import run_command
from scfusion_fm.config.finetune import CrossModalConfig
from scfusion_fm.config.flags import parse_flags


def main() -> None:
    """Run the fine-tuning from top to bottom; what it does is told in `scfusion_fm/tasks/cross_modal/run.py`."""
    config = parse_flags(CrossModalConfig, __doc__)
    from scfusion_fm.tasks.cross_modal.run import run_cross_modal  # slow, which the help is not

    done = run_cross_modal(config)
    if done is not None:  # on ranks that another one speaks for
        print(done)


if __name__ == "__main__":
    run_command(main)
