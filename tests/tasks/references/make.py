"""Makes losses.json beside this file: losses of classification as timm and PyTorch compute them, in float64.

    pip install torch==2.13.0
    pip install --no-deps torchvision==0.28.0 timm==1.0.31 huggingface_hub safetensors pyyaml
    python -m tests.tasks.references.make

Distilled losses are Hinton's with PyTorch's divergence.
"""

import json
import pathlib
from typing import Any

import numpy as np
import torch
from torch.nn import functional

# The wheel for CPUs lacks these two operations, without which torchvision can't be imported.
library = torch.library.Library('torchvision', 'DEF')
library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
library.define('qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')

from timm.data.mixup import mixup_target  # noqa: E402
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy  # noqa: E402

torch.set_default_dtype(torch.float64)  # timm makes targets of the default type
EXAMPLES, CLASSES = 6, 4  # an even number: timm mixes each example with the one at its place from the end


def main() -> None:
    """Writes the file."""
    generator = np.random.default_rng(0)
    student, teacher = (2 * generator.normal(size=(EXAMPLES, CLASSES)).round(3) for _ in range(2))
    label = generator.integers(0, CLASSES, EXAMPLES)
    logits, target = torch.tensor(student), torch.tensor(label)
    cases: list[dict[str, Any]] = []

    def case(loss: Any, aim: torch.Tensor, **settings: Any) -> None:
        leaf = logits.clone().requires_grad_()
        value = loss(leaf, aim)
        value.backward()
        cases.append({**settings, 'loss': value.item(), 'gradient': leaf.grad.numpy().round(12).tolist()})

    case(LabelSmoothingCrossEntropy(0.1), target, smoothing=0.1, cross_entropy='softmax')
    for smoothing, threshold in ((0.0, None), (0.1, None), (0.1, 0.2)):
        loss = BinaryCrossEntropy(smoothing=smoothing, target_threshold=threshold)
        case(loss, target, smoothing=smoothing, threshold=threshold, cross_entropy='binary')
    for mix, smoothing in ((0.7, 0.0), (0.35, 0.1)):
        mixed = mixup_target(target, CLASSES, mix, smoothing).double()
        settings = {'mix': mix, 'smoothing': smoothing}
        case(SoftTargetCrossEntropy(), mixed, **settings, cross_entropy='softmax')
        case(BinaryCrossEntropy(), mixed, **settings, cross_entropy='binary')
        case(BinaryCrossEntropy(target_threshold=0.2), mixed, **settings, threshold=0.2, cross_entropy='binary')
    distilled = []
    for weight, temperature in ((1.0, 1.0), (0.5, 4.0), (0.9, 2.0)):
        leaf = logits.clone().requires_grad_()
        inputs = (
            functional.log_softmax(leaf / temperature, -1),
            functional.softmax(torch.tensor(teacher) / temperature, -1),
        )
        divergence = functional.kl_div(*inputs, reduction='batchmean') * temperature**2
        value = (1 - weight) * functional.cross_entropy(leaf, target) + weight * divergence
        value.backward()
        settings = {'weight': weight, 'temperature': temperature}
        distilled.append({**settings, 'loss': value.item(), 'gradient': leaf.grad.numpy().round(12).tolist()})
    numbers = {'logits': student.tolist(), 'teacher': teacher.tolist(), 'label': label.tolist()}
    text = json.dumps({**numbers, 'cases': cases, 'distilled': distilled})
    pathlib.Path(__file__).with_name('losses.json').write_text(text + '\n')


if __name__ == '__main__':
    main()
