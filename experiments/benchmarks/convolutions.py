"""Every kind of convolution in JAX (cnn.ops.conv) and in PyTorch: forward and both gradients, side by side.

    python -m experiments.benchmarks.convolutions [--only=depthwise] [--dtype=bfloat16] [--form=plain] [--json=FILE]

A row is one call with batch, size and channels as networks have them: the output, the gradient of the input and that
of the kernel from a given gradient of the output. The stems read images, which need no gradient: theirs is the
kernel's alone. PyTorch runs eagerly, contiguous (NCHW) and, where it can, channels last (NHWC); the faster one counts.
Outputs and gradients of both are compared before they are timed. FLOPs are two for each multiply-add, padded taps
included; their share is of what JAX reaches in a large matmul. Two minutes on 2 CPU cores with --rounds=2.
"""

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.benchmarks import sidebyside
from experiments.benchmarks.sidebyside import Options, Run, Side

if TYPE_CHECKING:
    import jax


@dataclasses.dataclass(frozen=True)
class Row:
    """One convolution of [N, *spatial, C] with a kernel [*K, C / groups, features]."""

    kind: str
    shape: tuple[int, ...]
    features: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]  # as PyTorch counts it; the same number at both ends unless causal
    dilation: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    output_padding: int = 0
    image: bool = False  # no gradient of the input

    @property
    def name(self) -> str:
        """E.g. `dense 3x3 8x56x56 64->64`."""
        *size, channels = self.shape
        return f'{self.kind} {"x".join(map(str, size))} {channels}->{self.features}'

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """[*K, C / groups, features]."""
        return (*self.kernel, self.shape[-1] // self.groups, self.features)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """[N, *spatial, features]."""
        spatial = []
        for size, kernel, stride, (low, high), dilation in zip(
            self.shape[1:-1], self.kernel, self.strides, self.padding, self.dilation, strict=True
        ):
            reach = (kernel - 1) * dilation
            if self.transposed:
                spatial.append((size - 1) * stride - low - high + reach + self.output_padding + 1)
            else:
                spatial.append((size + low + high - reach - 1) // stride + 1)
        return (self.shape[0], *spatial, self.features)

    @property
    def flops(self) -> int:
        """Of the output and the gradients that the row takes."""
        positions = math.prod((self.shape if self.transposed else self.output_shape)[:-1])
        return 2 * positions * math.prod(self.kernel_shape) * (2 if self.image else 3)


def row(
    kind: str,
    shape: tuple[int, ...],
    features: int,
    kernel: int | tuple[int, ...],
    stride: int | tuple[int, ...] = 1,
    *,
    dilation: int = 1,
    padding: int | tuple[tuple[int, int], ...] | None = None,
    **fields: Any,
) -> Row:
    """A row; what is one number holds for all dimensions, and padding keeps the size of stride 1 unless given."""
    rank = len(shape) - 2
    kernels = (kernel,) * rank if isinstance(kernel, int) else kernel
    strides = (stride,) * rank if isinstance(stride, int) else stride
    if padding is None:
        padding = tuple(((size - 1) * dilation // 2,) * 2 for size in kernels)
    elif isinstance(padding, int):
        padding = ((padding, padding),) * rank
    return Row(kind, shape, features, kernels, strides, padding, (dilation,) * rank, **fields)


ROWS = {
    entry.name: entry
    for entry in (
        row('dense 3x3', (8, 56, 56, 64), 64, 3),
        row('dense 3x3', (64, 16, 16, 128), 128, 3),
        row('dense 3x3', (8, 14, 14, 256), 256, 3),
        row('dense 1x1', (8, 56, 56, 256), 64, 1),
        row('dense 1x1', (8, 56, 56, 64), 256, 1),
        row('dense 3x3/2', (8, 56, 56, 64), 128, 3, 2),
        row('dense 1x1/2', (8, 56, 56, 64), 128, 1, 2),
        row('stem 7x7/2', (8, 224, 224, 3), 64, 7, 2, image=True),
        row('stem 3x3', (64, 32, 32, 3), 64, 3, image=True),
        row('depthwise 3x3', (8, 28, 28, 256), 256, 3, groups=256),
        row('depthwise 3x3/2', (8, 28, 28, 256), 256, 3, 2, groups=256),
        row('depthwise 5x5', (8, 14, 14, 480), 480, 5, groups=480),
        row('depthwise 7x7', (8, 56, 56, 96), 96, 7, groups=96),
        row('depthwise 7x7', (8, 14, 14, 384), 384, 7, groups=384),
        row('grouped32 3x3', (8, 56, 56, 128), 128, 3, groups=32),
        row('grouped32 3x3', (8, 28, 28, 256), 256, 3, groups=32),
        row('grouped32 3x3', (8, 14, 14, 512), 512, 3, groups=32),
        row('grouped32 3x3/2', (8, 56, 56, 256), 256, 3, 2, groups=32),
        row('transposed 2x2/2', (16, 32, 32, 64), 32, 2, 2, padding=0, transposed=True),
        row('transposed 4x4/2', (8, 14, 14, 256), 128, 4, 2, padding=1, transposed=True),
        row('transposed 3x3/2', (8, 28, 28, 64), 64, 3, 2, padding=1, transposed=True, output_padding=1),
        row('dilated2 3x3', (8, 56, 56, 64), 64, 3, dilation=2),
        row('dilated12 3x3', (4, 33, 33, 256), 256, 3, dilation=12),
        row('1-D k3', (8, 4096, 64), 64, 3),
        row('1-D depthwise k9', (8, 4096, 64), 64, 9, groups=64),
        row('1-D causal k2 dilated64', (8, 4096, 64), 128, 2, dilation=64, padding=((64, 0),)),
        row('1-D k5/2', (32, 1024, 64), 128, 5, 2),
        row('3-D 3x3x3', (2, 8, 28, 28, 64), 64, 3),
        row('3-D stem 3x7x7/1,2,2', (2, 8, 112, 112, 3), 64, (3, 7, 7), (1, 2, 2), image=True),
        row('(2+1)-D 1x3x3', (2, 8, 28, 28, 64), 144, (1, 3, 3)),
    )
}


def arrays(entry: Row) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Input, kernel and gradient of the output, normally distributed, float32: the same on both sides."""
    generator = np.random.default_rng(0)
    shapes = (entry.shape, entry.kernel_shape, entry.output_shape)
    x, kernel, gradient = (generator.standard_normal(shape, np.float32) for shape in shapes)
    return x, kernel / np.float32(math.sqrt(math.prod(entry.kernel_shape[:-1]))), gradient


def convolution(entry: Row, x: 'jax.Array', kernel: 'jax.Array') -> 'jax.Array':
    """The output of a row by cnn.ops.conv: [N, *spatial, C], [*K, C / groups, features] -> [N, *spatial', features]."""
    from cnn.ops.conv import conv, conv_transpose

    if entry.transposed:
        padding = tuple(  # of the dilated input, where PyTorch counts what it crops from the output
            (size - 1 - low, size - 1 - high + entry.output_padding)
            for size, (low, high) in zip(entry.kernel, entry.padding, strict=True)
        )
        return conv_transpose(x, kernel, strides=entry.strides, padding=padding)
    return conv(x, kernel, strides=entry.strides, padding=entry.padding, dilation=entry.dilation, groups=entry.groups)


def jax_case(name: str, options: Options, values: dict[str, Any] | None) -> Run:
    """One repetition in JAX. Raises Disagreement unless it computes PyTorch's `values`."""
    import jax
    import jax.numpy as jnp

    entry = ROWS[name]

    @jax.jit
    def step(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> tuple[jax.Array, ...]:
        if entry.image:
            y, backward = jax.vjp(lambda kernel: convolution(entry, x, kernel), kernel)
        else:
            y, backward = jax.vjp(functools.partial(convolution, entry), x, kernel)
        return y, *backward(gradient)

    inputs = [jnp.asarray(array, options.dtype) for array in arrays(entry)]
    if values is not None:
        outputs = step(*inputs)
        tolerance = 3e-2 if options.dtype == 'bfloat16' else 1e-4 if options.device == 'cpu' else 1e-2  # TF32
        for (what, theirs), ours in zip(values.items(), outputs, strict=True):
            sidebyside.agree(what, ours, theirs, tolerance)
    return lambda: jax.block_until_ready(step(*inputs))


def torch_case(name: str, options: Options) -> Side:
    """Repetitions by torch.nn.functional, in both memory formats."""
    import torch
    from torch.nn import functional

    entry = ROWS[name]
    rank = len(entry.kernel)
    suffix = f'{"_transpose" if entry.transposed else ""}{rank}d'
    operation = getattr(functional, f'conv{suffix}')
    causal = any(low != high for low, high in entry.padding)
    fields: dict[str, Any] = {
        'stride': entry.strides,
        'padding': 0 if causal else tuple(low for low, _ in entry.padding),
        'dilation': entry.dilation,
        'groups': entry.groups,
    }
    if entry.transposed:
        fields['output_padding'] = entry.output_padding

    x, kernel, gradient = arrays(entry)
    if entry.transposed:  # JAX slides the kernel as it is over the dilated input, PyTorch adds it to the output
        kernel = np.moveaxis(np.flip(kernel, tuple(range(rank))), (-2, -1), (0, 1))  # [C, features, *K]
    else:
        kernel = np.moveaxis(kernel, (-1, -2), (0, 1))  # [features, C / groups, *K]
    values: dict[str, Any] = {}
    formats: dict[str, Any] = {
        1: {'NCW': torch.contiguous_format},
        2: {'NCHW': torch.contiguous_format, 'NHWC': torch.channels_last},
        3: {'NCDHW': torch.contiguous_format, 'NDHWC': torch.channels_last_3d},
    }[rank]

    def prepared(memory_format: Any) -> tuple[Any, Any, Any]:
        tensors = (
            torch.from_numpy(np.ascontiguousarray(array)).to(
                options.device, getattr(torch, options.dtype), memory_format=memory_format
            )
            for array in (np.moveaxis(x, -1, 1), kernel, np.moveaxis(gradient, -1, 1))
        )
        inputs, weight, given = tensors
        return inputs.requires_grad_(not entry.image), weight.requires_grad_(), given

    def step(inputs: Any, weight: Any, given: Any) -> tuple[Any, ...]:
        padded = functional.pad(inputs, entry.padding[0]) if causal else inputs
        y = operation(padded, weight, **fields)
        gradients = torch.autograd.grad(y, (weight,) if entry.image else (inputs, weight), given)
        if options.device == 'cuda':
            torch.cuda.synchronize()
        return y, *gradients

    runs: dict[str, Run] = {}
    for label, memory_format in formats.items():
        tensors = prepared(memory_format)
        runs[label] = lambda tensors=tensors: step(*tensors)  # type: ignore[misc]
        if not values:
            y, *others = (tensor.detach().float().cpu().numpy() for tensor in step(*tensors))
            weight_gradient = others.pop()
            values['output'] = np.moveaxis(y, 1, -1)
            if others:
                values['gradient of the input'] = np.moveaxis(others[0], 1, -1)
            if entry.transposed:
                back = np.flip(np.moveaxis(weight_gradient, (0, 1), (-2, -1)), tuple(range(rank)))
            else:
                back = np.moveaxis(weight_gradient, (0, 1), (-1, -2))
            values['gradient of the kernel'] = np.ascontiguousarray(back)
    return Side(runs, values)


def main() -> None:
    """Prints the table. Exit code 1 where a row was refused."""
    arguments = sidebyside.parse(sidebyside.argument_parser(__doc__))
    names = sidebyside.chosen(list(ROWS), arguments.only)
    peer, options = sidebyside.connect(torch_case)
    options = options._replace(dtype=arguments.dtype)
    rate = sidebyside.matmul_rate(arguments.dtype)
    print(f'{arguments.dtype}; matmul in JAX {rate:.0f} GFLOP/s; milliseconds: median (10-90 %)\n')
    print(f'{"":44} {"JAX":>22} {"PyTorch":>28} {"ratio":>6} {"GFLOP/s":>8} {"share":>6}')
    records, refused = [], False
    try:
        for name in names:
            try:
                result = sidebyside.compare(name, jax_case, peer, options, arguments.rounds)
            except (sidebyside.Disagreement, sidebyside.PeerError) as error:
                print(f'{name}: {error}' if isinstance(error, sidebyside.PeerError) else error, flush=True)
                refused = True
                continue
            fastest = result.fastest()
            torch = f'{result.torch[fastest]} {fastest}' if fastest else '-'
            speed = ROWS[name].flops / result.jax.median / 1e6
            print(
                f'{name:44} {result.jax!s:>22} {torch:>28} {sidebyside.number(result.ratio()):>6} {speed:8.1f} '
                f'{speed / rate:6.0%}',
                flush=True,
            )
            for variant, reason in result.unavailable.items():
                print(f'    PyTorch {variant} is not available: {reason}')
            records.append({**result.record(), 'gflops': speed})
    finally:
        if peer:
            peer.close()
    sidebyside.save(arguments.json, arguments, matmul_gflops=rate, rows=records)
    if refused:
        raise SystemExit(1)


if __name__ == '__main__':
    main()
