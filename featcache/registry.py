"""Plug-ins are files: a module in a plug-in folder is a plug-in, and its stem is its public name.

Listing reads the folder and imports nothing, so that help texts stay fast and a plug-in whose
heavy package is missing breaks nobody else.
"""

import importlib
import importlib.util
import inspect
import pkgutil
from typing import TypeVar

from featcache.errors import FeatcacheError, UnknownNameError

T = TypeVar("T")


def names(package: str) -> list[str]:
    """Return the public names of the plug-ins in a package, sorted, without importing them.

    Args:
        package: dotted name of the plug-in folder, such as ``"featcache.streams"``.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise UnknownNameError("plug-in folder", package, ["featcache.streams", "featcache.corpora"])
    modules = pkgutil.iter_modules(spec.submodule_search_locations)
    return sorted(module.name for module in modules if not module.name.startswith("_"))


def load(package: str, name: str, contract: type[T]) -> type[T]:
    """Import one plug-in and return its class: the only concrete `contract` defined in its file.

    Raises:
        UnknownNameError: no file of that name; the message lists those that exist.
        FeatcacheError: the file defines no such class, or more than one.
    """
    if name not in names(package):
        raise UnknownNameError(f"{contract.__name__.lower()}", name, names(package))
    module = importlib.import_module(f"{package}.{name}")
    found = [
        member
        for member in vars(module).values()
        if inspect.isclass(member)
        and issubclass(member, contract)
        and member.__module__ == module.__name__
        and not inspect.isabstract(member)
    ]
    if len(found) != 1:
        listed = ", ".join(member.__name__ for member in found) or "none"
        raise FeatcacheError(
            f"The plug-in file {package}.{name} must define exactly one {contract.__name__}; it defines {listed}."
        )
    return found[0]
