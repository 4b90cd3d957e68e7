"""Writes crops.json: what torchvision 0.28 and PyTorch 2.13 make of given draws.

    python tests/data/references/make_crops.py

torchvision's random crop takes its draws from PyTorch; here they are handed to it, try by try.
"""

import json
import pathlib
import unittest.mock

import numpy as np
import torch

library = torch.library.Library('torchvision', 'DEF')  # its compiled operators are not needed
library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
library.define('qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')

from PIL import Image  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

CASES = [
    (375, 500, (0.08, 1.0), (3 / 4, 4 / 3)),
    (500, 333, (0.08, 1.0), (3 / 4, 4 / 3)),
    (64, 700, (0.5, 1.0), (3 / 4, 4 / 3)),  # most draws do not fit
    (700, 64, (0.5, 1.0), (3 / 4, 4 / 3)),
    (20, 21, (0.9, 1.0), (0.5, 0.6)),
]


def main() -> None:
    rng = np.random.default_rng(0)
    windows = [window(*case, rng.random((10, 4)).round(3)) for case in CASES for _ in range(4)]
    middles = [middle(*case) for case in [(375, 500, 32, 28), (500, 333, 36, 24), (97, 60, 30, 30), (40, 40, 256, 224)]]
    content = {'windows': windows, 'middles': middles}
    path = pathlib.Path(__file__).with_name('crops.json')
    path.write_text(json.dumps(content, separators=(',', ':')) + '\n')


def window(height, width, scale, ratio, draws):
    left_over = [list(row) for row in draws]
    row: list[float] = []

    def uniform(tensor, low, high):
        if len(row) != 3:
            row[:] = left_over.pop(0)
        return tensor.fill_(float(low) + (float(high) - float(low)) * row.pop(0))

    def randint(low, high, size):
        return torch.tensor([int(low + row.pop(0) * (high - low))])

    transform = v2.RandomResizedCrop(8, scale=scale, ratio=ratio)
    with unittest.mock.patch.object(torch.Tensor, 'uniform_', uniform), unittest.mock.patch('torch.randint', randint):
        found = transform.make_params([torch.zeros(3, height, width)])
    box = [found['top'], found['left'], found['height'], found['width']]
    return {'size': [height, width], 'scale': scale, 'ratio': ratio, 'draws': draws.tolist(), 'window': box}


def middle(height, width, side, size):
    """Sums of rows and columns of what Resize and CenterCrop make of a picture with a plain formula."""
    rows, columns = np.mgrid[:height, :width]
    picture = Image.fromarray((rows * 7 + columns * columns // 5 + rows * columns // 11).astype(np.uint8) // 2)
    transform = v2.Compose([v2.Resize(side), v2.CenterCrop(size)])
    shown = np.asarray(transform(picture)).astype(int)
    sums = {'rows': shown.sum(1).tolist(), 'columns': shown.sum(0).tolist()}
    return {'size': [height, width], 'side': side, 'crop': size, **sums}


if __name__ == '__main__':
    main()
