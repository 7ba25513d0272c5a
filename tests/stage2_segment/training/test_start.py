"""How soon training begins."""

from __future__ import annotations

import subprocess
import sys


def test_training_of_zeus_waits_for_no_package_that_it_does_not_use() -> None:
    """MONAI, of the baselines and the augmentation, takes longer to import than everything else together."""
    code = "import sys, zeus_union.stage2_segment.training.train; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"monai", "transformers", "sklearn", "matplotlib"}.isdisjoint(loaded) and "torch" in loaded
