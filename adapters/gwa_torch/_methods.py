"""Methods of an object that are replaced for a while, and put back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

__all__ = ["Methods"]

_ABSENT = object()


class Methods:
    """Calls of an object that go through a function first.

    Parameters
    ----------
    owner : object
        Whose methods are meant. Its class stays as it is.
    """

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        # By name: the method in place, and what the object itself had there.
        self._placed: dict[str, tuple[Any, Any]] = {}

    def wrap(self, name: str, around: Callable[..., Any]) -> None:
        """Call ``around(method, *args, **kwargs)`` where the method is called."""
        method = getattr(self.owner, name)

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            # Another library may have wrapped this one, and go on calling it after `restore`.
            placed = self._placed.get(name)
            if placed is None or placed[0] is not call:
                return method(*args, **kwargs)
            return around(method, *args, **kwargs)

        self._placed[name] = (call, vars(self.owner).get(name, _ABSENT))
        setattr(self.owner, name, call)

    def restore(self) -> None:
        """Put back what was there."""
        placed, self._placed = self._placed, {}
        for name, (call, before) in placed.items():
            if vars(self.owner).get(name) is not call:
                continue
            if before is _ABSENT:
                delattr(self.owner, name)
            else:
                setattr(self.owner, name, before)
