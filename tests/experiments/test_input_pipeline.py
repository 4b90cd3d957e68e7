import importlib.util
import json

import numpy as np
import pytest

from experiments.benchmarks import input_pipeline, sidebyside
from experiments.benchmarks.input_pipeline import Pipeline
from experiments.benchmarks.sidebyside import Disagreement, Options, Timing


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp('files')
    input_pipeline.make_files(directory, 12)
    return directory


def test_files_are_as_large_as_those_of_imagenet(directory):
    sizes = [path.stat().st_size for path in directory.rglob('*.jpg')]
    assert len(sizes) == 12
    assert 90_000 < np.mean(sizes) < 130_000


@pytest.mark.parametrize('size', [224, 96])  # 96: some windows are decoded at half of their size
def test_the_loop_and_the_pipeline_make_the_same_pixels(directory, size, monkeypatch):
    input_pipeline.check(Pipeline(directory, size, 0), 8)
    monkeypatch.setattr(input_pipeline, 'SCALE', (0.5, 1.0))
    share = Pipeline(directory, size, 0).share(8)
    monkeypatch.setattr(Pipeline, 'share', lambda self, count: [*share[:7], share[0]])
    with pytest.raises(Disagreement, match='a batch differs'):
        input_pipeline.check(Pipeline(directory, size, 0), 8)


@pytest.mark.skipif(importlib.util.find_spec('torchvision') is None, reason='torchvision is not installed')
def test_the_loader_gives_batches(directory, monkeypatch):
    monkeypatch.setattr(input_pipeline, 'DRAINED', 1)
    monkeypatch.setattr(input_pipeline, 'BATCH', 2)
    told = {'directory': str(directory), 'size': 32, 'workers': 0, 'count': 2}
    # Without processes there is no context for them.
    monkeypatch.setattr(input_pipeline, 'CONTEXT', None)
    side = input_pipeline.prepare_loader(json.dumps(told), Options())
    assert side.runs.keys() == {'drain', 'take'}
    for run in side.runs.values():
        run()


def test_the_table_compares_with_the_loop():
    timings = {'decode': Timing((1.0,)), 'bare': Timing((2.0, 2.0)), 'threads': Timing((2.5,))}
    lines = input_pipeline.table(timings, cores=2)
    assert lines[1].split() == ['decode', '1000', '500', '2.00']
    assert lines[3].split() == ['threads', '400', '200', '0.80']
    assert sidebyside.cores() > 0
