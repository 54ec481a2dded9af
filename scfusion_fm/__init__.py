"""
scFusionTTT: a test-time-training foundation model for paired single-cell RNA and surface protein.

Public is what `__all__` lists. A name is loaded when it is first used, so that importing the package costs next to
nothing. Once the package is imported, the Auto classes of transformers know its models.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from scfusion_fm._auto_classes import register_when_needed
from scfusion_fm.extras import explain_missing

if TYPE_CHECKING:
    from scfusion_fm import finetune as finetune
    from scfusion_fm import pl as pl
    from scfusion_fm.config.prepare import PrepareConfig as PrepareConfig
    from scfusion_fm.config.prepare import SourceConfig as SourceConfig
    from scfusion_fm.config.pretrain import LoaderConfig as LoaderConfig
    from scfusion_fm.config.pretrain import MaskingConfig as MaskingConfig
    from scfusion_fm.config.split import SplitConfig as SplitConfig
    from scfusion_fm.data.atlas.atlas import Atlas as Atlas
    from scfusion_fm.data.fetch.fetch import fetch as fetch
    from scfusion_fm.data.files.align import align_cells as align_cells
    from scfusion_fm.data.files.readers import read_cells as read_cells
    from scfusion_fm.data.prepare.prepare import prepare as prepare
    from scfusion_fm.data.stream.collate import MaskingCollator as MaskingCollator
    from scfusion_fm.data.stream.loader import AtlasLoader as AtlasLoader
    from scfusion_fm.data.stream.order import CellOrder as CellOrder
    from scfusion_fm.data.vocabulary.vocabulary import Vocabulary as Vocabulary
    from scfusion_fm.data.vocabulary.vocabulary import build_vocabulary as build_vocabulary
    from scfusion_fm.explorer.page import explore as explore
    from scfusion_fm.inference.annotate import annotate as annotate
    from scfusion_fm.inference.doctor import doctor as doctor
    from scfusion_fm.inference.embed import embed as embed
    from scfusion_fm.inference.export import push_to_hub as push_to_hub
    from scfusion_fm.inference.impute import impute as impute
    from scfusion_fm.inference.inputs import read_aligned as read_aligned
    from scfusion_fm.inference.loaded import LoadedModel as LoadedModel
    from scfusion_fm.inference.loaded import load as load
    from scfusion_fm.inference.model_directory import load_pretrained as load_pretrained
    from scfusion_fm.inference.model_files import find_model as find_model
    from scfusion_fm.inference.predict_protein import predict_protein as predict_protein
    from scfusion_fm.inference.seen import seen as seen
    from scfusion_fm.inference.shipped import list_models as list_models
    from scfusion_fm.inference.surprise import surprise as surprise
    from scfusion_fm.model import ScFusionTTTConfig as ScFusionTTTConfig
    from scfusion_fm.model import ScFusionTTTFeatureExtractor as ScFusionTTTFeatureExtractor
    from scfusion_fm.model import ScFusionTTTForCellTypeAnnotation as ScFusionTTTForCellTypeAnnotation
    from scfusion_fm.model import ScFusionTTTForCrossModalPrediction as ScFusionTTTForCrossModalPrediction
    from scfusion_fm.model import ScFusionTTTForPreTraining as ScFusionTTTForPreTraining
    from scfusion_fm.model import ScFusionTTTModel as ScFusionTTTModel
    from scfusion_fm.notices import ScFusionWarning as ScFusionWarning
    from scfusion_fm.notices import settings as settings

__version__ = "0.1.0"

# Where each public name is at home; the block above tells type checkers the same.
_HOMES = {
    "load": "inference.loaded",
    "LoadedModel": "inference.loaded",
    "embed": "inference.embed",
    "annotate": "inference.annotate",
    "predict_protein": "inference.predict_protein",
    "impute": "inference.impute",
    "surprise": "inference.surprise",
    "settings": "notices",
    "ScFusionTTTConfig": "model",
    "ScFusionTTTFeatureExtractor": "model",
    "ScFusionTTTForCellTypeAnnotation": "model",
    "ScFusionTTTForCrossModalPrediction": "model",
    "ScFusionTTTForPreTraining": "model",
    "ScFusionTTTModel": "model",
    "find_model": "inference.model_files",
    "list_models": "inference.shipped",
    "load_pretrained": "inference.model_directory",
    "read_aligned": "inference.inputs",
    "doctor": "inference.doctor",
    "seen": "inference.seen",
    "push_to_hub": "inference.export",
    "explore": "explorer.page",
    "fetch": "data.fetch.fetch",
    "read_cells": "data.files.readers",
    "align_cells": "data.files.align",
    "Vocabulary": "data.vocabulary.vocabulary",
    "build_vocabulary": "data.vocabulary.vocabulary",
    "prepare": "data.prepare.prepare",
    "PrepareConfig": "config.prepare",
    "SourceConfig": "config.prepare",
    "SplitConfig": "config.split",
    "Atlas": "data.atlas.atlas",
    "AtlasLoader": "data.stream.loader",
    "CellOrder": "data.stream.order",
    "LoaderConfig": "config.pretrain",
    "MaskingCollator": "data.stream.collate",
    "MaskingConfig": "config.pretrain",
    "ScFusionWarning": "notices",
}
_MODULES = ("finetune", "pl")  # that hold verbs of their own: `sf.finetune.annotation`, `sf.pl.umap`
__all__ = [*_HOMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES and name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with explain_missing():
        if name in _MODULES:
            return import_module(f"{__name__}.{name}")
        found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


# Before torch is loaded: threads that wait for one another give the core away soon. On a machine with other work,
# spinning makes a step take 2 to 3 times as long.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
register_when_needed()
