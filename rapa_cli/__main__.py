"""Lets `python -m rapa_cli` do what `rapa` does, also in the processes that torchrun starts."""

import sys

from rapa_cli.app import main
from rapa_cli.commands.train import hush

if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        # All processes of a training notice wrong usage, and one of them tells.
        hush()
    main()
