"""A test set under the corruptions of ImageNet-C, for data that has no such set of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.data import GROUPS, Images

__all__ = ["corrupt"]


def corrupt(
    images: Images, out: str | Path, count: int | None = None, names: Sequence[str] | None = None
) -> None:
    """Write the first test images under each corruption, in the layout of CIFAR-10-C.

    The severities 1 to 5 take turns, where CIFAR-10-C has the whole test set at each. The corruptions
    come from the package ``imagecorruptions-imaug``, whose strengths are ImageNet-C's.

    Parameters
    ----------
    images : Images
        The data.
    out : path
        Folder for ``labels.npy`` and one file a corruption.
    count : int, optional
        How many images, default all.
    names : sequence of str, optional
        Which corruptions, default all of `GROUPS`.
    """
    from imagecorruptions import corrupt as corrupted

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    test = np.moveaxis(images.test[:count], 1, -1)
    np.save(out / "labels.npy", images.test_labels[:count].astype(np.uint8))
    for name in names or [x for group in GROUPS.values() for x in group]:
        np.random.seed(0)  # noqa: NPY002, what the package draws from
        found = [
            corrupted(np.ascontiguousarray(x), corruption_name=name, severity=1 + k % 5)
            for k, x in enumerate(test)
        ]
        np.save(out / f"{name}.npy", np.stack(found).astype(np.uint8))
