"""Whatever a source is, its results are those of one file."""

from __future__ import annotations

import numpy as np
import pytest
from adapters.offline.sources import KINDS, make_epoch, npz

from gwa_offline import analyse, open_features


def check_same(found, whole):
    for name in ("scores", "label_quality", "predictions", "targets"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    for one, other in zip(found.epochs, whole.epochs, strict=True):
        assert one.summary[:4] == other.summary[:4]
        # Rows in another order, as those of partitions are, are summed in another order.
        assert one.summary[4:-2] == pytest.approx(other.summary[4:-2], rel=1e-12)


@pytest.fixture
def whole(tmp_path_factory):
    return analyse(npz(tmp_path_factory.mktemp("whole"), make_epoch()))


def opened(kind, folder, arrays):
    given = {name: arrays[name] for name in ("weight", "bias")} if kind.head == "given" else {}
    return open_features(kind.write(folder, arrays), **given)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.write.__name__)
def test_every_kind_of_source_gives_the_results_of_one_file(tmp_path, whole, kind):
    arrays = make_epoch()
    check_same(analyse(opened(kind, tmp_path, arrays)), whole)
