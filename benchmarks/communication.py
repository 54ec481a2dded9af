"""Count what ranks send each other in a step of every ZeRO stage, and compare it with what `scfusion plan` says.

    python benchmarks/communication.py                # 2 and 4 ranks; needs `unshare` and `ip`
    python benchmarks/communication.py --quick        # 2 ranks, a small model

The ranks run in a network namespace of their own, so that all that its loopback carries is theirs: bytes of a step over
the ranks is what one sends. gloo on CPU ranks; NCCL cuts the same collectives in other ways that send as much.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import zero_stages

from scfusion_fm.planning.communication import communication_per_gpu
from scfusion_fm.planning.settings import DeepSpeedSettings
from scfusion_fm.planning.sizing import count_parameters

STEPS = 3
MEDIUM = zero_stages.LARGE | {"hidden_size": 512, "num_hidden_layers": 2, "num_decoder_layers": 1}
ALONE = 'ip link set lo up && exec "$@"'


def sent_so_far() -> int:
    """Give the bytes that the loopback of this namespace has carried."""
    (line,) = (x for x in Path("/proc/net/dev").read_text().splitlines() if x.strip().startswith("lo:"))
    return int(line.split()[1])


def count_on_rank(settings: dict[str, Any], shape: dict[str, Any], accumulation: int) -> dict[str, float]:
    """Train some steps; give the bytes of one per rank, and what the plan expects."""
    from scfusion_fm.training.engine import build_engine
    from scfusion_fm.training.parted import building

    ranks, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    with building(settings):
        model = zero_stages.build_model(shape)
    config = model.config
    engine = build_engine(model, settings, replace(zero_stages.OPTIM, micro_batch_size=1), accumulation)
    before = 0
    for step in range(STEPS + 1):
        if step == 1:  # in the first one, DeepSpeed looks in which order it needs parameters
            torch.distributed.barrier()
            before = sent_so_far()
        cells = zero_stages.batch(config, step, ranks * accumulation)
        for turn in range(accumulation):
            place = turn * ranks + rank
            engine.backward(engine(**{k: v[place : place + 1] for k, v in cells.items()}).loss)
            engine.step()
    torch.distributed.barrier()
    sent = (sent_so_far() - before) / STEPS / ranks
    plan = communication_per_gpu(count_parameters(config), DeepSpeedSettings.from_json(settings), ranks, accumulation)
    return {"parameters": count_parameters(config).total, "sent": sent, "planned": plan.total}


def cases(quick: bool) -> list[dict[str, Any]]:
    """List what is counted."""
    found = [{"stage": stage, "accumulation": count} for stage in range(4) for count in (1, 3)]
    if not quick:
        found += [{"stage": stage, "accumulation": 1, "bf16": True} for stage in (2, 3)]
    return found


def make_settings(case: dict[str, Any]) -> dict[str, Any]:
    """Give the DeepSpeed settings of a case; parameters are not kept between forward and backward pass."""
    zero = {"stage": case["stage"], "reduce_bucket_size": 5_000_000, "allgather_bucket_size": 5_000_000}
    if case["stage"] == 3:
        zero |= {"stage3_prefetch_bucket_size": 500_000, "stage3_param_persistence_threshold": 0}
        zero |= {"stage3_max_live_parameters": 1, "stage3_max_reuse_distance": 1}
    return {"zero_optimization": zero} | ({"bf16": {"enabled": True}} if case.get("bf16") else {})


def run_worker(case: dict[str, Any], shape: dict[str, Any]) -> None:
    """Count one case; rank 0 prints the result."""
    from scfusion_fm.training.ranks import leaving_ranks, start_ranks

    start_ranks(1, 600.0)
    with leaving_ranks():
        result = count_on_rank(make_settings(case), shape, case["accumulation"])
        if os.environ["RANK"] == "0":
            print("RESULT " + json.dumps(result), flush=True)


def count(case: dict[str, Any], shape: dict[str, Any], ranks: int) -> dict[str, float]:
    """Run one case on some ranks in a namespace of their own."""
    worker = json.dumps({"case": case, "shape": shape})
    launcher = ["torchrun", "--nproc-per-node", str(ranks), "--master-addr", "127.0.0.1", "--master-port", "29500"]
    command = ["unshare", "-rn", "sh", "-c", ALONE, "sh", *launcher, __file__, "--worker", worker]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise SystemExit(f"error: {case} on {ranks} ranks failed:\n{done.stderr[-3000:]}")
    return json.loads(lines[0].removeprefix("RESULT "))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two ranks, a small model")
    parser.add_argument("--ranks", type=int, nargs="+", help="numbers of ranks")
    parser.add_argument("--stages", type=int, nargs="+", default=range(4), help="ZeRO stages")
    parser.add_argument("--json", type=Path, metavar="OUT", help="file for the figures")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return run_worker(**json.loads(args.worker))
    rows = []
    print("| stage | ranks | accumulation | sent per rank and step, MB | planned, MB | sent / planned |")
    print("|---|---:|---:|---:|---:|---:|")
    for ranks in args.ranks or ((2,) if args.quick else (2, 4)):
        for case in (case for case in cases(args.quick) if case["stage"] in args.stages):
            row = case | {"ranks": ranks} | count(case, zero_stages.SMALL if args.quick else MEDIUM, ranks)
            rows.append(row)
            name = f"{case['stage']}{', bf16' if case.get('bf16') else ''}"
            print(
                f"| {name} | {ranks} | {case['accumulation']} | {row['sent'] / 1e6:,.1f} | {row['planned'] / 1e6:,.1f} "
                f"| {row['sent'] / row['planned']:.2f} |",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps({"rows": rows}, indent=1))
    return None


if __name__ == "__main__":
    main()
