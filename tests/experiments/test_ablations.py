"""The textbook's claims as studies: each can be planned as it stands, and tells what was measured."""

import ast
import inspect
import re

import pytest

from cnn import studies
from cnn.scripts import ROOT
from cnn.studies import overview
from cnn.studies import plan as plans

FILES = sorted((ROOT / 'experiments/ablations').glob('*.py'))
CLAIMS = (
    'skip_connections',
    'weight_sharing',
    'translation',
    'pooling',
    'kernel_size',
    'dense_layers',
    'separable',
    'scaling',
    'regularisation',
    'pretraining',
    'architectures',
)


def test_every_claim_of_the_textbook_has_a_study():
    assert set(CLAIMS) <= {file.stem for file in FILES}


@pytest.fixture(scope='module', params=FILES, ids=lambda file: file.stem)
def file(request):
    return request.param


def test_a_study_can_be_planned_and_has_the_seeds_that_it_needs(file, tmp_path):
    study = studies.load(str(file))
    plan = plans.plan(study, range(study.seeds), tmp_path)
    assert study.seeds >= 8
    assert 'WARNING: ' not in overview.text(plan)
    assert study.effect
    assert study.question.endswith('?')


def test_its_docstring_has_the_command_and_what_was_measured(file):
    text = inspect.cleandoc(ast.get_docstring(ast.parse(file.read_text())))
    assert f'python launch.py ablate --study={file.relative_to(ROOT)}' in text
    assert 'not yet' not in text
    rows = [line for line in text.splitlines() if len(re.findall(r'\.\d{3,}', line)) > 1]
    assert len(rows) >= len(studies.load(str(file)).arms)
    assert re.search(r'[Mm]easured over \d+ seeds|\d+ seconds on 2 CPU cores|seeds 0 to \d', text)
