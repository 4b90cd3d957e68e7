import importlib.metadata
import os
import platform
import subprocess
import sys

import pytest

from cnn.scripts import ROOT
from cnn.training import environment


def write(path, text):
    path.write_text(text)
    return path


def test_the_cache_of_compiled_programs_is_private(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'new'))
    cache = environment.private_cache()
    assert cache.parent == tmp_path / 'new' / 'cnn'
    monkeypatch.setattr(environment.pathlib.Path, 'read_text', lambda path: 'flags : another processor')
    assert environment.private_cache() not in (cache, None)
    monkeypatch.undo()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'new'))
    assert environment.private_cache() == cache
    assert cache.stat().st_mode & 0o777 == 0o700
    cache.chmod(0o777)
    assert environment.private_cache() is None
    monkeypatch.setenv('XDG_CACHE_HOME', str(write(tmp_path / 'file', '')))
    assert environment.private_cache() is None


@pytest.mark.parametrize('release', environment.RELEASES_WITH_CPU_FLAGS)
def test_flags_of_xla_are_added_where_its_release_knows_them(monkeypatch, release):
    monkeypatch.setattr('importlib.metadata.version', lambda name: release)
    monkeypatch.setenv('XLA_FLAGS', '--xla_force_host_platform_device_count=2')
    environment.set_xla_flags()
    assert os.environ['XLA_FLAGS'].split() == [*environment.CPU_FLAGS, '--xla_force_host_platform_device_count=2']
    environment.set_xla_flags(deterministic=True)
    assert os.environ['XLA_FLAGS'].split()[0] == '--xla_gpu_deterministic_ops=true'
    assert os.environ['XLA_FLAGS'].count('ynn_fusion') == 1


def test_flags_of_xla_are_neither_added_to_other_releases_nor_over_the_users(monkeypatch):
    monkeypatch.setenv('XLA_FLAGS', '')
    monkeypatch.setattr('importlib.metadata.version', lambda name: '0.12.0')
    environment.set_xla_flags()
    assert os.environ['XLA_FLAGS'] == ''
    users = f'{environment.CPU_FLAGS[0].partition("=")[0]}=LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION'
    monkeypatch.setenv('XLA_FLAGS', users)
    monkeypatch.setattr('importlib.metadata.version', lambda name: environment.RELEASES_WITH_CPU_FLAGS[0])
    environment.set_xla_flags()
    assert os.environ['XLA_FLAGS'] == users


def test_this_release_of_xla_is_one_that_the_flags_and_the_convolutions_were_tried_on():
    """A new release runs without either, slower; so this says when both are to be tried again."""
    from cnn.ops import onednn

    version = importlib.metadata.version('jaxlib')
    assert version in environment.RELEASES_WITH_CPU_FLAGS
    assert version in onednn.RELEASES


def test_huge_pages_are_asked_for_once_where_linux_leaves_them_to_the_program(monkeypatch, tmp_path):
    """By starting the process anew with the same command: glibc reads the setting at its start only."""
    started = []
    monkeypatch.setattr('os.execv', lambda *arguments: started.append(arguments))
    monkeypatch.setattr('platform.libc_ver', lambda: ('glibc', '2.36'))
    monkeypatch.setattr('sys.orig_argv', ['python', '-X', 'dev', 'launch.py', 'train'])
    monkeypatch.setattr(environment, 'HUGE_PAGES', tmp_path / 'enabled')
    monkeypatch.setenv('GLIBC_TUNABLES', 'glibc.malloc.check=1')
    for mode in ('[always] madvise never', 'always madvise [never]', None):
        if mode:
            environment.HUGE_PAGES.write_text(mode)
        else:
            environment.HUGE_PAGES.unlink()
        environment.use_huge_pages()
    assert not started
    environment.HUGE_PAGES.write_text('always [madvise] never')
    environment.use_huge_pages()
    environment.use_huge_pages()
    assert started == [(sys.executable, [sys.executable, '-X', 'dev', 'launch.py', 'train'])]
    assert os.environ['GLIBC_TUNABLES'] == 'glibc.malloc.check=1:glibc.malloc.hugetlb=1'


@pytest.mark.skipif(platform.machine() != 'x86_64', reason='oneDNN is in releases for x86-64 alone')
def test_programs_that_call_onednn_stay_out_of_the_compile_cache(tmp_path):
    code = """
import os, sys, warnings
warnings.simplefilter('error')
from cnn.training import environment
environment.keep_onednn_out_of_cache()
environment.keep_onednn_out_of_cache()
import jax
from cnn.ops.conv import conv
def convolved(x, kernel): return conv(x, kernel)
def doubled(x): return 2 * x
x, kernel = jax.numpy.ones((2, 8, 8, 4)), jax.numpy.ones((3, 3, 4, 8))
program = jax.jit(convolved).lower(x, kernel).compile()
assert '__onednn$' in program.as_text(), 'no oneDNN here'
jax.jit(doubled).lower(x).compile()
"""
    variables = {'JAX_COMPILATION_CACHE_DIR': str(tmp_path), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    environ = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
    subprocess.run([sys.executable, '-c', code], env=environ | variables, cwd=ROOT, check=True)
    names = [path.name for path in tmp_path.iterdir()]
    assert any('doubled' in name for name in names)
    assert not any('convolved' in name for name in names)
