import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from cnn import config
from cnn.errors import InputError
from cnn.training import sharding


def mesh_of(mesh, batch_size=48, accumulate=1):
    data, optimizer = config.Data(batch_size=batch_size), config.Optimizer(accumulate=accumulate)
    return sharding.make_mesh(config.Experiment(mesh=mesh, data=data, optimizer=optimizer))


def test_the_mesh_holds_all_devices_or_as_many_as_are_asked_for():
    assert dict(mesh_of(config.Mesh()).shape) == {'data': 8, 'fsdp': 1}
    assert dict(mesh_of(config.Mesh(fsdp=4)).shape) == {'data': 2, 'fsdp': 4}
    assert dict(mesh_of(config.Mesh(data=2, fsdp=2)).shape) == {'data': 2, 'fsdp': 2}


@pytest.mark.parametrize('mesh', [config.Mesh(data=9), config.Mesh(fsdp=3), config.Mesh(fsdp=16), config.Mesh(4, 4)])
def test_a_mesh_that_does_not_fit_is_refused(mesh):
    with pytest.raises(InputError, match='8 devices'):
        mesh_of(mesh)


def test_a_batch_that_devices_and_microbatches_cannot_share_is_refused_with_one_that_they_can():
    mesh_of(config.Mesh(), batch_size=48, accumulate=3)
    with pytest.raises(InputError, match=r'batch_size=20: 8 devices cannot share it; try 16'):
        mesh_of(config.Mesh(), batch_size=20)
    with pytest.raises(InputError, match=r'8 devices x 3 microbatches cannot share it; try 24'):
        mesh_of(config.Mesh(), batch_size=32, accumulate=3)
    mesh_of(config.Mesh(data=2), batch_size=20)


def test_fsdp_divides_the_longest_axis_that_can_be():
    mesh = mesh_of(config.Mesh(fsdp=4))
    state = {'kernel': jnp.zeros((3, 3, 8, 16)), 'bias': jnp.zeros(6), 'step': jnp.zeros(())}
    specs = jax.tree.map(lambda where: where.spec, sharding.state_sharding(mesh, state))
    assert specs == {
        'kernel': PartitionSpec(None, None, None, 'fsdp'),
        'bias': PartitionSpec(),
        'step': PartitionSpec(),
    }
    kernel = jax.device_put(state['kernel'], sharding.state_sharding(mesh, state)['kernel'])
    assert kernel.addressable_shards[0].data.shape == (3, 3, 8, 4)


def test_a_batch_is_divided_over_all_axes_of_the_mesh():
    mesh = mesh_of(config.Mesh(fsdp=4))
    batch = jax.device_put(np.zeros((16, 2)), sharding.batch_sharding(mesh))
    assert {shard.data.shape for shard in batch.addressable_shards} == {(2, 2)}
    assert len({str(shard.index) for shard in batch.addressable_shards}) == 8
