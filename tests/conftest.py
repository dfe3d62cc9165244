"""Tensors are small here: a second thread costs more than it brings, several times more on a busy machine."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; the scripts that tests start inherit it
