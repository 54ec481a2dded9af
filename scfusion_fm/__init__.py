"""scFusionTTT: a test-time-training foundation model for paired single-cell RNA and surface protein."""

import os

# Before torch is loaded: threads that wait for one another give the core away soon. On a machine with other work,
# spinning makes a step take 2 to 3 times as long.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from scfusion_fm.model import (
    ScFusionTTTConfig,
    ScFusionTTTFeatureExtractor,
    ScFusionTTTForCellTypeAnnotation,
    ScFusionTTTForCrossModalPrediction,
    ScFusionTTTForPreTraining,
    ScFusionTTTModel,
)

__version__ = "0.1.0"

__all__ = [
    "ScFusionTTTConfig",
    "ScFusionTTTFeatureExtractor",
    "ScFusionTTTForCellTypeAnnotation",
    "ScFusionTTTForCrossModalPrediction",
    "ScFusionTTTForPreTraining",
    "ScFusionTTTModel",
]
