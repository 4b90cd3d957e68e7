"""Tiny data sets in the form of their official archives."""

import gzip
import io
import struct
import tarfile

import numpy as np

COUNTS = {'train': 7, 'test': 4}


def idx(array):
    """LeCun's format: zero, zero, 8 for bytes, the rank, the dimensions in big-endian order, the elements."""
    return bytes([0, 0, 8, array.ndim]) + b''.join(struct.pack('>I', n) for n in array.shape) + array.tobytes()


def tar(members):
    """A gzipped tar file of (name or TarInfo, content) pairs."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:gz') as archive:
        for member, content in members:
            entry = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def record(labels, image):
    """Krizhevsky's format: the labels, then the red, the green and the blue plane, each row by row."""
    return bytes(labels) + b''.join(image[:, :, channel].tobytes() for channel in range(3))


def contents(name):
    """The files of a tiny set in its official form, and the arrays that they hold."""
    rng = np.random.default_rng(len(name))
    side = (28, 28, 1) if 'mnist' in name else (32, 32, 3)
    classes = {'label': 100, 'coarse_label': 20} if name == 'cifar100' else {'label': 10}
    arrays = {
        split: {'image': rng.integers(0, 256, (count, *side), np.uint8)}
        | {field: rng.integers(0, limit, count) for field, limit in classes.items()}
        for split, count in COUNTS.items()
    }
    if 'mnist' in name:
        files = {}
        for prefix, split in [('train', 'train'), ('t10k', 'test')]:
            images, labels = arrays[split]['image'][..., 0], arrays[split]['label'].astype(np.uint8)
            files[f'{prefix}-images-idx3-ubyte.gz'] = gzip.compress(idx(images))
            files[f'{prefix}-labels-idx1-ubyte.gz'] = gzip.compress(idx(labels))
        return files, arrays
    records = {
        split: [
            record([fields[field][row] for field in sorted(classes)], fields['image'][row])
            for row in range(COUNTS[split])
        ]
        for split, fields in arrays.items()
    }
    if name == 'cifar100':
        members = [(f'cifar-100-binary/{split}.bin', b''.join(rows)) for split, rows in records.items()]
        return {'cifar-100-binary.tar.gz': tar(members)}, arrays
    parts = [records['train'][:2], *([row] for row in records['train'][2:5]), records['train'][5:]]
    members = [(f'cifar-10-batches-bin/data_batch_{1 + n}.bin', b''.join(rows)) for n, rows in enumerate(parts)]
    members.insert(2, ('cifar-10-batches-bin/test_batch.bin', b''.join(records['test'])))
    return {'cifar-10-binary.tar.gz': tar(members[::-1])}, arrays  # the order in the archive says nothing
