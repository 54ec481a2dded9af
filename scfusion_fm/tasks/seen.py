"""Test cells that a model has seen before."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scfusion_fm.config.finetune import FinetuneConfig
from scfusion_fm.data.fingerprints.cells import fingerprint_cells
from scfusion_fm.data.fingerprints.seen import SeenAnswer, SeenCells, SeenPart
from scfusion_fm.data.schema import AlignedCells
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.inference.model_files import find_model
from scfusion_fm.inference.seen import load_model_seen
from scfusion_fm.model import ScFusionTTTFeatureExtractor
from scfusion_fm.notices import warn


@dataclass(frozen=True)
class SeenByModel:
    """
    What a fine-tuned model has seen, and how many of its test cells were among that before.

    Attributes
    ----------
    cells
        What the pretrained model and the fine-tuning have seen; None where the model does not tell.
    test_cells
        For the results: `known`, and where it is, `seen`, `of`, `expected_by_chance` and `beyond_chance`.
    """

    cells: SeenCells | None
    test_cells: dict[str, Any]


def check_test_cells(
    config: FinetuneConfig,
    aligned: AlignedCells,
    extractor: ScFusionTTTFeatureExtractor,
    partition: Partition,
    whole: Partition | None = None,
) -> SeenByModel:
    """
    Refuse test cells that the model was trained on; without a test, cells that are scored in their stead.

    Parameters
    ----------
    config
        Tells the model, the file, and whether to go on in spite of seen cells.
    aligned
        All cells of the file.
    extractor
        Vocabulary of the model.
    partition
        Which cells are for what.
    whole
        The same without limits on very large parts: what the model that is kept learns from where that is all.

    Raises
    ------
    ValueError
        If more test cells were seen than chance explains, and `allow_seen_test_cells` is false.

    Notes
    -----
    Warns where the model does not tell what it has seen.
    """
    seen = load_model_seen(find_model(config.model))
    if seen is None:
        message = f"{config.model} does not tell which cells it was trained on: test cells may be among them."
        warn(message)
        return SeenByModel(None, {"known": False})
    prints = fingerprint_cells(aligned, extractor.gene_ids, extractor.protein_names)
    answer = seen.look_up(prints[partition.scored])
    names = ", ".join(Path(name).name for name in config.data)
    refuse_seen_cells(answer, config.allow_seen_test_cells)
    learned = whole.rows if config.final and whole is not None else partition.known
    return SeenByModel(
        seen + SeenPart.build(f"fine-tuning on {names}", prints[learned]),
        {
            "known": True,
            "seen": answer.seen,
            "of": answer.num_cells,
            "expected_by_chance": answer.expected_by_chance,
            "beyond_chance": answer.beyond_chance,
        },
    )


def refuse_seen_cells(answer: SeenAnswer, allowed: bool) -> None:
    """
    Refuse test cells that a model was trained on, unless that is allowed.

    Raises
    ------
    ValueError
        If more test cells were seen than chance explains.
    """
    if answer.beyond_chance and not allowed:
        raise ValueError(
            f"`data` must hold test cells that the model was not trained on, got {answer.seen:,} of "
            f"{answer.num_cells:,} that it was ({', '.join(f'{n:,} in {name}' for name, n in answer.seen_in.items())}; "
            f"chance explains {answer.expected_by_chance:.2g}). Use the `split` of the atlas or other data; or set "
            "`allow_seen_test_cells: true`, and the results will tell of it."
        )
