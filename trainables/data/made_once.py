"""Files of tensors that any process may need: the first that asks makes the file for all.

Flows in: a path, the tensors' shapes, and a function that fills them. Flows out: the tensors,
mapped. The other processes wait and map the file. Its hash stands beside it; a file that has
another hash is made again, with a warning. Where there is no path, or none can be written, the
tensors are made in memory and not kept.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from filelock import lock_descriptor
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainables.data.tensor_file import Array, Layout, TensorFile
from trainables.data.verified import intact, noted

Tensors = dict[str, Tensor]
Put: TypeAlias = Callable[[str, int, Array], None]  # a tensor's name, its first row, the rows
Fill: TypeAlias = Callable[[Put], None]


def made_once(path: Path | None, layout: Layout, fill: Fill) -> Tensors:
    """The tensors in `path`, mapped; whoever comes first makes them, the others wait. In memory
    where there is no `path`, or none can be written."""
    if path is None:
        return _in_memory(layout, fill)
    found = mapped(path)
    if found is not None:
        return found
    with alone(path.with_suffix(".lock")) as locked:
        if not locked:
            return _unkept(path, layout, fill)
        found = mapped(path)
        if found is not None:
            return found
        file = TensorFile(path.with_suffix(".partial"), layout)
        try:
            file.allocate()
            fill(file.put)
            file.sync()
            hash_of(path).write_text(noted(file.path))  # before its file: nothing is without one
            file.path.replace(path)
        except OSError:  # a full disk
            file.path.unlink(missing_ok=True)
            return _unkept(path, layout, fill)
        except BaseException:
            file.path.unlink(missing_ok=True)
            raise
        found = mapped(path)
        assert found is not None
        return found


def _unkept(path: Path, layout: Layout, fill: Fill) -> Tensors:
    print(f"warning: `{path}` cannot be written: each process makes its own", file=sys.stderr)
    return _in_memory(layout, fill)


def _in_memory(layout: Layout, fill: Fill) -> Tensors:
    arrays = {name: np.empty(shape, dtype) for name, (dtype, shape) in layout.items()}

    def put(name: str, row: int, values: Array) -> None:
        arrays[name][row : row + len(values)] = values

    fill(put)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@contextmanager
def alone(lock: Path) -> Iterator[bool]:
    """Let one process at a time in; False where there can be no lock, as in a store that others
    own."""
    with ExitStack() as stack:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(lock.open("w"))
            if not lock_descriptor(file.fileno(), blocking=False):
                print(f"waiting for the process that makes `{lock.stem}`", file=sys.stderr)
                lock_descriptor(file.fileno())
        except OSError:
            yield False
        else:
            yield True


def hash_of(path: Path) -> Path:
    """The path of the text file with the SHA-256 of the file `path`."""
    return path.with_suffix(".sha256")


def mapped(path: Path) -> Tensors | None:
    """The tensors in `path`; None where the file is not there, or not as it was made. All that is
    in it can be made again, so nobody has to be asked."""
    if not path.is_file():
        return None
    try:
        expected = hash_of(path).read_bytes().decode(errors="replace")
    except FileNotFoundError:  # of an older version
        expected = ""
    try:
        if expected and not intact(path, expected):
            raise SafetensorError("its bytes are not those that were written")
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        print(f"warning: `{path}` is damaged ({error}): it is made again", file=sys.stderr)
        return None
