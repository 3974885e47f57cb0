"""Networks with an int8 form pass; of the others the line, its file and number, and what to use instead are named."""

import re
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
from absl.testing import absltest, parameterized
from test_quantize import NETWORKS

from atalaia import int8_layers, layers
from atalaia.errors import UserError


class Softmax(layers.Layer):
    def __call__(self, x):
        return nn.softmax(x)


class Ending(nn.Module):
    """A network that ends in something without an int8 form: its comment is found in the file."""

    kind: str

    @nn.compact
    def __call__(self, x, train=False):
        match self.kind:
            case "layer":
                return Softmax(name="ending")(x)  # the layer
            case "module":
                return nn.Dense(3, name="foreign")(x)  # the module
            case "mean":  # not GlobalAvgPool: the converter leaves a part of it in float
                return x.mean(1)  # the mean
            case "relu":
                return nn.relu(x)  # the relu
            case "pool":
                return nn.max_pool(x, (2, 2))  # the pool
            case "helper":
                return helper(x)
        return jnp.tanh(x)  # the operation


def helper(x):
    return x.reshape(-1)  # the helper


class RequireInt8Test(parameterized.TestCase):
    @parameterized.named_parameters(*NETWORKS)
    def test_our_networks_have_an_int8_form(self, model, shape):
        int8_layers.require_int8(model, shape)

    @parameterized.parameters(
        ("layer", r"layer 'ending' is a Softmax, which has no int8 form \('return Softmax", ""),
        ("module", "nn.Dense.*no int8 form", "use Dense instead; "),
        ("operation", "tanh.*no int8 form", ""),
        ("mean", r"x\.mean.*no int8 form", "use GlobalAvgPool instead; "),
        ("relu", r"nn\.relu.*no int8 form", "use relu=True of Conv, Dense or Add instead; "),
        ("pool", r"nn\.max_pool.*no int8 form", "use MaxPool instead; "),
        ("helper", r"x\.reshape.*no int8 form", "use Flatten instead; "),
    )
    def test_what_has_none_is_named_with_its_line_and_what_to_use_instead(self, kind, named, instead):
        lines = Path(__file__).read_text().splitlines()
        (number,) = [n for n, line in enumerate(lines, 1) if line.endswith(f"  # the {kind}")]
        place = re.escape(f"{Path(__file__).name}:{number}: ")
        with self.assertRaisesRegex(
            UserError, f"{place}.*{named}.*: {instead}a network is made of atalaia.layers' Conv"
        ):
            int8_layers.require_int8(Ending(kind), (4, 4, 1))


if __name__ == "__main__":
    absltest.main()
