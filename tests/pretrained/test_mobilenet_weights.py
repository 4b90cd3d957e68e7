"""Names of MobileNets' weights, and weights that others have trained: they recognise what is in real pictures."""

import functools
import pathlib

import jax
import matplotlib
import numpy as np
import pytest
import sklearn
from PIL import Image

from cnn import models, pretrained
from cnn.pretrained import files

WEIGHTS = pathlib.Path(__file__).parents[3] / 'shared' / 'data' / 'mobilenet_v1_025_224.safetensors'
EPSILON = models.options('mobilenet/v1_025', {})['norm_epsilon']
# Outputs of the network of Google: of ImageNet's 1,000 classes in their order, after one for the background.
CLOTHES = {'academic gown': 401, 'bow tie': 458, 'military uniform': 653, 'suit': 835, 'Windsor tie': 907}
BUILDINGS = {'beacon': 438, 'boathouse': 450, 'church': 498, 'dome': 539, 'palace': 699, 'stupa': 833}


def variables(**options):
    """A network with the outputs of Google's, and its abstract variables."""
    model = models.build('mobilenet/v1_025', num_outputs=1001, **options)
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), 'float32')
    return model, jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)


def test_names_in_checkpoints_of_tensorflow_slim():
    _, ours = variables()
    names = pretrained.abstract_export(ours, pretrained.namings('mobilenet/v1_025')['tensorflow_slim'])
    assert names['MobilenetV1/Conv2d_0/weights'] == (3, 3, 3, 8)
    assert names['MobilenetV1/Conv2d_13_depthwise/depthwise_weights'] == (3, 3, 256, 1)
    assert names['MobilenetV1/Conv2d_13_pointwise/weights'] == (1, 1, 256, 256)
    assert names['MobilenetV1/Conv2d_13_pointwise/BatchNorm/moving_variance'] == (256,)
    assert names['MobilenetV1/Logits/Conv2d_1c_1x1/weights'] == (1, 1, 256, 1001)
    assert names['MobilenetV1/Logits/Conv2d_1c_1x1/biases'] == (1001,)
    leaves = {name.rpartition('/')[2] for name in names if '/BatchNorm/' in name}
    assert leaves == {'gamma', 'beta', 'moving_mean', 'moving_variance'}
    assert len(names) == 27 * 5 + 2


def test_a_checkpoint_of_tensorflow_slim_comes_in_without_the_state_of_its_training():
    _, ours = variables()
    naming = pretrained.namings('mobilenet/v1_025')['tensorflow_slim']
    arrays = {name: np.zeros(shape) for name, shape in pretrained.abstract_export(ours, naming).items()}
    kernel = 'MobilenetV1/Conv2d_1_depthwise/depthwise_weights'
    arrays[kernel] = np.arange(72.0).reshape(3, 3, 8, 1)
    state = {
        f'{name}/{kind}': array for name, array in arrays.items() for kind in ('RMSProp_1', 'ExponentialMovingAverage')
    }
    imported = pretrained.import_weights(
        arrays | state | {'global_step': np.zeros(())}, ours, 'mobilenet/v1_025', epsilon=EPSILON
    )
    assert (imported.naming, imported.left, imported.fused) == ('tensorflow_slim', (), False)
    depthwise = imported.variables['params']['block1']['depthwise']['conv']['kernel']
    np.testing.assert_array_equal(depthwise[:, :, 0], arrays[kernel][..., 0])


@functools.cache
def probabilities(norm):
    """Of the classes, for a portrait in uniform and a Chinese temple, by the weights of Google."""
    if not WEIGHTS.exists():
        pytest.skip(f'the weights {WEIGHTS.name} are not on this machine')
    paths = (
        pathlib.Path(matplotlib.get_data_path()) / 'sample_data/grace_hopper.jpg',
        pathlib.Path(sklearn.__file__).parent / 'datasets/images/china.jpg',
    )
    pictures = [Image.open(path).convert('RGB').resize((224, 224), Image.Resampling.BILINEAR) for path in paths]
    x = np.stack([np.asarray(picture, np.float32) / 127.5 - 1 for picture in pictures])
    model, ours = variables(norm=norm)
    imported = pretrained.import_weights(files.read(str(WEIGHTS)), ours, 'mobilenet/v1_025', epsilon=EPSILON)
    assert (imported.naming, imported.replaced, imported.left) == ('tensorflow_slim', (), ())
    assert imported.fused == (norm == 'batch')
    return np.asarray(jax.jit(lambda v, x: jax.nn.softmax(model.apply(v, x, train=False)))(imported.variables, x))


@pytest.mark.parametrize(('picture', 'classes'), [(0, CLOTHES), (1, BUILDINGS)], ids=['portrait', 'temple'])
def test_weights_of_google_recognise_pictures(picture, classes):
    """The four likeliest of 1,001 classes are clothes of the one and buildings like the other."""
    likeliest = np.argsort(-probabilities('none')[picture])[:4]
    assert set(likeliest.tolist()) <= set(classes.values())
    assert probabilities('none')[picture][likeliest].sum() > 0.5


def test_normalisation_folded_into_convolutions_computes_the_same():
    np.testing.assert_allclose(probabilities('batch'), probabilities('none'), atol=1e-5)
