"""Measurements: ``python -m benchmarks`` runs those of speed and of exactness; each script beside it runs by itself."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The package and `training`; what tests use as well: diffusers' parts with our weights, writers of checkpoints.
sys.path += [str(path) for path in (ROOT, ROOT / "tests", ROOT / "tests" / "weights") if str(path) not in sys.path]
