"""The only door: `python launch.py [VERB] [--config=FILE[:ARG]] [--config.FIELD=VALUE ...] [--workdir=DIR]`."""

import pathlib
import re
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from cnn import config as configuration
from cnn import scripts, validation, verbs
from cnn.config import Experiment
from cnn.errors import InputError, RunFailed, RunStopped, nearest, of_disk
from cnn.training.environment import use_huge_pages
from cnn.verbs import Command

ROOT = pathlib.Path(__file__).resolve().parent
DEFAULT_EXPERIMENT = str(ROOT / 'experiments' / 'digits.py')
HELP = """\
python launch.py [VERB] [--config=FILE[:ARG]] [--config.FIELD=VALUE ...] [--workdir=DIR]

verbs
  train      train, evaluate, keep the best (on validation) and the last; the same command resumes (default)
  evaluate   a run folder on a split: --workdir=RUN --split=test; or others' weights: --config.init_from=FILE
  data       prepare a data set and look at it: --config.data.name=NAME; --list shows what there is
  describe   the network by layer: parameters, multiply-adds, receptive field, memory; --list shows all
  benchmark  the train step on made-up batches: compile time, speed, share of the roofline, memory
  ablate     a study: its plan, then its runs, then its report
  report     what runs show, finished or not: of a study, or of all run folders in `report DIR [DIR ...]`

flags
  --config=FILE[:ARG]         an experiment file (default experiments/digits.py)
  --config.FIELD=VALUE        any field of the configuration; 'none' clears one that may be empty
  --config.model.options.KEY=VALUE, --config.task.options.KEY=VALUE
                              fields of the network and of the task; another name drops the file's options
  --workdir=DIR               the folder to write to (default runs/EXPERIMENT/FINGERPRINT; ablate and report:
                              runs/STUDY; report DIR: DIR; benchmark: none)
  --print_config              show the resolved configuration and stop
  --profile=START:STOP        train: trace these steps with the profiler, into the run folder
  --allow_partial=REGEX[,REGEX]
                              train, evaluate: names that the file of --config.init_from may lack
                              or have beyond the network (short for --config.allow_partial)
  --split=NAME                evaluate: the split (default config.data.test_split)
  --save_weights=FILE         evaluate: also write the weights, as .safetensors with torchvision's names
  --save_features=FILE        evaluate: also write what the head reads of the split, as .npz; any head will do
  --augmented                 data: also draw training examples as the network will see them
  --list                      data: the data sets that there are; describe: the networks that there are
  --input=SIZE,SIZE,CHANNELS  describe: for examples of this shape, such as 224,224,3, in place of the data's
  --json                      describe: figures as JSON
  --steps=N                   benchmark: how many steps to time (default 5 to 200, what 5 seconds hold)
  --study=FILE[:ARG]          ablate, report: the study
  --seeds=N, --seeds=SEED,SEED,...
                              ablate, report: so many from 0, or these (default: what the study says)
  --metric=NAME[,NAME...]     report DIR: the metric that decides, then others to show beside it
  --dry_run                   ablate: show the plan and stop
  --emit=commands             ablate: print a command for each run that is not done, and stop
  --pack=auto|none|unrolled|dispatched|vmapped
                              ablate: how runs with one program train together (default: the fastest here)
  --workers=N                 ablate: how many processes (default: one for each GPU, or for each core up to 8)
  --keep_going                ablate: go on with the other runs after a failure
  --retries=N                 ablate: how often a run is tried again that the system ended (default 1)
  --allow_code_change         ablate: go on where the code is another than that of runs which were begun
  --executor=local|slurm      ablate: run on this machine (default), or submit the runs to a cluster
  --slurm=NAME=VALUE[,...]    ablate: what a task asks of the cluster: partition, time (minutes), gpus, cpus,
                              memory (GB); and runs, how many of one program share it (default 1)
  --wait                      ablate: stay until the cluster's jobs have ended

exit codes: 0 done; 2 the user's mistake, in one line; 75 stopped by SIGTERM and saved; 1 anything else
"""
VERBS = {
    'train': verbs.train,
    'evaluate': verbs.evaluate,
    'data': verbs.data,
    'describe': verbs.describe,
    'benchmark': verbs.benchmark,
    'ablate': verbs.ablate,
    'report': verbs.report,
}
PACKS = ('auto', 'none', 'unrolled', 'dispatched', 'vmapped')
VERBS_OF_FLAGS = {
    'profile': ('train',),
    'split': ('evaluate',),
    'save_weights': ('evaluate',),
    'save_features': ('evaluate',),
    'list': ('data', 'describe'),
    'augmented': ('data',),
    'input': ('describe',),
    'json': ('describe',),
    'steps': ('benchmark',),
    'study': ('ablate', 'report'),
    'seeds': ('ablate', 'report'),
    'metric': ('report',),
    'dry_run': ('ablate',),
    'emit': ('ablate',),
    'pack': ('ablate',),
    'workers': ('ablate',),
    'keep_going': ('ablate',),
    'retries': ('ablate',),
    'allow_code_change': ('ablate',),
    'executor': ('ablate',),
    'slurm': ('ablate',),
    'wait': ('ablate',),
}
OVERRIDE = re.compile(r'--?(?P<no>no)?config\.(?P<path>[^=]*)(=(?P<value>.*))?', re.DOTALL)


def parse(argv: Sequence[str], flag_values: flags.FlagValues) -> Command:
    """Reads a command line. Raises InputError for anything that is not understood; imports no JAX."""
    # It decides the bits of a run, so it is a field of the configuration.
    arguments = _joined([re.sub(r'^--?(?=allow_partial(=|$))', '--config.', argument) for argument in argv[1:]])
    verb = arguments.pop(0) if arguments and not arguments[0].startswith('-') else 'train'
    if verb not in VERBS:
        raise nearest('verb', verb, VERBS)
    overridden = any(re.match(r'--?(no)?config\b', argument) for argument in arguments)
    arguments, special = _without_special(arguments)
    files = [argument for argument in arguments if re.match(r'--?config=', argument)]
    arguments = [argv[0], *(argument for argument in arguments if argument not in files)]
    file = files[-1].partition('=')[2] if files else DEFAULT_EXPERIMENT
    experiment = load_experiment(file)
    flags.DEFINE_string('workdir', None, 'the folder to write to', flag_values)
    flags.DEFINE_boolean('print_config', False, 'show the resolved configuration and stop', flag_values)
    flags.DEFINE_string('profile', None, 'START:STOP, the steps to trace', flag_values)
    flags.DEFINE_string('split', None, 'the split to evaluate', flag_values)
    flags.DEFINE_string('save_weights', None, 'the file to write the weights to', flag_values)
    flags.DEFINE_string('save_features', None, 'the file to write the features to', flag_values)
    flags.DEFINE_boolean('augmented', False, 'draw augmented training examples', flag_values)
    flags.DEFINE_boolean('list', False, 'list the data sets, or the networks', flag_values)
    flags.DEFINE_string('input', None, 'the shape of an example', flag_values)
    flags.DEFINE_boolean('json', False, 'print figures as JSON', flag_values)
    flags.DEFINE_integer('steps', None, 'the number of steps to time', lower_bound=1, flag_values=flag_values)
    flags.DEFINE_string('study', None, 'the file of a study', flag_values)
    flags.DEFINE_string('seeds', None, 'how many seeds, or which', flag_values)
    flags.DEFINE_string('metric', None, 'what decides, and what else is shown', flag_values)
    flags.DEFINE_boolean('dry_run', False, 'show the plan and stop', flag_values)
    flags.DEFINE_string('emit', None, 'print commands and stop', flag_values)
    flags.DEFINE_string('pack', 'auto', 'how runs train together', flag_values)
    flags.DEFINE_integer('workers', None, 'how many processes', lower_bound=1, flag_values=flag_values)
    flags.DEFINE_boolean('keep_going', False, 'go on after a failure', flag_values)
    flags.DEFINE_integer('retries', 1, 'how often a run is tried again', lower_bound=0, flag_values=flag_values)
    flags.DEFINE_boolean('allow_code_change', False, 'go on with other code', flag_values)
    flags.DEFINE_string('executor', 'local', 'where runs go', flag_values)
    flags.DEFINE_string('slurm', None, 'what a run asks of the cluster', flag_values)
    flags.DEFINE_boolean('wait', False, 'stay until the jobs have ended', flag_values)
    flag_values.set_gnu_getopt(True)  # folders may stand between flags
    try:
        config_flags.DEFINE_config_dataclass('config', experiment, 'an experiment file', flag_values, arguments)
        rest = flag_values(arguments)[1:]
    except flags.UnrecognizedFlagError as error:
        raise nearest('flag', f'--{error.flagname}', [f'--{name}' for name in flag_values]) from None
    except (flags.Error, ValueError) as error:
        raise _parse_error(error) from None
    if rest and verb != 'report':
        raise InputError(f'unexpected argument {rest[0]!r}; flags are written --NAME=VALUE')
    for name, owners in VERBS_OF_FLAGS.items():
        if flag_values[name].present and verb not in owners:
            raise InputError(f'--{name} belongs to another verb: python launch.py {owners[0]} --{name}')
    config = flag_values.config
    configuration.override(config, special, experiment)
    validation.validate(config)
    return Command(
        verb=verb,
        config=config,
        experiment=pathlib.Path(file.partition(':')[0]).stem,
        overridden=overridden,
        workdir=pathlib.Path(flag_values.workdir) if flag_values.workdir else None,
        print_config=flag_values.print_config,
        profile=_profile(flag_values.profile),
        split=flag_values.split,
        save_weights=_file('save_weights', flag_values.save_weights, '.safetensors'),
        save_features=_file('save_features', flag_values.save_features, '.npz'),
        list_names=flag_values.list,
        augmented=flag_values.augmented,
        input=_shape(flag_values.input),
        json=flag_values.json,
        steps=flag_values.steps,
        study=flag_values.study,
        seeds=_seeds(flag_values.seeds),
        dry_run=flag_values.dry_run,
        emit=_emit(flag_values.emit),
        pack=_one_of('pack', flag_values.pack, PACKS),
        workers=flag_values.workers,
        keep_going=flag_values.keep_going,
        retries=flag_values.retries,
        allow_code_change=flag_values.allow_code_change,
        executor=_one_of('executor', flag_values.executor, ('local', 'slurm')),
        slurm=flag_values.slurm,
        wait=flag_values.wait,
        metric=_items(flag_values.metric or '', str),
        folders=tuple(map(pathlib.Path, rest)),
        argv=list(argv),
    )


def load_experiment(path: str) -> Experiment:
    """The configuration of FILE[:ARG]. Raises InputError naming the line where the file goes wrong."""
    return scripts.load(path, 'get_config', Experiment)


def _joined(arguments: Sequence[str]) -> list[str]:
    """`--config.FIELD VALUE` as one argument, unless FIELD is a switch that stands alone."""
    joined: list[str] = []
    for argument in arguments:
        before = joined[-1] if joined else ''
        is_value = not argument.startswith('-') or re.fullmatch(r'-[\d.].*', argument)
        if is_value and re.fullmatch(r'--?config(\.[^=]*)?', before):
            joined[-1] = f'{before}={argument}'
        else:
            joined.append(argument)
    return joined


def _without_special(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Takes out what configuration flags can't do: options, `none`, tuples. Refuses unknown fields."""
    paths = configuration.field_paths(Experiment())
    ordinary: list[str] = []
    special: dict[str, Any] = {}
    for argument in arguments:
        override = OVERRIDE.fullmatch(argument)
        if not override:
            ordinary.append(argument)
            continue
        path, value = override['path'], override['value']
        part, _, option = path.partition('.options.')
        if override['no'] and (option or value is not None):
            raise InputError(f'{argument}: write --config.{path}=VALUE')
        if option and f'{part}.options' in paths:
            if value is None:
                raise InputError(f'--config.{path}: give it a value, --config.{path}=VALUE')
            special[path] = validation.literal(value)
            continue
        if path not in paths:
            raise nearest('field', f'config.{path}', [f'config.{known}' for known in paths])
        annotation = paths[path]
        if annotation in (dict, dict[str, Any]):
            raise InputError(f'--config.{path}: set one option at a time, --config.{path}.NAME=VALUE')
        kinds = (annotation, *typing.get_args(annotation))
        clears = value is not None and value.lower() == 'none'
        if clears and type(None) in kinds:
            special[path] = None
        elif clears and ... in kinds:
            special[path] = ()
        elif value is not None and any(typing.get_origin(kind) is tuple for kind in kinds):
            special[path] = _items(value, str if str in kinds else validation.literal)
        else:
            special.pop(path, None)
            ordinary.append(argument)
    return ordinary, special


def _items(text: str, convert: Callable[[str], Any]) -> tuple[Any, ...]:
    """The items of a tuple, with or without brackets and quotes: `50%,75%`, `(32, 32)`, `['bias']`."""
    # A regular expression may begin and end with brackets of its own.
    bracketed = re.fullmatch(r' *(\(([^()]*)\)|\[([^\[\]]*)\]) *', text)
    items = (bracketed[2] or bracketed[3] or '') if bracketed else text
    found = re.findall(r"""(?:'[^']*'|"[^"]*"|[^,])+""", items)  # a comma in quotes divides nothing
    return tuple(convert(item) for item in (item.strip(' \'"') for item in found) if item)


def _parse_error(error: Exception) -> InputError:
    """One line for what absl says of a flag."""
    for cause in (error, error.__cause__, error.__context__):
        if isinstance(cause, InputError):
            return cause
    text = str(error).splitlines()[0]
    match = re.match(r'flag --config\.([\w.]+)=(.*?): ', str(error), re.DOTALL)
    if match:
        wanted = validation.type_name(configuration.field_paths(Experiment())[match[1]])
        return InputError(f'config.{match[1]}={match[2]!r}: is not {wanted}')
    return InputError(text)


def _profile(text: str | None) -> range | None:
    match = re.fullmatch(r'(\d+):(\d+)', text or '')
    if text and not (match and int(match[1]) < int(match[2])):
        raise InputError(f'--profile={text!r}: write START:STOP, two steps, the first below the second')
    return range(int(match[1]), int(match[2])) if match else None


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is not None and not re.fullmatch(r'[1-9]\d*(,[1-9]\d*)*', text):
        raise InputError(f'--input={text!r}: write the shape of an example, such as --input=224,224,3')
    return tuple(map(int, text.split(','))) if text else None


def _seeds(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    if not re.fullmatch(r'\d+(,\d+)*,?', text) or text == '0':
        raise InputError(f'--seeds={text!r}: write how many, such as --seeds=8, or which, such as --seeds=0,1,5')
    seeds = tuple(int(seed) for seed in text.split(',') if seed)
    if ',' in text and max(seeds) >= 2**32:
        raise InputError(f'--seeds={text!r}: seeds must be below 2**32')
    return seeds if ',' in text else tuple(range(seeds[0]))


def _emit(text: str | None) -> str | None:
    if text not in (None, 'commands'):
        raise nearest('form of --emit', text, ['commands'])
    return text


def _one_of(flag: str, text: str, known: Sequence[str]) -> str:
    if text not in known:
        raise nearest(flag, text, known)
    return text


def _file(flag: str, text: str | None, suffix: str) -> pathlib.Path | None:
    path = pathlib.Path(text) if text else None
    if path and (path.suffix != suffix or not path.parent.is_dir()):
        raise InputError(f'--{flag}={text!r}: write FILE{suffix}, in a folder that there is')
    return path


def main(command: Command) -> int:
    """Runs a verb; returns the exit code."""
    if not flags.FLAGS['verbosity'].present:
        logging.set_verbosity(logging.WARNING)
    try:
        VERBS[command.verb](command)
    except (InputError, RunFailed, RunStopped) as error:
        return fail(error)
    except OSError as error:
        failure = of_disk(error)
        if failure is None:
            raise
        return fail(failure)
    return 0


def fail(error: InputError | RunFailed | RunStopped) -> int:
    """Says in one line what went wrong; returns the exit code."""
    print(f'launch.py: {" ".join(str(error).split())}', file=sys.stderr)
    return error.exit_code


def parse_or_exit(argv: Sequence[str]) -> Command:
    """`parse` for absl's `run`: help and mistakes end the process."""
    if any(argument in ('-h', '-help', '--help', '--helpfull', '--helpshort') for argument in argv[1:]):
        sys.exit(print(HELP, end=''))
    try:
        return parse(argv, flags.FLAGS)
    except InputError as error:
        sys.exit(fail(error))


if __name__ == '__main__':
    use_huge_pages()
    app.run(main, flags_parser=parse_or_exit)
