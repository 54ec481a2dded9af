"""From files to an atlas, in steps that can be interrupted: survey, pieces, shards, publication.

All that is unfinished lies in a working directory beside the atlas. The same command goes on from there: sources that
were surveyed, pieces and shards that were written are not touched again. The atlas appears, or grows, at the end.
"""

import fcntl
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scfusion_fm.config.prepare import PrepareConfig, SourceConfig
from scfusion_fm.data.atlas.manifest import MANIFEST, read_manifest
from scfusion_fm.data.atlas.tables import AtlasTables
from scfusion_fm.data.files.align import check_empty_cells
from scfusion_fm.data.files.arrays import close_files
from scfusion_fm.data.locations import absolute, check_new_path, exists, is_remote
from scfusion_fm.data.prepare.merge import build_manifest, describe_dataset, publish, stage_store
from scfusion_fm.data.prepare.pieces import Piece, PieceSource, PieceTask, load_source, save_source, write_piece
from scfusion_fm.data.prepare.plan import AtlasPlan, PlannedSource, identify_work, shared_settings
from scfusion_fm.data.prepare.soma import list_soma_sources
from scfusion_fm.data.prepare.sources import (
    Origin,
    check_config,
    check_fits,
    check_names,
    complete_source,
    describe_file,
    is_known,
    match_source,
    survey_source,
)
from scfusion_fm.data.prepare.store import NewDataset, consolidate, plan_shards, write_shard
from scfusion_fm.data.vocabulary.vocabulary import Vocabulary, build_vocabulary
from scfusion_fm.data.workers import Workers
from scfusion_fm.notices import warn

PLAN = "plan.json"
Report = Callable[[str], None]


def prepare_atlas(
    config: PrepareConfig,
    append: bool = False,
    task: tuple[int, int] | None = None,
    merge: bool = False,
    report: Report = print,
) -> dict | None:
    """
    Write an atlas from files; it appears when it is complete, or not at all.

    Parameters
    ----------
    config
        Files, where the atlas goes, vocabulary, split and workers.
    append
        Add the sources that an existing atlas lacks, instead of writing a new one.
    task
        (i, n): write the i-th of n shares of the pieces, counted from 0, and stop; other processes write the others.
    merge
        Make the atlas of the pieces that such tasks wrote.
    report
        Receives progress lines.

    Returns
    -------
    The manifest of the atlas; None of a task.

    Raises
    ------
    ValueError
        If `output` exists (or does not, with `append`), the settings contradict the atlas or unfinished work, or a
        file is refused by its reader.
    """
    if task is not None and merge:
        raise ValueError("`--task` and `--merge` are steps of their own, got both; merge when all tasks are done.")
    job = AtlasJob(config, append, report)
    try:
        if not job.plan():
            return read_manifest(job.output)
        if not merge:
            job.write_pieces(task or (0, 1))
        return None if task else job.merge()
    finally:
        close_files()


class AtlasJob:
    """Write an atlas in steps; the parameters are those of `prepare_atlas`."""

    def __init__(self, config: PrepareConfig, append: bool = False, report: Report = print):
        self.config, self.append, self.report = config, append, report
        self.sources = [*(complete_source(source) for source in config.sources), *list_soma_sources(config)]
        check_config(config, self.sources)
        self.workers = Workers(config.workers, config.dask)
        self.output = absolute(config.output)
        place = Path(self.output.rstrip("/"))
        parent = Path() if is_remote(self.output) else place.parent
        self.work = Path(absolute(config.work_dir or parent / f".{place.name}.work"))
        self._plan: AtlasPlan | None = None

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
        sources = [s for s in self.sources if not is_known(s, known)]
        if not sources:
            raise ValueError(f"`sources` must name data sets that the atlas lacks, got only {sorted(known)}.")
        self.take_up(identify_work(self.config, sources, base), lambda: self._survey(sources, base))
        return True

    def take_up(self, identity: dict[str, Any], make: Callable[[], list[tuple[PieceSource, Origin]]]) -> None:
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
            If there is unfinished work that depends on something else or is of another version, or the directory is
            in use.
        """
        file = self.work / PLAN
        if not file.exists():
            if self.work.exists() and any(self.work.iterdir()):
                raise ValueError(
                    f"`work_dir` must be new, empty or that of unfinished work, got {str(self.work)!r} with "
                    "other files."
                )
            self._save_plan(identity, make())
        self._plan = AtlasPlan.load(file)
        if self._plan.identity != identity:
            raise ValueError(
                f"`output` {self.output!r} has unfinished work of another recipe, or of sources that have changed "
                f"since, in {str(self.work)!r}. Finish it with the old settings and files, or remove that directory."
            )

    def write_pieces(self, share: tuple[int, int] = (0, 1)) -> None:
        """Write the pieces that are missing; with a share (i, n), those of every n-th from the i-th only."""
        tasks = self._piece_tasks()[share[0] :: share[1]]
        missing = [task for task in tasks if not task.path.exists()]
        if len(missing) < len(tasks):
            self.report(f"pieces: {len(tasks) - len(missing)} of {len(tasks)} are there already")
        with self._lock(shared=share[1] > 1):
            try:
                self.workers.run(write_piece, missing, self.report, "pieces")
            except ValueError:
                if share[1] == 1 and not any(task.path.exists() for task in tasks):
                    self._remove_work()  # of a file that is refused, which will not come again
                raise

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
            self._check_base()
            if not (self.work / "ready").exists():
                self._fill(store)
            manifest = publish(store, self.output, self.append)
        self._remove_work()
        self.report(f"wrote {self.output}: {manifest['num_cells']} cells, {manifest['cells_per_split']}")
        return manifest

    def _remove_work(self) -> None:
        """Remove the working directory, and what processes left that were killed while they planned."""
        shutil.rmtree(self.work)
        for left in self.work.parent.glob(glob.escape(self._plan_prefix) + "*"):
            shutil.rmtree(left)

    @property
    def _plan_prefix(self) -> str:
        """How names of unfinished plans begin; nobody else's do, since the working directory may lie anywhere."""
        return f".{self.work.name}.scfusion-plan-"

    def _check_base(self) -> None:
        """Refuse to add to an atlas that is another one than when the work was planned."""
        if not self.append:
            return
        found, planned = read_manifest(self.output)["fingerprint"], self._plan.identity["base"]
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
            self._remove_work()
            self.report(f"{self.output} was finished before")
            return True
        return False

    def _base(self) -> dict | None:
        """Read the manifest of the atlas to which sources are added."""
        if not self.append:
            check_new_path(self.output, "output")
            return None
        tables = AtlasTables(self.output)
        base = tables.manifest
        ours = shared_settings(self.config)
        if ours != base["recipe"]:
            changed = {k: f"{base['recipe'].get(k)} -> {ours[k]}" for k in ours if ours[k] != base["recipe"].get(k)}
            raise ValueError(
                f"`--append` must keep the settings of the atlas, got {changed}. Take the old ones, or prepare anew."
            )
        tables.check_edges()
        return base

    def _survey(self, sources: list[SourceConfig], base: dict | None) -> list[tuple[PieceSource, Origin]]:
        """Look through the files, and find their features in the vocabulary."""
        found = self.workers.run(survey_source, sources, self.report, "sources read")
        pairs = [(source, survey) for source, survey in zip(sources, found, strict=True) if survey is not None]
        if not pairs:
            raise ValueError("`soma` must have cells that are read, got none in any data set. Change `obs_filter`.")
        for source, survey in pairs:
            for message in survey.warnings:
                warn(message)
            self.report(f"{source.name}: {describe_file(survey.file)}")
            if base is not None:
                check_fits(survey.file, base["types"])
        if base is None:
            files = [survey.file for _, survey in pairs]
            vocabulary = build_vocabulary(files, genes=self.config.genes, proteins=self.config.proteins)
        else:
            vocabulary = Vocabulary(**base["vocabulary"])
        self.report(f"vocabulary: {vocabulary.num_genes} genes, {vocabulary.num_proteins} proteins")
        matched = [match_source(self.config, source, survey, vocabulary) for source, survey in pairs]
        return check_names([found for datasets in matched for found in datasets])

    def _save_plan(self, identity: dict[str, Any], sources: list[tuple[PieceSource, Origin]]) -> None:
        """Write the plan, all of it or nothing."""
        planned = [PlannedSource(source.name, source.num_pieces, origin) for source, origin in sources]
        self.work.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=self._plan_prefix, dir=self.work.parent))
        try:
            for number, (source, _) in enumerate(sources):
                save_source(scratch, number, source)
            AtlasPlan(identity, sources[0][0].vocabulary, planned).save(scratch / PLAN)
            scratch.rename(self.work)
        except BaseException:
            shutil.rmtree(scratch)
            if not (self.work / PLAN).exists():  # another process may have been as far
                raise

    def _piece_tasks(self) -> list[PieceTask]:
        planned = enumerate(self._plan.sources)
        return [PieceTask(self.work, number, p) for number, source in planned for p in range(source.num_pieces)]

    def _fill(self, store: Path) -> None:
        """Make the store in the working directory: grown by annotation and panels, then shard by shard."""
        datasets = self._datasets()
        pieces = [piece for dataset in datasets for piece in dataset.pieces]
        vocabulary, done = self._plan.vocabulary, self.work / "done"
        base = read_manifest(self.output) if self.append else None
        if not done.exists():
            stage_store(store, self.output if self.append else None, vocabulary, self.config, datasets)
            done.mkdir()
        shards = [task for task in plan_shards(store, pieces, done) if not task.done.exists()]
        self.workers.run(write_shard, shards, self.report, "shards")
        consolidate(store)
        origins = [source.origin for source in self._plan.sources]
        described = [describe_dataset(*pair) for pair in zip(datasets, origins, strict=True)]
        build_manifest(store, base, vocabulary, shared_settings(self.config), described)
        (self.work / "ready").touch()

    def _datasets(self) -> list[NewDataset]:
        tasks = self._piece_tasks()
        datasets = []
        for number, planned in enumerate(self._plan.sources):
            pieces = [Piece.open(task.path) for task in tasks if task.source == number]
            source = load_source(self.work, number)
            datasets.append(NewDataset(source.name, pieces, source.rna_observed, source.adt_observed))
            empty = sum(piece.record.cells["empty"] for piece in pieces)
            rows = sum(piece.record.rows for piece in pieces)
            check_empty_cells(empty, rows, planned.origin.file)
        return datasets

    @contextmanager
    def _lock(self, shared: bool):
        """Keep other processes from writing the same atlas; the lock goes when the process does."""
        with (self.work / "lock").open("w") as file:
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(
                    f"`output` {self.output!r} is being written by another process; wait for it or stop it."
                ) from error
            yield


@contextmanager
def _lock_atlas(output: str, append: bool):
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
