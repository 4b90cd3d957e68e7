import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

from cnn.scripts import ROOT

# A plan of two arms with three seeds, one of which is done; the seconds of a run are .3 and 7.
PROGRAM = """
import pathlib, types
from cnn.studies import Arm, Study
from cnn.studies.progress import Progress

study = Study('Why?', 'x', [Arm('short'), Arm('a name that is far too long to be shown whole')], 'short', seeds=3)
runs = [
    types.SimpleNamespace(
        arm=arm.name, seed=seed, folder=pathlib.Path(f'{arm.name}-{seed}'), status='to do' if seed else 'done',
        outcome=types.SimpleNamespace(metrics={'accuracy': 0.5}),
    )
    for arm in study.arms
    for seed in range(3)
]
progress = Progress(types.SimpleNamespace(
    study=study, runs=runs, left=[run for run in runs if run.seed],
    forms=[types.SimpleNamespace(arm=arm, steps=10) for arm in study.arms],
    seconds=lambda: (dict(zip([arm.name for arm in study.arms], (0.3, 7.0))), 'guessed'),
))
progress.at(runs[1], 5)
progress.say('a word')
progress.done(runs[1], {'metrics': {'accuracy': 0.75}, 'seconds': 3.2})
progress.done(runs[4], {'metrics': {'accuracy': 0.25}})
progress.done(runs[5], {'metrics': {'accuracy': 0.0}})
progress.say('another word')
progress.at(runs[2], 3)
progress.at(runs[2], 10)
progress.close()
print('the answer')
"""


def on_terminal(columns, lines):
    """What a terminal of that size is sent."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack('HHHH', lines, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ('COLUMNS', 'LINES')}
    process = subprocess.Popen(
        [sys.executable, '-c', PROGRAM], cwd=ROOT, stdin=follower, stdout=follower, stderr=follower,
        env={**environment, 'TERM': 'xterm'},
    )  # fmt: skip
    os.close(follower)
    sent = b''
    while True:
        try:
            more = os.read(leader, 65536)
        except OSError:  # its other end is closed
            break
        if not more:
            break
        sent += more
    assert process.wait() == 0, sent.decode()
    return sent.decode()


def test_a_terminal_has_a_bar_for_each_arm_and_one_for_all_that_counts_by_time():
    text = on_terminal(100, 30)
    assert re.search(r'short {28}  2/3  accuracy 0\.6250   50 %\|', text)
    assert re.search(r'a name that is far too long to\.\.\.  3/3  accuracy 0\.2500  100 %\|', text)
    # Of 2 x .3 + 2 x 7 seconds .3 + 2 x 7 are done; then all are, and no more than all.
    assert re.search(r'all runs +5/6 +98 %\|.* left', text)
    assert re.search(r'all runs +5/6 +100 %\|.* left', text)
    assert 'Warning' not in text
    assert max(map(len, re.split('[\r\n]|\x1b\\[A', text))) <= 100


def test_a_low_screen_has_the_last_bar_alone():
    text = on_terminal(80, 4)
    assert 'all runs' in text
    assert 'short' not in text


def test_elsewhere_nothing_is_drawn_and_each_run_that_ends_has_a_line():
    result = subprocess.run([sys.executable, '-c', PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stderr == ''
    assert result.stdout.splitlines() == [
        'a word',
        '3/6 short, seed 1: accuracy 0.7500 (3 s)',
        '4/6 a name that is far too long to be shown whole, seed 1: accuracy 0.2500 (by another process)',
        '5/6 a name that is far too long to be shown whole, seed 2: accuracy 0.0000 (by another process)',
        'another word',
        'the answer',
    ]
