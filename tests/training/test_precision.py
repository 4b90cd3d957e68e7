"""bfloat16 computes, and what learns is float32: parameters, gradients, moments and averages."""

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import optax

from cnn import config as configuration
from cnn.config import Experiment
from cnn.data import sources
from cnn.training import evaluation, optimizers, program, sharding
from cnn.training.state import TRAIN, stream

PRODUCTS = ('conv', 'conv_input', 'conv_weight', 'dot_general')


def products(jaxpr):
    """The layer and the types of each product in a program and all that is inside it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in PRODUCTS:
            layer = str(equation.source_info.name_stack).rpartition('/')[2]
            yield layer, *(str(variable.aval.dtype) for variable in equation.invars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from products(inner)


def test_bfloat16_computes_and_what_learns_is_float32(monkeypatch):
    seen = []
    build = optimizers.build

    def watched(*arguments):
        chain = build(*arguments)

        def update(gradient, state, params):
            updates, state = chain.update(gradient, state, params)
            seen.append((gradient, updates))
            return updates, state

        return optax.GradientTransformation(chain.init, update)

    monkeypatch.setattr(optimizers, 'build', watched)
    program._PROGRAMS.clear()
    config = Experiment()
    config.model = configuration.Model(
        options={'widths': (4,), 'pools': (True,), 'hidden': 8, 'norm': 'batch'}, dtype='bfloat16'
    )
    config.optimizer = configuration.Optimizer(name='adamw', learning_rate=1e-3)
    config.data.batch_size, config.mesh.data, config.ema.decay, config.train.duration = 32, 1, 0.9, '3'
    spec = sources.spec(config.data)
    config = program.resolve(config, spec)
    mesh = sharding.make_mesh(config)
    source = evaluation.open_split(config, spec, 'validation', mesh)
    built, numbers = program.build(config, spec, source.num_examples, mesh)
    program._PROGRAMS.clear()
    first, key = built.init(numbers), stream(0, TRAIN)
    before = jax.device_get(first.params)
    (batch,) = source(evaluation.eval_indices(32, 32), 0, 1)
    taken = list(products(built.train_step.trace(first, batch, key, numbers).jaxpr.jaxpr))
    for layer, calls in {'conv1': 2, 'dense': 3, 'head': 3}.items():  # the images need no gradient
        assert [types for name, *types in taken if name == layer] == [['bfloat16', 'bfloat16']] * calls

    state, _ = built.train_step(first, batch, key, numbers)
    for part in (state.params, state.opt_state, state.ema, state.model_state, seen):
        types = {str(leaf.dtype) for leaf in jax.tree.leaves(part) if jnp.issubdtype(leaf.dtype, jnp.floating)}
        assert types == {'float32'}

    def rounded(leaf):
        return np.asarray(leaf).astype(jnp.bfloat16).astype(np.float32)

    # Steps that bfloat16 parameters would lose altogether: they are below the last place of most weights.
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(state.params), strict=True):
        moved = np.asarray(new) != old
        assert moved.mean() > 0.5
        assert (rounded(new)[moved] != np.asarray(new)[moved]).mean() > 0.9
