"""`python -m fxperex`."""

import sys

from fxperex.cli import main

if __name__ == "__main__":
    sys.exit(main())
