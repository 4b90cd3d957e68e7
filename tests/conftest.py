import os
import pathlib

import pytest

# Before JAX starts: a host of eight devices, so that meshes of 1, 2 and 8 can be compared in one process.
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8'
os.environ['JAX_PLATFORMS'] = 'cpu'

from cnn.training import environment

CACHE = environment.private_cache()
if CACHE:
    os.environ['JAX_COMPILATION_CACHE_DIR'] = str(CACHE)
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
environment.keep_onednn_out_of_cache()


@pytest.fixture(scope='session', autouse=True)
def data_dir(tmp_path_factory):
    """Data sets are prepared once for all test processes, in a directory that ends with them."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base
    os.environ['TFDS_DATA_DIR'] = str(shared / 'tensorflow_datasets')
    return pathlib.Path(os.environ['TFDS_DATA_DIR'])


@pytest.fixture(scope='session', autouse=True)
def parsed_flags():
    """Grain's worker processes read absl's flags."""
    from absl import flags

    flags.FLAGS.mark_as_parsed()
