"""One thread for torch: the tests' tensors are small, and the machine may be training something."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
