"""What all commands share: reading options, and ending in a sentence.

Commands import JAX, Flax and Matplotlib once the options are read, so that --help and a
wrong flag answer at once.
"""

import contextlib
import difflib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tyro

from experiments.training.errors import UserError


def run_command(command: Callable[[Any], Any], options: type, description: str) -> None:
    """Runs a command for a person.

    Args:
      command: takes one argument, an instance of options.
      options: dataclass; its fields are the command's flags. A ValueError that it
        raises is shown as tyro shows a flag that it cannot read, with exit code 2.
      description: shown by --help.
    """
    name = sys.modules["__main__"].__spec__.name
    chosen = tyro.cli(options, prog=f"python -m {name}", description=description)
    with friendly_errors():
        command(chosen)


@contextlib.contextmanager
def friendly_errors() -> Iterator[None]:
    """Ends the program in a sentence where input or the machine failed, or Ctrl-C came.

    That is a UserError, which code raises where it checks what a user gave; an OSError,
    as of a file that is missing or a disk that is full; and what a device reports, such
    as that its memory is full. Other errors are faults of the program, and keep their
    traceback.
    """
    try:
        yield
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nstopped; what was written so far is readable", file=sys.stderr)
        sys.exit(130)
    except RuntimeError as error:
        import jax

        if not isinstance(error, jax.errors.JaxRuntimeError):
            raise
        sys.exit(f"error: {error}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question with the names that are like one that is not known; or nothing."""
    close = difflib.get_close_matches(name, known, n=3)
    return f" Did you mean {' or '.join(close)}?" if close else ""
