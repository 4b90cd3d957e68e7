"""Makes gru.json beside this file: states, and gradients by the input, of PyTorch's gated recurrent units in float64.

    pip install torch==2.13.0
    python -m tests.models.references.gru.make_gru

Weights, inputs and cotangents are those of formula.py by PyTorch's names, of which the fixture keeps the shapes. The
two networks have two layers, in one direction and in both.
"""

import json
import pathlib

import torch

from tests.models.references.formula import samples, uniform, weight

SEQUENCE, WIDTH, DEPTH = (3, 7, 5), 6, 2  # [N, T, C]


def reference(bidirectional: bool) -> dict:
    network = torch.nn.GRU(SEQUENCE[-1], WIDTH, DEPTH, batch_first=True, bidirectional=bidirectional).double()
    shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    network.load_state_dict({name: torch.tensor(weight(name, shape)) for name, shape in shapes.items()})
    x = torch.tensor(uniform('input', SEQUENCE)).double().requires_grad_()
    states, _ = network(x)
    (states * torch.tensor(uniform('cotangent', tuple(states.shape)))).sum().backward()
    return {
        'sequence': SEQUENCE,
        'options': {'width': WIDTH, 'depth': DEPTH, 'bidirectional': bidirectional},
        'shapes': shapes,
        'states': samples(states.detach().numpy()),
        'gradient': samples(x.grad.numpy()),
    }


if __name__ == '__main__':
    fixture = {'torch': torch.__version__, 'networks': [reference(bidirectional) for bidirectional in (False, True)]}
    pathlib.Path(__file__).with_name('gru.json').write_text(json.dumps(fixture) + '\n')
