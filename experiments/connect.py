"""The command of experiments.analyses.connect."""

from experiments.analyses import connect
from experiments.command_line import run_command

if __name__ == "__main__":
    run_command(connect.main, connect.Options, connect.__doc__)
