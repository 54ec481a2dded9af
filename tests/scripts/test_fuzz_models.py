"""Model directories with something changed are refused in one line, or give the same; the script tries many more."""

import re
import sys

from launch import run


def test_changed_models_are_refused_in_one_line_or_give_the_same():
    done = run(
        sys.executable, "scripts/fuzz_models.py", "--cases", "16", "--seed", "3"
    )  # ends with 1 where any is wrong
    counts = {line[:51].strip(): int(line[51:]) for line in done.stdout.splitlines() if re.match("sums ", line)}
    assert sum(counts.values()) == 16
    assert counts[f"{'sums kept':30} refused"] > 2
