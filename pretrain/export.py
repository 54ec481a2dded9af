"""Turn a checkpoint of a run into a Hugging Face directory: `scfusion export` as a script.

python pretrain/export.py runs/demo/pretrain runs/demo/model
"""

import sys

from scfusion_fm.cli.main import main

if __name__ == "__main__":
    sys.argv[1:1] = ["export"]
    main()
