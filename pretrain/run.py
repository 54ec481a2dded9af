"""Pretrain scFusionTTT on an atlas: `scfusion pretrain` as a script, for launchers that want one.

deepspeed --num_accelerators 2 pretrain/run.py --config configs/pretrain/demo.yaml optim.lr=3e-4
"""

import sys

from scfusion_fm.cli.main import main

if __name__ == "__main__":
    sys.argv[1:1] = ["pretrain"]
    main()
