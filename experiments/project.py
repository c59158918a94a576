"""The command of experiments.analyses.project."""

from experiments.analyses import project
from experiments.command_line import run_command

if __name__ == "__main__":
    run_command(project.main, project.Options, project.__doc__)
