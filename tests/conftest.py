"""One thread for torch, as tensors are small and the machine may be training something; and the order of the files."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    """The longest file first: each worker takes the next file of the list, and all should end at the same time."""
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")
