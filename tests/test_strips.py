"""Steps that run row by row give the same bytes, in the rows and the arena that were worked out by hand."""

import numpy as np
from absl.testing import absltest
from flat_models import Net, wrong
from test_operators import require_gcc
import random_networks

from atalaia import tflite
from atalaia.codegen import kernels, lowering, memory, strips


def longest(graph, calls):
    """Every step that can be in a strip is in one, each as long as it can be."""
    network, found, at = strips.Network(graph, calls), [], 0
    while at < len(graph.steps):
        ends = range(len(graph.steps) - 1, at, -1)
        made = next((s for s in (strips.build(network, at, end) for end in ends) if s), None)
        found += [made] if made else []
        at = made.last + 1 if made else at + 1
    return strips.planned(network, found)


class T(absltest.TestCase):
    def test_random(self):
        made = {f"seed {seed}": random_networks.network(seed) for seed in range(200)}
        print(wrong({name: content for name, (content, _) in made.items()}, 3, longest))


if __name__ == "__main__":
    absltest.main()
