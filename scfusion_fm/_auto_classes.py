"""Make our classes known to the Auto classes of transformers, without loading transformers or torch for it."""

import importlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType

OURS = "scfusion_fm.model"  # registers its classes when it is imported
AUTO = "transformers.models.auto.configuration_auto"  # imported before any Auto class can be used


def register_when_needed() -> None:
    """Import our classes now if the Auto classes are there, or else as soon as they have been imported."""
    if AUTO in sys.modules:
        importlib.import_module(OURS)
    else:
        sys.meta_path.insert(0, _Watcher())


class _Watcher:
    """
    Finds the modules of transformers as Python does, and notices when an import of some of them has ended.

    Notes
    -----
    Modules of transformers import one another, the Auto classes in the middle of it, and ours build on them. So ours
    are imported when the outermost import has ended and no module of transformers is half made.
    """

    def __init__(self) -> None:
        self._depth = 0

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
        if self._depth == 0 and AUTO in sys.modules and self in sys.meta_path:
            sys.meta_path.remove(self)
            importlib.import_module(OURS)
