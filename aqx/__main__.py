"""`python -m aqx` is the command `aqx`."""

import os


def main() -> None:
    """Run the command; interrupted before it has begun, it has nothing to tidy up."""
    try:
        from aqx.cli import main
    except KeyboardInterrupt:
        os.write(2, b"interrupted\n")
        os._exit(130)
    main()


if __name__ == "__main__":
    main()
