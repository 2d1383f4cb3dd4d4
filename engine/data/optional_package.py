"""Packages that only some data needs, and that may be missing."""

from __future__ import annotations


def why_not(package: str, error: ImportError) -> tuple[str, str]:
    """Return why a package cannot be imported, and what to do about it.

    A package that is there may still refuse: pyarrow 26 does beside NumPy 1, which pip does not prevent.

    Args:
        package: its name for pip, which is the name of its module too.
        error: raised by the import.
    """
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == package:
        return "is not installed", f"Install it: pip install {package}"
    said = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
    return (
        f"is installed, but cannot be imported ({said})",
        f"Install versions that work together; pip install --upgrade {package} numpy gets the newest ones",
    )
