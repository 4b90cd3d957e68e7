import json
import pathlib

import jax
import numpy as np
import pytest

from cnn import config, validation
from cnn.config import split_numbers
from cnn.training import schedules

REFERENCES = json.loads((pathlib.Path(__file__).parent / 'references' / 'optimizers.json').read_text())['schedules']


def numbers_of(schedule, **counts):
    _, numbers = split_numbers(config.Experiment(optimizer=config.Optimizer(learning_rate=2.0), schedule=schedule))
    return {**numbers, 'steps': {'total': 10, 'warmup': 0, 'every': 1, 'boundaries': [], **counts}}


def rates(schedule, steps, **counts):
    numbers = numbers_of(schedule, **counts)
    return np.array([schedules.learning_rate(schedule, step, numbers) for step in steps])


@pytest.mark.parametrize('name', REFERENCES)
def test_every_step_has_the_rate_of_pytorchs_schedule(name):
    reference = REFERENCES[name]
    schedule = config.Schedule(name=name, **reference['ours'])
    found = rates(schedule, range(len(reference['factors'])), **reference['steps'])
    np.testing.assert_allclose(found, 2 * np.array(reference['factors']), rtol=2e-6, atol=1e-7)


def test_every_schedule_has_a_reference_or_a_closed_form_here():
    assert REFERENCES.keys() | {'inverse_sqrt'} == set(validation.CHOICES['schedule.name'])


def test_inverse_sqrt_is_that_of_the_transformer_with_its_peak_at_the_last_step_of_the_warmup():
    step = np.arange(1, 41)
    published = np.minimum(step**-0.5, step * 9**-1.5)
    np.testing.assert_allclose(
        rates(config.Schedule(name='inverse_sqrt'), range(40), warmup=9), 2 * published / published[8], rtol=1e-6
    )


def test_polynomial_goes_down_to_the_final_rate():
    found = rates(config.Schedule(name='polynomial', final=0.1, power=2.0), [0, 5, 10, 12])
    np.testing.assert_allclose(found, [2, 2 * (0.1 + 0.9 / 4), 0.2, 0.2], rtol=1e-6)


def test_exponential_counts_its_stairs_from_the_first_step_and_warms_up_to_the_full_rate():
    found = rates(config.Schedule(name='exponential', factor=0.5), range(8), warmup=4, every=3)
    np.testing.assert_allclose(found, [0.5, 1, 1.5, 2, 1, 1, 0.5, 0.5], rtol=1e-6)


def test_constant_rises_to_the_full_rate_at_the_last_step_of_the_warmup():
    np.testing.assert_allclose(rates(config.Schedule(), range(6), warmup=4), [0.5, 1, 1.5, 2, 2, 2], rtol=1e-6)


def test_step_multiplies_at_each_boundary_after_a_warmup_too():
    schedule = config.Schedule(name='step', factor=0.1)
    found = rates(schedule, range(7), boundaries=[3, 5], warmup=2)
    np.testing.assert_allclose(found, [1, 2, 2, 0.2, 0.2, 0.02, 0.02], rtol=1e-6)


@pytest.mark.parametrize('name', validation.CHOICES['schedule.name'])
def test_every_schedule_is_traced_in_step_and_numbers(name):
    schedule = config.Schedule(name=name, final=0.1, power=2.0, start=0.1)
    numbers = numbers_of(schedule, warmup=2, every=3, boundaries=[3])
    structure, _ = split_numbers(config.Experiment(schedule=schedule))
    jitted = jax.jit(lambda step, numbers: schedules.learning_rate(structure.schedule, step, numbers))
    for step in range(11):
        eager = schedules.learning_rate(schedule, step, numbers)
        np.testing.assert_allclose(jitted(step, numbers), eager, rtol=1e-6, atol=1e-9)
    assert jitted._cache_size() == 1


def test_large_steps_are_told_apart():
    # Six years at a step a second: single precision counts to 2**24 only.
    with jax.enable_x64(True):
        schedule = config.Schedule(name='linear')
        near = rates(schedule, [2**27, 2**27 + 1], total=2**28)
    assert near[0] > near[1]
