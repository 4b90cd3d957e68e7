"""What must stand before JAX starts: flags of XLA, huge pages, a place for compiled programs. Imports no JAX itself."""

import functools
import importlib.metadata
import os
import pathlib
import platform
import re
import sys
import zlib
from typing import Any

from cnn.config import Experiment

# YNNPACK's convolutions, which these releases have in place of Eigen's, are slower, with weight gradients half as fast.
CPU_FLAGS = ('--xla_cpu_experimental_ynn_fusion_type=-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION',)
RELEASES_WITH_CPU_FLAGS = ('0.10.2', '0.11.0', '0.11.1', '0.11.2')
HUGE_PAGES = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')


def use_huge_pages() -> None:
    """Starts this process anew, once, with huge pages for its arrays, where Linux leaves that to the program.

    A step takes its temporary arrays from the system and gives them back, and the system clears each page when it is
    first touched: in pages of 4 KiB this is up to a third of a step on CPUs. glibc reads the setting at its start only.
    """
    setting, tunables = 'glibc.malloc.hugetlb', os.environ.get('GLIBC_TUNABLES', '')
    left_to_programs = HUGE_PAGES.exists() and '[madvise]' in HUGE_PAGES.read_text()
    if left_to_programs and platform.libc_ver()[0] == 'glibc' and setting not in tunables:
        os.environ['GLIBC_TUNABLES'] = f'{tunables}:{setting}=1'.lstrip(':')
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def set_xla_flags(deterministic: bool = False) -> None:
    """Adds what XLA should know at its start to XLA_FLAGS, where the user's own stay in force."""
    theirs = os.environ.get('XLA_FLAGS', '')
    ours = ['--xla_gpu_deterministic_ops=true'] if deterministic else []
    # A flag that XLA does not know ends the process.
    if importlib.metadata.version('jaxlib') in RELEASES_WITH_CPU_FLAGS:
        ours += [flag for flag in CPU_FLAGS if flag.partition('=')[0] not in theirs]
    os.environ['XLA_FLAGS'] = ' '.join([*ours, theirs]).strip()


def prepare_jax(config: Experiment) -> None:
    """Settings that must stand before JAX starts its devices."""
    set_xla_flags(config.deterministic)
    keep_onednn_out_of_cache()
    import jax

    if 'float64' in (config.model.dtype, config.model.param_dtype):
        jax.config.update('jax_enable_x64', True)
    if not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
        directory = private_cache()
        if directory:
            jax.config.update('jax_compilation_cache_dir', str(directory))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


def keep_onednn_out_of_cache() -> None:
    """Has programs that call oneDNN compiled anew each time.

    XLA fails where it writes one to the compile cache, mostly with an error, and now and then with the whole process.
    """
    from jax._src import compilation_cache

    write: Any = compilation_cache.put_executable_and_time
    if hasattr(write, '__wrapped__'):  # it is done
        return

    @functools.wraps(write)
    def write_others(key: str, name: str, executable: Any, *arguments: Any) -> None:
        if not any('__onednn$' in module.to_string() for module in executable.hlo_modules()):
            write(key, name, executable, *arguments)

    compilation_cache.put_executable_and_time = write_others  # type: ignore[assignment]


def private_cache() -> pathlib.Path | None:
    """A directory for compiled programs that nobody else can write to; None where that can't be had.

    Compiled programs are code: whoever can write them there can run anything as this user. And they are code for one
    processor: machines that share a home directory have a directory for each set of instructions.
    """
    information = pathlib.Path('/proc/cpuinfo')
    instructions = re.search(r'(?m)^(flags|Features).*', information.read_text() if information.exists() else '')
    name = f'xla-{zlib.crc32((instructions[0] if instructions else platform.processor()).encode()):08x}'
    cache = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache') / 'cnn' / name
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = cache.stat()
    except OSError:
        return None
    return cache if status.st_uid == os.getuid() and not status.st_mode & 0o022 else None
