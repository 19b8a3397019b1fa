"""Lets PyPI's torchvision be imported beside a CPU build of torch.

Its compiled half links CUDA libraries, so its operators are never registered and its own import fails on the missing
`torchvision::nms`. This declares the two operator schemas, then hands over to the real package behind it on sys.path.
"""

import importlib.machinery
import importlib.util
import os
import sys

import torch

_schemas = torch.library.Library("torchvision", "DEF")
for _operator in ("nms", "qnms"):
    _schemas.define(f"{_operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

_here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_elsewhere = [path for path in sys.path if os.path.abspath(path) != _here]
_real = importlib.machinery.PathFinder.find_spec("torchvision", _elsewhere)
if _real is None or _real.loader is None:
    raise ImportError("torchvision is not installed; pip install --no-deps torchvision==0.28.0")
__file__ = _real.origin
__path__[:] = list(_real.submodule_search_locations)
__spec__.submodule_search_locations[:] = __path__
_real.loader.exec_module(sys.modules[__name__])
