"""Make the registry's torchvision importable beside a CPU build of torch.

EasyOCR needs torchvision, and the registry's is a CUDA build: beside CPU torch its C++ library does not load, its import then
fails for want of two operator schemas, and with it transformers, diffusers and EasyOCR. With the schemas declared it imports
and its Python parts work; the operators themselves (nms, roi_align, ...) do not, and none of ours or EasyOCR's calls one.
"""

import importlib.util
import sys
from functools import cache

_OPERATORS = ("nms", "qnms")
_ARGUMENTS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@cache
def declare() -> object | None:
    """Declare the schemas where torchvision is installed beside a torch without CUDA and cannot be imported as it is.

    To be called before transformers, diffusers or EasyOCR are imported. Returns the library that holds the schemas as long as
    it lives; None where nothing had to be done.
    """
    if importlib.util.find_spec("torchvision") is None:
        return None
    import torch

    if torch.version.cuda is not None:
        return None
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    else:
        return None
    for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[module]  # what the failed import has left
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in _OPERATORS:
        library.define(operator + _ARGUMENTS)
    return library
