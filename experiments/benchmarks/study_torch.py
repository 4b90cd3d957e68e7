"""One run of experiments/digits.py in PyTorch: the process that experiments/benchmarks/study.py starts for each seed.

    python -m experiments.benchmarks.study_torch FILE.npz SEED FOLDER

The file has `train`, `validation` and `test` pictures uint8 [N, 8, 8, 1], their labels as NAME_label, and the mean and
deviation of pixels. As our run does, this one evaluates every second epoch, keeps the weights of the best validation
loss in a file, writes a line for each evaluation, and tests the best at its end.
"""

import itertools
import json
import pathlib
import sys
import time

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

BATCH, EPOCHS, EVERY = 64, 40, 2
LEARNING_RATE, DECAY, WARMUP = 2e-3, 0.05, 0.3


class Network(nn.Module):
    """cnn/models/simple_cnn.py with batch normalisation, for one channel and ten classes."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 32, 64, 128)
        self.convs = nn.ModuleList(nn.Conv2d(*pair, 3, padding=1, bias=False) for pair in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
        self.dense, self.dropout, self.head = nn.Linear(2048, 256), nn.Dropout(0.5), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, 10] of pictures [N, 1, 8, 8]."""
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = functional.relu(norm(conv(functional.max_pool2d(x, 2) if index else x)), inplace=True)
        x = functional.adaptive_avg_pool2d(x, 4).flatten(1)
        return self.head(self.dropout(functional.relu(self.dense(x), inplace=True)))


def shifted(x: Tensor) -> Tensor:
    """Each picture moved by -1, 0 or 1 pixels in both directions, over zeros."""
    count, _, height, width = x.shape
    rows = torch.randint(0, 3, (count, 1)) + torch.arange(height)
    columns = torch.randint(0, 3, (count, 1)) + torch.arange(width)
    wide = functional.pad(x[:, 0], (1, 1, 1, 1))
    return wide[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None]][:, None]


@torch.no_grad()
def evaluate(network: nn.Module, x: Tensor, labels: Tensor) -> dict[str, float]:
    """Loss and accuracy of a split."""
    network.eval()
    outputs = torch.cat([network(part) for part in x.split(BATCH)])
    network.train()
    accuracy = (outputs.argmax(1) == labels).float().mean()
    return {'loss': functional.cross_entropy(outputs, labels).item(), 'accuracy': accuracy.item()}


def main(file: str, seed: int, folder: pathlib.Path) -> dict[str, float]:
    """Trains and returns what the best weights measure on the test split."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = np.load(file)
    splits = {}
    for name in ('train', 'validation', 'test'):
        x = torch.from_numpy(arrays[name]).permute(0, 3, 1, 2).float()
        splits[name] = x, torch.from_numpy(arrays[f'{name}_label']).long()
    mean, deviation = (float(arrays[name]) for name in ('mean', 'deviation'))
    normal = {name: ((x - mean) / deviation, labels) for name, (x, labels) in splits.items() if name != 'train'}
    x, labels = splits['train']
    network = Network()
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=DECAY)
    total, every = EPOCHS * len(x) // BATCH, EVERY * len(x) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total, pct_start=WARMUP)
    order, best = torch.empty(0, dtype=torch.long), float('inf')
    with open(folder / 'metrics.jsonl', 'w') as rows:
        for step in range(1, total + 1):
            if len(order) < BATCH:
                order = torch.cat([order, torch.randperm(len(x))])
            chosen, order = order[:BATCH], order[BATCH:]
            loss = functional.cross_entropy(network((shifted(x[chosen]) - mean) / deviation), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % every == 0 or step == total:
                measured = evaluate(network, *normal['validation'])
                rows.write(json.dumps({'step': step, **measured}) + '\n')
                if measured['loss'] < best:
                    best = measured['loss']
                    torch.save({'network': network.state_dict(), 'optimizer': optimizer.state_dict()}, folder / 'best')
    network.load_state_dict(torch.load(folder / 'best')['network'])
    result = evaluate(network, *normal['test'])
    (folder / 'DONE.json').write_text(json.dumps(result))
    return result


if __name__ == '__main__':
    began = time.perf_counter()
    print(main(sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])), f'{time.perf_counter() - began:.1f} s')
