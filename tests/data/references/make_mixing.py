"""Makes mixing.json beside this file: what torchvision's RandomErasing erases, by the distribution of many draws.

pip install torch==2.13.0
pip install --no-deps torchvision==0.28.0
python -m tests.data.references.make_mixing
"""

import json
import pathlib

import numpy as np
import torch

# The wheel for CPUs lacks these two operations, without which torchvision can't be imported.
library = torch.library.Library('torchvision', 'DEF')
library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
library.define('qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')

import torchvision  # noqa: E402

DRAWS = 40_000
SIZES = [(32, 32), (12, 40)]
NAMES = ('height', 'width', 'top', 'left')


def distributions(height: int, width: int) -> dict:
    """Of the erased rectangles, for each of NAMES: which share of them is at most 0, 1, 2, ...; and their mean area."""
    torch.manual_seed(0)
    image = torch.ones(1, height, width)
    draws = []
    for _ in range(DRAWS):
        top, left, rows, columns, value = torchvision.transforms.RandomErasing.get_params(
            image, scale=(0.02, 0.33), ratio=(0.3, 3.3), value=[0.0]
        )
        if value is not image:
            draws.append((rows, columns, top, left))
    table = np.asarray(draws)
    shares = [np.cumsum(np.bincount(column)) / DRAWS for column in table.T]
    return {
        'size': [height, width],
        'area': float((table[:, 0] * table[:, 1]).mean()),
        **{name: share.round(4).tolist() for name, share in zip(NAMES, shares, strict=True)},
    }


if __name__ == '__main__':
    fixture = {'torchvision': torchvision.__version__, 'erasing': [distributions(*size) for size in SIZES]}
    pathlib.Path(__file__).with_name('mixing.json').write_text(json.dumps(fixture) + '\n')
