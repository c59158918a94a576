"""The command of experiments.analyses.card."""

from experiments.analyses import card
from experiments.command_line import run_command

if __name__ == "__main__":
    run_command(card.main, card.Options, card.__doc__)
