"""Where something stands in for what modules import by name."""

import sys
from types import ModuleType


def users_of(package: str, name: str, value: object) -> list[ModuleType]:
    """The imported modules of a package in which ``name`` is ``value``."""
    modules = [module for known, module in sys.modules.items() if known.split(".")[0] == package]
    return [module for module in modules if vars(module).get(name) is value]
