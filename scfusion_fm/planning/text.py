"""Tell the plan of a pretraining run in the terminal."""

from scfusion_fm.data.inspect.summary_text import render_columns
from scfusion_fm.planning.plan import USABLE_SHARE, Choice, Plan
from scfusion_fm.planning.recipe import RecipePlan

GIB = 2**30


def render_plan(recipe: RecipePlan) -> str:
    """Give the facts, the table of memory, and what to do."""
    plan = recipe.plan
    blocks = ["\n".join(f"{name:<12}{text}" for name, text in _facts(recipe).items()), _render_choices(plan)]
    if plan.scales:
        blocks.append(_render_scales(plan))
    blocks.append("\n".join(_advice(plan)))
    return "\n\n".join(blocks)


def _facts(recipe: RecipePlan) -> dict[str, str]:
    plan, model = recipe.plan, recipe.model
    request, parameters, micro = plan.request, plan.parameters, plan.request.planned_micro_batch
    source = "the shipped table; there is no atlas yet" if recipe.atlas is None else recipe.atlas
    plural = "s" if request.gpus > 1 else ""
    steps = "not known without an atlas; give --cells" if plan.steps is None else f"{plan.steps:,} steps"
    if plan.steps is not None:
        steps += f" for {request.epochs:g} epochs of {request.cells:,} cells"
        operations = plan.flops_train * plan.steps * request.global_batch_size
        steps += f", {operations:.2e} operations"
    facts = {
        "vocabulary": f"{recipe.genes:,} genes in {model.num_rna_tokens:,} tokens of {model.rna_patch_size}, "
        f"{model.num_proteins} proteins ({source})",
        "parameters": f"{_short(parameters.total)}: {_short(parameters.blocks)} in blocks, "
        f"{_short(parameters.features)} of genes and proteins, {_short(parameters.other)} others",
        "operations": f"{plan.flops_forward / 1e9:,.1f} GFLOP per cell forward, {plan.flops_train / 1e9:,.1f} in "
        "training",
        "batch": f"{request.global_batch_size:,} cells = {request.gpus} GPU{plural} x {micro} cells x "
        f"{request.cells_per_gpu // micro} accumulation step{'s' if request.cells_per_gpu > micro else ''}",
        "run": steps,
    }
    if plan.seconds is not None:
        facts["time"] = f"{_duration(plan.seconds)} if every GPU sustains the {request.tflops:g} TFLOP/s that you gave"
    return facts


def _render_choices(plan: Plan) -> str:
    request = plan.request
    rows = [
        [
            "ZeRO stage",
            "weights",
            "grads",
            "AdamW",
            "buffers",
            "activ.",
            "step",
            "total",
            "host",
            "sent",
            "fits",
            "largest micro",
        ]
    ]
    for choice in plan.choices:
        memory = choice.memory
        sizes = (memory.parameters, memory.gradients, memory.optimizer, memory.buffers, memory.activations, memory.step)
        rows.append(
            [
                f"{'*' if choice.is_recipe else ' '} {choice.settings.describe()}",
                *(_gib(size) for size in sizes),
                _gib(memory.total),
                _gib(memory.host) if memory.host else "-",
                _gib(choice.sent),
                "yes" if choice.fits else "no",
                "none" if choice.largest_micro_batch is None else f"{choice.largest_micro_batch}",
            ]
        )
    usable = USABLE_SHARE * request.gpu_memory
    checkpointing = "with" if request.checkpointing else "without"
    return (
        f"GiB per GPU at {request.planned_micro_batch} cells, {checkpointing} activation checkpointing; fits: at most "
        f"{usable:g} of {request.gpu_memory:g} GiB; *: the recipe\n"
        "total: activations and the float32 gradients of the step do not meet, the larger counts; sent: in one "
        "optimizer step\n"
        f"{render_columns(rows)}"
    )


def _render_scales(plan: Plan) -> str:
    """Tell what GPUs send on other numbers of them."""
    stages = list(plan.scales[0].sent)
    rows = [["GPUs", "micro", "steps", *(f"stage {stage}" for stage in stages)]]
    for scale in plan.scales:
        sent = [_gib(size) for size in scale.sent.values()]
        if scale.needed is not None:
            sent = [f"{size} at {rate / 1e9:,.3g} GB/s" for size, rate in zip(sent, scale.needed.values(), strict=True)]
        rows.append([f"{scale.gpus:,}", f"{scale.micro_batch_size}", f"{scale.accumulation_steps}", *sent])
    rate = "" if plan.request.tflops is None else ", and the rate at which that takes as long as the computation"
    return (
        f"The same {plan.request.global_batch_size:,} cells on other numbers of GPUs: GiB that each sends in one "
        f"optimizer step, by ZeRO stage{rate}\n{render_columns(rows)}"
    )


def _advice(plan: Plan) -> list[str]:
    """Say what to change, if anything."""
    request, lines = plan.request, []
    micro = request.planned_micro_batch
    if micro != request.micro_batch_size:
        lines.append(
            f"optim.micro_batch_size={request.micro_batch_size} does not make up the {request.cells_per_gpu} cells of "
            f"a GPU; set {micro}, for which this plan is, or change optim.global_batch_size."
        )
    recipe = next(choice for choice in plan.choices if choice.is_recipe)
    if recipe.fits:
        lines.append("The recipe fits.")
        if recipe.largest_micro_batch > micro:
            lines.append(f"optim.micro_batch_size={recipe.largest_micro_batch} fits too.")
        return lines
    lines.append(f"The recipe does not fit: it needs {_gib(recipe.memory.total)} GiB. One of these would:")
    lines += _ways_out(plan, recipe)
    if lines[-1].endswith("would:"):
        lines[-1] = (
            "Nothing fits: not one cell per GPU, with any stage, with activation checkpointing. Take more or larger "
            "GPUs, bf16, a larger patch_size, smaller buckets, or a smaller model."
        )
    return lines


def _ways_out(plan: Plan, recipe: Choice) -> list[str]:
    """List what makes the run fit: the least change first."""
    request, ways = plan.request, []
    if recipe.largest_micro_batch is not None:
        ways.append(f"- optim.micro_batch_size={recipe.largest_micro_batch}, with more accumulation steps")
    if plan.largest_with_checkpointing is not None and not request.checkpointing:
        micro = min(plan.largest_with_checkpointing, request.planned_micro_batch)
        ways.append(f"- run.activation_checkpointing=true with optim.micro_batch_size={micro}")
    for choice in plan.choices:
        if choice.largest_micro_batch is not None and not choice.is_recipe:
            micro = min(choice.largest_micro_batch, request.planned_micro_batch)
            ways.append(f"- ZeRO stage {choice.settings.describe()}, with optim.micro_batch_size={micro}")
    return ways


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f}" if size >= 10 * GIB else f"{size / GIB:.2f}"


def _short(count: float) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count:g}"


def _duration(seconds: float) -> str:
    for unit, name in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:,.0f} seconds"
