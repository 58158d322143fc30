"""The place of a callback at its trainer: methods that it goes around, until it is removed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gwa_torch._methods import Methods

__all__ = ["Place"]

# Where a trainer has the place that was taken last.
ATTRIBUTE = "_gwa_place"


class Place:
    """The place of one callback at a trainer, in which there is room for one.

    A callback is not told when it is removed. The place sees it in the methods of the trainer, or
    when the trainer trains without it.

    Parameters
    ----------
    trainer : Trainer
        The trainer.
    callback : TrainerCallback
        The callback, which is added later.
    around : mapping of str to callable
        By name of a method, what to call as ``call(method, *args, **kwargs)`` in its place.
    left : callable
        What to call when the callback is removed.
    """

    def __init__(
        self,
        trainer: Any,
        callback: Any,
        around: Mapping[str, Callable[..., Any]],
        *,
        left: Callable[[], None],
    ) -> None:
        self.trainer = trainer
        self.callback = callback
        self._left = left
        # Whether the trainer had the callback.
        self.was_taken = False
        before = vars(trainer).get(ATTRIBUTE)
        if before is not None:
            before.leave()
        self._methods = Methods(trainer)
        for name, call in around.items():
            self._methods.wrap(name, call)
        for name in ("remove_callback", "pop_callback"):
            self._methods.wrap(name, self._remove)
        setattr(trainer, ATTRIBUTE, self)

    @property
    def taken(self) -> bool:
        """Whether the trainer has the callback."""
        return any(other is self.callback for other in self._callbacks)

    @property
    def _callbacks(self) -> list[Any]:
        callbacks: list[Any] = self.trainer.callback_handler.callbacks
        return callbacks

    def begin(self) -> bool:
        """Whether the callback takes part in a training that begins.

        Raises
        ------
        RuntimeError
            If it was made and not added.
        """
        if not self.taken:
            if not self.was_taken:
                raise RuntimeError(
                    "`trainer` must have the GWACallback that was made for it, got none; say "
                    "trainer.add_callback(gwa) with the one that was made last"
                )
            # It was taken out of the handler, past the trainer.
            self.leave()
            return False
        self.was_taken = True
        # A cell that is run twice adds it twice.
        while self._callbacks.count(self.callback) > 1:
            self._callbacks.remove(self.callback)
        return True

    def leave(self) -> None:
        """Leave the trainer as it was."""
        while self.taken:
            self._callbacks.remove(self.callback)
        self._methods.restore()
        self._left()
        if vars(self.trainer).get(ATTRIBUTE) is self:
            delattr(self.trainer, ATTRIBUTE)

    def _remove(self, remove: Callable[..., Any], *args: Any, **more: Any) -> Any:
        """Remove a callback; where it is this one, leave."""
        before = self.taken
        removed = remove(*args, **more)
        if before and not self.taken:
            self.leave()
        return removed
