import pathlib
import re
import shlex

import pytest
from absl import flags

import launch

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()
COMMANDS = [line for block in re.findall(r'```bash\n(.*?)```', README, re.DOTALL) for line in block.splitlines()]


def test_ci_runs_the_test_command_of_the_readme():
    (command,) = (line for line in COMMANDS if 'pytest' in line)
    assert command in (ROOT / '.ci/run').read_text().splitlines()


@pytest.mark.parametrize('command', [line for line in COMMANDS if line.startswith('python launch.py')])
def test_every_command_of_the_readme_is_understood(command):
    launch.parse(shlex.split(command)[1:], flags.FlagValues())


def test_every_file_that_the_readme_names_exists():
    named = set(re.findall(r'`((?:cnn|experiments|tests)/[\w/.]*)`', README)) - {
        'cnn/models/x.py',
        'cnn/pretrained/x.py',
        'cnn/tasks/x.py',
        'cnn/data/x.py',
        'cnn/datasets/x.py',
        'experiments/x.py',
        'experiments/ablations/x.py',
    }
    assert len(named) > 5
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_experiment_is_run_by_a_command_in_its_docstring():
    for file in sorted((ROOT / 'experiments').glob('*.py')):
        (command,) = re.findall(r'python (launch\.py.*)', file.read_text().split('"""')[1])
        parsed = launch.parse(shlex.split(command), flags.FlagValues())
        assert parsed.experiment == file.stem
