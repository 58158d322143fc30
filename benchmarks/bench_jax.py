"""A jitted training step with the monitor in it, beside one without.

On an accelerator ViT-S/16 in plain JAX, on a CPU networks of two layers. `python -m benchmarks jax`.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

import gwa_jax
from benchmarks.pairs import report

WIDTH, DEPTH, HEADS, PATCH, SIZE, CLASSES = 384, 12, 6, 16, 224, 1000
TOKENS = (SIZE // PATCH) ** 2
BATCH = 512
SAMPLES = 1_281_167
MODEL = f"ViT-S/16, batch {BATCH}, bf16, jitted"

Tree = dict[str, Any]


def parameters(key: Any) -> Tree:
    """Return the weights of a vision transformer in float32; all blocks are in one array."""

    def dense(key: Any, *shape: int) -> Any:
        return 0.02 * jax.random.truncated_normal(key, -2.0, 2.0, shape)

    keys = iter(jax.random.split(key, 8))
    wide = 4 * WIDTH
    return {
        "patch": dense(next(keys), 3 * PATCH**2, WIDTH),
        "place": dense(next(keys), TOKENS, WIDTH),
        "blocks": {
            "norm1": jnp.ones((DEPTH, WIDTH)),
            "qkv": dense(next(keys), DEPTH, WIDTH, 3 * WIDTH),
            "out": dense(next(keys), DEPTH, WIDTH, WIDTH),
            "norm2": jnp.ones((DEPTH, WIDTH)),
            "up": dense(next(keys), DEPTH, WIDTH, wide),
            "down": dense(next(keys), DEPTH, wide, WIDTH),
        },
        "norm": jnp.ones(WIDTH),
        "head": {"kernel": dense(next(keys), WIDTH, CLASSES), "bias": jnp.zeros(CLASSES)},
    }


def normed(x: Any, scale: Any) -> Any:
    """Layer norm in float32, without a shift."""
    wide = x.astype(jnp.float32)
    wide = wide - wide.mean(axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + 1e-6)
    return (wide * scale).astype(x.dtype)


def block(x: Any, w: Tree) -> tuple[Any, None]:
    """Attention and a network of two layers."""
    shape = (*x.shape[:2], HEADS, WIDTH // HEADS)
    q, k, v = (
        part.reshape(shape) for part in jnp.split(normed(x, w["norm1"]) @ w["qkv"], 3, axis=-1)
    )
    seen = jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    x = x + seen.reshape(x.shape) @ w["out"]
    return x + jax.nn.gelu(normed(x, w["norm2"]) @ w["up"]) @ w["down"], None


def forward(weights: Tree, images: Any) -> tuple[Any, Any]:
    """Return logits and latents of images (N, 3, 224, 224) in bfloat16."""
    w = jax.tree.map(lambda x: x.astype(jnp.bfloat16), weights)
    side = SIZE // PATCH
    patches = images.reshape(-1, 3, side, PATCH, side, PATCH).transpose(0, 2, 4, 1, 3, 5)
    x = patches.reshape(-1, TOKENS, 3 * PATCH**2) @ w["patch"] + w["place"]
    x, _ = jax.lax.scan(block, x, w["blocks"])
    latents = normed(x, w["norm"]).mean(axis=1)
    return latents @ w["head"]["kernel"] + w["head"]["bias"], latents


def loss(weights: Tree, images: Any, labels: Any) -> tuple[Any, tuple[Any, Any]]:
    """Cross-entropy in float32, with logits and latents beside it."""
    logits, latents = forward(weights, images)
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.take_along_axis(log_p, labels[:, None], axis=1).mean(), (logits, latents)


def adamw(weights: Tree, moments: tuple[Tree, Tree, Any], gradients: Tree) -> tuple[Tree, Any]:
    """Return weights and moments after a step."""
    first, second, count = moments
    count = count + 1
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradients)
    second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradients)

    def step(w: Any, m: Any, v: Any) -> Any:
        m, v = m / (1 - 0.9**count), v / (1 - 0.999**count)
        return w - 1e-3 * (m / (jnp.sqrt(v) + 1e-8) + 0.05 * w)

    return jax.tree.map(step, weights, first, second), (first, second, count)


def alone(state: Any, *_: Any) -> Any:
    """Watch nothing."""
    return state


def monitor(state: Any, logits: Any, latents: Any, head: Tree, labels: Any, ids: Any) -> Any:
    """Watch with ids."""
    return gwa_jax.update(
        state, logits=logits, latents=latents, targets=labels, ids=ids, **head
    )  # fmt: skip


def paper(scores: Any, logits: Any, latents: Any, head: Tree, labels: Any, _: Any) -> Any:
    """Algorithm 1 as one writes it down, scores by step; the (N, C, D) gradient is spared."""
    logits, latents = logits.astype(jnp.float32), latents.astype(jnp.float32)
    residual = jax.nn.one_hot(labels, CLASSES) - jax.nn.softmax(logits)
    inner = (residual * (latents @ head["kernel"])).sum(axis=1)
    norm = functools.partial(jnp.linalg.norm, axis=1)
    found = inner / (norm(residual) * norm(latents) * jnp.linalg.norm(head["kernel"]))
    place, scores = scores
    return place + 1, jax.lax.dynamic_update_slice(scores, found, (place * BATCH,))


def make(watch: Callable[..., Any]) -> Any:
    """Return a jitted step that gives its buffers back."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(training: Any, watched: Any, images: Any, labels: Any, ids: Any) -> Any:
        weights, moments = training
        gradients, (logits, latents) = jax.grad(loss, has_aux=True)(weights, images, labels)
        watched = watch(watched, logits, latents, weights["head"], labels, ids)
        return adamw(weights, moments, gradients), watched

    return step


class Run:
    """A training of its own."""

    def __init__(self, watch: Callable[..., Any], watched: Any, batch: tuple[Any, ...]) -> None:
        weights = parameters(jax.random.key(0))
        zeros = jax.tree.map(jnp.zeros_like, weights)
        training = (weights, (zeros, jax.tree.map(jnp.zeros_like, weights), jnp.zeros(())))
        self.compiled = make(watch).lower(training, watched, *batch).compile()
        self.training, self.watched, self.batch = training, watched, batch

    def steps(self, count: int) -> float:
        """Return the milliseconds of some steps, each."""
        jax.block_until_ready(self.training)
        begin = time.perf_counter()
        for _ in range(count):
            self.training, self.watched = self.compiled(self.training, self.watched, *self.batch)
        jax.block_until_ready(self.training)
        return 1e3 * (time.perf_counter() - begin) / count

    def temporaries(self) -> float:
        """Return the MB that a step takes beside its arguments and results."""
        return self.compiled.memory_analysis().temp_size_in_bytes / 1e6


def paired(runs: dict[str, Run], way: str, seconds: float) -> tuple[float, float, float]:
    """Return the median ratio of speed, its standard error, and the milliseconds of a step.

    Each time is measured between two trainings without a monitor, so that neither a drift nor the
    place of the buffers of one of them counts.
    """
    ratios, times = [], []
    end = time.perf_counter() + seconds
    for turn in itertools.count():
        if time.perf_counter() > end:
            break
        before, between, after = (
            runs[name].steps(8)
            for name in (("alone", way, "again") if turn % 2 else ("again", way, "alone"))
        )
        ratios.append((before + after) / 2 / between)
        times.append((before + after) / 2)
    ratios.sort()
    n = len(ratios)
    spread = ratios[int(0.84 * n)] - ratios[int(0.16 * n)]
    error = 1.25 * spread / 2 / n**0.5
    return statistics.median(ratios), error, statistics.median(times)


def step_rows(seconds: float = 110.0) -> Iterator[dict[str, Any]]:
    """Measure training steps; yield rows as they come."""
    images = jax.random.normal(jax.random.key(1), (BATCH, 3, SIZE, SIZE), jnp.bfloat16)
    labels = jax.random.randint(jax.random.key(2), (BATCH,), 0, CLASSES)
    ids = jnp.arange(BATCH)
    batch = images, labels, ids
    store = (jnp.zeros((), jnp.int32), jnp.zeros(SAMPLES // BATCH * BATCH))
    runs = {
        "alone": Run(alone, (), batch),
        "again": Run(alone, (), batch),
        "with the monitor": Run(monitor, gwa_jax.init(SAMPLES), batch),
    }
    rows: dict[str, Any] = {}
    for run in runs.values():
        run.steps(4)
    for way in ("alone", "with the monitor"):
        rows[f"{MODEL}: MB of temporaries in a step, {way}"] = runs[way].temporaries()
    # A whole epoch of steps and its end: nothing may go to the host or come from it.
    end = jax.jit(gwa_jax.end_epoch, donate_argnums=0)
    watched = runs["with the monitor"]
    watched.watched, _ = end(watched.watched)
    with jax.transfer_guard("disallow"):
        for _ in range(20):
            watched.training, watched.watched = watched.compiled(
                watched.training, watched.watched, *batch
            )
        watched.watched, summary = end(watched.watched)
    rows[f"{MODEL}: scores in an epoch under transfer_guard('disallow')"] = gwa_jax.fetch(
        summary
    ).count
    for way, share in {"with the monitor": 1.0, "with the paper's formula": 0.2}.items():
        if way not in runs:
            runs[way] = Run(paper, store, batch)
            runs[way].steps(4)
        speed, error, step = paired(runs, way, share * seconds)
        rows[f"{MODEL}: steps/s, {way} / alone"] = speed
        rows[f"{MODEL}: standard error of that, {way}"] = error
        rows |= {f"{MODEL}: ms a step": step, f"{MODEL}: images/s, alone": 1e3 * BATCH / step}
        yield rows


def milliseconds(function: Callable[[], Any], repeats: int) -> float:
    """Return the best time of a call whose result is waited for."""
    jax.block_until_ready(function())
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(function())
        best = min(best, time.perf_counter() - begin)
    return 1e3 * best


def head_rows() -> dict[str, Any]:
    """Measure the head of a language model without its logits."""
    rows, width, classes = 8192, 4096, 128_000
    name = f"head of a language model, {rows} tokens, D={width}, C={classes}, bfloat16"
    keys = jax.random.split(jax.random.key(0), 3)
    z = jax.random.normal(keys[0], (rows, width), jnp.bfloat16)
    kernel = 0.02 * jax.random.normal(keys[1], (width, classes), jnp.bfloat16)
    labels = jax.random.randint(keys[2], (rows,), 0, classes)

    def ours(z: Any, kernel: Any, labels: Any) -> Any:
        return gwa_jax.head_scores(latents=z, kernel=kernel, targets=labels)

    def logits_first(z: Any, kernel: Any, labels: Any) -> Any:
        logits = jnp.dot(z, kernel, preferred_element_type=jnp.float32)
        return gwa_jax.head_scores(latents=z, kernel=kernel, targets=labels, logits=logits)

    found = {}
    for way, function in {
        "ours": ours,
        "logits in memory": logits_first,
        "the product alone": lambda z, kernel, _: jnp.dot(z, kernel),
    }.items():
        compiled = jax.jit(function).lower(z, kernel, labels).compile()
        memory = compiled.memory_analysis()
        extra = memory.temp_size_in_bytes + memory.output_size_in_bytes
        found[f"{name}: extra MB, {way}"] = extra / 1e6
        found[f"{name}: ms, {way}"] = milliseconds(
            functools.partial(compiled, z, kernel, labels), 10
        )
    return found


# Features, width, classes and batch of networks for a CPU.
SMALL = {
    "784-256-10, batch 128": (784, 256, 10, 128),
    "3072-512-100, batch 256": (3072, 512, 100, 256),
}


class SmallRun:
    """A training of two dense layers by SGD with momentum, on a CPU."""

    def __init__(self, way: str, features: int, width: int, classes: int, batch: int) -> None:
        keys = jax.random.split(jax.random.key(0), 4)
        weights = {
            "body": jax.random.normal(keys[0], (features, width)) / features**0.5,
            "kernel": jax.random.normal(keys[1], (width, classes)) / width**0.5,
            "bias": jnp.zeros(classes),
        }
        self.batch = (
            jax.random.normal(keys[2], (batch, features)),
            jax.random.randint(keys[3], (batch,), 0, classes),
            7 * jnp.arange(batch),
        )

        def loss(weights: Tree, probe: Any, x: Any, labels: Any) -> Any:
            latents = jax.nn.relu(x @ weights["body"])
            logits = gwa_jax.add_probe(latents @ weights["kernel"] + weights["bias"], probe)
            log_p = jax.nn.log_softmax(logits)
            return -jnp.take_along_axis(log_p, labels[:, None], axis=1).mean(), (logits, latents)

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(training: Any, state: Any, x: Any, labels: Any, ids: Any) -> Any:
            weights, moments = training
            probe = jnp.zeros((batch, classes)) if way == "gradients" else None
            backward = jax.grad(loss, (0, 1) if way == "gradients" else 0, has_aux=True)
            gradients, (logits, latents) = backward(weights, probe, x, labels)
            head = {"kernel": weights["kernel"], "bias": weights["bias"]}
            if way == "gradients":
                gradients, arrived = gradients
                head["logit_gradients"] = arrived
            if way != "alone":
                state = gwa_jax.update(
                    state,
                    logits=logits,
                    latents=latents,
                    targets=labels,
                    ids=None if way == "without ids" else ids,
                    **head,
                )
            moments = jax.tree.map(lambda m, g: 0.9 * m + g, moments, gradients)
            return (jax.tree.map(lambda w, m: w - 0.01 * m, weights, moments), moments), state

        self.training = weights, jax.tree.map(jnp.zeros_like, weights)
        self.state = gwa_jax.init(None if way == "without ids" else 50_000)
        self.compiled = step.lower(self.training, self.state, *self.batch).compile()

    def steps(self, count: int) -> float:
        """Return the microseconds of some steps, each; in other buffers at each call.

        Where large arrays lie changes the time of a step by more than what is measured.
        """
        kept = self.training, self.state
        self.training, self.state = jax.block_until_ready(jax.tree.map(jnp.copy, kept))
        begin = time.perf_counter()
        for _ in range(count):
            self.training, self.state = self.compiled(self.training, self.state, *self.batch)
        jax.block_until_ready((self.training, self.state))
        return 1e6 * (time.perf_counter() - begin) / count


def small_rows(seconds: float = 30.0) -> Iterator[dict[str, Any]]:
    """Measure steps on a CPU in turn, each beside one without a monitor; yield rows as they come."""
    for name, sizes in SMALL.items():
        ways = {
            "with ids": "ids",
            "without ids": "without ids",
            "of a probe's gradients": "gradients",
        }
        alone = SmallRun("alone", *sizes)
        runs = {way: SmallRun(kind, *sizes) for way, kind in ways.items()}
        count = max(1, round(0.05e6 / alone.steps(20)))
        times: dict[str, list[float]] = {way: [] for way in ["alone", *runs]}
        for run in runs.values():
            run.steps(count)
        end = time.perf_counter() + seconds
        ratios: dict[str, list[float]] = {way: [] for way in runs}
        while time.perf_counter() < end:
            before = alone.steps(count)
            for way, run in runs.items():
                between, after = run.steps(count), alone.steps(count)
                ratios[way].append(2 * between / (before + after))
                times[way].append(between)
                times["alone"].append(after)
                before = after
        rows: dict[str, Any] = {f"{name}: us a step, alone": statistics.median(times["alone"])}
        for way in runs:
            rows[f"{name}: time of a step, {way} / alone"] = statistics.median(ratios[way])
        yield rows


def main() -> None:
    """Measure and report."""
    small = jax.default_backend() == "cpu"
    rows = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    for found in small_rows() if small else itertools.chain(step_rows(), [head_rows()]):
        rows |= found
        report("jax_cpu" if small else "jax", rows)


if __name__ == "__main__":
    main()
