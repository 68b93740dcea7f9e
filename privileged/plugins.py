"""How plug-ins are found: one file a name, in our package or through an entry point of another one."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from .errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plugins:
    """The files of `package` (its `__path__` is `path`), and whatever others register under the `group`."""

    kind: str
    """`builder`: for messages, and in capitals the name of the options dataclass in each file."""
    package: str
    path: Iterable[str]
    group: str

    def available(self) -> list[str]:
        """Names of all plug-ins, those of other packages included."""
        return sorted({*self._own(), *(point.name for point in entry_points(group=self.group))})

    def find(self, name: str) -> ModuleType:
        """The module of plug-in `name`. Raises DataError with the close matches if there is none."""
        if name in self._own():
            return importlib.import_module(f"{self.package}.{name}")
        for point in entry_points(group=self.group, name=name):
            try:
                return point.load()
            except Exception as error:  # somebody else's package may fail in any way
                raise DataError(f"{self.kind} {name!r} of {point.value!r} cannot be loaded: {error}") from None
        close = difflib.get_close_matches(name, self.available(), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise DataError(f"{self.kind} {name!r} is unknown: {hint}available: {', '.join(self.available())}")

    def get(self, name: str, options: dict[str, Any]) -> Any:
        """Plug-in `name` with its options. Raises DataError if the name or an option is unknown."""
        cls = getattr(self.find(name), self.kind.upper(), None)
        if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
            raise DataError(
                f"{self.kind} {name!r}: expected a dataclass named {self.kind.upper()} in its file, got none"
            )
        known = {field.name for field in dataclasses.fields(cls) if field.init}
        if unknown := sorted(set(options) - known):
            listed = ", ".join(sorted(known)) or "none"
            raise DataError(f"{self.kind} {name!r} has no option {unknown[0]!r}: options: {listed}")
        return cls(**options)

    def _own(self) -> list[str]:
        return [module.name for module in pkgutil.iter_modules(self.path) if not module.name.startswith("_")]
