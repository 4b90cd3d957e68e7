"""Whole training steps of a dozen networks in JAX and in PyTorch, side by side.

    pip install torch==2.13.0 && pip install --no-deps torchvision==0.28.0
    python -m experiments.benchmarks.training_steps [--only=resnet] [--dtype=bfloat16] [--form=plain] [--json=FILE]
    python -m experiments.benchmarks.training_steps --what=scan
    python -m experiments.benchmarks.training_steps --what=vmap

A step is forward, cross entropy, gradients, batch statistics and SGD with momentum .9, on one random batch that is on
the device. JAX jits all of it and donates its state. PyTorch runs eagerly, contiguous (NCHW) and channels last (NHWC),
and compiled (torch.compile as it comes, the network and its gradient) in the faster of these. With bfloat16 both
compute in it with float32 parameters, PyTorch by autocast. Before they are timed both must have the same number of
parameters and, with PyTorch's weights on eight examples, the same outputs, loss and norm of the gradient: JAX in
float32 and PyTorch in float64 to 1e-3.

The other two tables are JAX alone. `scan`: eight steps in a jax.lax.scan against eight calls of the jitted step.
`vmap`: a step of four seeds by jax.vmap against four calls of the jitted step.
"""

import argparse
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.benchmarks import sidebyside
from experiments.benchmarks.sidebyside import Options, Repeat, Run, Side

if TYPE_CHECKING:
    import jax

LEARNING_RATE = 1e-3
CHECKED = 8  # examples on which the two sides must agree
STEPS, SEEDS = 8, 4  # in a scan, in a vmap


@dataclasses.dataclass(frozen=True)
class Training:
    """A network and its batch."""

    parameters: int  # trainable numbers
    batch: int
    shape: tuple[int, ...]  # of an example: [H, W, C], or [T] tokens below `classes`
    classes: int
    dense: bool = False  # a label for each position


IMAGES = 16, (64, 64, 3), 1000
TRAININGS = {
    'simple_cnn': Training(620_362, 128, (32, 32, 3), 10),
    'resnet/cifar18': Training(11_173_962, 64, (32, 32, 3), 10),
    'resnet/18': Training(11_689_512, *IMAGES),
    'resnet/resnext50_32x4d': Training(25_028_904, *IMAGES),
    'mobilenet/v2': Training(3_504_872, *IMAGES),
    'shufflenet/v2_x1_0': Training(2_278_604, *IMAGES),
    'efficientnet/b0': Training(5_288_548, *IMAGES),
    'convnext/tiny': Training(28_589_128, *IMAGES),
    'vgg/11': Training(132_863_336, *IMAGES),
    'unet': Training(482_619, 16, (64, 64, 1), 11, dense=True),
    'wavenet': Training(48_753, 64, (64,), 17, dense=True),
}


def batch(training: Training, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [N, H, W, C], normal, or tokens [N, T]; labels [N], [N, H, W] or [N, T]: the same on both sides."""
    generator = np.random.default_rng(seed)
    shape = (training.batch, *training.shape)
    tokens = len(training.shape) == 1
    inputs: np.ndarray = generator.standard_normal(shape, np.float32)
    if tokens:
        inputs = generator.integers(0, training.classes, shape, np.int32)
    positions = (training.shape if tokens else training.shape[:-1]) if training.dense else ()
    return inputs, generator.integers(0, training.classes, (training.batch, *positions), np.int32)


def initialized(network: Any, training: Training, seed: int = 0) -> Any:
    """Variables of a network; abstract under jax.eval_shape."""
    import jax
    import jax.numpy as jnp

    x = jnp.zeros((1, *training.shape), jnp.int32 if len(training.shape) == 1 else jnp.float32)
    return network.init(jax.random.key(seed), x, train=False)


def optimizer() -> Any:
    """SGD with momentum, as torch.optim.SGD."""
    import optax

    return optax.sgd(LEARNING_RATE, momentum=0.9)


def start(variables: Any) -> Any:
    """The state of a training: step, parameters, batch statistics, optimizer's state."""
    import jax.numpy as jnp

    statistics = {name: collection for name, collection in variables.items() if name != 'params'}
    return jnp.zeros((), jnp.int32), variables['params'], statistics, optimizer().init(variables['params'])


def cross_entropy(network: Any, params: Any, statistics: Any, x: Any, labels: Any, key: Any = None) -> tuple[Any, Any]:
    """Mean loss; (outputs [N, ..., classes], new statistics). Without a key there must be no dropout."""
    import optax

    rngs = None if key is None else {'dropout': key}
    outputs, statistics = network.apply(
        {'params': params, **statistics}, x, train=True, mutable=list(statistics), rngs=rngs
    )
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean(), (outputs, statistics)


def step_function(network: Any) -> Callable[[Any, Any], tuple[Any, 'jax.Array']]:
    """(state, (x, labels)) -> (state, loss): pure, not jitted."""
    import jax
    import optax

    def step(state: Any, examples: Any) -> tuple[Any, jax.Array]:
        index, params, statistics, opt_state = state
        key = jax.random.fold_in(jax.random.key(0), index)
        gradient = jax.value_and_grad(cross_entropy, argnums=1, has_aux=True)
        (loss, (_, statistics)), gradients = gradient(network, params, statistics, *examples, key)
        updates, opt_state = optimizer().update(gradients, opt_state, params)
        return (index + 1, optax.apply_updates(params, updates), statistics, opt_state), loss

    return step


def check(name: str, network: Any, variables: Any, values: dict[str, Any]) -> None:
    """Raises Disagreement unless the network computes PyTorch's loss, outputs and norm of the gradient."""
    import jax
    import optax

    network = network.clone(**{rate: 0.0 for rate in ('dropout', 'drop_path') if hasattr(network, rate)})
    gradient = jax.jit(jax.value_and_grad(lambda *state: cross_entropy(network, *state), has_aux=True))
    statistics = {name: collection for name, collection in variables.items() if name != 'params'}
    with jax.default_matmul_precision('highest'):
        (loss, (outputs, _)), gradients = gradient(
            variables['params'], statistics, *(array[:CHECKED] for array in batch(TRAININGS[name]))
        )
    sidebyside.agree('loss', loss, values['loss'], 1e-3)
    sidebyside.agree('outputs', outputs, values['outputs'], 1e-3)
    sidebyside.agree('norm of the gradient', optax.tree.norm(gradients), values['gradient_norm'], 1e-3)


def jax_case(name: str, options: Options, values: dict[str, Any] | None) -> Run:
    """One step of training. Raises Disagreement unless the network is PyTorch's."""
    import jax

    from experiments.benchmarks import networks

    training = TRAININGS[name]
    network = networks.build(name, training.classes)
    variables = jax.jit(lambda: initialized(network, training))()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
    for side, count in (('JAX', parameters), ('PyTorch', values and values['parameters'])):
        if count not in (None, training.parameters):
            raise sidebyside.Disagreement(f'{count:,} parameters in {side}, not {training.parameters:,}')
    if values is not None:
        variables = networks.with_weights(name, variables, values['weights'])
        check(name, network, variables, values)

    step = jax.jit(step_function(networks.build(name, training.classes, options.dtype)), donate_argnums=0)
    state = start(variables)
    examples = jax.device_put(batch(training))

    def run() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(step(state, examples))

    return run


def torch_case(name: str, options: Options) -> Side:
    """One step of training, eager and compiled."""
    from experiments.benchmarks.networks_torch import training_side

    training = TRAININGS[name]
    return training_side(name, training.classes, *batch(training), LEARNING_RATE, CHECKED, options)


def scan_contenders(name: str, dtype: str) -> dict[str, Repeat]:
    """STEPS steps on as many batches in a scan, and by calls of the jitted step."""
    import jax
    import jax.numpy as jnp

    from experiments.benchmarks import networks

    training = TRAININGS[name]
    network = networks.build(name, training.classes, dtype)
    function = step_function(network)
    step = jax.jit(function, donate_argnums=0)
    scan = jax.jit(lambda state, batches: jax.lax.scan(function, state, batches), donate_argnums=0)
    examples = [jax.device_put(batch(training, seed)) for seed in range(STEPS)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *examples)

    def by_calls(state: Any) -> Any:
        for pair in examples:
            state, _ = step(state, pair)
        return state

    begin = jax.jit(lambda: start(initialized(network, training)))
    return {
        'together': _repeat(lambda state: scan(state, stacked)[0], begin()),
        'calls': _repeat(by_calls, begin()),
    }


def vmap_contenders(name: str, dtype: str) -> dict[str, Repeat]:
    """A step of SEEDS seeds on one batch by vmap, and by calls of the jitted step."""
    import jax
    import jax.numpy as jnp

    from experiments.benchmarks import networks

    training = TRAININGS[name]
    network = networks.build(name, training.classes, dtype)
    function = step_function(network)
    step = jax.jit(function, donate_argnums=0)
    mapped = jax.jit(jax.vmap(function, in_axes=(0, None)), donate_argnums=0)
    examples = jax.device_put(batch(training))
    begin = jax.jit(lambda seed: start(initialized(network, training, seed)))
    states = [begin(seed) for seed in range(SEEDS)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    return {
        'together': _repeat(lambda state: mapped(state, examples)[0], stacked),
        'calls': _repeat(lambda states: [step(state, examples)[0] for state in states], states),
    }


def _repeat(advance: Callable[[Any], Any], state: Any) -> Repeat:
    import jax

    def run() -> None:
        nonlocal state
        state = jax.block_until_ready(advance(state))

    return lambda repetitions: sidebyside.milliseconds(run, repetitions)


def steps_table(arguments: argparse.Namespace) -> bool:
    """Prints JAX against PyTorch; whether no network was refused."""
    names = sidebyside.chosen(list(TRAININGS), arguments.only)
    peer, options = sidebyside.connect(torch_case)
    options = options._replace(dtype=arguments.dtype)
    print(f'{arguments.dtype}; milliseconds a step: median (10-90 %); the ratios are JAX / PyTorch\n')
    header = f'{"":22} {"JAX":>20} {"examples/s":>11} {"PyTorch eager":>28} {"ratio":>6}'
    print(f'{header} {"torch.compile":>28} {"ratio":>6}')
    records, accepted = [], True
    try:
        for name in names:
            try:
                result = sidebyside.compare(name, jax_case, peer, options, arguments.rounds)
            except (sidebyside.Disagreement, sidebyside.PeerError) as error:
                print(error if isinstance(error, sidebyside.Disagreement) else f'{name}: {error}', flush=True)
                accepted = False
                continue
            speed = TRAININGS[name].batch / result.jax.median * 1000
            line = f'{name:22} {result.jax!s:>20} {speed:11.0f}'
            for prefix in ('eager ', 'compiled '):
                fastest = result.fastest(prefix)
                torch = f'{result.torch[fastest]} {fastest.removeprefix(prefix)}' if fastest else 'not available'
                line += f' {torch if peer else "-":>28} {sidebyside.number(result.ratio(prefix)):>6}'
            print(line, flush=True)
            for variant, reason in result.unavailable.items():
                print(f'    PyTorch {variant} is not available: {reason}')
            records.append({**result.record(), 'examples_per_second': speed})
    finally:
        if peer:
            peer.close()
    sidebyside.save(arguments.json, arguments, rows=records)
    return accepted


def loops_table(arguments: argparse.Namespace) -> bool:
    """Prints JAX in a scan or vmap against JAX by calls."""
    together, parts, contenders = {
        'scan': (f'scan of {STEPS} steps', STEPS, scan_contenders),
        'vmap': (f'vmap of {SEEDS} seeds', SEEDS, vmap_contenders),
    }[arguments.what]
    names = sidebyside.chosen(['simple_cnn', 'mobilenet/v2'], arguments.only)
    print(f'{arguments.dtype}; milliseconds a step of one seed: median (10-90 %)\n')
    print(f'{"":22} {together:>28} {"calls":>28} {"ratio":>6}')
    records = []
    for name in names:
        taken = sidebyside.alternate(contenders(name, arguments.dtype), arguments.rounds)
        timings = {
            way: sidebyside.Timing(tuple(value / parts for value in timing.milliseconds))
            for way, timing in taken.items()
        }
        ratio = timings['together'].median / timings['calls'].median
        line = f'{name:22} {timings["together"]!s:>28} {timings["calls"]!s:>28}'
        print(f'{line} {sidebyside.number(ratio):>6}', flush=True)
        medians = {way: timing.median for way, timing in timings.items()}
        records.append({'name': name, 'median_ms': medians, 'ratio': ratio})
    sidebyside.save(arguments.json, arguments, rows=records)
    return True


def main() -> None:
    """Prints a table. Exit code 1 where a network was refused."""
    parser = sidebyside.argument_parser(__doc__)
    parser.add_argument('--what', choices=('steps', 'scan', 'vmap'), default='steps', help='which table')
    arguments = sidebyside.parse(parser)
    if not (steps_table if arguments.what == 'steps' else loops_table)(arguments):
        raise SystemExit(1)


if __name__ == '__main__':
    main()
