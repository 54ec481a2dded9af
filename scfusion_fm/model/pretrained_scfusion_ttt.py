"""What all scFusionTTT models share: initial weights, loading, saving, and what transformers asks a model for."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .blocks_scfusion_ttt import (
    CellCoordinates,
    KernelReadout,
    MissingModalityProjection,
    PatchEmbedding,
    ReconstructionDecoder,
)
from .configuration_scfusion_ttt import ScFusionTTTConfig
from .files_scfusion_ttt import (
    CALIBRATIONS,
    CARD,
    CONFIG,
    MODEL_CODE,
    WRITTEN_WITH_WEIGHTS,
    Belongings,
    Place,
    update_checksums,
    write_code,
)
from .hub_scfusion_ttt import OPTIONS, push_directory, write_card
from .studies_scfusion_ttt import StudyCoordinates, StudyReadout
from .ttt_layers import TTTLayer

if TYPE_CHECKING:  # named here, transformers takes the file along with the models, though they do not need it
    from .pipelines_scfusion_ttt import CellPipeline as CellPipeline

_FIXED_TOKENS = (
    "Input embeddings must stay those of the vocabulary of genes and proteins, got others. What the vocabulary lacks "
    "needs a model that was pretrained with it."
)


def _require_gradient(module: nn.Module, inputs: Any, output: Tensor) -> None:
    output.requires_grad_(True)


class ScFusionTTTPreTrainedModel(PreTrainedModel):
    """Base of all scFusionTTT models: initial weights, loading and saving."""

    config_class = ScFusionTTTConfig
    config: ScFusionTTTConfig
    base_model_prefix = "model"
    main_input_name = "rna_values"
    supports_gradient_checkpointing = True
    # Besides blocks, what has weights of its own beside modules: hooks of accelerate move modules, not single weights.
    _no_split_modules = ("ScFusionTTTBlock", "MissingModalityProjection", "ReconstructionDecoder")
    # Fitted in closed form, and exact only so; `FixedModule` keeps them so in a model that is cast later.
    _keep_in_fp32_modules_strict = ("rna_coordinates", "adt_coordinates", "kernel_readout")
    _revision: str | None = None  # of the Hub, that was loaded

    def post_init(self) -> None:
        """Finish as transformers does, but do not take over what may be left out of the weights of a part."""
        super().post_init()
        self._keys_to_ignore_on_load_unexpected = set(type(self)._keys_to_ignore_on_load_unexpected or ())

    @classmethod
    def from_pretrained(cls, *args: Any, use_safetensors: bool | None = True, **kwargs: Any) -> Any:
        """
        Load as transformers does, from safetensors alone.

        Raises
        ------
        ValueError
            If pickles are asked for, or found in place of safetensors.
        """
        if use_safetensors is False:
            raise ValueError("`use_safetensors` must be True, got False: pickles can hold code. Leave it out.")
        found = super().from_pretrained(*args, use_safetensors=True, **kwargs)
        model = found[0] if isinstance(found, tuple) else found
        model._revision = kwargs.get("revision")
        return found

    @staticmethod
    def _load_pretrained_model(model: Any, state_dict: Any, checkpoint_files: Any, *args: Any, **kwargs: Any) -> Any:
        # An index of several files, or an adapter, may name pickles.
        for file in checkpoint_files or ():
            if not str(file).endswith(".safetensors"):
                raise ValueError(f"Weights must be in safetensors, got {str(file)!r}. Convert the file first.")
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        push_to_hub: bool = False,
        safe_serialization: bool = True,
        **kwargs: Any,
    ) -> None:
        """
        Save as transformers does, with our code, what still belongs to the model, and checksums.

        `Belongings` says what that is: which cells were seen and, of an unchanged model, its calibrations.

        Raises
        ------
        ValueError
            If pickles are asked for.
        """
        if not safe_serialization:
            raise ValueError("`safe_serialization` must be True, got False: pickles can hold code. Leave it out.")
        options = {name: kwargs.pop(name) for name in ("repo_id", *OPTIONS) if name in kwargs}
        # The others would read what the main process writes.
        belongings = Belongings(self._loaded_from, save_directory) if is_main_process else None
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if belongings is not None:
            if not self._hf_peft_config_loaded:  # else adapters alone were saved
                write_code(save_directory, CONFIG, MODEL_CODE)
                belongings.follow()
            update_checksums(save_directory, WRITTEN_WITH_WEIGHTS)
        if is_main_process and push_to_hub:
            repo_id = options.pop("repo_id", os.path.basename(os.path.abspath(save_directory)))
            push_directory(save_directory, repo_id, delete=CALIBRATIONS, **options)

    def push_to_hub(self, repo_id: str, max_shard_size: int | str = "50GB", **options: Any) -> str:
        """
        Upload what `save_pretrained` writes, and a model card; the feature extractor has to be pushed beside it.

        The card is that of the directory from which the model was loaded, if weights and settings are still the same;
        else a new one, unless the Hub has one already.

        Parameters
        ----------
        repo_id
            Name on the Hub.
        max_shard_size
            Size of a file of weights; the commands of our package read a single one.
        options
            As of `push_directory`.
        """
        with tempfile.TemporaryDirectory() as directory:
            self.save_pretrained(directory, max_shard_size=max_shard_size)
            card, place = self._loaded_from.find(CARD), Place(directory)
            same = card is not None and self._loaded_from.identify() == place.identify()
            facts = {"parameters": f"{self.num_parameters():,}", "proteins": f"{self.config.num_proteins:,}"}
            text = card.read_text() if same else write_card(type(self).__name__, facts)
            (Path(directory) / CARD).write_text(text)
            update_checksums(directory, [CARD])
            options = {"commit_message": "Upload model"} | options
            return push_directory(directory, repo_id, CALIBRATIONS, () if same else (CARD,), **options)

    @property
    def _loaded_from(self) -> Place:
        return Place(str(self.name_or_path or ""), self._revision)

    def get_input_embeddings(self) -> nn.Module:
        """Give the embedding of the RNA tokens, the first of two: `adt_embeddings` is that of the proteins."""
        return self.base_model.rna_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Refuse other tokens."""
        raise ValueError(_FIXED_TOKENS)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Refuse other tokens."""
        raise ValueError(_FIXED_TOKENS)

    def enable_input_require_grads(self) -> None:
        """Give the embedded tokens of both modalities a gradient, for adapters under reentrant checkpointing."""
        embeddings = (self.base_model.rna_embeddings, self.base_model.adt_embeddings)
        self._require_grads_hooks = [x.register_forward_hook(_require_gradient) for x in embeddings]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (nn.RMSNorm, nn.LayerNorm)):
            if module.weight is not None:
                init.ones_(module.weight)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        elif isinstance(module, TTTLayer):
            for name, parameter in module.named_parameters(recurse=False):
                if name.startswith("weight"):
                    init.normal_(parameter, std=std)
                else:
                    init.constant_(parameter, {"norm_weight": 1.0, "direction_gate": 0.1}.get(name, 0.0))
        elif isinstance(module, PatchEmbedding):
            init.normal_(module.weight, std=std)
            init.normal_(module.position_embeddings, std=std)
        elif isinstance(module, (CellCoordinates, KernelReadout)):
            for _, buffer in module.named_buffers():
                init.zeros_(buffer)
        elif isinstance(module, (StudyCoordinates, StudyReadout)):
            for name, tensor in (*module.named_buffers(recurse=False), *module.named_parameters()):
                init.constant_(tensor, 1.0 if name == "noise" else 0.0)
        elif isinstance(module, MissingModalityProjection):
            init.normal_(module.position_embeddings, std=std)
        elif isinstance(module, ReconstructionDecoder):
            init.normal_(module.mask_token, std=std)
            init.normal_(module.position_embeddings, std=std)
            init.normal_(module.head_weight, std=std)
            init.zeros_(module.head_bias)
