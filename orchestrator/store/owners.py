"""Who can write where artifacts are read from: nobody but this user and root, as ssh asks of its own files.

An artifact is a program for a device, and its digests are written by whoever writes it. So a store is *private* if
every folder from the root of the file system down to it, and every file in it that is used, belongs to this user or to
root, and nobody else has the right to write to it. Three things are no fault:

- a folder above the store in which others may write too, if it is sticky (``/tmp``): what is in it stays its owner's;
- a group that may write, if its owner is alone in it (a user's private group, which goes with the umask 002);
- what is below a folder that the environment names as trusted.

On systems without owners (Windows) nothing is asked.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from orchestrator.errors import CompileError

__all__ = ["TRUSTED_VARIABLE", "check_private", "make_private", "permissions", "without_others"]

#: Environment variable that names folders, separated as in ``PATH``, in which anybody may write.
TRUSTED_VARIABLE = "ORCHESTRATOR_TRUSTED_FOLDERS"

_OTHERS = stat.S_IWGRP | stat.S_IWOTH
#: How many symbolic links one path may lead over, as in the kernel.
_MOST_LINKS = 40


def check_private(store: Path, place: Path | None = None) -> None:
    """Makes sure that nobody else can write to a store, or to an artifact in it.

    Args:
        store: The store; it need not exist yet, then the folders that do are looked at.
        place: A folder in it whose every file is looked at, too.

    Raises:
        CompileError: Somebody can, or it cannot be found out.
    """
    if not hasattr(os, "geteuid") or _is_trusted(store):
        return
    path, fault = _first_fault(store, place)
    if fault:
        raise CompileError(
            f"The store {str(store)!r} is refused: {str(path)!r} {fault}. Whoever can write there decides what runs "
            f"when a plan is loaded. Take the right away (chmod -R go-w, or chown), or give a folder that only you can "
            f"write to; or, if you trust all who can, say so in the environment: "
            f"{TRUSTED_VARIABLE}={store.absolute()}",
            path=path,
        )


def make_private(folder: Path) -> None:
    """Makes a folder and those above it, with :func:`permissions`.

    Raises:
        OSError: It cannot be made.
    """
    missing = [folder]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for each in reversed(missing):
        each.mkdir(mode=permissions(each, 0o777), exist_ok=True)


def permissions(path: Path, mode: int) -> int:
    """Returns the permissions of something new: nobody else may write to it, unless it is in a trusted folder.

    The umask applies to them as always.
    """
    return mode if _is_trusted(path) else mode & ~_OTHERS


def without_others(path: Path) -> None:
    """Takes the right to write away from all but the owner, where a compiler gave it, as in :func:`permissions`.

    Raises:
        OSError: It cannot be changed.
    """
    mode = stat.S_IMODE(path.lstat().st_mode)
    if permissions(path, mode) != mode:
        path.chmod(permissions(path, mode))


def _is_trusted(store: Path) -> bool:
    folder_names = [name for name in os.environ.get(TRUSTED_VARIABLE, "").split(os.pathsep) if name]
    if not folder_names:
        return False
    folders = {os.path.realpath(name) for name in folder_names}
    real = Path(os.path.realpath(store))
    return not folders.isdisjoint(map(str, (real, *real.parents)))


def _first_fault(store: Path, place: Path | None) -> tuple[Path, str]:
    """The first file or folder that somebody else could write to, and why; an empty text: there is none."""
    try:
        above = list(_path_links(store))
        inside = [] if place is None else _inside(store, place)
        real = os.path.realpath(store)
        for path in (*above, *inside):
            fault = _fault(path, is_above=path in above and str(path) != real)
            if fault:
                return path, fault
    except OSError as error:
        return store, f"cannot be looked at ({error.strerror or error})"
    return store, ""


def _path_links(path: Path) -> Iterator[Path]:
    """Yields every folder and symbolic link that leads to a path, as the system goes; ends where nothing is yet."""
    ahead = list(path.absolute().parts)[::-1]
    at, links = Path(ahead.pop()), 0
    # Parts are taken one by one, as the kernel does: `..` after a link is above the link's target, and a link's own
    # target is walked before what follows it. So every folder is yielded whose owner decides where the path ends.
    yield at
    while ahead:
        part = ahead.pop()
        if part == os.pardir:
            at = at.parent
            continue
        step = at / part
        if not os.path.lexists(step):
            return
        yield step
        if not step.is_symlink():
            at = step
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(f"{path} leads over too many symbolic links")
        target = step.readlink()
        if target.is_absolute():
            at = Path(target.anchor)
            target = target.relative_to(at)
        ahead.extend(target.parts[::-1])


def _inside(store: Path, place: Path) -> list[Path]:
    """A folder of a store, those between the two, and all that is below."""
    between = [folder for folder in (place, *place.parents) if store in folder.parents]
    below = [Path(base, name) for base, folders, files in os.walk(place) for name in (*folders, *files)]
    return [*between[::-1], *below]


def _fault(path: Path, *, is_above: bool) -> str:
    status = path.lstat()
    if status.st_uid not in (0, os.geteuid()):
        return f"belongs to {_user(status.st_uid)}, neither to you nor to root"
    if stat.S_ISLNK(status.st_mode) or (is_above and status.st_mode & stat.S_ISVTX):
        return ""
    if status.st_mode & stat.S_IWOTH:
        return f"can be written to by everybody ({stat.filemode(status.st_mode)})"
    if status.st_mode & stat.S_IWGRP and not _is_alone(status.st_uid, status.st_gid):
        return f"can be written to by the group {_group(status.st_gid)} ({stat.filemode(status.st_mode)})"
    return ""


def _is_alone(user: int, group: int) -> bool:
    """Whether a group is the private one of a user: it has the user's name, and nobody else is in it."""
    import grp
    import pwd

    try:
        owner, group_entry = pwd.getpwuid(user), grp.getgrgid(group)
    except KeyError:
        return False
    is_private = group_entry.gr_name == owner.pw_name and owner.pw_gid == group
    return (
        is_private
        and set(group_entry.gr_mem) <= {owner.pw_name}
        and all(other.pw_uid == user for other in pwd.getpwall() if other.pw_gid == group)
    )


def _user(number: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def _group(number: int) -> str:
    import grp

    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
