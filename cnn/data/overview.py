"""What a data set is, in words and in a sheet of examples."""

import pathlib
from collections.abc import Mapping

import numpy as np
from PIL import Image

from cnn import config, pictures
from cnn.data import sources


def listing() -> str:
    """The data sets that can be named now, one a line."""
    return '\n'.join(f'{name:<24} {where}' for name, where in sources.names().items())


def describe(data: config.Data, folder: pathlib.Path) -> str:
    """Prepares a data set; returns its splits, fields and class counts as text, and draws a sheet of each split.

    The sheets go to `folder`, as SPLIT.png. Raises InputError as `sources.load` does.
    """
    spec = sources.spec(data.name)
    fields = [field for field in ('image', 'label', 'box_labels') if field in spec.shapes]
    lines = [
        f'{data.name}: '
        + ', '.join(f'{field} {spec.dtypes[field]}{list(shape)}' for field, shape in spec.shapes.items())
    ]
    splits = dict.fromkeys(split for split in (data.train_split, data.validation_split, data.test_split) if split)
    for split in splits:
        source = sources.load(data.name, split, fields)
        lines.append(f'{split}: {len(source)} examples, fingerprint {source.fingerprint[:12]}')
        examples = [source[index] for index in range(len(source))]
        for field in ('label', 'box_labels'):
            if field in spec.class_names:
                lines.append(
                    f'  {field}: ' + _counts([example[field] for example in examples], spec.class_names[field])
                )
        if 'image' in spec.shapes:
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(_sheet(examples[:64], spec.class_names)).save(folder / f'{split}.png')
            lines.append(f'  sheet: {folder / f"{split}.png"}')
    return '\n'.join(lines)


def _counts(values: list[np.ndarray], names: tuple[str, ...]) -> str:
    flat = np.concatenate([np.ravel(value) for value in values])
    counts = np.bincount(flat[flat >= 0], minlength=len(names))
    return ', '.join(f'{name} {count}' for name, count in zip(names, counts, strict=True))


def _sheet(examples: list[dict[str, np.ndarray]], class_names: Mapping[str, tuple[str, ...]]) -> np.ndarray:
    field = next((field for field in ('label', 'box_labels') if field in class_names), None)
    captions = [
        ' '.join(class_names[field][label] for label in np.ravel(example[field]) if label >= 0) if field else ''
        for example in examples
    ]
    return pictures.grid(np.stack([example['image'] for example in examples]), captions)
