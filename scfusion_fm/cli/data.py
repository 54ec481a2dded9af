"""Sub-commands about data: make an atlas, and look at files and atlases."""

import argparse
import json
import sys
from pathlib import Path

from scfusion_fm.cli.limits import add_limits
from scfusion_fm.untrusted.text import show_text


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add `fetch`, `prepare`, `synthesize`, `verify`, `doctor` and `inspect`."""
    for add in (_add_fetch, _add_prepare, _add_synthesize, _add_verify, _add_doctor, _add_inspect):
        add(commands)


def _add_fetch(commands: argparse._SubParsersAction) -> None:
    fetch = commands.add_parser("fetch", help="download public CITE-seq data sets by name")
    fetch.add_argument("names", nargs="*", metavar="NAME", help="which; --list tells what there is")
    fetch.add_argument("--list", action="store_true", help="say what can be fetched, and stop")
    fetch.add_argument("--directory", type=Path, default=Path("data"), help="where the files go (data)")
    fetch.set_defaults(run=_fetch)


def _fetch(args: argparse.Namespace) -> None:
    from scfusion_fm.data.fetch.fetch import fetch, list_datasets

    if args.list or not args.names:
        print(list_datasets(args.names))
        return
    for path in fetch(*args.names, directory=args.directory):
        print(f"wrote {path}")


def _add_prepare(commands: argparse._SubParsersAction) -> None:
    prepare = commands.add_parser("prepare", help="read files, check them, and write an atlas")
    prepare.add_argument("--config", required=True, help="YAML file with the settings of PrepareConfig")
    prepare.add_argument("overrides", nargs="*", help="settings that replace those of the file: key=value")
    prepare.add_argument("--append", action="store_true", help="add the sources that an existing atlas lacks")
    prepare.add_argument("--task", metavar="I/N", help="write the I-th of N shares of the pieces, and stop")
    prepare.add_argument("--merge", action="store_true", help="make the atlas of the pieces that tasks wrote")
    add_limits(prepare)
    prepare.set_defaults(run=_prepare)


def _prepare(args: argparse.Namespace) -> None:
    from scfusion_fm.config.loading import load_config
    from scfusion_fm.config.prepare import PrepareConfig
    from scfusion_fm.data.prepare.job import prepare_atlas

    task = _parse_share(args.task) if args.task else None
    prepare_atlas(load_config(PrepareConfig, args.config, args.overrides), args.append, task, args.merge)


def _parse_share(text: str) -> tuple[int, int]:
    """Read 2/8, the second of eight shares, as (1, 8)."""
    number, _, total = text.partition("/")
    if not (number.isdigit() and total.isdigit() and 1 <= int(number) <= int(total)):
        raise ValueError(f"`--task` must read I/N with I from 1 to N, got {text!r}.")
    return int(number) - 1, int(total)


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


def _synthesize(args: argparse.Namespace) -> None:
    from scfusion_fm.data.prepare.synthesize import synthesize_atlas
    from scfusion_fm.data.prepare.synthetic import SyntheticSettings

    sizes = (args.cells, args.genes, args.density, args.proteins, args.datasets, args.cell_types, args.seed)
    synthesize_atlas(SyntheticSettings(*sizes), args.output, args.workers)


def _add_verify(commands: argparse._SubParsersAction) -> None:
    verify = commands.add_parser("verify", help="compare the files of an atlas or a model with its checksums")
    verify.add_argument("atlas", metavar="PATH", help="atlas (directory or URL), or model (directory or name)")
    verify.set_defaults(run=_verify)


def _verify(args: argparse.Namespace) -> None:
    from scfusion_fm.data.atlas.atlas import verify_atlas
    from scfusion_fm.inference.model_files import find_model, is_model, list_shipped, verify_model

    if args.atlas in list_shipped() or is_model(Path(args.atlas)):
        verify_model(find_model(args.atlas))
    else:
        verify_atlas(args.atlas)
    print(f"{args.atlas} is as it was written")


def _add_doctor(commands: argparse._SubParsersAction) -> None:
    doctor = commands.add_parser("doctor", help="say what files hold and whether they can be used; writes nothing")
    doctor.add_argument("files", type=Path, nargs="+", metavar="FILE", help=".h5ad, .h5mu, 10x .h5 or zarr")
    doctor.add_argument(
        "--model", help="model (directory, name or id) whose vocabulary counts; all human genes if absent"
    )
    doctor.add_argument("--modality", choices=("auto", "rna", "adt"), default="auto", help="of a single AnnData")
    doctor.add_argument("--batch-key", help="column of obs; what has no count in a batch is not measured there")
    doctor.add_argument("--min-coverage", type=float, help="with --model: as the commands that use it, 0.01 by default")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    add_limits(doctor)
    doctor.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> None:
    from scfusion_fm.inference.doctor import doctor

    options = {name: getattr(args, name) for name in ("model", "modality", "batch_key", "min_coverage")}
    found = doctor(args.files, **options)
    print(json.dumps(found.to_dict(), indent=1) if args.json else found)
    if found.exit_code:
        sys.exit(found.exit_code)


def _add_inspect(commands: argparse._SubParsersAction) -> None:
    inspect = commands.add_parser("inspect", help="say what an atlas holds and what its data sets share")
    inspect.add_argument("atlas", help="directory or URL of the atlas")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.add_argument("--plot", type=Path, metavar="OUT.png", help="new picture of the panels that data sets share")
    inspect.set_defaults(run=_inspect)


def _inspect(args: argparse.Namespace) -> None:
    from scfusion_fm.data.inspect.summary import summarise_atlas
    from scfusion_fm.data.inspect.summary_text import render_summary
    from scfusion_fm.data.locations import check_suffix
    from scfusion_fm.data.scratch import check_destination

    if args.plot is not None:
        check_suffix(args.plot, "--plot", ".png")
        check_destination(args.plot, "--plot")
    found = summarise_atlas(args.atlas)
    print(json.dumps(found.to_dict(), indent=1) if args.json else show_text(render_summary(found), keep="\n"))
    if args.plot is not None:
        from scfusion_fm.evaluation.report.overlap_plot import plot_overlap

        names = [dataset.name for dataset in found.datasets]
        plot_overlap(names, found.shared_genes, found.shared_proteins).savefig(args.plot, dpi=150, bbox_inches="tight")
