"""Fine-tuning of a model with its head by the trainer of transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import EarlyStoppingCallback, PreTrainedModel, PrinterCallback, Trainer, TrainingArguments

from scfusion_fm.config.finetune import FinetuneOptimConfig
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.inference.batches import CellCollator, CellRows
from scfusion_fm.tasks.adapters import add_adapters, count_trained, merge_adapters
from scfusion_fm.tasks.settings import FitSettings
from scfusion_fm.training.optimizer import parameter_groups


def train_best(
    model: PreTrainedModel,
    partition: Partition,
    collators: dict[str, CellCollator],
    score: Callable[[Any], dict[str, float]],
    settings: FitSettings,
    loss: Callable[..., torch.Tensor] | None = None,
) -> int:
    """
    Fine-tune and keep what has the best validation score, the start or an epoch; give the number of trained parameters.

    Parameters
    ----------
    model
        The model with its head.
    partition
        Which cells train, and which choose.
    collators
        How to prepare cells, by `train` and `val`.
    score
        Turns predictions into {"score": higher is better, ...}.
    settings
        Optimisation, seed, and the directory for the trainer's files.
    loss
        Called with outputs and labels instead of taking the loss of the model.
    """
    torch.set_num_threads(settings.optim.threads)
    if settings.optim.lora_rank:
        add_adapters(model, settings.optim.lora_rank, settings.seed)
    num_trained = count_trained(model)
    with settings.open_directory() as directory:
        trainer = _FineTuner(
            model=model,
            args=_training_arguments(settings, directory, collators["val"].label_names),
            train_dataset=CellRows(partition.train),
            eval_dataset=CellRows(partition.val),
            data_collator=collators["train"],
            compute_metrics=score,
            compute_loss_func=loss,
            callbacks=[EarlyStoppingCallback(early_stopping_patience=settings.optim.patience)],
        )
        trainer.eval_collator, trainer.optim = collators["val"], settings.optim
        if settings.directory is None:
            trainer.remove_callback(PrinterCallback)
        start_score = trainer.evaluate()["eval_score"]
        start = {name: value.cpu().clone() for name, value in model.state_dict().items()}
        trainer.train()
        best = trainer.state.best_metric
        if best is None or not best >= start_score:  # nor where training ended in what is no number
            model.load_state_dict(start)
    if settings.optim.lora_rank:
        merge_adapters(model)
    return num_trained


def fine_tuning_groups(model: nn.Module, optim: FinetuneOptimConfig) -> list[dict[str, Any]]:
    """Split the trained parameters by learning rate: embeddings of values are slow, a new classifier is fast."""
    head = {id(p) for p in model.classifier.parameters()} if hasattr(model, "classifier") else set()
    groups = []
    for group in parameter_groups(model, optim.weight_decay, optim.embedding_lr_ratio):
        for ratio, fast in ((optim.head_lr_ratio, True), (group.get("lr_ratio", 1.0), False)):
            parameters = [p for p in group["params"] if (id(p) in head) == fast]
            if parameters:
                groups.append({"params": parameters, "weight_decay": group["weight_decay"], "lr": optim.lr * ratio})
    return groups


def _training_arguments(settings: FitSettings, directory: Path, label_names: list[str]) -> TrainingArguments:
    optim = settings.optim
    return TrainingArguments(
        output_dir=str(directory),
        num_train_epochs=optim.epochs,
        per_device_train_batch_size=optim.batch_size,
        per_device_eval_batch_size=optim.batch_size,
        learning_rate=optim.lr,
        weight_decay=optim.weight_decay,
        warmup_steps=optim.warmup_ratio,
        lr_scheduler_type="cosine",
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
        remove_unused_columns=False,
        label_names=label_names,
        report_to=[],
        seed=settings.seed,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=settings.directory is None,
    )


class _FineTuner(Trainer):
    """Evaluate without the random choices of training, and give parts of the model rates of their own."""

    eval_collator: CellCollator
    optim: FinetuneOptimConfig

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        groups = fine_tuning_groups(self.model, self.optim)
        self.optimizer = torch.optim.AdamW(groups, lr=self.optim.lr)
        return self.optimizer

    def get_eval_dataloader(self, eval_dataset: Dataset | None = None) -> torch.utils.data.DataLoader:
        training, self.data_collator = self.data_collator, self.eval_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training
