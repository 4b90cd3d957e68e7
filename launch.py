"""The only door: `python launch.py [VERB] [--config=FILE[:ARG]] [--config.FIELD=VALUE ...] [--workdir=DIR]`."""

import dataclasses
import errno
import json
import pathlib
import re
import shlex
import shutil
import sys
import textwrap
import typing
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from cnn import config as configuration
from cnn import scripts
from cnn.config import Experiment, InputError, RunFailed, RunStopped, nearest
from cnn.training.environment import prepare_jax, use_huge_pages

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
VERBS = ('train', 'evaluate', 'data', 'describe', 'benchmark', 'ablate', 'report')
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


@dataclasses.dataclass
class Command:
    """What the user asked for."""

    verb: str
    config: Experiment
    experiment: str  # the name of the experiment file
    overridden: bool  # whether any --config flag was given
    workdir: pathlib.Path | None
    print_config: bool
    profile: range | None
    split: str | None
    save_weights: pathlib.Path | None
    save_features: pathlib.Path | None
    list_names: bool
    augmented: bool
    input: tuple[int, ...] | None
    json: bool
    steps: int | None
    study: str | None
    seeds: tuple[int, ...] | None
    dry_run: bool
    emit: str | None
    pack: str
    workers: int | None
    keep_going: bool
    retries: int
    allow_code_change: bool
    executor: str
    slurm: str | None
    wait: bool
    metric: tuple[str, ...]
    folders: tuple[pathlib.Path, ...]
    argv: list[str]


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
    configuration.validate(config)
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
            special[path] = configuration.literal(value)
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
            special[path] = _items(value, str if str in kinds else configuration.literal)
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
        wanted = configuration.type_name(configuration.field_paths(Experiment())[match[1]])
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


def train(command: Command) -> None:
    """Trains, or prints the result of a finished run."""
    spec, config = resolve(command.config)
    if command.print_config:
        return print_config(config)
    folder_path = command.workdir or default_workdir(command.experiment, config)
    from cnn.training import evaluation, sharding, teachers

    if config.init_from is not None and not (folder_path / 'run.json').exists():
        evaluation.check_source(config.init_from)
    teachers.check(config, spec)
    prepare_jax(config)
    from cnn.training.loop import train_and_evaluate
    from cnn.training.records import RunFolder

    mesh = sharding.make_mesh(config)
    folder = RunFolder(folder_path)
    finished = folder.done
    result = train_and_evaluate(config, spec, mesh, folder, command.argv, command.profile)
    values = ', '.join(f'{name.replace("_", " ")} {value:.4f}' for name, value in result['metrics'].items())
    again = '' if result != finished else ' (finished before; remove it or choose another --workdir to start afresh)'
    print(f'{config.data.test_split or "last split"}: {values}, at step {result["best_step"]} of {result["step"]}')
    print(f'{folder_path}{again}')


def evaluate(command: Command) -> None:
    """Prints the metrics of a run folder's best checkpoint, or of the weights of config.init_from, on a split."""
    if command.workdir and command.overridden:
        raise InputError('evaluate --workdir takes the configuration from the run folder; leave --config out')
    from cnn.training import evaluation, sharding

    if command.workdir:
        config, folder = evaluation.read_config(command.workdir), command.workdir
    else:
        spec, config = resolve(command.config)
        folder = default_workdir(command.experiment, config)
    if command.print_config:
        return print_config(config)
    weights = None if command.workdir else config.init_from
    if weights is not None:
        evaluation.check_source(weights)
    if command.save_features and config.task.name != 'classification':
        raise InputError(f'--save_features: is for task classification, not {config.task.name}')
    prepare_jax(config)
    # Nothing accumulates or is grouped here, so any number of devices that shares a batch will do.
    config.optimizer.accumulate, config.model.batch_norm = 1, 'global'
    mesh = sharding.make_mesh(config)
    other_head = False
    if weights is not None:
        program, numbers, state, imported = evaluation.load_weights(config, spec, mesh, not command.save_features)
        origin, other_head = imported.note, imported.classes is not None
    else:
        config, program, numbers, state, step = evaluation.load_run(folder, mesh)
        origin = f'step {step} of {folder}'
    split = command.split or config.data.test_split or config.data.train_split
    from cnn import pretrained
    from cnn.data import sources

    batches = evaluation.open_split(config, sources.spec(config.data), split, mesh)
    arguments = program, numbers, state.eval_variables, batches, config.data.batch_size
    metrics = {} if other_head else evaluation.evaluate(*arguments)[0]
    for name, value in metrics.items():
        print(f'{name} {value:.6f}')
    print(f'split {split}, {batches.num_examples} examples, {origin}')
    if command.save_weights:
        naming = pretrained.save(command.save_weights, state.eval_variables, config.model.name)
        print(f'{command.save_weights}, names of {naming}')
    if command.save_features:
        arrays = evaluation.features(*arguments)
        evaluation.write_arrays(command.save_features, arrays)
        print(f'{command.save_features}, features {arrays["features"].shape}')


def data(command: Command) -> None:
    """Lists data sets, or prepares one and shows its splits, classes and a sheet of examples."""
    from cnn.data import overview

    if command.list_names:
        return print(overview.listing())
    if command.print_config:
        return print_config(resolve(command.config)[1])
    settings = command.config.data  # network and task need not fit data that is only looked at
    folder = command.workdir or pathlib.Path('runs') / 'data' / re.sub(r'[^\w.-]+', '_', settings.name)
    print(overview.describe(settings, folder))
    if command.augmented:
        prepare_jax(command.config)
        import jax

        jax.config.update('jax_platforms', 'cpu')  # few examples, and another process may have the accelerator
        print(overview.augmented(command.config, folder))


def describe(command: Command) -> None:
    """Prints a network layer by layer and the memory that training it takes; or every network that there is."""
    if command.workdir:
        raise InputError('describe writes nothing; leave --workdir out')
    from cnn import models
    from cnn.data import augment
    from cnn.inspection import describe as inspection

    if command.list_names:
        zoo = inspection.zoo()
        return print(json.dumps(zoo, indent=1) if command.json else inspection.zoo_table(zoo))
    if command.input:
        config, spec = inspection.made_up(command.config, command.input)
    else:
        spec, config = resolve(command.config)
        spec = augment.prepared_spec(spec, config.data, config.spectrogram)
    if command.print_config:
        return print_config(config)
    prepare_jax(config)
    import jax

    jax.config.update('jax_platforms', 'cpu')  # nothing is computed, and another process may have the accelerator
    num_outputs = models.variant(config.model.name).num_outputs if command.input else None
    try:
        figures = inspection.experiment(config, spec, num_outputs)
    except Exception as error:
        if isinstance(error, InputError) or not command.input:
            raise
        # A network that does not say what it can take breaks where it is given something else.
        shape = ','.join(map(str, command.input))
        raise InputError(f'--input={shape}: {config.model.name} can not take it: {error}'.splitlines()[0]) from error
    print(json.dumps(figures, indent=1) if command.json else inspection.table(figures))


def benchmark(command: Command) -> None:
    """Prints how fast the train step is; writes the same figures to benchmark.json where a folder is given."""
    spec, config = resolve(command.config)
    if command.print_config:
        return print_config(config)
    prepare_jax(config)
    import jax

    jax.config.update('jax_enable_compilation_cache', False)  # a program that is read from a file compiles in no time
    from cnn.inspection import benchmark as inspection
    from cnn.training import sharding
    from cnn.training.records import RunFolder, write_json

    mesh = sharding.make_mesh(config)
    folder = RunFolder(command.workdir) if command.workdir else None
    figures = inspection.measure(config, spec, mesh, command.steps)
    print(inspection.table(figures))
    if folder:
        write_json(folder.path / 'benchmark.json', {'command': command.argv, **figures})


def ablate(command: Command) -> None:
    """Shows the plan of a study and runs it; or prints what would."""
    if command.overridden or command.print_config:
        raise InputError('ablate takes its configurations from the study; leave --config and --print_config out')
    if command.study is None:
        raise InputError('ablate needs a study: --study=experiments/ablations/NAME.py')
    if command.executor == 'slurm' and not (command.dry_run or command.emit):
        from cnn.studies import slurm

        slurm.check()
        settings = slurm.parse(command.slurm)
    elif command.executor != 'slurm' and (command.slurm is not None or command.wait):
        raise InputError('--slurm and --wait are for --executor=slurm')
    plan = plan_study(command)
    from cnn.studies import commands, overview
    from cnn.studies import plan as plans

    if not command.dry_run and not command.allow_code_change:
        plans.check_code(plan)
    if command.emit:
        return print('\n'.join(commands.commands(plan, command.argv[0])) or '# every run is done')
    print(overview.text(plan))
    if command.dry_run:
        return
    if command.executor == 'slurm':
        unfinished = slurm.execute(plan, settings, command.wait, command.pack, command.argv)
        if unfinished is None:
            return
        report_study(command, plan)
        if unfinished:
            raise RunFailed(f'{len(unfinished)} runs are not done: {"; ".join(unfinished)}')
        return
    from cnn.studies import queue

    options = queue.Options(command.pack, command.workers, command.keep_going, command.retries, command.argv)
    failures = queue.run(plan, options)
    try:
        report_study(command, plan)
    finally:
        queue.raise_for(failures)


def report(command: Command) -> None:
    """Writes the report of a study, or of run folders, whatever is done of them; prints the answer."""
    if command.overridden or command.print_config:
        raise InputError('report takes its configurations from the runs; leave --config and --print_config out')
    if (command.study is None) == (not command.folders):
        raise InputError(
            'report needs a study, --study=experiments/ablations/NAME.py, or folders: report DIR [DIR ...]'
        )
    if command.study is not None:
        if command.metric:
            raise InputError('--metric is for folders; a study itself says what decides')
        plan = plan_study(command)
        if not any(run.folder.exists() for run in plan.runs):
            raise InputError(f'{plan.root}: no run of the study was begun there; ablate begins them')
        return report_study(command, plan)
    if command.seeds is not None:
        raise InputError('--seeds is for --study; of folders all runs count')
    if len(command.folders) > 1 and command.workdir is None:
        raise InputError('report of several folders: say where it goes, --workdir=DIR')
    from cnn.studies import results

    found = results.from_folders(command.folders, *command.metric)
    write_report(found, command.workdir or command.folders[0], [])


def plan_study(command: Command) -> Any:
    """The runs of a study, looked up in their folders."""
    from cnn import studies

    assert command.study is not None
    study = studies.load(command.study)
    root = command.workdir or pathlib.Path('runs') / pathlib.Path(command.study.partition(':')[0]).stem
    import jax

    jax.config.update('jax_platforms', 'cpu')  # nothing is computed here; the accelerators are for the runs
    from cnn.studies import plan as plans

    return plans.plan(study, command.seeds or range(study.seeds), root)


def report_study(command: Command, plan: Any) -> None:
    """Writes the report of a study, and prints the answer; after runs of which none is done there is neither."""
    from cnn.studies import results

    found = results.collect(plan.study, plan.runs, plan.direction, plan.costs)
    if command.verb == 'ablate' and not any(outcome.status == results.DONE for outcome in found.outcomes):
        return
    again = ['python', command.argv[0], 'ablate', *command.argv[2:]]
    write_report(found, plan.root, [shlex.join(again)])


def write_report(found: Any, folder: pathlib.Path, commands: Sequence[str]) -> None:
    """Writes a report into a folder that is no run's, and prints the answer."""
    from cnn.studies import report as reports

    if (folder / 'run.json').exists():
        raise InputError(f'{folder}: holds a run, and pictures of its own; say where the report goes, --workdir=DIR')
    try:
        answer = reports.write(found, folder, commands)
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise InputError(f'{folder}: cannot be written ({error.strerror}); choose another --workdir') from None
    columns = shutil.get_terminal_size().columns
    print(textwrap.fill(answer, columns) if sys.stdout.isatty() else answer)
    print(folder / 'report.html')


def resolve(config: Experiment) -> tuple[configuration.Spec, Experiment]:
    """The data's spec and the configuration with every name checked and every option written out."""
    from cnn.training import program

    return program.resolve_with_data(config)


def default_workdir(experiment: str, config: Experiment) -> pathlib.Path:
    """Where the run of a resolved configuration goes."""
    return pathlib.Path('runs') / experiment / configuration.fingerprint(config)


def print_config(config: Experiment) -> None:
    """Prints one field a line."""
    for path in configuration.field_paths(config):
        print(f'config.{path} = {configuration.get(config, path)!r}')


def main(command: Command) -> int:
    """Runs a verb; returns the exit code."""
    if not flags.FLAGS['verbosity'].present:
        logging.set_verbosity(logging.WARNING)
    try:
        verbs = {'train': train, 'evaluate': evaluate, 'data': data, 'describe': describe, 'benchmark': benchmark}
        {**verbs, 'ablate': ablate, 'report': report}[command.verb](command)
    except (InputError, RunFailed, RunStopped) as error:
        return fail(error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO):
            raise
        return fail(RunFailed(f'{error}; make room, and the same command resumes'))
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
