"""The mesh of devices, and which part of what lies where."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cnn import config


def make_mesh(mesh: config.Mesh) -> Mesh:
    """A mesh (data, fsdp) over the devices. Raises InputError where there are not enough or they don't divide."""
    devices = jax.devices()
    data = mesh.data or len(devices) // mesh.fsdp
    if data * mesh.fsdp > len(devices) or data == 0 or (mesh.data is None and len(devices) % mesh.fsdp):
        raise config.InputError(
            f'config.mesh: data={mesh.data} x fsdp={mesh.fsdp} does not fit {len(devices)} devices; '
            f'choose sizes whose product is {len(devices)}'
        )
    # Linen's dropout and FSDP need automatic axes.
    grid = np.asarray(devices[: data * mesh.fsdp]).reshape(data, mesh.fsdp)
    return Mesh(grid, ('data', 'fsdp'), axis_types=(AxisType.Auto, AxisType.Auto))


def check_batch(data: config.Data, accumulate: int, mesh: Mesh) -> None:
    """Raises InputError where the devices can't share a (micro)batch evenly."""
    if data.batch_size % (mesh.size * accumulate):
        parts = f'{mesh.size} devices' + (f' x {accumulate} microbatches' if accumulate > 1 else '')
        step = mesh.size * accumulate
        near = max(data.batch_size // step, 1) * step
        raise config.InputError(f'config.data.batch_size={data.batch_size}: {parts} cannot share it; try {near}')


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis divided over all devices."""
    return NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))


def state_sharding(mesh: Mesh, state: Any) -> Any:
    """For each array of an abstract state: its longest axis that the fsdp devices can share is divided among them."""
    ways = mesh.shape['fsdp']

    def sharding(leaf: Any) -> NamedSharding:
        axes = [axis for axis, size in enumerate(leaf.shape) if ways > 1 and size % ways == 0]
        if not axes:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, 'fsdp'))

    return jax.tree.map(sharding, state)
