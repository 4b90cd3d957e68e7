import dataclasses
import json
import math

import numpy as np
import pytest
from made_study import AGAINST, FAILING, Run, made_study, small_results, write_run

from cnn.config import Experiment, set_value
from cnn.errors import InputError
from cnn.studies import Arm, Study
from cnn.studies.results import collect, environment, from_folders, read


def test_every_arm_and_seed_has_an_outcome_and_the_missing_ones_say_what_became_of_them(tmp_path):
    study, runs, costs = made_study(tmp_path, seeds=4)
    results = collect(study, runs, 'max', costs)
    assert results.seeds == (0, 1, 2, 3)
    assert len(results.outcomes) == len(study.arms) * 4
    assert [(o.seed, o.status, o.error) for o in results.missing('plain 20')] == [(3, 'partial', None)]
    assert {o.error for o in results.missing(FAILING)} == {'out of memory: 3 <GiB> more'}
    assert {o.status for o in results.missing(FAILING)} == {'failed'}
    assert results.missing('residual 8') == []
    assert results.values(FAILING) == {}
    assert list(results.values('plain 20')) == [0, 1, 2]
    array = results.array()
    assert array.shape == (8, 4)
    names = [arm.name for arm in study.arms]
    holes = {(names[row], int(seed)) for row, seed in np.argwhere(np.isnan(array))}
    assert holes == {('plain 20', 3), *((FAILING, seed) for seed in range(4))}
    done = json.loads((tmp_path / '4-2' / 'DONE.json').read_text())
    assert results.values('residual 56')[2] == done['metrics']['accuracy'] == array[4, 2]
    assert study.compared_with(study.arm('plain 56')) == AGAINST['plain 56']


def test_the_folders_decide_and_not_what_the_plan_thought(tmp_path):
    study, runs, _ = made_study(tmp_path, seeds=2)
    write_run(tmp_path / 'late', 0, {'accuracy': 0.5})
    runs = [run for run in runs if run.arm != FAILING] + [Run(FAILING, 0, tmp_path / 'late')]
    results = collect(study, runs)
    assert results.values(FAILING) == {0: 0.5}
    assert [(o.seed, o.status, o.folder) for o in results.missing(FAILING)] == [(1, 'to do', None)]


@pytest.mark.parametrize(
    ('name', 'content', 'error'),
    [
        ('DONE.json', '{"step": 1', 'DONE.json: is damaged'),
        ('DONE.json', '{"step": 1}', "lacks 'metrics'"),
        ('run.json', 'x', 'run.json: is damaged'),
        ('metrics.jsonl', '{"step": 1\n{}\n', 'delimiter'),
        ('FAILED.json', '{', 'FAILED.json: is damaged'),
    ],
)
def test_a_damaged_run_does_not_hide_the_others(tmp_path, name, content, error):
    write_run(tmp_path / 'run', 0, {'accuracy': 0.5})
    (tmp_path / 'run' / name).write_text(content)
    outcome = read('a', 0, tmp_path / 'run')
    assert (outcome.status, outcome.metrics) == ('damaged', {})
    assert error in outcome.error
    assert '\n' not in outcome.error


def test_a_metric_that_is_no_number_is_missing_and_not_a_mean(tmp_path):
    results = small_results(tmp_path, {'a': [0.5, math.nan, math.inf]})
    assert results.values('a') == {0: 0.5}
    assert [results.word(outcome) for outcome in results.missing('a')] == ['accuracy is nan', 'accuracy is inf']


def test_a_metric_that_the_runs_do_not_measure_is_refused(tmp_path):
    write_run(tmp_path / '0', 0, {'accuracy': 0.5})
    study = Study('Why?', 'experiments/digits.py', [Arm('a')], 'a', metric='acuracy')
    with pytest.raises(InputError, match="unknown metric 'acuracy'; did you mean 'accuracy'"):
        collect(study, [Run('a', 0, tmp_path / '0')])
    with pytest.raises(InputError, match="unknown metric 'calibration'"):
        collect(dataclasses.replace(study, metric='accuracy', also=('calibration',)), [Run('a', 0, tmp_path / '0')])


def test_device_seconds_are_seconds_times_the_devices_of_the_mesh(tmp_path):
    def seconds(name, done=None, **mesh):
        config = Experiment()
        for field, value in mesh.items():
            set_value(config, f'mesh.{field}', value)
        write_run(tmp_path / name, 0, {'accuracy': 1.0}, config=config, seconds=10.0, devices=['tpu: v4'] * 8)
        path = tmp_path / name / 'DONE.json'
        path.write_text(json.dumps(json.loads(path.read_text()) | (done or {})))
        return read('a', 0, tmp_path / name).seconds

    assert seconds('all') == 80
    assert seconds('some', data=2, fsdp=2) == 40
    assert seconds('pack', done={'devices': 1}) == 10
    assert read('a', 0, tmp_path / 'all').examples_per_second == 900 / 8  # a device's share of 9000 in 10 seconds


def test_the_split_that_the_metrics_are_of(tmp_path):
    config = Experiment()
    write_run(tmp_path / '0', 0, {'accuracy': 1.0}, rows=[{'step': 1, 'split': 'test', 'accuracy': 1.0}])
    write_run(tmp_path / '1', 1, {'accuracy': 1.0})
    set_value(config, 'data.validation_split', None)
    write_run(tmp_path / '2', 2, {'accuracy': 1.0}, config=config)
    write_run(tmp_path / '3', 3, {}, status='partial')
    assert [read('a', seed, tmp_path / str(seed)).split for seed in range(4)] == ['test', 'validation', 'train', None]


def configured(**fields):
    config = Experiment()
    for path, value in fields.items():
        set_value(config, path.replace('__', '.'), value)
    return config


def test_folders_without_a_study_are_arms_by_the_fields_in_which_they_differ(tmp_path):
    for seed in (0, 1):
        for index, rate in enumerate((0.2, 0.1)):
            config = configured(optimizer__learning_rate=rate, log__every=str(seed + 1))
            write_run(tmp_path / 'runs' / f'{index}-{seed}', seed, {'accuracy': rate + seed}, config=config)
    write_run(tmp_path / 'runs' / 'x', 2, {}, config=configured(optimizer__learning_rate=0.1), status='partial')
    results = from_folders([tmp_path / 'runs', tmp_path / 'runs' / 'x'])
    assert [arm.name for arm in results.study.arms] == ['learning_rate=0.2', 'learning_rate=0.1']
    assert results.study.baseline == 'learning_rate=0.2'
    assert (results.study.metric, results.direction, results.seeds) == ('accuracy', 'max', (0, 1, 2))
    assert results.values('learning_rate=0.1') == {0: 0.1, 1: 1.1}
    assert [o.status for o in results.missing('learning_rate=0.1')] == ['partial']
    assert [o.status for o in results.missing('learning_rate=0.2')] == ['to do']
    assert from_folders([tmp_path / 'runs'], 'accuracy').study.metric == 'accuracy'
    for metrics in (['los'], ['accuracy', 'los']):
        with pytest.raises(InputError, match="unknown metric 'los'; did you mean 'loss'"):
            from_folders([tmp_path / 'runs'], *metrics)


def test_options_that_not_all_networks_have_do_not_name_arms_unless_they_must(tmp_path):
    networks = [('resnet', {'depth': 8, 'pool': 'max'}), ('mlp', {'widths': [4, 4]})]
    for index, (name, options) in enumerate(networks):
        config = configured(model__name=name, model__options=options)
        write_run(tmp_path / 'two' / str(index), 0, {'accuracy': 0.5}, config=config)
    assert [arm.name for arm in from_folders([tmp_path / 'two']).study.arms] == ['model=resnet', 'model=mlp']
    config = configured(model__name='resnet', model__options={'depth': 14, 'pool': 'max'})
    write_run(tmp_path / 'two' / '2', 0, {'accuracy': 0.5}, config=config)
    names = [arm.name for arm in from_folders([tmp_path / 'two']).study.arms]
    assert len(set(names)) == 3
    assert names[2] == 'model=resnet, depth=14, pool=max'


def test_one_configuration_is_one_arm_and_loss_is_better_when_less(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / str(seed), seed, {'loss': 1.0}, config=configured(eval__metric='loss'))
    results = from_folders([tmp_path])
    assert [arm.name for arm in results.study.arms] == ['runs']
    assert (results.direction, results.sign) == ('min', -1)


def test_folders_that_make_no_study_are_refused(tmp_path):
    with pytest.raises(InputError, match='no run folder there'):
        from_folders([tmp_path])
    (tmp_path / 'run.json').write_text('{"config": 1}')
    with pytest.raises(InputError, match=r'run\.json is no record of a run; leave that folder out'):
        from_folders([tmp_path])
    (tmp_path / 'run.json').unlink()
    write_run(tmp_path / 'a', 0, {'accuracy': 0.5})
    write_run(tmp_path / 'b', 0, {'accuracy': 0.5})
    with pytest.raises(InputError, match=r'a and .*b: the same configuration and seed'):
        from_folders([tmp_path])
    write_run(tmp_path / 'other' / 'c', 1, {'accuracy': 0.5}, config=configured(task__name='segmentation'))
    with pytest.raises(InputError, match=r'several tasks \(classification, segmentation\)'):
        from_folders([tmp_path / 'a', tmp_path / 'other'])
    write_run(tmp_path / 'd', 1, {'accuracy': 0.5}, config=configured(eval__metric='loss'))
    with pytest.raises(InputError, match=r'several metrics \(accuracy, loss\)'):
        from_folders([tmp_path / 'a', tmp_path / 'd'])


def test_the_environment_names_the_runs_that_differ_also_those_that_went_on_with_other_code(tmp_path):
    history = [{'command': []}, {'command': [], 'changed': {'code': ['c' * 40, 'e' * 40], 'config.log.every': [1, 2]}}]
    write_run(tmp_path / '0', 0, {'accuracy': 0.5}, devices=['gpu: H100'] * 2)
    write_run(tmp_path / '1', 1, {'accuracy': 0.5}, history=history, data={'train': 'z' * 64, 'test': 'b' * 64})
    study = Study('Why?', 'experiments/digits.py', [Arm('a')], 'a')
    found = environment(collect(study, [Run('a', seed, tmp_path / str(seed)) for seed in (0, 1)]))
    seeds = {name: {value: [o.seed for o in of] for value, of in versions.items()} for name, versions in found.items()}
    assert seeds['code'] == {'c' * 40: [0, 1], 'e' * 40: [1]}
    assert seeds['devices'] == {'2 x gpu: H100': [0], '1 x cpu: cpu': [1]}
    assert seeds['jax'] == {'0.10.2': [0, 1]}
    assert seeds['data of a, train'] == {'a' * 12: [0], 'z' * 12: [1]}
    assert 'data of a, test' not in seeds
