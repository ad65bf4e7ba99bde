"""Gzipped pickles of pandas' DataFrames, as pandas 0.25 wrote them, read without pandas and without trust.

A pickle is a program that may call whatever it can name. Here it can name nine things, listed below; eight of them are classes
of this file, which keep what they are given and do nothing else, so that neither pandas nor numpy ever sees a state that a
stranger wrote. The ninth is `slice`.
"""

import io
import pickle
import zlib

import numpy as np

from preprocess.errors import SourceError

MAX_BYTES = 256 << 20  # of a pickle, unpacked
# What PandaSet's columns are made of; the sizes in bytes are the names' digits.
_DTYPES = {"O8", "f8", "f4", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1"}


class _Dtype:
    def __init__(self, name, *_):
        if name not in _DTYPES:
            raise pickle.UnpicklingError(f"an array of {name!r:.40}")
        self.name, self.order = name, "<"

    def __setstate__(self, state):
        self.order = ">" if state[1] == ">" else "<"


class _Array:
    """An array as its state tells it: shape, dtype, and bytes, or a list of objects."""

    def __setstate__(self, state):
        _, shape, dtype, is_fortran, data = state
        if dtype.name == "O8":
            values = np.empty(len(data), object)
            values[:] = data
        else:
            values = np.frombuffer(data, np.dtype(dtype.order + dtype.name))
        self.values = values.reshape(shape, order="F" if is_fortran else "C")


def _reconstruct(*_):
    return _Array()


class _Index:
    """Names of columns or rows: `data` an _Array, or start, stop and step."""


class _RangeIndex(_Index):
    pass


def _new_index(kind, parts):
    index = kind.__new__(kind)
    index.parts = dict(parts)
    return index


class _BlockManager:
    def __setstate__(self, state):
        (self.columns, _), self.blocks, self.items = state[0], state[1], state[2]


class _DataFrame:
    pass


_ALLOWED = {
    ("pandas.core.frame", "DataFrame"): _DataFrame,
    ("pandas.core.internals.managers", "BlockManager"): _BlockManager,
    ("pandas.core.indexes.base", "Index"): _Index,
    ("pandas.core.indexes.base", "_new_Index"): _new_index,
    ("pandas.core.indexes.range", "RangeIndex"): _RangeIndex,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("builtins", "slice"): slice,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no DataFrame needs"[:200]) from None


def read_frame(data, path):
    """{column name: (n,) array} of the bytes of a `.pkl.gz`. Raises SourceError, naming `path`, for anything else."""
    try:
        unpacker = zlib.decompressobj(wbits=31)
        raw = unpacker.decompress(data, MAX_BYTES)
        if not unpacker.eof:
            raise SourceError(f"{path}: cut short, or over {MAX_BYTES >> 20} MB unpacked; copy it anew")
        manager = vars(_Unpickler(io.BytesIO(raw)).load())["_data"]
        columns = {}
        for block, items in zip(manager.blocks, manager.items, strict=True):
            names = items.parts["data"].values.tolist()
            columns |= dict(zip(names, block.values, strict=True))
        wanted = manager.columns.parts["data"].values.tolist()
        return {name: columns[name] for name in wanted}
    except SourceError:
        raise
    # A damaged pickle raises whatever its instructions stumble over.
    except Exception as error:
        raise SourceError(f"{path}: not a pickled DataFrame that is read here ({error}); copy it anew") from None
