"""Import modules of a user, which register heads and stages and add config keys."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Collection, Iterable

from detectron2.config import CfgNode

__all__ = ["import_modules", "require_imported"]


def import_modules(cfg: CfgNode, names: Iterable[str]) -> None:
    """Import modules, and let each of them add its config keys.

    If a module has a function ``add_config(cfg)``, it is called. MODEL.IMPORTS becomes the names,
    so that a saved config tells which modules it needs. Modules are found in Python's path and in
    the working directory.

    Args:
        cfg: the config, which is changed.
        names: names of modules, such as "my_heads" or "my_package.heads".

    Raises:
        ValueError: if a name is no name of a module, or there is no such module.
    """
    names = list(dict.fromkeys(names))
    for name in names:
        add_config = getattr(_import(name), "add_config", None)
        if add_config is not None:
            add_config(cfg)
    cfg.MODEL.IMPORTS = tuple(names)


def _import(name: str):
    if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(
            f"--import: '{name}' is not the name of a Python module: write 'my_heads' for the file "
            "my_heads.py."
        )
    # Programs in other folders do not search the working directory. It comes last, so that a file
    # in it cannot replace an installed package.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module itself imports something that is missing
        raise ValueError(
            f"--import: there is no module '{name}' in the working directory or in Python's path: "
            "start the program in the folder of the module, or add the folder to PYTHONPATH."
        ) from error


def require_imported(found: Iterable[str], imported: Collection[str], where: str) -> None:
    """Check that MODEL.IMPORTS names only modules that the caller chose to import.

    A config file never imports a module itself, because then a file of data could run code.

    Args:
        found: the value of MODEL.IMPORTS.
        imported: the modules that the command line or the Python caller named.
        where: what sets the value, for the message.

    Raises:
        ValueError: if a module was not imported.
    """
    missing = [str(name) for name in found if name not in imported]
    if missing:
        options = " ".join(f"--import {name}" for name in missing)
        raise ValueError(
            f"{where}: MODEL.IMPORTS names {', '.join(missing)}, and a config does not import "
            f"modules itself: if you trust their code, add {options} (in Python: "
            f"imports={missing})."
        )
