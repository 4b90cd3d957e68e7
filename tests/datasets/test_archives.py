import contextlib
import hashlib
import http.server
import io
import re
import socket
import sys
import threading
import time

import numpy as np
import pytest
from official_files import contents

from cnn.data import prepared
from cnn.datasets import _archives
from cnn.errors import InputError

CONTENT = np.random.default_rng(0).bytes(1_000_000)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files`, and of each answer `server.most` bytes before it breaks off."""

    def do_GET(self):
        server, name = self.server, self.path.rpartition('/')[2]
        asked = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range', ''))
        start = int(asked[1]) if asked and server.ranges else 0
        server.asked.append((name, asked and int(asked[1])))
        content = server.files.get(name)
        if content is None:
            return self.send_error(404)
        if start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if server.chunked:  # whose end would be told
            self.send_header('Transfer-Encoding', 'chunked')
        else:
            self.send_header('Content-Length', str(len(content) - start))
        self.end_headers()
        body = content[start:][: server.most]
        with contextlib.suppress(OSError):  # the client may have gone
            self.wfile.write(b'%x\r\n%s\r\n' % (len(body), body) if server.chunked else body)
            time.sleep(server.hangs)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv('no_proxy', '*')
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        server.files, server.asked, server.most, server.hangs = {'data.gz': CONTENT}, [], None, 0
        server.ranges, server.chunked = True, False
        server.url = f'http://127.0.0.1:{server.server_port}/sets/'
        threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def nobody():
    """The URL of a port where nobody listens."""
    with socket.socket() as unused:
        unused.bind(('127.0.0.1', 0))
        yield f'http://127.0.0.1:{unused.getsockname()[1]}/sets/'


def collect(tmp_path, *mirrors, content=CONTENT):
    archive = _archives.Archive('data.gz', len(content), hashlib.sha256(content).hexdigest(), mirrors)
    (file,) = _archives.collect([archive], 'my_set', None, tmp_path)
    return file


def refused(tmp_path, *mirrors, **changes):
    with pytest.raises(InputError) as told:
        collect(tmp_path, *mirrors, **changes)
    message = str(told.value)
    assert '\n' not in message
    assert message.startswith('cannot download data.gz (')
    assert message.endswith(
        '; where there is no network, config.data.archives=DIR takes a directory with the official files'
    )
    assert not (tmp_path / 'downloads/my_set/data.gz').exists()
    return message


def part(tmp_path, content=None):
    path = tmp_path / 'downloads' / 'my_set' / 'data.gz.part'
    if content is not None:
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    return path


def test_set_is_downloaded_once(server, declare, new_data_dir):
    files, arrays = contents('mnist')
    server.files = files
    declare('mnist', files, (server.url,))
    read = prepared.load('mnist', 'train', ['image', 'label']).arrays()
    np.testing.assert_array_equal(read['image'], arrays['train']['image'])
    assert {file.name: file.read_bytes() for file in (new_data_dir / 'downloads' / 'mnist').iterdir()} == files
    prepared.load('mnist', 'test', ['image'])
    assert sorted(server.asked) == sorted((name, None) for name in files)


def test_nothing_is_prepared_of_a_wrong_file(server, declare, new_data_dir):
    files = contents('cifar10')[0]
    declare('cifar10', files, (server.url,))
    server.files = {name: content[:-1] + b'x' for name, content in files.items()}
    with pytest.raises(InputError, match=r'cannot download cifar-10-binary\.tar\.gz'):
        prepared.load('cifar10', 'train', ['image'])
    assert not [path for path in new_data_dir.rglob('*') if path.is_file() and path.name != '.cifar10.lock']


def test_files_in_the_cache_are_checked(server, tmp_path):
    file = collect(tmp_path, server.url)
    assert collect(tmp_path, server.url) == file
    assert len(server.asked) == 1
    file.write_bytes(CONTENT[::-1])
    assert collect(tmp_path, server.url).read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_wrong_checksum(server, tmp_path):
    wrong = server.files['data.gz'] = CONTENT[:-1] + b'x'
    digests = [hashlib.sha256(content).hexdigest() for content in (wrong, CONTENT)]
    told = 'sent another file, now deleted, of SHA-256 {} instead of {}'.format(*digests)
    assert f'({server.url}data.gz: {told});' in refused(tmp_path, server.url)
    assert not part(tmp_path).exists()


def test_longer_files_are_not_read_to_their_end(server, tmp_path):
    server.files['data.gz'] = bytes(50_000_000)
    size = re.search(r'of (\d+) bytes instead of 1000000', refused(tmp_path, server.url))
    assert 1_000_000 < int(size[1]) < 2_000_000
    assert not part(tmp_path).exists()


@pytest.mark.parametrize('chunked', [False, True])
def test_broken_downloads_are_continued(server, tmp_path, chunked):
    server.most, server.chunked = 300_000, chunked
    assert collect(tmp_path, server.url).read_bytes() == CONTENT
    starts = [start for _, start in server.asked]
    assert starts == [None, 300_000, 600_000, 900_000]


def test_servers_that_begin_again_each_time_are_given_up(server, tmp_path):
    server.most, server.ranges = 300_000, False
    assert 'data.gz: ended after 300000 of 1000000 bytes' in refused(tmp_path, server.url)
    assert len(server.asked) == 2
    assert part(tmp_path).read_bytes() == CONTENT[:300_000]
    server.most = None
    assert collect(tmp_path, server.url).read_bytes() == CONTENT
    assert not part(tmp_path).exists()


def test_later_runs_continue(server, tmp_path):
    part(tmp_path, CONTENT[:400_000])
    assert collect(tmp_path, server.url).read_bytes() == CONTENT
    assert server.asked == [('data.gz', 400_000)]


@pytest.mark.parametrize('size', [300, 1_000_000, 2_000_000])
def test_wrong_beginnings_are_dropped(server, tmp_path, size):
    part(tmp_path, bytes(size))
    assert collect(tmp_path, server.url).read_bytes() == CONTENT
    assert server.asked[-1] == ('data.gz', None)


def test_other_mirrors_are_tried(server, nobody, tmp_path):
    part(tmp_path, CONTENT[:10])
    assert collect(tmp_path, nobody, server.url).read_bytes() == CONTENT
    server.files = {}
    (tmp_path / 'other').mkdir()
    message = refused(tmp_path / 'other', nobody, server.url)
    assert (
        f'({nobody}data.gz: [Errno 111] Connection refused; {server.url}data.gz: HTTP Error 404: Not Found)' in message
    )


def test_unknown_hosts_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv('no_proxy', '*')
    assert re.search(r'\(http://host.invalid/data.gz: \[Errno -\d+\] ', refused(tmp_path, 'http://host.invalid/'))


def test_silent_servers_are_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(_archives, '_TIMEOUT', 0.1)
    server.hangs, server.most = 0.5, 0
    assert 'data.gz: timed out' in refused(tmp_path, server.url)


def test_full_disk_is_not_taken_for_the_network(server, declare, new_data_dir):
    server.files = contents('mnist')[0]
    declare('mnist', server.files, (server.url,))
    (new_data_dir / 'downloads' / 'mnist').mkdir(parents=True)
    (new_data_dir / 'downloads' / 'mnist' / 'train-images-idx3-ubyte.gz.part').symlink_to('/dev/full')
    with pytest.raises(InputError, match=r"cannot prepare data set 'mnist' in .*No space left.*; set TFDS_DATA_DIR"):
        prepared.load('mnist', 'train', ['image'])


def test_bar_is_for_terminals(server, tmp_path, monkeypatch, capsys):
    collect(tmp_path / 'first', server.url)
    assert capsys.readouterr() == ('', '')
    monkeypatch.setattr(sys, 'stderr', io.StringIO())
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
    collect(tmp_path / 'second', server.url)
    assert re.search(r'data.gz: 100%.* 1.00M/1.00M \[00:00<00:00', sys.stderr.getvalue())
