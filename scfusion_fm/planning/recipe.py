"""From the YAML of a pretraining run to its plan: vocabulary, model, DeepSpeed settings."""

from dataclasses import dataclass
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from scfusion_fm.config.pretrain import PretrainConfig
from scfusion_fm.data.atlas.atlas import Atlas
from scfusion_fm.data.atlas.manifest import MANIFEST
from scfusion_fm.data.locations import exists
from scfusion_fm.data.stream.order import CellOrder
from scfusion_fm.data.vocabulary.vocabulary import build_vocabulary
from scfusion_fm.model import ScFusionTTTConfig, ScFusionTTTFeatureExtractor
from scfusion_fm.planning.plan import Plan, PlanRequest, plan_run
from scfusion_fm.planning.settings import DeepSpeedSettings
from scfusion_fm.training.settings import read_deepspeed_settings


@dataclass(frozen=True)
class RecipePlan:
    """
    A plan, and what it was made for.

    Attributes
    ----------
    atlas
        Where the vocabulary comes from; None for the one that ships with the package.
    genes
        Genes of the vocabulary.
    model
        The configuration of the model.
    plan
        Memory and time.
    """

    atlas: str | None
    genes: int
    model: ScFusionTTTConfig
    plan: Plan

    def to_dict(self) -> dict[str, Any]:
        """Give everything for JSON."""
        vocabulary = {
            "atlas": self.atlas,
            "genes": self.genes,
            "rna_tokens": self.model.num_rna_tokens,
            "proteins": self.model.num_proteins,
        }
        return {"vocabulary": vocabulary, **self.plan.to_dict()}


def plan_recipe(
    config: PretrainConfig, gpus: int, gpu_memory: float, tflops: float | None = None, cells: int | None = None
) -> RecipePlan:
    """
    Plan the run of a recipe.

    Parameters
    ----------
    config
        The recipe.
    gpus
        Number of GPUs.
    gpu_memory
        GiB of each.
    tflops
        Sustained 10^12 operations per second of a GPU; None for no estimate of time.
    cells
        Training cells; None for those of the atlas.

    Raises
    ------
    ValueError
        If the recipe describes no model, its DeepSpeed file cannot be read, or a number is out of range.
    """
    atlas = Atlas(config.atlas) if exists(f"{str(config.atlas).rstrip('/')}/{MANIFEST}") else None
    vocabulary = build_vocabulary(None, "protein_coding", "all") if atlas is None else atlas.vocabulary
    if cells is None and atlas is not None:
        cells = len(CellOrder(atlas.rows_by_dataset("train"), config.seed, config.loader))
    optim = config.optim
    request = PlanRequest(
        gpus=gpus,
        gpu_memory=gpu_memory,
        global_batch_size=optim.global_batch_size,
        micro_batch_size=optim.micro_batch_size,
        checkpointing=config.run.activation_checkpointing,
        epochs=optim.epochs,
        cells=cells,
        tflops=tflops,
    )
    extractor = ScFusionTTTFeatureExtractor(**vocabulary.to_dict(), patch_size=config.patch_size)
    model = build_model_config(config, extractor)
    settings = DeepSpeedSettings.from_json(read_deepspeed_settings(config.deepspeed))
    found = plan_run(model, config.masking, settings, request)
    return RecipePlan(None if atlas is None else config.atlas, vocabulary.num_genes, model, found)


def build_model_config(config: PretrainConfig, extractor: ScFusionTTTFeatureExtractor) -> ScFusionTTTConfig:
    """
    Make the configuration of the model that a recipe makes for the vocabulary of a feature extractor.

    Raises
    ------
    ValueError
        If the settings describe no model.
    """
    tokens = {
        "num_rna_tokens": extractor.num_rna_tokens,
        "rna_patch_size": extractor.patch_size,
        "num_proteins": extractor.num_proteins,
    }
    fixed = tokens.keys() & config.model.keys()
    if fixed:
        raise ValueError(f"`model` must not set {sorted(fixed)}: the atlas and `patch_size` decide them.")
    unknown = config.model.keys() - ScFusionTTTConfig.__annotations__.keys()
    if unknown:
        raise ValueError(
            f"`model` must hold fields of ScFusionTTTConfig, got {sorted(unknown)}; "
            f"known: {sorted(ScFusionTTTConfig.__annotations__)}."
        )
    try:
        return ScFusionTTTConfig(**tokens, **config.model)
    except StrictDataclassError as error:
        raise ValueError(f"`model` does not describe a model: {error}") from error
