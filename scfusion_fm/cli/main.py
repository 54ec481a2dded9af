"""The `scfusion` command."""

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from scfusion_fm.config.command import run_command


def main() -> None:
    """Run the `scfusion` command."""
    run_command(lambda: _dispatch(build_parser().parse_args()))


def build_parser() -> argparse.ArgumentParser:
    """Describe all sub-commands."""
    parser = argparse.ArgumentParser(prog="scfusion", description="Foundation model for CITE-seq.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    prepare = commands.add_parser("prepare", help="read files, check them, and write an atlas")
    prepare.add_argument("--config", required=True, help="YAML file with the settings of PrepareConfig")
    prepare.add_argument("overrides", nargs="*", help="settings that replace those of the file: key=value")
    prepare.add_argument("--append", action="store_true", help="add the sources that an existing atlas lacks")
    prepare.add_argument("--task", metavar="I/N", help="write the I-th of N shares of the pieces, and stop")
    prepare.add_argument("--merge", action="store_true", help="make the atlas of the pieces that tasks wrote")
    prepare.set_defaults(run=_prepare)
    _add_synthesize(commands)

    verify = commands.add_parser("verify", help="compare the files of an atlas with its checksums")
    verify.add_argument("atlas", help="directory or URL of the atlas")
    verify.set_defaults(run=_verify)

    doctor = commands.add_parser("doctor", help="say what files hold and whether they can be used; writes nothing")
    doctor.add_argument("files", type=Path, nargs="+", metavar="FILE", help=".h5ad, .h5mu, 10x .h5 or zarr")
    doctor.add_argument("--model", type=Path, help="model directory whose vocabulary counts; all human genes if absent")
    doctor.add_argument("--modality", choices=("auto", "rna", "adt"), default="auto", help="of a single AnnData")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(run=_doctor)

    inspect = commands.add_parser("inspect", help="say what an atlas holds and what its data sets share")
    inspect.add_argument("atlas", help="directory or URL of the atlas")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.add_argument("--plot", type=Path, metavar="OUT.png", help="new picture of the panels that data sets share")
    inspect.set_defaults(run=_inspect)

    _add_plan(commands)
    for name, text in (
        ("embed", 'write cell embeddings to obsm["X_scfusion_ttt"]'),
        ("annotate", 'write cell types to obs["cell_type_pred"], with their probability'),
        ("predict-protein", 'write proteins predicted from RNA to obsm["protein_scfusion_ttt"]'),
        ("surprise", 'write how strange cells are to the model to obs["scfusion_ttt_surprise"]'),
    ):
        _add_inference(commands, name, text)

    seen = commands.add_parser("seen", help="tell how many cells of a file a model was trained on; exit code 1 if any")
    seen.add_argument("model", type=Path, help="model directory")
    seen.add_argument("file", type=Path, help=".h5ad, .h5mu, 10x .h5 or zarr with raw counts")
    seen.add_argument("--modality", choices=("auto", "rna", "adt"), default="auto", help="of a single AnnData")
    seen.add_argument("--json", action="store_true", help="print JSON")
    seen.set_defaults(run=_seen)

    _add_evaluate(commands)
    plot = commands.add_parser("plot", help="draw losses, learning rate, speed and memory of pretraining runs")
    plot.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="directory of a pretraining run")
    plot.add_argument("--output", type=Path, metavar="OUT.png", help="picture to write; RUN/plot.png of the first run")
    plot.set_defaults(run=_plot)

    report = commands.add_parser("report", help="write report.html from finished runs")
    report.add_argument("--pretraining", type=Path, help="directory of a pretraining run")
    report.add_argument("--annotation", type=Path, help="output_dir of finetune/cell_type_annotation.py")
    report.add_argument("--cross-modal", type=Path, help="output_dir of finetune/cross_modal_prediction.py")
    report.add_argument("--output", type=Path, required=True, help="report.html to write")
    report.set_defaults(run=_report)
    return parser


def _add_synthesize(commands: argparse._SubParsersAction) -> None:
    synthesize = commands.add_parser("synthesize", help="write an atlas of made-up cells, to size a machine")
    synthesize.add_argument("output", help="directory or URL of the new atlas")
    synthesize.add_argument("--cells", type=int, required=True)
    synthesize.add_argument("--genes", type=int, default=20_000)
    synthesize.add_argument("--density", type=float, default=0.07, help="share of counts that are not zero")
    synthesize.add_argument("--proteins", type=int, default=140)
    synthesize.add_argument("--datasets", type=int, default=24)
    synthesize.add_argument("--cell-types", type=int, default=40)
    synthesize.add_argument("--seed", type=int, default=0)
    synthesize.add_argument("--workers", type=int, default=1, help="processes")
    synthesize.set_defaults(run=_synthesize)


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    evaluate = commands.add_parser(
        "evaluate", help="score models beside baselines over folds and seeds; go on if begun"
    )
    evaluate.add_argument("--config", required=True, help="YAML file with the settings of EvaluateConfig")
    evaluate.add_argument("overrides", nargs="*", help="settings that replace those of the file: key=value")
    evaluate.set_defaults(run=_evaluate)


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


def _add_inference(commands: argparse._SubParsersAction, name: str, text: str) -> None:
    parser = commands.add_parser(name, help=text)
    parser.add_argument("model", type=Path, help="model directory")
    parser.add_argument("input", type=Path, help=".h5ad, .h5mu, 10x .h5 or zarr with raw counts")
    parser.add_argument("output", type=Path, help="new file; everything in the input is kept")
    parser.add_argument("--key-added", help="name of what is added")
    parser.add_argument("--modality", choices=("auto", "rna", "adt"), default="auto", help="of a single AnnData")
    parser.add_argument("--batch-size", type=int, default=64, help="cells per forward pass")
    parser.add_argument("--device", help="torch device; cuda where there is one by default")
    if name == "annotate":
        parser.add_argument(
            "--reject-rate",
            type=float,
            help="share of cells of known types that may be called unknown; none is without",
        )
        parser.add_argument("--ontology", type=Path, help="TSV with the columns label, ontology_id and parent")
        parser.add_argument(
            "--min-probability", type=float, default=0.5, help="below it, a label of --ontology goes up to its parent"
        )
    if name == "predict-protein":
        parser.add_argument("--level", type=float, help="coverage of the intervals; 0.9 by default")
        parser.add_argument("--group-key", help="column of obs whose groups get their own intervals, if calibrated")
        parser.add_argument(
            "--drop-undetermined", action="store_true", help="NaN for proteins that RNA was not shown to determine"
        )
    if name == "surprise":
        parser.add_argument("--reference", type=Path, help="file with known cells, of which percentiles are taken")
        parser.add_argument("--draws", type=int, default=0, help="masks under which cells are reconstructed as well")
    parser.set_defaults(run=lambda args: _infer(name, args))


def _dispatch(args: argparse.Namespace) -> None:
    run: Callable[[argparse.Namespace], None] = args.run
    run(args)


def _prepare(args: argparse.Namespace) -> None:
    from scfusion_fm.config.loading import load_config
    from scfusion_fm.config.prepare import PrepareConfig
    from scfusion_fm.data.engines import Engine
    from scfusion_fm.data.prepare.job import AtlasJob
    from scfusion_fm.data.prepare.recipe import AtlasRecipe, Source, SplitRule

    if args.task and args.merge:
        raise ValueError("`--task` and `--merge` are steps of their own, got both; merge when all tasks are done.")
    share = _parse_share(args.task) if args.task else (0, 1)
    config = load_config(PrepareConfig, args.config, args.overrides)
    sources = [Source(s.path, s.name or Path(s.path).stem, s.modality, s.licence, s.reference) for s in config.sources]
    recipe = AtlasRecipe(
        sources=sources,
        genes=config.genes,
        proteins=config.proteins,
        obs_columns=config.obs_columns,
        split=SplitRule(**vars(config.split)),
        seed=config.seed,
        codec=config.codec,
    )
    job = AtlasJob(recipe, config.output, Engine(config.workers, config.dask), config.work_dir, args.append)
    if not job.plan():
        return
    if not args.merge:
        job.write_pieces(share)
    if not args.task:
        job.merge()


def _parse_share(text: str) -> tuple[int, int]:
    """Read 2/8, the second of eight shares, as (1, 8)."""
    number, _, total = text.partition("/")
    if not (number.isdigit() and total.isdigit() and 1 <= int(number) <= int(total)):
        raise ValueError(f"`--task` must read I/N with I from 1 to N, got {text!r}.")
    return int(number) - 1, int(total)


def _synthesize(args: argparse.Namespace) -> None:
    from scfusion_fm.data.engines import Engine
    from scfusion_fm.data.prepare.synthesize import SyntheticSettings, synthesize_atlas

    sizes = (args.cells, args.genes, args.density, args.proteins, args.datasets, args.cell_types, args.seed)
    synthesize_atlas(SyntheticSettings(*sizes), args.output, Engine(args.workers))


def _verify(args: argparse.Namespace) -> None:
    from scfusion_fm.data.atlas.atlas import verify_atlas

    verify_atlas(args.atlas)
    print(f"{args.atlas} is as it was written")


def _doctor(args: argparse.Namespace) -> None:
    from scfusion_fm.data.inspect.doctor import examine_files
    from scfusion_fm.data.inspect.doctor_text import render_examination
    from scfusion_fm.data.vocabulary.vocabulary import build_vocabulary

    if args.model is None:
        vocabulary = build_vocabulary(None, genes="protein_coding", proteins="all")
    else:
        from scfusion_fm.inference.model_directory import load_extractor, vocabulary_of

        vocabulary = vocabulary_of(load_extractor(args.model))
    found = examine_files(args.files, vocabulary, args.modality)
    print(json.dumps(found.to_dict(), indent=1) if args.json else render_examination(found))
    if found.exit_code:
        sys.exit(found.exit_code)


def _inspect(args: argparse.Namespace) -> None:
    from scfusion_fm.data.inspect.summary import summarise_atlas
    from scfusion_fm.data.inspect.summary_text import render_summary
    from scfusion_fm.data.locations import check_new_path

    if args.plot is not None:
        check_new_path(args.plot, "--plot")
    found = summarise_atlas(args.atlas)
    print(json.dumps(found.to_dict(), indent=1) if args.json else render_summary(found))
    if args.plot is not None:
        from scfusion_fm.evaluation.report.overlap_plot import plot_overlap

        names = [dataset.name for dataset in found.datasets]
        plot_overlap(names, found.shared_genes, found.shared_proteins).savefig(args.plot, dpi=150, bbox_inches="tight")


def _plan(args: argparse.Namespace) -> None:
    from scfusion_fm.config.loading import load_config
    from scfusion_fm.config.pretrain import PretrainConfig
    from scfusion_fm.planning.recipe import plan_recipe
    from scfusion_fm.planning.text import render_plan

    config = load_config(PretrainConfig, args.config, args.overrides)
    found = plan_recipe(config, args.gpus, args.gpu_memory, args.tflops, args.cells)
    print(json.dumps(found.to_dict(), indent=1) if args.json else render_plan(found))


def _infer(name: str, args: argparse.Namespace) -> None:
    from scfusion_fm.inference.job import job as inference

    request = inference.Request(
        model=args.model,
        input=args.input,
        output=args.output,
        key_added=args.key_added,
        modality=args.modality,
        batch_size=args.batch_size,
        device=args.device,
    )
    if name == "embed":
        inference.embed(request)
    elif name == "annotate":
        from scfusion_fm.inference.annotate import AnnotationRequest, annotate

        annotate(request, AnnotationRequest(args.reject_rate, args.ontology, args.min_probability))
    elif name == "predict-protein":
        from scfusion_fm.inference.predict_protein import IntervalRequest, predict_protein

        predict_protein(request, IntervalRequest(args.level, args.group_key, args.drop_undetermined))
    else:
        from scfusion_fm.inference.surprise import SurpriseRequest, surprise

        surprise(request, SurpriseRequest(args.reference, args.draws))


def _seen(args: argparse.Namespace) -> None:
    from scfusion_fm.inference.seen import find_seen

    answer = find_seen(args.model, args.file, args.modality)
    print(json.dumps(answer.to_dict(), indent=1) if args.json else answer.to_text())
    if answer.beyond_chance:
        sys.exit(1)


def _evaluate(args: argparse.Namespace) -> None:
    from scfusion_fm.comparison.evaluation import Evaluation
    from scfusion_fm.config.comparison import EvaluateConfig
    from scfusion_fm.config.loading import load_config

    config = load_config(EvaluateConfig, args.config, args.overrides)
    command = shlex.join(["scfusion", "evaluate", "--config", args.config, *args.overrides])
    Evaluation(config, partial(print, flush=True), command).run()


def _plot(args: argparse.Namespace) -> None:
    from scfusion_fm.evaluation.report.run_plot import write_run_plot

    output = args.output or args.runs[0] / "plot.png"
    write_run_plot(args.runs, output)
    print(f"wrote {output}")


def _report(args: argparse.Namespace) -> None:
    from scfusion_fm.evaluation.report.run_report import write_report

    write_report(args.output, args.pretraining, args.annotation, args.cross_modal)
    print(f"wrote {args.output}")
