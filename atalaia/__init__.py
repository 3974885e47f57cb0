"""AtalaIA: from an image network and a data set to the smallest int8 model for a low-cost board."""
