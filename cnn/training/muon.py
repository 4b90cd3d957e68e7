"""Muon: momentum whose singular values are brought near one (Jordan et al. 2024), for the filters of convolutions."""

import jax
import jax.numpy as jnp
import optax

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Jordan's quintic: steepest at zero, so not quite convergent


def orthogonalized(iterations: int, scaled: bool) -> optax.GradientTransformation:
    """Each update, of at least two axes, orthogonalised; `scaled` multiplies by sqrt(max(1, outputs / inputs))."""

    def direction(update: jax.Array) -> jax.Array:
        scale = max(1, update.shape[-1] ** 2 / update.size) ** 0.5 if scaled else 1.0
        return orthogonalize(update, iterations) * scale

    return optax.stateless(lambda updates, params: jax.tree.map(direction, updates))


def orthogonalize(kernel: jax.Array, iterations: int) -> jax.Array:
    """A kernel as a matrix [taps x inputs, outputs] with its singular values moved to between about .7 and 1.2.

    Newton-Schulz iterations, in the type of the kernel; the published code computes them in bfloat16.
    """
    matrix = kernel.reshape(-1, kernel.shape[-1])
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / jnp.maximum(jnp.linalg.norm(wide), 1e-7)
    first, third, fifth = COEFFICIENTS
    for _ in range(iterations):
        gram = wide @ wide.T
        wide = first * wide + (third * gram + fifth * gram @ gram) @ wide
    return (wide.T if matrix.shape[0] > matrix.shape[1] else wide).reshape(kernel.shape)


def unit_filters() -> optax.GradientTransformation:
    """Updates that first bring each kernel to the norm sqrt(outputs), one for each filter in the mean.

    As airbench does (github.com/KellerJordan/cifar10-airbench, airbench94_muon.py); comes after the learning rate.
    """

    def to_norm(update: jax.Array, kernel: jax.Array) -> jax.Array:
        return update + kernel * (kernel.shape[-1] ** 0.5 / jnp.maximum(jnp.linalg.norm(kernel), 1e-7) - 1)

    return optax.stateless(lambda updates, params: jax.tree.map(to_norm, updates, params))
