import base64
import csv
import html.parser
import io
import re

import numpy as np
import pytest
from made_study import ARMS, FAILING, made_study, small_results
from matplotlib.figure import Figure
from PIL import Image

from cnn.studies import figures, report
from cnn.studies.findings import answer, find
from cnn.studies.results import collect, from_folders

COMMAND = 'python launch.py ablate --study=experiments/ablations/skip_connections.py'
WIDER = 'residual 20 with 100 % wider_layers & more'


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    study, runs, costs = made_study(tmp_path_factory.mktemp('study'))
    return collect(study, runs, 'max', costs)


@pytest.fixture(scope='module')
def written(results, tmp_path_factory):
    folder = tmp_path_factory.mktemp('report') / 'new'
    sentence = report.write(results, folder, [COMMAND])
    assert sentence == answer(results, find(results))
    return folder


def rows_of(markdown, heading):
    """The cells of the table under a heading."""
    lines = markdown.partition(f'## {heading}\n')[2].partition('\n## ')[0].splitlines()
    cells = [re.split(r'(?<!\\)\|', line)[1:-1] for line in lines if line.startswith('|')]
    return [[cell.strip() for cell in row] for row in cells[:1] + cells[2:]]


def test_all_files_are_there_and_nothing_else(written):
    names = {path.name for path in written.iterdir()}
    pictures = {'curves.png', 'effects.png', 'costs.png'}
    assert names == {'report.md', 'report.tex', 'report.html', 'results.csv', 'arms.csv', *pictures}
    for name in pictures:
        assert Image.open(written / name).size[0] == 1024


def test_markdown_has_the_answer_the_figures_and_the_missing_runs(results, written):
    text = (written / 'report.md').read_text()
    assert text.startswith('# Do skip connections help at every depth?\n')
    assert text.index('**INCOMPLETE: 9 of 64 runs are missing') < text.index('**Answer.**') < text.index('## Arms')
    arms = {row[0]: row[1:] for row in rows_of(text, 'Arms')}
    assert set(arms) == {'arm', *(name.replace('|', r'\|').replace('_', r'\_') for name in ARMS)}
    assert arms['plain 20'][0] == '**7 of 8, without 3**'
    assert arms[FAILING] == ['**0 of 8, without any**', '–', '–', '']  # noqa: RUF001
    values = list(results.values('residual 56').values())
    assert arms['residual 56'][:3] == ['8', f'{np.mean(values):.4f}', f'{np.std(values, ddof=1):.4f}']
    differences = {row[0]: row[1:] for row in rows_of(text, 'Differences')}
    assert 'residual 8' not in differences
    assert differences['plain 20'][:2] == ['residual 8', '**7 of 8**']
    assert differences['plain 56'][0] == 'residual 56'
    assert differences[FAILING][-1] == '**can not be compared: no seed that both have**'
    assert len(rows_of(text, 'Missing runs')) == 1 + 9
    every = {row[0]: row[1:] for row in rows_of(text, 'Every run')}
    assert every['plain 20'][3] == '**partial**'
    assert set(every[FAILING]) == {'**failed**'}
    assert f'```bash\n{COMMAND}\n```' in text
    for name in ('curves', 'effects', 'costs'):
        assert f']({name}.png)' in text


def test_what_differs_among_the_runs_stands_apart_from_what_all_had(written):
    text = (written / 'report.md').read_text()
    same = dict(rows_of(text, 'Environment'))
    assert same['numpy'] == '2.4.6'
    assert 'jax' not in same
    differing = rows_of(text, 'Differences among the runs')
    assert ['jax', '**0.10.3**', "'plain 8' seed 2"] in differing
    assert ['code', f'**{"d" * 40} with changes that are not committed**', "'plain 8' seed 2"] in differing
    assert ['jax', '**0.10.2**', '63 runs'] in differing


def test_csv_has_a_row_for_each_run_whatever_became_of_it(results, written):
    rows = list(csv.DictReader(io.StringIO((written / 'results.csv').read_text())))
    assert len(rows) == 64
    assert list(rows[0])[:5] == ['arm', 'seed', 'status', 'accuracy', 'loss']
    for row in rows:
        value = results.values(row['arm']).get(int(row['seed']))
        assert row['accuracy'] == ('' if value is None else repr(value))
    assert [row['status'] for row in rows if row['arm'] == FAILING] == ['failed'] * 8
    arms = {row['arm']: row for row in csv.DictReader(io.StringIO((written / 'arms.csv').read_text()))}
    assert list(arms) == list(ARMS)
    assert arms[FAILING]['mean'] == arms[FAILING]['device_seconds'] == arms['residual 8']['p'] == ''
    assert (arms['plain 20']['missing'], arms['plain 20']['pairs']) == ('3', '7')
    finding = find(results)[1]
    assert float(arms['plain 8']['p_holm']) == finding.difference.adjusted
    assert float(arms['plain 8']['difference_low']) == finding.difference.summary.low


def test_latex_has_as_many_cells_as_columns_and_no_bare_special_letters(written):
    text = (written / 'report.tex').read_text()
    columns = re.search(r'\\begin\{tabular\}\{([lr]+)\}', text)[1]
    rows = [line for line in text.splitlines() if line.endswith(r'\\')]
    assert len(rows) == 1 + len(ARMS)
    assert {len(re.split(r'(?<!\\)&', row)) for row in rows} == {len(columns)}
    assert r'residual 20 with 100 \% wider\_layers \& more' in text
    assert r'residual 8 \textbar{} twice' in text
    assert r'\textbf{7 of 8, without 3}' in text
    assert text.isascii()
    assert text.count('{') == text.count('}')
    for rule in ('toprule', 'midrule', 'bottomrule'):
        assert text.count(f'\\{rule}') == 1
    escaped = r'a\_b\textbackslash{}\{x\}\textasciitilde{}\textasciicircum{}\#\$$-$'
    assert report._escaped('a_b\\{x}~^#$\u2212') == escaped


class Reader(html.parser.HTMLParser):
    """Tags in order, those that are open, and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ''
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ('meta', 'img', 'source'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_stands_alone_and_is_well_formed(results, written):
    text = (written / 'report.html').read_text()
    page = Reader(text)
    assert page.open == []
    for tag, attributes in page.tags:
        assert tag not in ('script', 'link', 'iframe')
        for name in ('src', 'srcset', 'href'):
            assert attributes.get(name, 'data:image/png;base64,').startswith('data:image/png;base64,')
    assert not re.search(r'url\(|@import|https?:', text)
    assert answer(results, find(results)) in page.text
    assert WIDER in page.text
    assert 'out of memory: 3 <GiB> more' in page.text
    assert '<GiB>' not in text
    assert COMMAND in page.text
    loud = [attributes for tag, attributes in page.tags if tag == 'td' and 'loud' in attributes.get('class', '')]
    assert len(loud) >= 3 + 2 * 9
    viewport = {'name': 'viewport', 'content': 'width=device-width, initial-scale=1'}
    assert ('meta', viewport) in page.tags


def test_the_page_has_each_picture_in_a_light_and_a_dark_form(written):
    page = Reader((written / 'report.html').read_text())

    def corner(uri):
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(',')[2]))))[0, 0].mean()

    lights = [corner(attributes['src']) for tag, attributes in page.tags if tag == 'img']
    darks = [corner(attributes['srcset']) for tag, attributes in page.tags if tag == 'source']
    assert lights == [255] * 3
    assert len(darks) == 3
    assert max(darks) < 40


def test_a_complete_study_raises_no_alarm(tmp_path):
    values = [0.5, 0.6, 0.55]
    results = small_results(tmp_path, {'a': values, 'b': values})
    files = report.render(results)
    text = files['report.md'].decode()
    assert 'INCOMPLETE' not in text
    assert '## Missing runs' not in text
    assert '## Differences among the runs' not in text
    assert 'alarm">' not in files['report.html'].decode()
    assert 'python launch.py --config=experiments/digits.py --config.seed=0' in text  # as the runs record it


def test_further_metrics_stand_beside_the_deciding_one_in_every_form(tmp_path):
    results = small_results(tmp_path, {'a': [0.5, 0.6], 'b': [0.7, 0.8]}, also=('loss', 'top5_accuracy'))
    files = {name: content.decode() for name, content in report.render(results).items() if not name.endswith('png')}
    [header, first, _] = rows_of(files['report.md'], 'Arms')
    assert header[4:] == ['95 % interval', 'loss', '95 % interval', 'top5 accuracy', '95 % interval']
    assert first[-2:] == ['\u22121.000', '\u22121.000 to \u22121.000']
    assert 'Loss and top5 accuracy: shown beside it, and not compared.' in files['report.md']
    assert r'95 \% interval & loss & 95 \% interval & top5 accuracy & 95 \% interval & against' in files['report.tex']
    assert '<th>loss</th>' in files['report.html']
    [row, _] = csv.DictReader(io.StringIO(files['arms.csv']))
    assert [row[f'loss_{what}'] for what in ('seeds', 'mean', 'low', 'high')] == ['2', '-1.0', '-1.0', '-1.0']
    assert files['results.csv'].startswith('arm,seed,status,accuracy,loss,top5_accuracy,')


def test_names_that_mean_something_to_matplotlib_are_drawn_as_they_are(tmp_path, monkeypatch):
    rows = [{'step': step, 'split': 'validation', 'accuracy': 0.1 * step} for step in (1, 2)]
    results = small_results(tmp_path, {r'$\nothing$': [0.5, 0.6], '_hidden': [0.7, 0.8]}, rows=rows)
    assert {'curves.png', 'effects.png'} <= report.render(results).keys()
    legend = []

    def look(draw, height, theme):
        page = Figure()
        draw(page)
        legend.extend(text.get_text() for text in page.legends[0].get_texts())
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr(figures, 'figure', look)
    figures.curves(results, find(results))
    assert legend == [r'$\nothing$', '_hidden']


def test_a_study_of_which_nothing_is_done_is_reported_and_old_pictures_go(tmp_path):
    results = small_results(tmp_path, {'a': [None, None], 'b': [None, None]})
    (tmp_path / 'curves.png').write_bytes(b'old')
    assert report.write(results, tmp_path) == 'No run is done, so there is nothing to say.'
    text = (tmp_path / 'report.md').read_text()
    assert '**INCOMPLETE: 4 of 4 runs are missing' in text
    assert '](' not in text
    assert not (tmp_path / 'curves.png').exists()


def test_a_full_disk_leaves_the_old_report_whole(tmp_path, monkeypatch):
    results = small_results(tmp_path / 'runs', {'a': [0.5, 0.6]})
    report.write(results, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob('*.*')}

    def full(path, content):
        with open(path, 'wb') as file:
            file.write(content[:10])
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('pathlib.Path.write_bytes', full)
    with pytest.raises(OSError, match='No space left'):
        report.write(results, tmp_path, [COMMAND])
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_folders_without_a_study_make_a_report_too(tmp_path):
    study, _, _ = made_study(tmp_path / 'runs', seeds=1)
    results = from_folders([tmp_path / 'runs' / '0-0'])
    text = report.render(results)['report.md'].decode()
    assert study.question not in text
    assert 'What the arms are' not in text
    assert 'there is nothing to compare it with' in text
