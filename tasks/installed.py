"""What a setting names as module:Name, where that module was installed; nothing beside a user's files is ever imported."""

from __future__ import annotations

import json
import re
import site
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from lezo.tasks.task import TaskError

_SPEC = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*)")


def installed(key: str, spec: str) -> Any:
    """What ``spec``, as ``module:Name``, names. Raises TaskError, which names the setting ``key``, where it is not installed."""
    named = _SPEC.fullmatch(spec)
    if named is None:
        raise TaskError(f"{key}={spec}: expected module:Name, as mypackage.mymodule:MyTask")
    module, name = named.groups()
    try:
        with _without_working_folder():
            _refuse_strangers(key, spec, module.partition(".")[0])
            found = import_module(module)
        _refuse_elsewhere(key, spec, getattr(found, "__file__", None))
        return getattr(found, name)
    except TaskError:
        raise
    except AttributeError as error:
        raise TaskError(f"{key}={spec}: {error}") from None
    except Exception as error:  # what others' modules do when they are imported
        raise TaskError(
            f"{key}={spec}: cannot be imported ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        ) from error


@contextmanager
def _without_working_folder() -> Iterator[None]:
    """``python -m`` looks there first, and a command does not."""
    known, path = {*folders()}, sys.path
    sys.path = [entry for entry in path if Path(entry).resolve() != Path.cwd() or Path.cwd() in known]
    try:
        yield
    finally:
        sys.path = path


def _refuse_strangers(key: str, spec: str, package: str) -> None:
    """Before anything is imported, of what the module is part of."""
    try:
        found = find_spec(package)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise TaskError(f"{key}={spec}: no package {package} is installed; pip install the one it is in")
    _refuse_elsewhere(key, spec, found.origin)


def _refuse_elsewhere(key: str, spec: str, file: str | None) -> None:
    """``file``: of the module, None where it has none."""
    if file is not None and any(_is_below(file, folder) for folder in folders()):
        return
    if file in ("frozen", "built-in") or _is_below(file or "", Path(sysconfig.get_path("stdlib")).resolve()):
        raise TaskError(
            f"{key}={spec}: is a part of Python itself; expected module:Name of an installed package"
        )
    where = "is no module with a file" if file is None else f"is {file}, which is not installed"
    ways = "pip install its package (pip install -e DIR while you work on it)"
    raise TaskError(
        f"{key}={spec}: {where}; code beside data or a command is never run, so {ways} in {sys.prefix}"
    )


def _is_below(file: str, folder: Path) -> bool:
    return Path(file).resolve().is_relative_to(folder)


def folders() -> Iterator[Path]:
    """Where this environment's packages are, and those that pip installed as they stand (-e)."""
    sites = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    sites |= {site.getusersitepackages()} if site.ENABLE_USER_SITE else set()
    for path in sorted(sites):
        yield Path(path).resolve()
        for file in Path(path).glob("*.pth"):
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            yield from (Path(path, line.strip()).resolve() for line in lines if _is_folder(path, line))
    for one in distributions(path=sorted(sites)):
        origin = json.loads(one.read_text("direct_url.json") or "{}")
        if origin.get("dir_info", {}).get("editable"):
            yield Path(url2pathname(urlsplit(origin["url"]).path)).resolve()


def _is_folder(base: str, line: str) -> bool:
    return (
        bool(line.strip())
        and not line.startswith(("#", "import ", "import\t"))
        and Path(base, line.strip()).is_dir()
    )
