"""The door that every command leaves by: no traceback for errors that its user can mend.

Flows in: an exception that nobody below has put into words. Flows out: one sentence that says what
went wrong with which file, and where the traceback was kept.
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NoReturn

from pipelines.signals import heard
from trainables.errors import CliptuneError

# What the machine says, by its number: what it means, and what helps.
MACHINE = {
    errno.EACCES: "may not be read or written by this user: change its permissions",
    errno.EPERM: "may not be read or written by this user: change its permissions",
    errno.EROFS: "lies on a disk that cannot be written to: give another place",
    errno.ENOSPC: "does not fit: the disk is full. Make room, then run the same command again",
    errno.EDQUOT: "does not fit: this user's quota is used up. Make room, then run it again",
    errno.ENOENT: "does not exist",
    errno.EISDIR: "is a folder, where a file is needed",
    errno.ENOTDIR: "is a file, where a folder is needed",
    errno.ENAMETOOLONG: "has a longer name than the file system takes",
    errno.ELOOP: "is a chain of symbolic links without an end",
    errno.EIO: "cannot be read: the disk reports an error",
    errno.ESTALE: "is on a network file system that has lost it: mount it again",
    errno.EMFILE: "cannot be opened: too many files are open; raise `ulimit -n`",
}

# What Ray raises where a process or a machine of its own is gone.
LOST = (
    *("RayActorError", "WorkerCrashedError", "NodeDiedError", "LocalRayletDiedError"),
    *("ObjectLostError", "RaySystemError", "RpcError"),
)


def expected(error: BaseException) -> bool:
    """Whether an exception is about a file, a value or the machine, and not a fault of ours."""
    error = _cause(error)
    said = isinstance(error, CliptuneError | OSError | UnicodeError)
    return said or _of_memory(error) or _lost(error)


def sentence(error: BaseException) -> str:
    """The meaning of an exception, for the user of the command."""
    error = _cause(error)
    if isinstance(error, CliptuneError):
        return str(error)
    if isinstance(error, OSError):
        return _of_machine(error)
    if isinstance(error, UnicodeError):
        return f"a text is not UTF-8: {error}. Save the file as UTF-8."
    if _of_memory(error):
        return f"not enough memory: {_short(error)}."
    if _lost(error):
        return (
            f"Ray lost a process or a machine: {_short(error).rstrip('.')}. What was saved stands: "
            "the same command goes on from there."
        )
    return f"cliptune did not expect this: {_short(error)}, at {_place(error)}."


def leave(error: BaseException) -> NoReturn:
    """End the command after an exception that was `expected`. Where Ray lost the processes that it
    ran on, it is left without a goodbye, in which its C++ may end the process with a code of its
    own."""
    if _lost(_cause(error)):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(2)
    sys.exit(2)


def leave_interrupted() -> NoReturn:
    """End a command that was interrupted. The processes of its Ray end now; Ray's own end at the
    exit of Python may take longer than the user should wait. A second interrupt does not wait."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        sys.exit(130)
    with heard(lambda *_: os._exit(130)):
        ray.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(130)


def _of_memory(error: BaseException) -> bool:
    """The sentence for too little memory, as for a trial."""
    if not isinstance(error, MemoryError | RuntimeError):
        return False  # without torch, which is long to import
    from trainables.trials.memory import is_out_of_memory

    return is_out_of_memory(error)


def _of_machine(error: OSError) -> str:
    named = [str(name) for name in (error.filename, error.filename2) if name is not None]
    what = " and ".join(f"`{name}`" for name in named) or "a file"
    known = MACHINE.get(error.errno or 0)
    return f"{what} {known}." if known else f"{what}: {error.strerror or error}."


def _cause(error: BaseException) -> BaseException:
    """The exception inside a worker's, which Ray wraps."""
    inner = getattr(error, "cause", None)
    return _cause(inner) if isinstance(inner, BaseException) else error


def _lost(error: BaseException) -> bool:
    """Whether Ray, where it is in use, has lost the processes that it ran on."""
    ray = sys.modules.get("ray.exceptions")
    kinds = tuple(getattr(ray, name) for name in LOST) if ray else ()
    return isinstance(error, kinds) and not getattr(error, "actor_init_failed", False)


def _short(error: BaseException) -> str:
    first = str(error).strip().splitlines()[:1]
    return f"{type(error).__name__}{': ' + first[0][:200] if first else ''}"


def _place(error: BaseException) -> str:
    """The last of our own lines that the exception went through."""
    root = Path(__file__).parents[1]
    ours = [
        f"{Path(frame.filename).relative_to(root)}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(root) and "site-packages" not in frame.filename
    ]
    return ours[-1] if ours else "an unknown place"


def keep(error: BaseException) -> Path:
    """Write the traceback into a new file, for a report."""
    number, name = tempfile.mkstemp(prefix="cliptune-", suffix=".log")
    with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
        print("cliptune", *sys.argv[1:], file=file)
        traceback.print_exception(error, file=file)
    return Path(name)
