"""Fine-tune a pretrained model to annotate cell types, and compare it with baselines on the same cells.

python finetune/cell_type_annotation.py --config configs/finetune/cell_type_annotation.yaml
"""

from scfusion_fm.config.command import parse_config, run_command
from scfusion_fm.config.finetune import AnnotationConfig
from scfusion_fm.tasks.annotation.run import run_annotation


def main() -> None:
    """Run the fine-tuning from top to bottom; what it does is told in `scfusion_fm/tasks/annotation/run.py`."""
    run_annotation(parse_config(AnnotationConfig, __doc__))


if __name__ == "__main__":
    run_command(main)
