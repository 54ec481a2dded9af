"""What `config.json` and `preprocessor_config.json` of a model directory must hold; nothing here needs torch."""

from dataclasses import dataclass
from typing import Any

from scfusion_fm.data.vocabulary.vocabulary import Vocabulary
from scfusion_fm.untrusted.rules import Flag, ListOf, MapOf, Maybe, Number, Text, Whole, ruled
from scfusion_fm.untrusted.text import show_value

ARCHITECTURES = (
    "ScFusionTTTModel",
    "ScFusionTTTForPreTraining",
    "ScFusionTTTForCellTypeAnnotation",
    "ScFusionTTTForCrossModalPrediction",
)
DTYPES = ("float32", "bfloat16", "float16", "float64")
# What transformers may write beside our fields. It is not read: some of it would load code or other files.
IGNORED_IN_CONFIG = (
    "_name_or_path",
    "auto_map",
    "bos_token_id",
    "chunk_size_feed_forward",
    "custom_pipelines",
    "eos_token_id",
    "is_encoder_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "return_dict",
    "tie_word_embeddings",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)
IGNORED_IN_EXTRACTOR = ("_processor_class", "auto_map", "feature_extractor_type", "processor_class")
LARGEST_CONFIG, LARGEST_EXTRACTOR = 1 << 22, 1 << 24
MOST_LAYERS = 256


@dataclass(frozen=True)
class ConfigFile:
    """
    The architecture of a model: the fields of `ScFusionTTTConfig`, and which class and labels it has.

    Raises
    ------
    ValueError
        If fields do not fit one another.
    """

    model_type: str = ruled(Text(("scfusion_ttt",)))
    num_rna_tokens: int = ruled(Whole(1, 1 << 24))
    rna_patch_size: int = ruled(Whole(1, 1 << 16))
    num_proteins: int = ruled(Whole(1, 1 << 20))
    hidden_size: int = ruled(Whole(1, 1 << 16))
    num_hidden_layers: int = ruled(Whole(1, MOST_LAYERS))
    num_fusion_layers: int = ruled(Whole(1, MOST_LAYERS))
    num_decoder_layers: int = ruled(Whole(1, MOST_LAYERS))
    num_attention_heads: int = ruled(Whole(1, 1 << 12))
    intermediate_size: int = ruled(Whole(1, 1 << 20))
    ttt_layer_type: str = ruled(Text(("linear", "mlp")))
    ttt_mini_batch_size: int = ruled(Whole(1, 1 << 16))
    fusion_weight: float = ruled(Number(-1e6, 1e6), 1.0)
    rna_loss_weight: float = ruled(Number(0, 1e6), 0.7)
    adt_loss_weight: float = ruled(Number(0, 1e6), 0.3)
    ttt_base_lr: float = ruled(Number(0, 1e6), 1.0)
    ttt_direction: str = ruled(Text(("causal", "alternating", "gated")), "causal")
    ttt_use_gate: bool = ruled(Flag(), True)
    rope_theta: float = ruled(Number(1e-3, 1e12), 10000.0)
    rms_norm_eps: float = ruled(Number(0, 1), 1e-6)
    initializer_range: float = ruled(Number(0, 1e3), 0.02)
    classifier_dropout: float = ruled(Number(0, 0.999), 0.1)
    num_coordinates: int = ruled(Whole(0, 1 << 16), 0)
    num_landmarks: int = ruled(Whole(0, 1 << 24), 0)
    study_genes: list[int] | None = ruled(Maybe(ListOf(Whole(0, (1 << 24) - 1), unique=True)), None)
    own_genes: list[int] | None = ruled(Maybe(ListOf(Whole(-1, (1 << 24) - 1))), None)
    study_hidden_sizes: list[int] | None = ruled(Maybe(ListOf(Whole(1, 1 << 16))), None)
    num_study_members: int = ruled(Whole(1, 1 << 10), 3)
    projected_proteins: list[int] | None = ruled(Maybe(ListOf(Whole(0, (1 << 20) - 1), unique=True)), None)
    target_modality: str = ruled(Text(("rna", "adt")), "adt")
    predicted_features: list[str] | None = ruled(Maybe(ListOf(Text())), None)
    dtype: str | None = ruled(Maybe(Text(DTYPES)), None)
    # None in the directory of a run, which has no weights.
    architectures: list[str] | None = ruled(Maybe(ListOf(Text(ARCHITECTURES), most=1)), None)
    id2label: dict[str, str] | None = ruled(Maybe(MapOf(Text())), None)

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads or self.hidden_size // self.num_attention_heads % 2:
            raise ValueError(
                "`hidden_size` must be `num_attention_heads` times an even head width, got "
                f"{self.hidden_size} and {self.num_attention_heads} heads"
            )
        if self.num_landmarks and not self.num_coordinates:
            raise ValueError(f"`num_coordinates` must be at least 1 with `num_landmarks` {self.num_landmarks}, got 0")
        if self.study_genes and (not self.num_coordinates or self.num_landmarks or self.target_modality != "adt"):
            raise ValueError(
                "`study_genes` must be null without `num_coordinates`, with `num_landmarks`, or for another target "
                f"than adt, got {len(self.study_genes)}"
            )
        if max(self.study_genes or (0,)) >= self.num_rna_tokens * self.rna_patch_size:
            raise ValueError(f"`study_genes` must be places below {self.num_rna_tokens * self.rna_patch_size}")
        own = self.own_genes or []
        if self.study_genes and (len(own) != self.num_proteins or max(own) >= len(self.study_genes)):
            raise ValueError(
                f"`own_genes` must be -1 or below {len(self.study_genes)} for each of {self.num_proteins} proteins, "
                f"got {len(own)} up to {max(own, default=-1)}"
            )
        if max(self.projected_proteins or (0,)) >= self.num_proteins:
            raise ValueError(f"`projected_proteins` must be places below {self.num_proteins}, got a larger one")
        labels = self.labels
        if labels is not None and (len(set(labels)) < len(labels) or not labels):
            raise ValueError(f"`id2label` must name each class once, got {show_value(labels)}")

    @property
    def architecture(self) -> str:
        """
        Name of the class of the weights.

        Raises
        ------
        ValueError
            If the file names none.
        """
        if not self.architectures:
            raise ValueError(f"`architectures` in config.json must name one of {list(ARCHITECTURES)}, got none.")
        return self.architectures[0]

    @property
    def labels(self) -> list[str] | None:
        """
        Names of the classes in their order; None where the file has none.

        Raises
        ------
        ValueError
            If their numbers are not 0, 1, and so on.
        """
        if self.id2label is None:
            return None
        if set(self.id2label) != {str(i) for i in range(len(self.id2label))}:
            raise ValueError(f"`id2label` must number the classes from 0, got {show_value(list(self.id2label))}")
        return [self.id2label[str(i)] for i in range(len(self.id2label))]

    def check_extractor(self, extractor: "ExtractorFile") -> None:
        """
        Compare sizes and names with those of the feature extractor.

        Raises
        ------
        ValueError
            If they differ.
        """
        here = (self.rna_patch_size, self.num_rna_tokens, self.num_proteins)
        there = (extractor.patch_size, extractor.num_rna_tokens, len(extractor.protein_names))
        if here != there:
            raise ValueError(
                "`rna_patch_size`, `num_rna_tokens` and `num_proteins` must be those of preprocessor_config.json, "
                f"{list(there)}, got {list(here)}"
            )
        predicted = self.predicted_features or []
        known = extractor.protein_names if self.target_modality == "adt" else extractor.gene_symbols
        unknown = sorted(set(predicted) - set(known))
        if unknown or (self.target_modality == "adt" and len(set(predicted)) < len(predicted)):
            raise ValueError(
                "`predicted_features` must be in preprocessor_config.json, each once, got "
                f"{show_value(unknown or predicted)}"
            )


@dataclass(frozen=True)
class ExtractorFile:
    """
    Vocabulary and normalisation of a model: the parameters of `ScFusionTTTFeatureExtractor`.

    Raises
    ------
    ValueError
        If lists do not fit one another.
    """

    gene_ids: list[str] = ruled(ListOf(Text(), unique=True))
    gene_symbols: list[str] = ruled(ListOf(Text()))
    gene_chromosomes: list[str] = ruled(ListOf(Text()))
    protein_names: list[str] = ruled(ListOf(Text(), unique=True))
    protein_gene_ids: list[str] = ruled(ListOf(Text()))
    patch_size: int = ruled(Whole(1, 1 << 16))
    target_sum: float = ruled(Number(1e-3, 1e12))

    def __post_init__(self) -> None:
        self.vocabulary()

    def vocabulary(self) -> Vocabulary:
        """Give the genes and proteins."""
        lists: dict[str, Any] = {name: getattr(self, name) for name in Vocabulary.__dataclass_fields__}
        return Vocabulary(**lists)

    @property
    def num_rna_tokens(self) -> int:
        """Number of patches of genes; none crosses a chromosome."""
        sizes: dict[str, int] = {}
        for name in self.gene_chromosomes:
            sizes[name] = sizes.get(name, 0) + 1
        return sum(-(-size // self.patch_size) for size in sizes.values())
