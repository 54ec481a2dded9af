"""From files to an atlas, in steps that can be interrupted: survey, pieces, shards, publication.

All that is unfinished lies in a working directory beside the atlas. The same command goes on from there: sources that
were surveyed, pieces and shards that were written are not touched again. The atlas appears, or grows, at the end.
"""

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scfusion_fm.data.atlas.atlas import MANIFEST, read_manifest
from scfusion_fm.data.engines import Engine
from scfusion_fm.data.files.align import match_features, warn_empty_cells
from scfusion_fm.data.files.modalities import CellsFile
from scfusion_fm.data.files.stored import close_files
from scfusion_fm.data.locations import Location, absolute, check_new_path, exists, is_remote, state_of
from scfusion_fm.data.prepare.merge import build_manifest, publish, stage_store
from scfusion_fm.data.prepare.pieces import (
    FileReader,
    Piece,
    PieceSource,
    PieceTask,
    load_source,
    save_source,
    write_piece,
)
from scfusion_fm.data.prepare.recipe import AtlasRecipe, Source, atlas_obs, describe, survey_source
from scfusion_fm.data.prepare.store import NewDataset, consolidate, plan_shards, write_shard
from scfusion_fm.data.vocabulary.vocabulary import Vocabulary, build_vocabulary

Report = Callable[[str], None]
_SUMS = {"cells": "rows", "values": "values"}


def prepare_atlas(
    recipe: AtlasRecipe,
    output: Location,
    engine: Engine | None = None,
    work: Path | None = None,
    append: bool = False,
    report: Report = print,
) -> dict:
    """
    Write an atlas from files; it appears when it is complete, or not at all.

    Parameters
    ----------
    recipe
        Files, vocabulary, split and seed.
    output
        Directory or URL of the new atlas.
    engine
        Where tasks run; in this process by default.
    work
        Working directory, on a file system that all workers see; beside a local output by default.
    append
        Add the sources that an existing atlas lacks, instead of writing a new one.
    report
        Receives progress lines.

    Returns
    -------
    The manifest.

    Raises
    ------
    ValueError
        If `output` exists (or does not, with `append`), the recipe contradicts the atlas or unfinished work, or a
        file is refused by its reader.
    """
    job = AtlasJob(recipe, output, engine or Engine(), work, append, report)
    try:
        if not job.plan():
            return read_manifest(output)
        job.write_pieces()
        return job.merge()
    finally:
        close_files()


@dataclass
class AtlasJob:
    """Write an atlas in steps; the parameters are those of `prepare_atlas`."""

    recipe: AtlasRecipe
    output: Location
    engine: Engine = field(default_factory=Engine)
    work: Path | None = None
    append: bool = False
    report: Report = print
    _plan: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self):
        self.recipe.check()
        if self.work is None:
            place = Path(str(self.output).rstrip("/"))
            parent = Path() if is_remote(self.output) else place.parent
            self.work = parent / f".{place.name}.work"
        self.output, self.work = absolute(self.output), Path(absolute(self.work))

    def plan(self) -> bool:
        """
        Survey the sources and fix what is to be done, or take up the plan of unfinished work.

        Returns
        -------
        Whether there is anything to do: not where a process was killed just after it had published the atlas.
        """
        if self._drop_finished():
            return False
        base = self._base()
        known = {s["name"] for s in base["sources"]} if base else set()
        sources = [s for s in self.recipe.sources if s.name not in known]
        if not sources:
            raise ValueError(f"`sources` must name data sets that the atlas lacks, got only {sorted(known)}.")
        self.take_up(_identity(self.recipe, sources, base), lambda: self._survey(sources, base))
        return True

    def take_up(self, identity: dict, make: Callable[[], tuple[list[PieceSource], list[dict]]]) -> None:
        """
        Go on with the plan of unfinished work, or save a new one.

        Parameters
        ----------
        identity
            What the work depends on, as JSON gives it back.
        make
            Gives the sources of a new plan, and what the manifest says of each.

        Raises
        ------
        ValueError
            If there is unfinished work that depends on something else, or the directory is in use.
        """
        file = self.work / "plan.json"
        if not file.exists():
            if self.work.exists() and any(self.work.iterdir()):
                raise ValueError(
                    f"`work_dir` must be new, empty or that of unfinished work, got {str(self.work)!r} with "
                    "other files."
                )
            self._save_plan(identity, *make())
        self._plan = json.loads(file.read_text())
        if self._plan["identity"] != identity:
            raise ValueError(
                f"`output` {str(self.output)!r} has unfinished work of another recipe, or of sources that have changed "
                f"since, in {str(self.work)!r}. Finish it with the old settings and files, or remove that directory."
            )

    def write_pieces(self, share: tuple[int, int] = (0, 1)) -> None:
        """Write the pieces that are missing; with a share (i, n), those of every n-th from the i-th only."""
        tasks = self._piece_tasks()[share[0] :: share[1]]
        missing = [task for task in tasks if not task.path.exists()]
        if len(missing) < len(tasks):
            self.report(f"pieces: {len(tasks) - len(missing)} of {len(tasks)} are there already")
        with self._lock(shared=share[1] > 1):
            self.engine.run(write_piece, missing, self.report, "pieces")

    def merge(self) -> dict:
        """
        Make the store of all pieces, and publish it; give the manifest.

        Raises
        ------
        ValueError
            If pieces are missing, another process is at work, or the atlas has changed meanwhile.
        """
        missing = [task.path.name for task in self._piece_tasks() if not task.path.exists()]
        if missing:
            raise ValueError(
                f"`--merge` needs all pieces, got {len(missing)} missing, such as {missing[0]}; "
                "run the tasks that write them first."
            )
        with self._lock(shared=False), _lock_atlas(self.output, self.append):
            store = self.work / "store"
            self._check_base(store)
            if not (self.work / "ready").exists():
                self._fill(store)
            manifest = publish(store, self.output, self.append)
        shutil.rmtree(self.work)
        self.report(f"wrote {self.output}: {manifest['num_cells']} cells, {manifest['cells_per_split']}")
        return manifest

    def _check_base(self, store: Path) -> None:
        """Refuse to add to an atlas that is another one than when the work was planned."""
        if not self.append:
            return
        found, planned = read_manifest(self.output)["fingerprint"], self._plan["identity"]["base"]
        if found != planned:
            raise ValueError(
                f"`output` {self.output!r} has changed since this work was planned: another process has added to it. "
                f"Remove {str(self.work)!r} and start again."
            )

    def _drop_finished(self) -> bool:
        """Remove the working directory of an atlas that was published just before its process was killed."""
        if not (self.work / "ready").exists():
            return False
        staged = self.work / "store" / MANIFEST
        if not staged.exists() or (
            exists(self.output) and read_manifest(self.output) == json.loads(staged.read_text())
        ):
            shutil.rmtree(self.work)
            self.report(f"{self.output} was finished before")
            return True
        return False

    def _base(self) -> dict | None:
        """Read the manifest of the atlas to which sources are added."""
        if not self.append:
            check_new_path(self.output, "output")
            return None
        base = read_manifest(self.output)
        ours = _rule(self.recipe)
        if ours != base["recipe"]:
            changed = {k: f"{base['recipe'].get(k)} -> {ours[k]}" for k in ours if ours[k] != base["recipe"].get(k)}
            raise ValueError(
                f"`--append` must keep the settings of the atlas, got {changed}. Take the old ones, or prepare anew."
            )
        return base

    def _survey(self, sources: list[Source], base: dict | None) -> tuple[list[PieceSource], list[dict]]:
        """Look through the files, and find their features in the vocabulary."""
        surveys = self.engine.run(survey_source, sources, self.report, "sources read")
        for source, survey in zip(sources, surveys, strict=True):
            for message in survey.warnings:
                warnings.warn(message, UserWarning, stacklevel=3)
            self.report(f"{source.name}: {describe(survey.file)}")
            if base is not None:
                _check_fits(survey.file, base["types"])
        if base is None:
            files = [survey.file for survey in surveys]
            vocabulary = build_vocabulary(files, genes=self.recipe.genes, proteins=self.recipe.proteins)
        else:
            vocabulary = Vocabulary(**base["vocabulary"])
        self.report(f"vocabulary: {vocabulary.num_genes} genes, {vocabulary.num_proteins} proteins")
        prepared, records = [], []
        for source, survey in zip(sources, surveys, strict=True):
            alignment = match_features(survey.file, vocabulary)
            prepared.append(
                PieceSource(
                    name=source.name,
                    reader=FileReader(survey.file, alignment),
                    obs=atlas_obs(self.recipe, source.name, survey.file.obs),
                    rna_observed=alignment.rna_observed,
                    adt_observed=alignment.adt_observed,
                    vocabulary=vocabulary,
                    seed=self.recipe.seed,
                    path=source.path,
                    state=state_of(source.path),
                )
            )
            records.append(
                {
                    "file": Path(str(source.path)).name,
                    "sha256": survey.sha256,
                    "licence": source.licence,
                    "reference": source.reference,
                }
            )
        return prepared, records

    def _save_plan(self, identity: dict, sources: list[PieceSource], records: list[dict]) -> None:
        """Write the plan, all of it or nothing."""
        facts = [{"name": s.name, "num_pieces": s.num_pieces, **r} for s, r in zip(sources, records, strict=True)]
        plan = {"identity": identity, "vocabulary": sources[0].vocabulary.to_dict(), "sources": facts}
        self.work.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f"{self.work.name}-", dir=self.work.parent))
        try:
            for number, source in enumerate(sources):
                save_source(scratch, number, source)
            (scratch / "plan.json").write_text(json.dumps(plan))
            scratch.rename(self.work)
        except BaseException:
            shutil.rmtree(scratch)
            if not (self.work / "plan.json").exists():  # another process may have been as far
                raise

    def _piece_tasks(self) -> list[PieceTask]:
        return [PieceTask(self.work, s, p) for s, x in enumerate(self._plan["sources"]) for p in range(x["num_pieces"])]

    def _fill(self, store: Path) -> None:
        """Make the store in the working directory: grown by annotation and panels, then shard by shard."""
        datasets = self._datasets()
        pieces = [piece for dataset in datasets for piece in dataset.pieces]
        vocabulary, done = Vocabulary(**self._plan["vocabulary"]), self.work / "done"
        base = read_manifest(self.output) if self.append else None
        if not done.exists():
            stage_store(store, self.output if self.append else None, vocabulary, self.recipe, datasets)
            done.mkdir()
        shards = [task for task in plan_shards(store, pieces, done) if not task.done.exists()]
        self.engine.run(write_shard, shards, self.report, "shards")
        consolidate(store)
        records = [_describe(r, d) for r, d in zip(self._plan["sources"], datasets, strict=True)]
        build_manifest(store, base, vocabulary, _rule(self.recipe), records)
        (self.work / "ready").touch()

    def _datasets(self) -> list[NewDataset]:
        tasks = self._piece_tasks()
        datasets = []
        for number, record in enumerate(self._plan["sources"]):
            pieces = [Piece.open(task.path) for task in tasks if task.source == number]
            source = load_source(self.work, number)
            datasets.append(NewDataset(source.name, pieces, source.rna_observed, source.adt_observed))
            empty = sum(piece.record.cells["empty"] for piece in pieces)
            rows = sum(piece.record.rows for piece in pieces)
            if empty == rows:
                raise ValueError(
                    f"`{record['file']}` must have counts of genes or proteins of the vocabulary, got none in its "
                    f"{rows:,} cells. Leave it out."
                )
            warn_empty_cells(empty, rows, record["file"])
        return datasets

    @contextmanager
    def _lock(self, shared: bool):
        """Keep other processes from writing the same atlas; the lock goes when the process does."""
        with (self.work / "lock").open("w") as file:
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(
                    f"`output` {str(self.output)!r} is being written by another process; wait for it or stop it."
                ) from error
            yield


def _check_fits(file: CellsFile, types: dict[str, str]) -> None:
    """Refuse counts that an atlas cannot hold before anything is written."""
    for name, modality in (("rna", file.rna), ("adt", file.adt)):
        limit = np.iinfo(types[name]).max
        if modality is not None and modality.largest > limit:
            raise ValueError(
                f"`--append` must add {name} counts up to {limit:,}, which this atlas holds, got "
                f"{modality.largest:,.0f} in {modality.name}. Prepare the atlas anew with all sources."
            )


@contextmanager
def _lock_atlas(output: Location, append: bool):
    """Keep other processes from adding to the same atlas; an object store knows no locks."""
    if not append or is_remote(output):
        yield
        return
    directory = os.open(output, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ValueError(f"`output` {output!r} is being written by another process; wait for it or stop it.") from error
    finally:
        os.close(directory)


def _is_published(staged: Path, output: Location) -> bool:
    return read_manifest(output)["fingerprint"] == json.loads(staged.read_text())["fingerprint"]


def _identity(recipe: AtlasRecipe, sources: list[Source], base: dict | None) -> dict:
    """Collect what unfinished work depends on, as JSON gives it back."""
    facts = {
        "rule": _rule(recipe),
        "sources": [dataclasses.asdict(s) | {"path": str(s.path), "state": state_of(s.path)} for s in sources],
        "base": base["fingerprint"] if base else None,
    }
    return json.loads(json.dumps(facts))


def _rule(recipe: AtlasRecipe) -> dict:
    """Give the settings that all sources of an atlas share."""
    rule = {k: v for k, v in dataclasses.asdict(recipe).items() if k != "sources"}
    return rule | {"obs_columns": list(recipe.obs_columns)}


def _describe(record: dict, dataset: NewDataset) -> dict:
    """Say in the manifest what a data set holds, and identify its content by digests."""
    pieces = [piece.record for piece in dataset.pieces]
    facts = {key: value for key, value in record.items() if key != "num_pieces"}
    facts |= {key: sum(getattr(p, attribute) for p in pieces) for key, attribute in _SUMS.items()}
    facts |= {f"cells_{key}": sum(p.cells[key] for p in pieces) for key in ("with_rna", "with_adt")}
    facts["panels_sha256"] = hashlib.sha256(dataset.rna_observed.tobytes() + dataset.adt_observed.tobytes()).hexdigest()
    facts |= {"genes": int(dataset.rna_observed.sum()), "proteins": int(dataset.adt_observed.sum())}
    return facts | {"pieces": [p.digest for p in pieces]}
