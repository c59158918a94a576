"""All that a machine with an accelerator is for, one piece after the other.

    python -m benchmarks.accelerator [--dataset cifar10.npz] [--minutes 9]

Does what is missing in benchmarks/results/accelerator and ends within the time, in the
order of benchmarks.pieces: optimizer steps with the bandwidth they achieve, training
steps beside SGD's, the way between two solutions, methods in the arena, runs of the
paper in full, and a transformer beside its dense twin. Each piece leaves NAME.json
there, with hardware, versions and date, and perhaps a directory NAME of what else is
worth keeping, such as weights. The exit code is 75 as long as pieces are left: the same
command goes on.

An .npz file (experiments.data.load says of which arrays) needs neither TensorFlow
Datasets nor Grain. Where there are both, this makes one of CIFAR-10::

    import numpy
    from experiments.training import data
    arrays = vars(data.load("cifar10"))
    numpy.savez("cifar10.npz", **{name: arrays[name] for name in arrays if "_" in name})
"""

import dataclasses
import datetime
import sys
import tempfile
import time
from pathlib import Path

import jax

from benchmarks.measure import RESULTS, markdown
from benchmarks.pieces import Job, Piece, Result, Sizes, pieces, tiny
from experiments.command_line import run_command
from experiments.training import session
from experiments.training.directory import environment, read_json, write_json

LEDGER = RESULTS / "accelerator"


@dataclasses.dataclass(frozen=True)
class Options:
    """Measures an accelerator, and trains the paper's networks on it."""

    dataset: str = "cifar10"
    """CIFAR-10: "cifar10", prepared by TFDS, or the path of an .npz file."""
    data_dir: Path | None = None
    """Where TFDS keeps its data sets; by default TFDS's own choice."""
    minutes: float = 9
    """Nothing is begun that would not end within that time."""
    output: Path = LEDGER
    """Directory of what is found. Pieces that benchmarks/results/accelerator has are
    not done again, wherever this is."""
    scratch: Path = Path("runs/accelerator")
    """Directory of compiled programs, and of runs while they train."""
    dry_run: bool = False
    """Do all pieces at tiny size, to see that they work; needs another output."""

    def __post_init__(self):
        if self.dry_run and self.output == LEDGER:
            raise ValueError(
                f"output must be another directory in a dry run, got {self.output}"
            )


def main(options: Options) -> None:
    """Does what is missing and fits, and says what is left."""
    end = time.monotonic() + 60 * options.minutes
    options.output.mkdir(parents=True, exist_ok=True)
    options.scratch.mkdir(parents=True, exist_ok=True)
    # What was compiled once need not be again.
    jax.config.update("jax_compilation_cache_dir", str(options.scratch / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if options.dry_run:
        found, sizes = read(options.output), tiny(options.scratch)
    else:
        found = read(LEDGER) | read(options.output)
        sizes = Sizes(options.dataset, options.data_dir)
    left = [
        piece.name
        for piece in pieces(sizes)
        if not (_is_done(found, piece) or _perform(piece, found, end, options))
    ]
    if left:
        print(f"left: {', '.join(left)}", file=sys.stderr)
        sys.exit(session.INTERRUPTED)


def read(directory: Path) -> dict[str, Result]:
    """What the pieces found whose files are in a directory, by name."""
    return {path.stem: read_json(path) for path in sorted(directory.glob("*.json"))}


def _is_done(found: dict[str, Result], piece: Piece) -> bool:
    return piece.name in found and not found[piece.name].get("left")


def _perform(
    piece: Piece, found: dict[str, Result], end: float, options: Options
) -> bool:
    """Does a piece, if there is time for it, and notes what it found.

    Returns:
      Whether it came to its end.
    """
    if time.monotonic() > end:
        return False
    try:
        seconds = piece.seconds()
        start = time.monotonic()
        print(
            f"{piece.name}: about {seconds:.0f} s, {end - start:.0f} s are left",
            flush=True,
        )
        if start + seconds > end:
            return False
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            job = Job(options.output / piece.name, Path(scratch), end - start, found)
            result = piece.run(job)
    except (session.DivergedError, jax.errors.JaxRuntimeError) as error:
        # NaN, or out of memory: the others may do.
        result = {"error": str(error).splitlines()[0]}
    found[piece.name] = {
        "piece": piece.name,
        "measured": str(datetime.date.today()),
        "command": "python -m benchmarks.accelerator",
        "dry_run": options.dry_run,
        "seconds": round(time.monotonic() - start, 1),
        "environment": environment(),
        **result,
    }
    write_json(options.output / f"{piece.name}.json", found[piece.name])
    if rows := result.get("rows"):
        print(markdown(rows), flush=True)
    return _is_done(found, piece)


if __name__ == "__main__":
    run_command(main, Options, __doc__)
