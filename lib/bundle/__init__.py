"""A controller as a folder: saved, loaded, and exported to run without Python.

    save_controller(controller, "build/my-controller", {"task": "walker-walk"})
    controller = load_controller("build/my-controller")
    export("build/my-controller")                       # step.pt2 and solve.pt2, for C++

The folder holds `controller.json`, all settings, and `weights.safetensors`, all tensors. Nothing in it names code: what
it may hold stands in closed lists (`lib.bundle.parts`).
"""

from lib.bundle.export import export
from lib.bundle.folder import load_controller, read_about, save_controller
from lib.bundle.parts import BundleError, checksum

__all__ = ["BundleError", "checksum", "export", "load_controller", "read_about", "save_controller"]
