"""A smoke test of each adapter: the same scores as the core, one epoch, one summary.

Prints the versions that it ran with. `torch` is left out where it is not installed.
"""

from importlib.metadata import distributions
from importlib.util import find_spec

import numpy as np

from gwa_core import alignment_scores, label_quality, rank_samples, summarize

rng = np.random.default_rng(0)
N, C, D = 60, 3, 5
y = np.arange(N) % C
weight, bias = rng.normal(size=(C, D)), rng.normal(size=C)
x = rng.normal(size=(N, D)) + weight[y]
want = alignment_scores(latents=x, weight=weight, bias=bias, targets=y)
assert summarize(want).healthy


def same(scores, summary):
    np.testing.assert_allclose(np.asarray(scores), want, rtol=2e-5, atol=2e-6)
    assert int(summary.count) == N
    np.testing.assert_allclose(float(summary.gwa), float(summarize(want).gwa), rtol=1e-4)


def offline():
    import gwa_offline

    np.savez("smoke.npz", latents=x, weight=weight, bias=bias, targets=y)
    report = gwa_offline.analyse("smoke.npz")
    same(report.scores, report.epochs[0].summary)


def dask():
    from distributed import Client

    import gwa_dask

    np.savez("cluster.npz", latents=x, weight=weight, bias=bias, targets=y)
    with Client(n_workers=1, processes=False, dashboard_address=":0") as client:
        report = gwa_dask.analyse("cluster.npz", client=client)
    same(report.scores, report.epochs[0].summary)


def sklearn():
    from sklearn.linear_model import LogisticRegression, SGDClassifier

    import gwa_sklearn

    model = LogisticRegression(max_iter=200).fit(x, y)
    scores = gwa_sklearn.alignment_scores(model, x, y)
    head = {"weight": model.coef_, "bias": model.intercept_}
    np.testing.assert_allclose(scores, alignment_scores(latents=x, targets=y, **head), rtol=1e-6)
    sgd = SGDClassifier(loss="log_loss", random_state=0)
    stopped = gwa_sklearn.GWAEarlyStoppingClassifier(sgd, max_epochs=4).fit(x, y)
    assert stopped.score(x, y) > 0.5
    quality = gwa_sklearn.get_label_quality_scores(x, y, model)
    assert quality.shape == rank_samples(quality, k=N).shape


def jax():
    import jax

    import gwa_jax

    def step(state, ids, latents, targets):
        return gwa_jax.update(
            state, latents=latents, kernel=weight.T, bias=bias, targets=targets, ids=ids
        )

    state = gwa_jax.init(num_samples=N)
    for ids in np.split(np.arange(N), 3):
        state = jax.jit(step)(state, ids, x[ids].astype("float32"), y[ids])
    scores = gwa_jax.scores(state)
    state, summary = gwa_jax.end_epoch(state)
    same(scores, gwa_jax.fetch(summary))


def flax():
    import jax.numpy as jnp
    from flax import nnx

    from gwa_jax.flax import GWAMetric, call_with_head

    model = nnx.Sequential(nnx.Linear(D, C, rngs=nnx.Rngs(0)))
    model.layers[0].kernel[...] = jnp.asarray(weight.T, jnp.float32)
    model.layers[0].bias[...] = jnp.asarray(bias, jnp.float32)
    metric = GWAMetric(num_samples=N)

    @nnx.jit
    def step(model, metric, x, y, ids):
        _, head = call_with_head(model, "layers.0", x)
        metric.update(**head._asdict(), labels=y, ids=ids)

    step(model, metric, jnp.asarray(x, jnp.float32), jnp.asarray(y), jnp.arange(N))
    same(metric.scores(), metric.summary())


def torch():
    import torch

    from gwa_torch import GWAMonitor

    model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(D, C))
    with torch.no_grad():
        model[1].weight.copy_(torch.from_numpy(weight))
        model[1].bias.copy_(torch.from_numpy(bias))
    monitor = GWAMonitor(model[1], num_samples=N)
    for ids in torch.arange(N).split(16):
        logits = model(torch.from_numpy(x[ids]).float())
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(y)[ids]).backward()
        monitor.update(torch.from_numpy(y)[ids], ids=ids)
    summary = monitor.end_epoch()
    same(monitor.scores.numpy(), summary)
    assert label_quality(monitor.scores[None].numpy()).shape == (N,)


TESTS = [offline, dask, sklearn, jax, flax, torch]
for test in TESTS:
    if test is torch and find_spec("torch") is None:
        print("gwa_torch: torch is not installed")
        continue
    test()
    print(f"gwa_{test.__name__}: as the core")
versions = sorted(f"{found.name}=={found.version}" for found in distributions())
print(*versions, sep="\n")
