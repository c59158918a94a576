"""The command of experiments.analyses.units."""

from experiments.analyses import units
from experiments.command_line import run_command

if __name__ == "__main__":
    run_command(units.main, units.Options, units.__doc__)
