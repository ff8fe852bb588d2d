"""flowjax on the CPU: its ready-made flows, each operation one jitted function, the batch on the device."""
import importlib

import workloads as of

LEARNING_RATE = 1e-4


def start(threads, packages):
    """Brings the runtime up. XLA takes as many threads as the process may run on: see `measure.py`."""
    for package in packages:
        importlib.import_module(package)
    import jax

    jax.block_until_ready(jax.jit(lambda x: x + 1)(jax.numpy.ones(1)))


def flow_of(w, key):
    from flowjax import bijections, distributions, flows
    from jax import numpy as jnp
    from paramax import non_trainable

    sizes = {"nn_width": w.hidden[0], "nn_depth": len(w.hidden)}
    sizes["base_dist"] = non_trainable(distributions.Normal(jnp.zeros(w.features)))
    match w:
        case of.AffineCouplings():
            return flows.coupling_flow(key, flow_layers=w.num_couplings, **sizes)
        case of.SplineCouplings():
            # Its knots are those inside of the interval.
            spline = bijections.RationalQuadraticSpline(knots=w.num_bins - 1, interval=w.bound)
            return flows.coupling_flow(key, transformer=spline, flow_layers=w.num_couplings, **sizes)
        case of.Autoregressive():
            return flows.masked_autoregressive_flow(key, flow_layers=w.num_layers, **sizes)


def operations(w, peer):
    """Number of parameters, the first calls of the compiler, and an iterator of (operation, note, function)."""
    import equinox as eqx
    import jax
    import optax
    from paramax import NonTrainable, unwrap

    model_key, data_key, sample_key = jax.random.split(jax.random.key(0), 3)
    flow = flow_of(w, model_key)
    x = jax.random.normal(data_key, (w.batch, w.features))
    trained, fixed = eqx.partition(
        flow, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, NonTrainable)
    )
    optimizer = optax.adam(LEARNING_RATE)

    def loss(trained, x):
        return -unwrap(eqx.combine(trained, fixed)).log_prob(x).mean()

    @eqx.filter_jit(donate="all-except-first")
    def step(x, trained, state):
        value, gradients = eqx.filter_value_and_grad(loss)(trained, x)
        updates, state = optimizer.update(gradients, state, trained)
        return eqx.apply_updates(trained, updates), state, value

    @eqx.filter_jit
    def log_prob(trained, x):
        return eqx.combine(trained, fixed).log_prob(x)

    @eqx.filter_jit
    def sample(trained, key):
        return eqx.combine(trained, fixed).sample(key, (w.batch,))

    state = optimizer.init(trained)
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(trained))

    def train():
        nonlocal trained, state
        trained, state, value = step(x, trained, state)
        jax.block_until_ready((trained, value))

    def density():
        log_prob(trained, x).block_until_ready()

    def draw():
        sample(trained, sample_key).block_until_ready()

    timed = [("train", {}, train), ("log_prob", {}, density), ("sample", {}, draw)]
    return num_parameters, [train, density, draw], timed
