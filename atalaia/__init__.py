"""AtalaIA: from an image network and a data set to the smallest int8 model for a low-cost board."""

import os

# XLA and TensorFlow read it once, when they are first imported; what matters reaches the user as an exception.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
