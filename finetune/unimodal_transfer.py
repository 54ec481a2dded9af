"""Teach a pretrained model to name cell types from RNA alone, through the protein latents that it projects.

The third stage of the paper: encoders and fusion stay as pretraining left them; the projection, which makes the latents
of the missing proteins from those of the RNA, and the head are trained. Run it with
`projected_proteins=false` and another `output_dir` to see what the projected proteins add.

python finetune/unimodal_transfer.py --model MODEL --data my.h5ad --output runs/mine
python finetune/unimodal_transfer.py --config configs/finetune/unimodal_transfer.yaml
"""

from scfusion_fm.config.command import run_command
from scfusion_fm.config.finetune import UnimodalTransferConfig
from scfusion_fm.config.flags import parse_flags


def main() -> None:
    """Run the fine-tuning from top to bottom; what it does is told in `scfusion_fm/tasks/annotation/transfer.py`."""
    config = parse_flags(UnimodalTransferConfig, __doc__)
    from scfusion_fm.tasks.annotation.transfer import run_transfer  # slow, which the help is not

    done = run_transfer(config)
    if done is not None:  # on ranks that another one speaks for
        print(done)


if __name__ == "__main__":
    run_command(main)
