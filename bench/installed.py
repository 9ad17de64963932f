"""What a library takes on the disk, with all that it needs at run time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path

OURS, NEEDS = "fastrnn", ("numpy", "numba")  # from its sources: an editable installation lists none of them


def sizes(libraries: list[str]) -> dict[str, int]:
    """Bytes of each of these that is installed, its own files and those of every distribution that it requires."""
    found = {name: list(_files(name)) for name in libraries}
    return {name: sum(file.stat().st_size for file in files) for name, files in found.items() if files}


def _files(library: str) -> Iterator[Path]:
    """The files of a library and of what it needs, each distribution once."""
    seen: set[str] = set()
    names = [library]
    while names:
        name = re.sub(r"[-_.]+", "-", names.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        if name == OURS and (spec := util.find_spec(name)) and spec.submodule_search_locations:
            yield from Path(spec.submodule_search_locations[0]).rglob("*.py")
            names += NEEDS
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # not installed, or not for this machine
            continue
        for file in distribution.files or ():
            if (path := Path(str(distribution.locate_file(file)))).is_file():
                yield path
        for requirement in distribution.requires or ():
            if "extra ==" not in requirement and (match := re.match(r"[\w.-]+", requirement)):
                names.append(match[0])
