"""Make our classes known to the Auto classes and pipelines of transformers, without loading transformers for it."""

import importlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType


def register_when_needed() -> None:
    """Register our classes now if Auto classes and pipelines are there, or else as soon as they have been imported."""
    watcher = _Watcher()
    sys.meta_path.insert(0, watcher)
    watcher.register()


def _register_pipelines() -> None:
    """Register our pipelines, for the models that directories name to those who have no package of ours."""
    ours = importlib.import_module("scfusion_fm.model.pipelines_scfusion_ttt")
    told = importlib.import_module("scfusion_fm.model.files_scfusion_ttt").MODEL_CODE["custom_pipelines"]
    transformers = importlib.import_module("transformers")
    registry = importlib.import_module(_PIPELINES).PIPELINE_REGISTRY
    for task, entry in told.items():
        models = tuple(getattr(transformers, name) for name in entry["pt"])
        registry.register_pipeline(task, getattr(ours, entry["impl"].rpartition(".")[2]), models)


# What is to be done once a module was imported. Our models register themselves.
_PIPELINES = "transformers.pipelines"
_REGISTER: dict[str, Callable[[], object]] = {
    "transformers.models.auto.configuration_auto": partial(importlib.import_module, "scfusion_fm.model"),
    _PIPELINES: _register_pipelines,
}


class _Watcher:
    """
    Finds the modules of transformers as Python does, and notices when an import of some of them has ended.

    Notes
    -----
    Modules of transformers import one another, the Auto classes in the middle of it, and ours build on them. So ours
    are imported when the outermost import has ended and no module of transformers is half made.
    """

    def __init__(self) -> None:
        self._waiting = _REGISTER
        self._depth = 0

    def register(self) -> None:
        """Register with the modules that have been imported, and stop watching when that were all."""
        # Taken first: what is registered may import more of transformers.
        ready = {name: register for name, register in self._waiting.items() if name in sys.modules}
        self._waiting = {name: register for name, register in self._waiting.items() if name not in ready}
        if not self._waiting and self in sys.meta_path:
            sys.meta_path.remove(self)
        for register in ready.values():
            register()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Give the usual spec of a module of transformers; leave all others to the next finder."""
        if name.partition(".")[0] != "transformers":
            return None
        specs = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            # The loader is this module's own, and all else of it stays as it is.
            vars(spec.loader)["exec_module"] = partial(self._execute, spec.loader.exec_module)
        return spec

    def _execute(self, execute: Callable[[ModuleType], None], module: ModuleType) -> None:
        self._depth += 1
        try:
            execute(module)
        finally:
            self._depth -= 1
        if self._depth == 0:
            self.register()
