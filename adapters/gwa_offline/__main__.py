"""The command line ``gwa``: bad input gives exit code 2 and one sentence, never a traceback."""

from __future__ import annotations

import io
import sys


def main() -> None:
    """Run the command line."""
    try:
        _run()
    except KeyboardInterrupt:
        # One that came while a command began or ended; the commands answer the others.
        raise SystemExit(130) from None


def _run() -> None:
    try:
        from gwa_offline.app.cli import app
    except ImportError as error:
        # The bare install computes; it has nothing to draw a terminal with.
        print(f"gwa: {error}; pip install 'gwa-core[cli]'", file=sys.stderr)
        raise SystemExit(2) from None
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name that the terminal has no letters for must not end a command.
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except MemoryError as error:
        print(f"gwa: the memory does not suffice: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except (ValueError, TypeError, ArithmeticError, OSError, ImportError) as error:
        print(f"gwa: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
