"""Makes augment.json beside this file: torchvision's spaces and policies of automatic augmentation, and some pixels.

pip install torch==2.13.0
pip install --no-deps torchvision==0.28.0
python -m tests.data.references.make_augment
"""

import json
import math
import pathlib

import numpy as np
import torch

# The wheel for CPUs lacks these two operations, without which torchvision can't be imported.
library = torch.library.Library('torchvision', 'DEF')
library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
library.define('qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')

from torchvision.transforms import autoaugment, functional  # noqa: E402

SIZE = (24, 40)  # height, width
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 4, 5))


def spaces() -> dict[str, dict[str, list[float]]]:
    """By policy and operation: the strengths of every third of 31 levels, or of all of 10."""
    made = {
        'randaugment': autoaugment.RandAugment()._augmentation_space(31, SIZE),
        'trivialaugment': autoaugment.TrivialAugmentWide()._augmentation_space(31),
        'autoaugment': autoaugment.AutoAugment()._augmentation_space(10, SIZE),
    }
    return {
        policy: {
            name: {'signed': signed, 'strengths': strengths(np.atleast_1d(magnitudes))}
            for name, (magnitudes, signed) in space.items()
        }
        for policy, space in made.items()
    }


def strengths(magnitudes: np.ndarray) -> list[float]:
    """Those that are kept."""
    return [round(value, 5) for value in magnitudes[:: 3 if len(magnitudes) == 31 else 1].tolist()]


def colors() -> dict[str, list[float]]:
    """What functions of float pixels make of PIXELS / 255, by name and argument."""
    image = torch.from_numpy(PIXELS / 255)
    cases = [
        ('brightness', functional.adjust_brightness, (0.3, 1.7)),
        ('contrast', functional.adjust_contrast, (0.3, 1.7)),
        ('saturation', functional.adjust_saturation, (0.3, 1.7)),
        ('sharpness', functional.adjust_sharpness, (0.3, 1.7)),
        ('hue', functional.adjust_hue, (-0.4, 0.1, 0.5)),
    ]
    return {
        f'{name} {argument}': [round(value, 5) for value in function(image, argument).flatten().tolist()]
        for name, function, arguments in cases
        for argument in arguments
    }


def matrices() -> list[list[list[float]]]:
    """Pairs of (angle, shear, right, down) and the inverse affine matrix about the centre of SIZE."""
    cases = [(20.0, 10.0, 3.0, -4.0), (-45.0, 0.0, 0.0, 2.5), (0.0, -30.0, 1.0, 0.0)]
    center = [SIZE[1] / 2, SIZE[0] / 2]
    return [
        [case, functional._get_inverse_affine_matrix(center, case[0], list(case[2:]), 1.0, [case[1], 0.0])]
        for case in cases
    ]


def shear(tangent: float) -> list[float]:
    """The matrix that a policy's ShearX uses."""
    return functional._get_inverse_affine_matrix([0, 0], 0.0, [0, 0], 1.0, [math.degrees(math.atan(tangent)), 0.0])


def main() -> None:
    policies = {policy.value: autoaugment.AutoAugment(policy).policies for policy in autoaugment.AutoAugmentPolicy}
    content = {
        'size': SIZE,
        'spaces': spaces(),
        'policies': policies,
        'pixels': PIXELS.flatten().tolist(),
        'colors': colors(),
        'matrices': matrices(),
        'shear_x 0.3': shear(0.3),
    }
    path = pathlib.Path(__file__).with_name('augment.json')
    path.write_text(json.dumps(content, separators=(',', ':')) + '\n')


if __name__ == '__main__':
    main()
