"""The command of experiments.analyses.prune."""

from experiments.analyses import prune
from experiments.command_line import run_command

if __name__ == "__main__":
    run_command(prune.main, prune.Options, prune.__doc__)
