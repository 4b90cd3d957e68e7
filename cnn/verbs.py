"""What each verb of launch.py does; what it needs is imported when it is called for."""

import dataclasses
import json
import pathlib
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from cnn import config as configuration
from cnn.config import Experiment
from cnn.errors import InputError, RunFailed
from cnn.training.environment import prepare_jax


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
