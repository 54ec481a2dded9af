"""Fine-tune a pretrained model to annotate cell types, and compare it with baselines on the same cells.

python finetune/cell_type_annotation.py --model MODEL --data my.h5ad --output runs/mine
python finetune/cell_type_annotation.py --config configs/finetune/cell_type_annotation.yaml
"""

from scfusion_fm.config.command import run_command
from scfusion_fm.config.finetune import AnnotationConfig
from scfusion_fm.config.flags import parse_flags


def main() -> None:
    """Run the fine-tuning from top to bottom; what it does is told in `scfusion_fm/tasks/annotation/run.py`."""
    config = parse_flags(AnnotationConfig, __doc__)
    from scfusion_fm.tasks.annotation.run import run_annotation  # slow, which the help is not

    done = run_annotation(config)
    if done is not None:  # on ranks that another one speaks for
        print(done)


if __name__ == "__main__":
    run_command(main)
