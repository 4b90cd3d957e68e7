"""The mesh of devices, which part of what lies where, and how much at most."""

import resource
import sys
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cnn.config import Experiment
from cnn.errors import InputError


def make_mesh(config: Experiment) -> Mesh:
    """A mesh (data, fsdp) over the devices. Raises InputError where they don't fit it, or can't share the batch."""
    mesh, devices = config.mesh, jax.devices()
    data = mesh.data or len(devices) // mesh.fsdp
    if data * mesh.fsdp > len(devices) or data == 0 or (mesh.data is None and len(devices) % mesh.fsdp):
        raise InputError(
            f'config.mesh: data={mesh.data} x fsdp={mesh.fsdp} does not fit {len(devices)} devices; '
            f'choose sizes whose product is {len(devices)}'
        )
    _check_batch(config.data.batch_size, config.optimizer.accumulate, data * mesh.fsdp)
    if config.model.batch_norm == 'ghost':
        _check_ghosts(config, data * mesh.fsdp)
    grid = np.asarray(devices[: data * mesh.fsdp]).reshape(data, mesh.fsdp)
    # Linen's dropout and FSDP need automatic axes.
    return Mesh(grid, ('data', 'fsdp'), axis_types=(AxisType.Auto, AxisType.Auto))


def _check_batch(batch_size: int, accumulate: int, num_devices: int) -> None:
    step = num_devices * accumulate
    if batch_size % step:
        parts = f'{num_devices} devices' + (f' x {accumulate} microbatches' if accumulate > 1 else '')
        near = max(batch_size // step, 1) * step
        raise InputError(f'config.data.batch_size={batch_size}: {parts} cannot share it; try {near}')


def _check_ghosts(config: Experiment, num_devices: int) -> None:
    """Groups of ghost batch normalisation lie on one device each."""
    examples, ghost = config.data.batch_size // num_devices // config.optimizer.accumulate, config.model.ghost_batch
    if examples % ghost:
        near = max(size for size in range(1, min(ghost, examples) + 1) if examples % size == 0)
        raise InputError(
            f'config.model.ghost_batch={ghost}: does not divide the {examples} examples that a device has at a time; '
            f'try {near}'
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis divided over all devices."""
    return NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))


def peak_memory(mesh: Mesh) -> tuple[int, str]:
    """Most bytes in use so far, and of what: the fullest device, or this process where devices don't say."""
    stats = [device.memory_stats() for device in mesh.devices.flat]
    if all(stats):
        return max(stat['peak_bytes_in_use'] for stat in stats), 'fullest device'
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, 'process'


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
