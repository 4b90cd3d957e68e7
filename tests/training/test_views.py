import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn.config import Experiment
from cnn.data import sources
from cnn.errors import InputError
from cnn.training import program, sharding
from cnn.training.views import VIEWS, averaged


def images():
    return np.random.default_rng(0).random((3, 5, 6, 2)).astype('float32')


def logits(images):
    """A network that tells places and mirror images apart, in NumPy too."""
    weights = np.random.default_rng(1).normal(size=(5 * 6 * 2, 4)).astype('float32')
    return abs(images.reshape(len(images), -1) @ weights)


def apply(variables, images, *, train):
    assert not train
    return logits(images) * variables['scale'], {'calls': 1}


def airbench(images):
    """The six views as airbench's `infer_mirror_translate` has them, in NumPy."""

    def mirrored(images):
        return logits(images) / 2 + logits(images[:, :, ::-1]) / 2

    framed = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), 'reflect')
    moved = [mirrored(framed[:, :5, :6]), mirrored(framed[:, 2:, 2:])]
    return mirrored(images) / 2 + sum(moved) / 4


@pytest.mark.parametrize('name', VIEWS)
def test_logits_are_averaged_over_the_views(name):
    expected = {
        'one': logits,
        'flip': lambda images: (logits(images) + logits(images[:, :, ::-1])) / 2,
        'shift_flip': airbench,
    }
    run = jax.jit(lambda images: averaged(apply, name)({'scale': 2.0}, images, train=False))
    actual, model_state = run(images())
    np.testing.assert_allclose(actual, 2 * expected[name](images()), rtol=1e-5)
    assert model_state == {'calls': 1}


def test_flip_reads_an_image_as_its_mirror_image_and_weights_add_to_one():
    read = averaged(apply, 'flip')
    one, other = (read({'scale': 1.0}, x, train=False)[0] for x in (images(), images()[:, :, ::-1]))
    np.testing.assert_allclose(one, other, rtol=1e-5)
    constant = np.full((2, 5, 6, 2), 0.5, np.float32)
    for name in VIEWS:
        alone = averaged(apply, name)({'scale': 1.0}, constant, train=False)[0]
        np.testing.assert_allclose(alone, logits(constant), rtol=1e-5)


def test_views_of_a_sharded_batch_stay_on_their_devices():
    mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    divided = jax.NamedSharding(mesh, jax.P('data'))
    run = jax.jit(
        lambda x: averaged(apply, 'shift_flip')({'scale': 1.0}, x, train=False)[0],
        in_shardings=divided,
        out_shardings=divided,
    )
    compiled = run.lower(jnp.zeros((16, 5, 6, 2))).compile().as_text()
    assert not any(word in compiled for word in ('all-reduce', 'all-gather', 'all-to-all', 'collective-permute'))


def test_evaluation_reads_the_views_of_the_configuration():
    config = Experiment()
    config.model.name, config.model.options, config.mesh.data = 'mlp', {'widths': (8,)}, 1
    config.data.mean, config.data.std, config.eval.views = (0.5,), (0.5,), 'flip'
    spec = sources.spec(config.data)
    config = program.resolve(config, spec)
    built, numbers = program.build(config, spec, 100, sharding.make_mesh(config))
    variables = built.init(numbers).eval_variables
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), np.uint8)
    batch = {'image': pixels, 'label': np.arange(8), 'valid': np.arange(8) < 6}
    total, count = built.eval_step(variables, batch, jax.random.key(0), numbers)[0]['loss']
    views = [(pixels[:, :, ::way] / np.float32(255) - 0.5) / 0.5 for way in (1, -1)]
    outputs = sum(built.model.apply(variables, view, train=False) for view in views) / 2
    assert count == 6
    np.testing.assert_allclose(total, -jax.nn.log_softmax(outputs)[np.arange(6), np.arange(6)].sum(), rtol=1e-5)


def test_what_has_no_logits_of_images_is_refused():
    config = Experiment()
    config.eval.views = 'flip'
    assert program.resolve(config, sources.spec(config.data)).eval.views == 'flip'
    config.data.name, config.task.name, config.model.name = 'digit_scenes/128', 'segmentation', 'unet'
    with pytest.raises(InputError, match=r"config\.eval\.views='flip': is for one label for each image"):
        program.resolve(config, sources.spec(config.data))
