"""The scFusionTTT model as Hugging Face classes."""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
)

from .configuration_scfusion_ttt import ScFusionTTTConfig
from .feature_extraction_scfusion_ttt import ScFusionTTTFeatureExtractor
from .modeling_scfusion_ttt import (
    ScFusionTTTForCellTypeAnnotation,
    ScFusionTTTForCrossModalPrediction,
    ScFusionTTTForPreTraining,
    ScFusionTTTModel,
)

AutoConfig.register("scfusion_ttt", ScFusionTTTConfig)
AutoFeatureExtractor.register(ScFusionTTTConfig, ScFusionTTTFeatureExtractor)
AutoModel.register(ScFusionTTTConfig, ScFusionTTTModel)
AutoModelForMaskedLM.register(ScFusionTTTConfig, ScFusionTTTForCrossModalPrediction)
AutoModelForPreTraining.register(ScFusionTTTConfig, ScFusionTTTForPreTraining)
AutoModelForSequenceClassification.register(ScFusionTTTConfig, ScFusionTTTForCellTypeAnnotation)

__all__ = [
    "ScFusionTTTConfig",
    "ScFusionTTTFeatureExtractor",
    "ScFusionTTTForCellTypeAnnotation",
    "ScFusionTTTForCrossModalPrediction",
    "ScFusionTTTForPreTraining",
    "ScFusionTTTModel",
]
