"""A network for the digits in plain JAX: its parameters, its loss, and batches with ids."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from examples.digits import x, y

keys = jax.random.split(jax.random.key(0))
params = {
    "body": 0.1 * jax.random.normal(keys[0], (64, 128)),
    "kernel": 0.1 * jax.random.normal(keys[1], (128, 10)),
}


def loss(params: Any, x: Any, y: Any) -> Any:
    """Return the mean cross-entropy, and the latents beside it."""
    latents = jax.nn.relu(x @ params["body"])
    log_p = jax.nn.log_softmax(latents @ params["kernel"])
    return -(jax.nn.one_hot(y, 10) * log_p).sum(axis=1).mean(), latents


def batches(epoch: int) -> Iterator[Any]:
    """Yield the batches of an epoch in an order of its own: inputs, labels, ids."""
    order = np.random.default_rng(epoch).permutation(len(x))
    for ids in np.array_split(order, 28):
        yield x[ids], y[ids], ids
