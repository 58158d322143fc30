"""Handwritten digits. Every tenth label is wrong, so the ids to find end in 0."""

import numpy as np
from sklearn.datasets import load_digits

x, y = load_digits(return_X_y=True)
x = (x / 16.0).astype(np.float32)
y[::10] = (y[::10] + np.random.default_rng(0).integers(1, 10, 180)) % 10
