"""
Sub-commands that train: pretrain a model, export it, fine-tune it, and show the settings that come with the package.

The scripts in `pretrain/` and `finetune/` run the same functions, for launchers that want a script.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from scfusion_fm.config.shipped import copy_settings, list_settings_files

NO_PREFIX = "\0"  # of options, for a parser that leaves them all to another one
PRETRAIN = """Pretrain scFusionTTT on an atlas.

    scfusion pretrain --config configs/pretrain/demo.yaml optim.lr=3e-4
    deepspeed --num_accelerators 2 --no_python scfusion pretrain --config configs/pretrain/demo.yaml

The same command goes on from the newest checkpoint of `output_dir`. In a clone, pretrain/run.py does the same."""


@dataclass(frozen=True)
class Task:
    """
    A task of fine-tuning.

    Attributes
    ----------
    script
        Its script, and its example of settings, without their suffix.
    schema, run
        Where its settings and its function are: module and name.
    text
        What it does.
    example
        Arguments that it is called with.
    """

    script: str
    schema: tuple[str, str]
    run: tuple[str, str]
    text: str
    example: str

    @property
    def description(self) -> str:
        """What the help says."""
        config = f"--config configs/finetune/{self.script}.yaml"
        return f"{self.text}\n\n    %(prog)s {self.example}\n    %(prog)s {config}"


TASKS = {
    "annotation": Task(
        "cell_type_annotation",
        ("config.finetune", "AnnotationConfig"),
        ("tasks.annotation.run", "run_annotation"),
        "Fine-tune a pretrained model to annotate cell types, and compare it with baselines on the same cells.",
        "--model MODEL --data my.h5ad --labels-key cell_type --output runs/mine",
    ),
    "protein-prediction": Task(
        "cross_modal_prediction",
        ("config.finetune", "CrossModalConfig"),
        ("tasks.cross_modal.run", "run_cross_modal"),
        "Fine-tune a pretrained model to predict proteins from RNA, and compare it with baselines on the same cells.",
        "--model MODEL --data my.h5mu --output runs/mine",
    ),
    "transfer": Task(
        "unimodal_transfer",
        ("config.finetune", "UnimodalTransferConfig"),
        ("tasks.annotation.transfer", "run_transfer"),
        """Teach a pretrained model to name cell types from RNA alone, through the protein latents that it projects.

The third stage of the paper: encoders and fusion stay as pretraining left them; the projection, which makes the latents
of the missing proteins from those of the RNA, and the head are trained. Run it with
`projected_proteins=false` and another `output_dir` to see what the projected proteins add.""",
        "--model MODEL --data my.h5mu --labels-key cell_type --output runs/mine",
    ),
    "protein-imputation": Task(
        "protein_imputation",
        ("config.imputation", "ImputationConfig"),
        ("tasks.imputation.run", "run_imputation"),
        "Fine-tune a pretrained model to fill in proteins that panels lack, and compare it with baselines on the same "
        "cells.",
        "--model MODEL --data a.h5mu b.h5mu c.h5mu --test-groups c.h5mu --output runs/mine",
    ),
    "batch-integration": Task(
        "batch_integration",
        ("config.integration", "IntegrationConfig"),
        ("tasks.integration.run", "run_integration"),
        "Fine-tune the embedding of a pretrained model so that batches mix and cell types stay apart, and score it.",
        "--model MODEL --data my.h5ad --batch-key donor --types-key cell_type --output runs/mine",
    ),
}


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add `pretrain`, `export`, `finetune` and `configs`."""
    for add in (_add_pretrain, _add_export, _add_finetune, _add_configs):
        add(commands)


def finetune(task: str, arguments: Sequence[str] | None = None, program: str | None = None) -> None:
    """
    Run a fine-tuning.

    Parameters
    ----------
    task
        One of `TASKS`.
    arguments
        Of the command line; those of the process by default.
    program
        What the help calls the command; the name of the script by default.
    """
    from scfusion_fm.config.flags import parse_flags

    config: Any = parse_flags(_load(TASKS[task].schema), TASKS[task].description, arguments, program)
    done = _load(TASKS[task].run)(config)  # slow to load, which the help is not
    if done is not None:  # on ranks that another one speaks for
        print(done)


def build_task_parser(task: str) -> argparse.ArgumentParser:
    """Describe the flags of a fine-tuning, which are its settings."""
    from scfusion_fm.config.flags import build_parser

    return build_parser(_load(TASKS[task].schema), TASKS[task].description, f"scfusion finetune {task}")


def _add_pretrain(commands: argparse._SubParsersAction) -> None:
    text = "pretrain a model on an atlas, or go on with it"
    raw = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser("pretrain", help=text, description=PRETRAIN, formatter_class=raw)
    parser.add_argument("--config", required=True, help="YAML file with the settings of PretrainConfig")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # set by a launcher of the script; not used
    parser.add_argument("overrides", nargs="*", help="settings that replace those of the file: key=value")
    parser.set_defaults(run=_pretrain)


def _pretrain(args: argparse.Namespace) -> None:
    from scfusion_fm.config.loading import load_config
    from scfusion_fm.config.pretrain import PretrainConfig

    config = load_config(PretrainConfig, args.config, args.overrides)
    from scfusion_fm.pretraining.run import run_pretraining  # slow, which a wrong setting is not

    run_pretraining(config)


def _add_export(commands: argparse._SubParsersAction) -> None:
    export = commands.add_parser("export", help="turn a checkpoint of a pretraining into a model directory")
    export.add_argument("directory", type=Path, metavar="RUN", help="directory of a pretraining run")
    export.add_argument("output", type=Path, help="new directory for the model")
    export.add_argument("--step", type=int, help="step of the checkpoint; the newest one by default")
    export.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> None:
    from scfusion_fm.pretraining.export import export_checkpoint

    export_checkpoint(args.directory, args.output, args.step)
    print(f"wrote {args.output}")


def _add_finetune(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("finetune", help="fine-tune a model for a task, and score it beside baselines")
    tasks = parser.add_subparsers(required=True, metavar="TASK")
    for name, task in TASKS.items():
        # Its options are those of its settings, which are read when it runs; here, none is known, `--help` neither.
        own = tasks.add_parser(
            name,
            help=task.text.partition("\n")[0],
            description=task.description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=False,
            prefix_chars=NO_PREFIX,
        )
        own.add_argument(
            "arguments", nargs=argparse.REMAINDER, metavar="--SETTING VALUE", help=f"settings of {task.schema[1]}"
        )
        own.set_defaults(run=lambda args, name=name: finetune(name, args.arguments, f"scfusion finetune {name}"))


def _add_configs(commands: argparse._SubParsersAction) -> None:
    configs = commands.add_parser("configs", help="list or copy the files of settings that come with the package")
    configs.add_argument("--copy", type=Path, metavar="DIRECTORY", help="new directory to copy them to, to change them")
    configs.set_defaults(run=_configs)


def _configs(args: argparse.Namespace) -> None:
    if args.copy is None:
        print("\n".join(list_settings_files()))
        return
    copy_settings(args.copy)
    print(f"wrote {args.copy}")


def _load(place: tuple[str, str]) -> Any:
    module, name = place
    return getattr(import_module(f"scfusion_fm.{module}"), name)
