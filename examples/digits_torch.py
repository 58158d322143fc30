"""A PyTorch model for the digits, a step of its training, and a loader that returns ids."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from examples.digits import x, y
from gwa_torch import with_ids

loader = DataLoader(with_ids(TensorDataset(torch.tensor(x), torch.tensor(y))), 64, shuffle=True)
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)


def train_step(inputs: torch.Tensor, labels: torch.Tensor) -> None:
    """Train on one batch."""
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(inputs), labels).backward()
    optimizer.step()
