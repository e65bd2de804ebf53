"""Folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pegboard.errors import PegboardError

UNFINISHED = ".unfinished-"


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder beside `target` to write into; on leaving it is flushed to disk and renamed to `target`.

    An older folder of that name goes when the new one is whole. When writing fails nothing stays behind.
    Raises PegboardError for a full disk or a folder that cannot be written.
    """
    temporary = unfinished(target, os.getpid())
    with writing_to(target, temporary):
        begin(temporary)
        yield temporary
        commit(temporary, target)


def unfinished(target: Path, number: int) -> Path:
    """Return where `target` is written before it is whole; number: of the writer, so that two do not meet."""
    return target.parent / f"{UNFINISHED}{target.name}-{number}"


def begin(temporary: Path) -> None:
    """Make the folder to write into, empty."""
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)


def commit(temporary: Path, target: Path) -> None:
    """Hand a written folder to the disk and give it its name."""
    older = target.parent / f"{UNFINISHED}{target.name}-older"
    flush_tree(temporary)
    if target.exists():
        os.rename(target, older)
    os.rename(temporary, target)
    flush(target.parent)
    shutil.rmtree(older, ignore_errors=True)


@contextlib.contextmanager
def writing_to(target: Path, temporary: Path) -> Iterator[None]:
    """Remove `temporary` when what is done here fails, and turn the system's errors into ones that say what could not be written."""
    try:
        yield
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise PegboardError(
            f"{target} cannot be written: {error.strerror or error}", fix="free some space or choose another output"
        ) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def flush_tree(folder: Path) -> None:
    """Hand every file and folder below `folder`, and itself, to the disk."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            flush(Path(parent) / name)
        flush(Path(parent))


def flush(path: Path) -> None:
    """fsync one file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed run left half-written."""
    for path in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


def point(link: Path, target: str) -> None:
    """Make `link` a symbolic link to `target`, replacing an older one in one move."""
    temporary = link.with_name(f"{UNFINISHED}{link.name}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, link)
    flush(link.parent)
