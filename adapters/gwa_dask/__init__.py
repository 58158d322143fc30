"""Saved features on a cluster: the analysis of `gwa_offline` as tasks of Dask."""

from gwa_dask.analysis import analyse
from gwa_dask.cluster import open_cluster
from gwa_offline.analysis import Report
from gwa_offline.store import FeaturesError

__all__ = ["FeaturesError", "Report", "analyse", "open_cluster"]
