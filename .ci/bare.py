"""What the bare install must do: compute, read an .npz, and say what is missing for the rest."""

import subprocess
import sys
from pathlib import Path

import numpy as np

import gwa_core
import gwa_offline

assert "site-packages" in gwa_core.__file__, gwa_core.__file__
rng = np.random.default_rng(0)
np.savez("f.npz", latents=rng.normal(size=(50, 3)), weight=np.eye(2, 3), targets=np.arange(50) % 2)
report = gwa_offline.analyse("f.npz")
assert report.epochs[0].summary.count == 50
report.to_csv("out")
assert Path("out/samples.csv").stat().st_size > 0
done = subprocess.run([sys.executable, "-m", "gwa_offline"], capture_output=True, text=True)
assert done.returncode == 2, done
assert "pip install 'gwa-core[cli]'" in done.stderr, done.stderr
print("bare install: analyse works, the command line names its extra")
