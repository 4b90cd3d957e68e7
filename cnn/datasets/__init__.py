"""Data sets that prepare themselves, with no network and no TensorFlow; `x.py` holds data set `x`.

Each module has a `Builder`, a TFDS builder named like the file that says its NUM_EXAMPLES by split.
"""
