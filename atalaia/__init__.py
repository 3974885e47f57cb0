"""AtalaIA: from an image network and a data set to the smallest int8 model for a low-cost board.

`atalaia.train`, `atalaia.export`, `atalaia.evaluate`, `atalaia.report` and `atalaia.compile_c` do the job from a script
or a notebook (atalaia/api.py); `python -m atalaia.train` and so on, or `atalaia train`, from a shell. Nothing is
imported before it is needed, TensorFlow not before export.
"""

import importlib
import os

# XLA and TensorFlow read it once, when they are first imported; what matters reaches the user as an exception.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# LLVM in jaxlib 0.9 ends with a segmentation fault in its epilogue vectoriser (preparePlanForEpilogueVectorLoop) for
# some shapes: the weight gradient of a convolution with strides of 2 of 8 channels, 80 pixels wide, is one.
_NO_EPILOGUE = "--xla_backend_extra_options=-enable-epilogue-vectorization=false"
if "xla_backend_extra_options" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_NO_EPILOGUE}".strip()

__version__ = "0.2.0"
__all__ = ["compile_c", "config", "evaluate", "export", "layers", "report", "train"]


def __getattr__(name: str):
    if name == "compile_c":
        return importlib.import_module("atalaia.api").compile_c
    if name in __all__:
        return importlib.import_module(f"atalaia.{name}")
    raise AttributeError(f"module 'atalaia' has no attribute {name!r}")
