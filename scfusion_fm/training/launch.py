"""How this process was started: alone, or as one of several ranks.

Read without DeepSpeed, whose import takes seconds.
"""

import os

import torch

_ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
_MPI_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")


def is_launched() -> bool:
    """
    Tell whether a launcher started this process as one of some ranks.

    Raises
    ------
    ValueError
        If `accelerate launch` was to start several processes and has started one.
    """
    if "RANK" in os.environ or _read_slurm_step() is not None:
        return True
    # On a machine without GPUs, accelerate says where several processes would meet, and starts one.
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ and not _is_of_mpi():
        raise ValueError(
            "`accelerate launch` must start as many processes as it was told to, got one: without a GPU it needs "
            "--multi_gpu all the same. Type `accelerate launch --multi_gpu --num_processes 2 ...`, or "
            "`torchrun --nproc-per-node 2 ...`."
        )
    return False


def join_launch() -> None:
    """
    Write into the environment who this process is, and where ranks meet, as torchrun does.

    Raises
    ------
    ValueError
        If that is not known.
    """
    if "RANK" in os.environ:
        return
    os.environ.update((is_launched() and _read_slurm_step()) or _ALONE)
    if "MASTER_ADDR" not in os.environ:
        raise ValueError(
            "`MASTER_ADDR` must be set when srun starts more than one task, got none. In the batch script, before "
            'srun: export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
        )


def _is_of_mpi() -> bool:
    return any(name in os.environ for name in _MPI_RANKS)


def _read_slurm_step() -> dict[str, str] | None:
    """Translate the variables of a task that srun started; None in a batch script or a shell, which is no step."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks == "1":
        return None
    local_rank = int(os.environ["SLURM_LOCALID"])
    if torch.cuda.is_available():
        # With --gpus-per-task a task sees its own device only, as number 0.
        local_rank %= torch.cuda.device_count()
    # A port that the tasks of a job agree on, that jobs on the same host rarely share, and that is not handed out
    # to clients.
    port = 10_000 + int(os.environ["SLURM_JOB_ID"]) % 20_000
    found = {
        "RANK": os.environ["SLURM_PROCID"],
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": tasks,
        "MASTER_PORT": str(port),
    }
    return found | {k: v for k, v in os.environ.items() if k in ("MASTER_ADDR", "MASTER_PORT")}
