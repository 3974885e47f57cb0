import jax


def conv2d(x, k, strides=(1, 1), padding="SAME", groups=1):
    return jax.lax.conv_general_dilated(
        x, k, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def max_pool(x, w=2):
    import flax.linen as nn

    return nn.max_pool(x, (w, w), (w, w))
