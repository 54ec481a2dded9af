"""The scFusionTTT model as Hugging Face classes."""
