"""Sub-commands about runs: plan them, compare models, draw and report what came of them."""

import argparse
import json
import shlex
from functools import partial
from pathlib import Path


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add `plan`, `evaluate`, `plot`, `report` and `explore`."""
    for add in (_add_plan, _add_evaluate, _add_plot, _add_report, _add_explore):
        add(commands)


def _add_plan(commands: argparse._SubParsersAction) -> None:
    plan = commands.add_parser("plan", help="say whether a pretraining run fits its GPUs, and how long it is")
    plan.add_argument("config", help="YAML file with the settings of PretrainConfig")
    plan.add_argument("overrides", nargs="*", help="settings that replace those of the file: key=value")
    plan.add_argument("--gpus", type=int, default=1, help="over all nodes")
    plan.add_argument("--gpu-memory", type=float, default=80.0, metavar="GIB", help="of each GPU")
    plan.add_argument("--tflops", type=float, help="what you know that a GPU sustains, in 10^12 operations per second")
    plan.add_argument("--cells", type=int, help="training cells; those of the atlas where there is one")
    plan.add_argument("--json", action="store_true", help="print JSON")
    plan.set_defaults(run=_plan)


def _plan(args: argparse.Namespace) -> None:
    from scfusion_fm.config.loading import load_config
    from scfusion_fm.config.pretrain import PretrainConfig
    from scfusion_fm.planning.recipe import plan_recipe
    from scfusion_fm.planning.text import render_plan

    config = load_config(PretrainConfig, args.config, args.overrides)
    found = plan_recipe(config, args.gpus, args.gpu_memory, args.tflops, args.cells)
    print(json.dumps(found.to_dict(), indent=1) if args.json else render_plan(found))


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    evaluate = commands.add_parser(
        "evaluate", help="score models beside baselines over folds and seeds; go on if begun"
    )
    evaluate.add_argument("--config", required=True, help="YAML file with the settings of EvaluateConfig")
    evaluate.add_argument("overrides", nargs="*", help="settings that replace those of the file: key=value")
    evaluate.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace) -> None:
    from scfusion_fm.comparison.evaluation import Evaluation
    from scfusion_fm.config.comparison import EvaluateConfig
    from scfusion_fm.config.loading import load_config

    config = load_config(EvaluateConfig, args.config, args.overrides)
    command = shlex.join(["scfusion", "evaluate", "--config", args.config, *args.overrides])
    Evaluation(config, partial(print, flush=True), command).run()


def _add_plot(commands: argparse._SubParsersAction) -> None:
    plot = commands.add_parser("plot", help="draw losses, learning rate, speed and memory of pretraining runs")
    plot.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="directory of a pretraining run")
    plot.add_argument("--output", type=Path, metavar="OUT.png", help="picture to write; RUN/plot.png of the first run")
    plot.set_defaults(run=_plot)


def _plot(args: argparse.Namespace) -> None:
    from scfusion_fm.data.locations import check_suffix
    from scfusion_fm.evaluation.report.run_plot import write_run_plot

    output = args.output or args.runs[0] / "plot.png"
    check_suffix(output, "--output", ".png")
    write_run_plot(args.runs, output)
    print(f"wrote {output}")


def _add_report(commands: argparse._SubParsersAction) -> None:
    report = commands.add_parser("report", help="write report.html from finished runs")
    report.add_argument("--pretraining", type=Path, help="directory of a pretraining run")
    report.add_argument("--annotation", type=Path, help="output_dir of finetune/cell_type_annotation.py")
    report.add_argument("--cross-modal", type=Path, help="output_dir of finetune/cross_modal_prediction.py")
    report.add_argument("--output", type=Path, required=True, help="report.html to write")
    report.set_defaults(run=_report)


def _report(args: argparse.Namespace) -> None:
    from scfusion_fm.pl import report

    written = report(
        args.output, pretraining=args.pretraining, annotation=args.annotation, cross_modal=args.cross_modal
    )
    print(f"wrote {written}")


def _add_explore(commands: argparse._SubParsersAction) -> None:
    explore = commands.add_parser("explore", help="write a page to look at cells with in a browser, without a network")
    explore.add_argument("input", type=Path, help="file that `embed`, and perhaps other commands, wrote")
    explore.add_argument("output", type=Path, nargs="?", help="page to write, .html; beside the input by default")
    explore.add_argument(
        "--basis", default="X_scfusion_ttt", help="embedding in obsm; its UMAP is shown without X_umap"
    )
    explore.add_argument("--key", default="protein_scfusion_ttt", help="predicted proteins in obsm")
    explore.add_argument(
        "--max-cells", type=int, default=200_000, metavar="N", help="above it, a random sample is shown"
    )
    explore.set_defaults(run=_explore)


def _explore(args: argparse.Namespace) -> None:
    from scfusion_fm.explorer.page import explore

    output = args.output or args.input.with_suffix(".html")
    written = explore(args.input, output, basis=args.basis, key=args.key, max_cells=args.max_cells)
    print(f"wrote {written}, {written.stat().st_size / 2**20:.1f} MiB; open it in a browser")
