"""Sub-commands that use a model on a file."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scfusion_fm.cli.limits import add_limits

MODEL = "model directory, name of `scfusion models`, or id on the Hugging Face hub"


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add `models`, `embed`, `annotate`, `predict-protein`, `impute`, `surprise`, `seen` and `push`."""
    verbs = (_add_embed, _add_annotate, _add_predict_protein, _add_impute, _add_surprise, _add_seen)
    for add in (_add_models, *verbs, _add_push):
        add(commands)


def _add_models(commands: argparse._SubParsersAction) -> None:
    models = commands.add_parser("models", help="list the models that come with the package")
    models.add_argument("--json", action="store_true", help="print JSON")
    models.set_defaults(run=_models)


def _models(args: argparse.Namespace) -> None:
    from scfusion_fm.inference.shipped import list_models

    found = list_models()
    print(json.dumps([vars(model) for model in found], indent=1) if args.json else found)


def _add_embed(commands: argparse._SubParsersAction) -> None:
    embed = commands.add_parser("embed", help='write cell embeddings to obsm["X_scfusion_ttt"]')
    _add_request(embed)
    embed.set_defaults(run=_embed)


def _embed(args: argparse.Namespace) -> None:
    from scfusion_fm.inference.embed import embed

    _use(embed, args)


def _add_annotate(commands: argparse._SubParsersAction) -> None:
    annotate = commands.add_parser("annotate", help='write cell types to obs["cell_type_pred"], with their probability')
    _add_request(annotate)
    annotate.add_argument(
        "--reject-rate",
        type=float,
        help="share of cells of known types that may be called unknown; none is without",
    )
    annotate.add_argument("--ontology", type=Path, help="TSV with the columns label, ontology_id and parent")
    annotate.add_argument(
        "--min-probability", type=float, default=0.5, help="below it, a label of --ontology goes up to its parent"
    )
    annotate.set_defaults(run=_annotate)


def _annotate(args: argparse.Namespace) -> None:
    from scfusion_fm.inference.annotate import annotate

    own = {name: getattr(args, name) for name in ("reject_rate", "ontology", "min_probability")}
    _use(annotate, args, **own)


def _add_predict_protein(commands: argparse._SubParsersAction) -> None:
    predict = commands.add_parser(
        "predict-protein", help='write proteins predicted from RNA to obsm["protein_scfusion_ttt"]'
    )
    _add_request(predict)
    predict.add_argument(
        "--proteins", nargs="+", metavar="NAME", help="these alone, by their names in the file or model"
    )
    predict.add_argument(
        "--unit",
        choices=("clr", "deviations"),
        default="clr",
        help="centred log ratio, or deviations from the mean of the file, which are surer in a new study",
    )
    predict.add_argument("--level", type=float, help="coverage of the intervals; 0.9 by default")
    predict.add_argument("--group-key", help="column of obs whose groups get their own intervals, if calibrated")
    predict.add_argument(
        "--drop-undetermined", action="store_true", help="NaN for proteins that RNA was not shown to determine"
    )
    predict.set_defaults(run=_predict_protein)


def _predict_protein(args: argparse.Namespace) -> None:
    from scfusion_fm.inference.predict_protein import predict_protein

    own = {name: getattr(args, name) for name in ("proteins", "unit", "level", "group_key", "drop_undetermined")}
    _use(predict_protein, args, **own)


def _add_impute(commands: argparse._SubParsersAction) -> None:
    impute = commands.add_parser(
        "impute", help='fill in proteins that were not measured: obsm["protein_scfusion_ttt_imputed"]; or genes'
    )
    _add_request(impute)
    impute.add_argument("--target", choices=("adt", "rna"), default="adt", help="proteins (adt) or genes (rna)")
    impute.add_argument(
        "--proteins", nargs="+", metavar="NAME", help="these alone, by their names in the file or model"
    )
    impute.add_argument("--genes", nargs="+", metavar="NAME", help="these alone, with --target rna")
    impute.add_argument("--level", type=float, help="coverage of the intervals; 0.9 by default")
    impute.set_defaults(run=_impute)


def _impute(args: argparse.Namespace) -> None:
    from scfusion_fm.inference.impute import impute

    own = {name: getattr(args, name) for name in ("target", "proteins", "genes", "level")}
    _use(impute, args, **own)


def _add_surprise(commands: argparse._SubParsersAction) -> None:
    surprise = commands.add_parser(
        "surprise", help='write how strange cells are to the model to obs["scfusion_ttt_surprise"]'
    )
    _add_request(surprise)
    surprise.add_argument("--reference", type=Path, help="file with known cells, of which percentiles are taken")
    surprise.add_argument("--draws", type=int, default=0, help="masks under which cells are reconstructed as well")
    surprise.set_defaults(run=_surprise)


def _surprise(args: argparse.Namespace) -> None:
    from scfusion_fm.inference.surprise import surprise

    _use(surprise, args, reference=args.reference, draws=args.draws)


def _add_seen(commands: argparse._SubParsersAction) -> None:
    seen = commands.add_parser("seen", help="tell how many cells of a file a model was trained on; exit code 1 if any")
    seen.add_argument("model", help=MODEL)
    seen.add_argument("file", type=Path, help=".h5ad, .h5mu, 10x .h5 or zarr with raw counts")
    seen.add_argument("--modality", choices=("auto", "rna", "adt"), default="auto", help="of a single AnnData")
    seen.add_argument("--json", action="store_true", help="print JSON")
    add_limits(seen)
    seen.set_defaults(run=_seen)


def _seen(args: argparse.Namespace) -> None:
    from scfusion_fm.inference.seen import seen

    answer = seen(args.file, args.model, modality=args.modality)
    print(json.dumps(answer.to_dict(), indent=1) if args.json else answer)
    if answer.beyond_chance:
        sys.exit(1)


def _add_push(commands: argparse._SubParsersAction) -> None:
    push = commands.add_parser("push", help="upload a model directory to the Hugging Face Hub")
    push.add_argument("model", help="model directory, or name of `scfusion models`")
    push.add_argument("repo", help="name on the Hub, such as lab/blood; made if need be")
    push.add_argument("--private", action="store_true", help="if it is made, for those alone who may read it")
    push.set_defaults(run=_push)


def _push(args: argparse.Namespace) -> None:
    from scfusion_fm.inference.export import push_to_hub

    print(push_to_hub(args.model, args.repo, **({"private": True} if args.private else {})))


def _add_request(parser: argparse.ArgumentParser) -> None:
    """Add what all commands share that read a file and write it again with something added."""
    parser.add_argument("model", help=MODEL)
    parser.add_argument("input", type=Path, help=".h5ad, .h5mu, 10x .h5 or zarr with raw counts")
    parser.add_argument("output", type=Path, help="new file; everything in the input is kept")
    parser.add_argument("--key-added", help="name of what is added")
    parser.add_argument("--modality", choices=("auto", "rna", "adt"), default="auto", help="of a single AnnData")
    parser.add_argument("--batch-key", help="column of obs; what has no count in a batch is not measured there")
    parser.add_argument(
        "--min-coverage", type=float, help="refuse files with less of the model's genes; 0.01 by default"
    )
    parser.add_argument("--batch-size", type=int, help="cells per forward pass; chosen by the device by default")
    parser.add_argument("--device", help="torch device; cuda where there is one by default")
    add_limits(parser)


def _use(verb: Callable[..., object], args: argparse.Namespace, **own: Any) -> None:
    """Call a verb with what all share and what is its own, and say what was written."""
    verb(args.input, args.model, **own, **_options(args))
    print(f"wrote {args.output}")


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Give what all verbs share; what was not said is left to them."""
    names = ("output", "key_added", "modality", "batch_key", "batch_size", "device", "min_coverage")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}
