import dataclasses
import hashlib
import importlib

import pytest


@pytest.fixture
def declare(monkeypatch):
    """Makes a data set expect these files in place of the published ones."""

    def declare(name, files, mirrors=('https://nowhere.invalid/',)):
        module = importlib.import_module(f'cnn.datasets.{name}')
        archives = [
            dataclasses.replace(
                archive,
                size=len(files[archive.name]),
                sha256=hashlib.sha256(files[archive.name]).hexdigest(),
                mirrors=mirrors,
            )
            for archive in module.ARCHIVES
        ]
        monkeypatch.setattr(module, 'ARCHIVES', archives)

    return declare


@pytest.fixture
def new_data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'data'))
    return tmp_path / 'data'
