"""Loops of our own as machine code: LLVM compiles them for this processor, XLA calls them and lends its threads.

They are for what neither XLA nor oneDNN does fast. A program consists of pieces, which threads take one after another.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import llvmlite.binding as llvm
from llvmlite import ir

WORD, FLOAT, POINTER, NOTHING = ir.IntType(64), ir.FloatType(), ir.PointerType(), ir.VoidType()
FUNCTION = ir.FunctionType(POINTER, [POINTER]).as_pointer()
Write = Callable[[Any, ir.IRBuilder, ir.Value, list[ir.Value]], None]  # problem, piece, result and operands

# XLA's calling convention (xla/ffi/api/c_api.h), where each thing lies in words of 8 bytes.
FRAME_EXTENSION, FRAME_API, FRAME_CONTEXT, FRAME_ARGUMENTS, FRAME_RESULTS, FRAME_FUTURE = 1, 2, 3, 9, 14, 21
API_VERSION, API_SCHEDULE, API_CREATE_FUTURE, API_SET_AVAILABLE = 4, 17, 19, 20
EXTENSION_METADATA, METADATA_VERSION, BUFFER_DATA = 3, 3, 3
# What the threads of a call share, likewise; the pointers of its arrays follow.
NEXT_PIECE, UNFINISHED_PIECES, THREADS, SET_AVAILABLE, FUTURE, POINTERS = range(6)

_lock = threading.Lock()
_names: set[str] = set()


def call(
    title: str,
    write: Write,
    problem: Any,
    num_pieces: int,
    result: jax.ShapeDtypeStruct,
    *operands: jax.Array,
) -> jax.Array:
    """The array that the pieces write: `write` makes their code, for the problem, which must be hashable."""
    with _lock:
        name = _registered(title, write, problem, num_pieces, 1 + len(operands))
    return jax.ffi.ffi_call(name, result)(*operands)


@functools.cache
def _registered(title: str, write: Write, problem: Any, num_pieces: int, num_pointers: int) -> str:
    """The name under which XLA knows the program; what it reads from the compile cache knows it by that, too."""
    module = str(_module(write, problem, num_pieces, num_pointers))
    name = f'cnn_{title}_{hashlib.sha256(module.encode()).hexdigest()[:16]}'
    if name not in _names:  # problems may differ in what does not matter
        handler = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(_compiled(module))
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform='cpu')
        _names.add(name)
    return name


@functools.cache
def lanes() -> int:
    """How many float32 a vector of this processor holds."""
    return 16 if llvm.get_host_cpu_features().get('avx512f') else 8


@contextlib.contextmanager
def loop(
    builder: ir.IRBuilder, start: ir.Value, stop: ir.Value, values: Sequence[ir.Value] = ()
) -> Iterator[tuple[ir.Value, list[ir.Value]]]:
    """Code for each index from start until stop; yields the index, and a list of the values.

    The body replaces the list's values by those for the next round; afterwards it holds the last.
    """
    before, body, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
    builder.cbranch(builder.icmp_signed('<', start, stop), body, after)
    builder.position_at_end(body)
    index, *carried = variables = [builder.phi(value.type) for value in (start, *values)]
    yield index, carried
    following = (builder.add(index, word(1)), *carried)
    for variable, first, then in zip(variables, (start, *values), following, strict=True):
        variable.add_incoming(first, before)
        variable.add_incoming(then, builder.block)
    last = builder.block
    builder.cbranch(builder.icmp_signed('<', following[0], stop), body, after)
    builder.position_at_end(after)
    for place, value in enumerate(values):
        final = builder.phi(value.type)
        final.add_incoming(value, before)
        final.add_incoming(carried[place], last)
        carried[place] = final


def word(number: int) -> ir.Constant:
    """An integer of 64 bits."""
    return ir.Constant(WORD, number)


@contextlib.contextmanager
def scratch(builder: ir.IRBuilder, length: int) -> Iterator[ir.Value]:
    """Code between taking memory for some float32, yielded as a pointer, and giving it back."""
    size = word(-(-4 * length // 64) * 64)
    pointer = builder.call(_declared(builder.module, 'aligned_alloc', POINTER, [WORD, WORD]), [word(64), size])
    yield pointer
    builder.call(_declared(builder.module, 'free', NOTHING, [POINTER]), [pointer])


def at(builder: ir.IRBuilder, array: ir.Value, indices: Sequence[tuple[ir.Value, int]]) -> ir.Value:
    """A pointer to the float32 that lies at the sum of the indices, each times its stride."""
    for index, stride in indices:
        array = builder.gep(array, [builder.mul(index, word(stride))], source_etype=FLOAT)
    return array


def zeros(length: int) -> ir.Constant:
    """A vector of float32."""
    return ir.Constant(ir.VectorType(FLOAT, length), None)


def load(builder: ir.IRBuilder, pointer: ir.Value, length: int) -> ir.Value:
    """The vector of `length` float32 at a pointer."""
    vector = builder.load(pointer, typ=ir.VectorType(FLOAT, length))
    vector.align = 4
    return vector


def store(builder: ir.IRBuilder, vector: ir.Value, pointer: ir.Value) -> None:
    """Writes a vector of float32."""
    builder.store(vector, pointer).align = 4


def shuffled(builder: ir.IRBuilder, vector: ir.Value, lanes_taken: Sequence[int]) -> ir.Value:
    """The vector of the given lanes of another."""
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes_taken)), list(lanes_taken))
    return builder.shuffle_vector(vector, vector, mask)


def multiply_add(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """a * b + c of vectors, rounded once."""
    function = _declared(builder.module, f'llvm.fma.v{c.type.count}f32', c.type, [c.type] * 3)
    return builder.call(function, [a, b, c])


def _declared(module: ir.Module, name: str, result: ir.Type, arguments: Sequence[ir.Type]) -> ir.Function:
    """A function that is defined elsewhere."""
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(result, arguments), name)


def _module(write: Write, problem: Any, num_pieces: int, num_pointers: int) -> ir.Module:
    module = ir.Module()
    module.triple = llvm.get_process_triple()
    piece = ir.Function(module, ir.FunctionType(NOTHING, [WORD] + [POINTER] * num_pointers), 'piece')
    index, *pointers = piece.args
    builder = ir.IRBuilder(piece.append_basic_block())
    write(problem, builder, index, pointers)
    builder.ret_void()
    _write_handler(module, num_pieces, num_pointers, _write_thread(module, piece, num_pieces))
    return module


def _write_thread(module: ir.Module, piece: ir.Function, num_pieces: int) -> ir.Function:
    """What each thread does: takes pieces until none is left.

    The last to finish one tells XLA; the last to leave frees what they share, for a thread may come when all is done.
    """
    function = ir.Function(module, ir.FunctionType(NOTHING, [POINTER]), 'thread')
    (shared,) = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    take, work, tell, leave, free, end = (builder.append_basic_block() for _ in range(6))
    arguments = builder.alloca(WORD, 3)
    builder.branch(take)

    builder.position_at_end(take)
    index = builder.atomic_rmw('add', _at(builder, shared, NEXT_PIECE), word(1), 'monotonic')
    builder.cbranch(builder.icmp_signed('<', index, word(num_pieces)), work, leave)

    builder.position_at_end(work)
    pointers = [_get(builder, shared, POINTERS + number, POINTER) for number in range(len(piece.args) - 1)]
    builder.call(piece, [index, *pointers])
    left = builder.atomic_rmw('sub', _at(builder, shared, UNFINISHED_PIECES), word(1), 'acq_rel')
    builder.cbranch(builder.icmp_signed('==', left, word(1)), tell, take)

    builder.position_at_end(tell)
    _call_xla(builder, _get(builder, shared, SET_AVAILABLE, FUNCTION), arguments, [_get(builder, shared, FUTURE)])
    builder.branch(take)

    builder.position_at_end(leave)
    left = builder.atomic_rmw('sub', _at(builder, shared, THREADS), word(1), 'acq_rel')
    builder.cbranch(builder.icmp_signed('==', left, word(1)), free, end)
    builder.position_at_end(free)
    builder.call(_declared(module, 'free', NOTHING, [POINTER]), [shared])
    builder.branch(end)
    builder.position_at_end(end)
    builder.ret_void()
    return function


def _write_handler(module: ir.Module, num_pieces: int, num_pointers: int, thread: ir.Function) -> None:
    """What XLA calls: first with an extension to the frame, to learn of which version it is, then for every result."""
    handler = ir.Function(module, ir.FunctionType(POINTER, [POINTER]), 'handler')
    (frame,) = handler.args
    builder = ir.IRBuilder(handler.append_basic_block())
    null = ir.Constant(POINTER, None)
    arguments = builder.alloca(WORD, 5)
    api = _get(builder, frame, FRAME_API, POINTER)
    extension = _get(builder, frame, FRAME_EXTENSION, POINTER)
    with builder.if_then(builder.icmp_unsigned('!=', extension, null)):
        metadata = _get(builder, extension, EXTENSION_METADATA, POINTER)
        _put(builder, metadata, METADATA_VERSION, _get(builder, api, API_VERSION))
        builder.ret(null)

    size = word(8 * (POINTERS + num_pointers))
    shared = builder.call(_declared(module, 'malloc', POINTER, [WORD]), [size])
    _call_xla(builder, _get(builder, api, API_CREATE_FUTURE, FUNCTION), arguments, [word(0)])
    future = _get(builder, arguments, 2)
    _put(builder, frame, FRAME_FUTURE, future)
    num_threads = min(num_pieces, os.cpu_count() or 1)
    results = _get(builder, frame, FRAME_RESULTS, POINTER)
    operands = _get(builder, frame, FRAME_ARGUMENTS, POINTER)
    buffers = [_get(builder, results, 0, POINTER)]
    buffers += [_get(builder, operands, number, POINTER) for number in range(num_pointers - 1)]
    set_available = _get(builder, api, API_SET_AVAILABLE)
    pointers = [_get(builder, buffer, BUFFER_DATA) for buffer in buffers]
    for place, value in enumerate([word(0), word(num_pieces), word(num_threads), set_available, future, *pointers]):
        _put(builder, shared, place, value)
    schedule, context = _get(builder, api, API_SCHEDULE, FUNCTION), _get(builder, frame, FRAME_CONTEXT)
    task = [context, builder.ptrtoint(thread, WORD), builder.ptrtoint(shared, WORD)]
    for _ in range(num_threads - 1):
        _call_xla(builder, schedule, arguments, task)
    builder.call(thread, [shared])
    builder.ret(null)


def _call_xla(builder: ir.IRBuilder, function: ir.Value, arguments: ir.Value, values: list[ir.Value]) -> None:
    """Calls a function of XLA's with the struct of a size, no extension and the values, written to `arguments`."""
    for place, value in enumerate([word(8 * (2 + len(values))), word(0), *values]):
        _put(builder, arguments, place, value)
    builder.call(function, [arguments])


def _at(builder: ir.IRBuilder, words: ir.Value, place: int) -> ir.Value:
    return builder.gep(words, [word(place)], source_etype=WORD)


def _get(builder: ir.IRBuilder, words: ir.Value, place: int, kind: ir.Type = WORD) -> ir.Value:
    return builder.load(_at(builder, words, place), typ=kind)


def _put(builder: ir.IRBuilder, words: ir.Value, place: int, value: ir.Value) -> None:
    builder.store(value, _at(builder, words, place))


def _compiled(module: str) -> int:
    """The address of the handler's machine code, made for the processor that this runs on."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features().flatten()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=f'{features},-prefer-256-bit', opt=2, jit=True
    )
    parsed = llvm.parse_assembly(module)
    parsed.verify()
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=1))
    passes.getModulePassManager().run(parsed, passes)
    engine = llvm.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    address = engine.get_function_address('handler')
    engine.detach()  # XLA's threads may be in its code when Python ends
    return address
