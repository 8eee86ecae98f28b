"""`python -m aqx` is the command `aqx`."""

from aqx.cli import main

if __name__ == "__main__":
    main()
