"""``python -m crhpc``: the same as the ``crhpc`` command."""
import sys

from crhpc.cli import main

if __name__ == "__main__":
    sys.exit(main())
