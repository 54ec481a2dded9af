"""scFusionTTT: a test-time-training foundation model for paired single-cell RNA and surface protein."""

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
