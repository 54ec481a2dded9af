"""An example for each sub-command, which its help shows; those that train have theirs beside their settings."""

import argparse

EXAMPLES = {
    "fetch": "scfusion fetch pbmc_5k_10x malt_10k_10x --directory data",
    "prepare": "scfusion prepare --config configs/data/demo.yaml output=runs/mine/atlas.zarr",
    "synthesize": "scfusion synthesize runs/made_up.zarr --cells 100000",
    "verify": "scfusion verify runs/demo/atlas.zarr",
    "doctor": "scfusion doctor my.h5ad --model scfusion-human-blood-types",
    "inspect": "scfusion inspect runs/demo/atlas.zarr --plot panels.png",
    "models": "scfusion models",
    "embed": "scfusion embed scfusion-human-blood my.h5ad out.h5ad",
    "annotate": "scfusion annotate scfusion-human-blood-types my.h5ad out.h5ad --reject-rate 0.05",
    "predict-protein": "scfusion predict-protein scfusion-human-blood-proteins my.h5ad out.h5ad --level 0.8",
    "impute": "scfusion impute runs/imputation/model my.h5mu out.h5mu --proteins CD19 CD56",
    "surprise": "scfusion surprise scfusion-human-blood my.h5ad out.h5ad --reference known.h5ad",
    "seen": "scfusion seen scfusion-human-blood my.h5ad",
    "push": "scfusion push runs/mine/model lab/blood --private",
    "export": "scfusion export runs/demo/pretrain runs/demo/model",
    "configs": "scfusion configs --copy configs",
    "plan": "scfusion plan configs/pretrain/1b.yaml --gpus 64 --gpu-memory 80 --tflops 100",
    "evaluate": "scfusion evaluate --config configs/evaluate/demo.yaml",
    "plot": "scfusion plot runs/first runs/second --output losses.png",
    "report": "scfusion report --pretraining runs/demo/pretrain --output runs/demo/report.html",
    "explore": "scfusion explore out.h5ad cells.html",
    "env": "scfusion env",
    "completion": "scfusion completion bash > ~/.local/share/bash-completion/completions/scfusion",
}


def show_examples(commands: argparse._SubParsersAction) -> None:
    """Let the help of each sub-command begin with what it does, and end with an example."""
    texts = {action.dest: action.help for action in commands._choices_actions}
    for name, example in EXAMPLES.items():
        if name in commands.choices:
            parser = commands.choices[name]
            parser.formatter_class = argparse.RawDescriptionHelpFormatter
            parser.description = parser.description or _make_sentence(texts.get(name) or "")
            parser.epilog = f"example:\n  {example}"


def _make_sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
