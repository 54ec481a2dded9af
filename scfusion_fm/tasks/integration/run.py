"""The whole run of `finetune/batch_integration.py`, from top to bottom."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scfusion_fm.config.integration import IntegrationConfig
from scfusion_fm.data.schema import read_categories
from scfusion_fm.data.scratch import Scratch
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.evaluation.report.text import MODEL_NAME
from scfusion_fm.inference.model_directory import load_pretrained
from scfusion_fm.inference.model_files import find_model
from scfusion_fm.model import ScFusionTTTModel
from scfusion_fm.notices import tell
from scfusion_fm.tasks.given import GivenCells, read_given
from scfusion_fm.tasks.held_out import hold_out, read_batches
from scfusion_fm.tasks.integration.cells import BatchedCells, cluster
from scfusion_fm.tasks.integration.fit import (
    NUM_CLUSTERS,
    FittedIntegration,
    IntegrationSettings,
    embed_rows,
    fit_integration,
)
from scfusion_fm.tasks.integration.scores import embed_by_baselines, score_embedding
from scfusion_fm.tasks.ranks import by_all_ranks, leave_rest_to_rank_0
from scfusion_fm.tasks.results import FineTuned, describe_split, finish_run, start_run
from scfusion_fm.tasks.seen import check_test_cells
from scfusion_fm.tasks.splits import limit_parts
from scfusion_fm.tasks.weights import Weights

USUAL_LR = 2e-3
MOST_SCORED = 5000  # cells of a part
TRAIN, HELD_OUT, NEW = "training cells", "held-out cells", "held-out cells and batches"


@by_all_ranks
def run_integration(config: IntegrationConfig, objects: Sequence[Any] | None = None) -> FineTuned:
    """
    Fine-tune an embedding to mix batches and keep cell types, and compare it with other methods on the same cells.

    Parameters
    ----------
    config
        What to do.
    objects
        AnnData or MuData for the names in `config.data`; None for files of these names.
    """
    run = Scratch(config.output_dir, "output_dir")

    # Cells of several batches; whole batches that are held out, if they are named.
    pretrained, extractor = load_pretrained(find_model(config.model), ScFusionTTTModel)
    cells = read_given(config, extractor, objects)
    data, partition, new, rule = divide_batches(config, cells, extractor)
    seen = check_test_cells(config, cells.aligned, extractor, partition)
    tell(f"{len(np.unique(data.codes[data.usable]))} batches, cells: {partition.counts}, divided by {rule}")

    # Fine-tune with partners of other batches side by side.
    optim = config.optim.settle(len(partition.train), USUAL_LR)
    names = ("num_neighbours", "temperature", "pair_weight", "mask_ratio")
    settings = IntegrationSettings(
        optim,
        config.seed,
        start_run(run, config, cells.fingerprint) / "main",
        **{name: getattr(config, name) for name in names},
    )
    fitted = fit_integration(Weights(find_model(config.model)), data, partition, settings)
    leave_rest_to_rank_0()

    # Scores beside other methods, on cells that the model learned from, on others, and on batches that it has not met.
    types, told = read_types(config, cells, data, partition, new)
    parts = choose_scored(partition, new, types, config.seed)
    table = compare(fitted, pretrained, parts, types, config.seed)
    scored = parts.get(HELD_OUT, parts[TRAIN])
    arrays = {"embedding": fitted.embed(scored), "batches": data.batches[scored].astype(str), "types": types[scored]}
    np.savez(run.path / "embedding.npz", **arrays)
    results = {
        "task": "batch_integration",
        "data": config.data_names,
        "provenance": cells.provenance,
        "types": told,
        **describe_split(config, partition, rule, len(parts[TRAIN])),
        "test_groups": list(config.test_groups),
        "optim": dataclasses.asdict(settings.optim),
        **{name: getattr(config, name) for name in names},
        "table": table,
    }

    # The model with its card, and the results.
    facts = {"task": "integration of batches", "fine-tuned on": config.data_names}
    return finish_run(run, fitted, seen, facts, {}, results, config.report)


def divide_batches(
    config: IntegrationConfig, cells: GivenCells, extractor: Any
) -> tuple[BatchedCells, Partition, NDArray[np.int64], str]:
    """
    Read batches and labels, and divide the cells; the third are the cells of batches that are held out.

    Raises
    ------
    ValueError
        If a column or a group is missing, or a part gets no cell.
    """
    batches, key = read_batches(cells, config)
    labels = None if config.labels_key is None else _read_column(config, cells, "labels_key", config.labels_key)
    data = BatchedCells(cells.aligned, extractor, batches, labels, tuple(config.modalities))
    # Cells of every batch are needed on all sides; whole ones are held out by their names alone.
    split = config.split if config.split.column is not None else dataclasses.replace(config.split, group_key=None)
    alone = dataclasses.replace(config, split=split)
    partition, held, rule = hold_out(cells, alone, batches, key, config.test_groups)
    advice = "name another `batch_key` or `modalities`, or change `split`"
    partition = partition.keep(data.usable, "`data` must hold cells with a batch and counts in each part", advice)
    return data, limit_parts(partition, config.split.seed), held[data.usable[held]], rule


def read_types(
    config: IntegrationConfig,
    cells: GivenCells,
    data: BatchedCells,
    partition: Partition,
    new: NDArray[np.int64],
) -> tuple[NDArray[np.str_], str]:
    """Give the types that are scored by, '' for cells without one, and what they are."""
    key = config.types_key or config.labels_key
    if key is not None:
        found = _read_column(config, cells, "types_key", key)
        return np.where(found == None, "", found).astype(str), f"the column {key!r}"  # noqa: E711 (of an array)
    rows = np.sort(np.concatenate([partition.rows, new]))
    coordinates = data.find_coordinates(partition.train, rows, config.seed)
    types = np.full(len(data.batches), "", dtype=object)
    types[rows] = cluster(coordinates[rows], NUM_CLUSTERS, config.seed)
    return types.astype(str), "clusters of principal components within batches, for want of types"


def choose_scored(
    partition: Partition, new: NDArray[np.int64], types: NDArray[np.str_], seed: int
) -> dict[str, NDArray[np.int64]]:
    """
    Give the cells that are scored together, by name: those with a type, and no more than can be scored soon.

    Raises
    ------
    ValueError
        If there are fewer than two types among them.
    """
    parts = {TRAIN: partition.train}
    if len(partition.test):
        parts[HELD_OUT] = partition.test
    if len(new):
        parts[NEW] = np.sort(np.concatenate([partition.test, new]))
    chosen = {}
    for name, rows in parts.items():
        rows = rows[types[rows] != ""]
        drawn = np.random.default_rng(seed).permutation(rows)[:MOST_SCORED]
        chosen[name] = np.sort(drawn)
        number = len(set(types[drawn].tolist()))
        if number < 2:
            raise ValueError(
                f"`types_key` must name at least two cell types of {name}, got {number}; give another column."
            )
    return chosen


def compare(
    fitted: FittedIntegration,
    pretrained: ScFusionTTTModel,
    parts: dict[str, NDArray[np.int64]],
    types: NDArray[np.str_],
    seed: int,
) -> list[dict[str, Any]]:
    """Score the model, as it was and as it is, and other methods on the same cells; a line for each."""
    data, table = fitted.data, []
    every = np.unique(np.concatenate(list(parts.values())))
    others = embed_by_baselines(data, parts[TRAIN], every, seed)
    for name, rows in parts.items():
        found = {
            MODEL_NAME: fitted.embed(rows),
            "pretrained, before": embed_rows(pretrained, data, rows),
            **{method: values[np.searchsorted(every, rows)] for method, values in others.items()},
        }
        batches = data.batches[rows].astype(str)
        table += [score_embedding(method, name, x, batches, types[rows], seed) for method, x in found.items()]
    return table


def _read_column(config: IntegrationConfig, cells: GivenCells, setting: str, key: str) -> NDArray[np.object_]:
    """Read types, None for cells without one."""
    if key not in cells.obs:
        raise ValueError(f"`{setting}` must be a column of obs, got {key!r}; it has {list(cells.obs.columns)}.")
    found = read_categories(cells.obs[key])
    return np.where(np.isin(found.astype(str), config.unlabelled), None, found)
