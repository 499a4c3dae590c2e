"""Lets `python -m rapa_cli` do what `rapa` does."""

from rapa_cli.app import main

if __name__ == "__main__":
    main()
