"""``python -m engine`` is ``tiny-distill``."""

import sys

from engine.cli.distill import main

if __name__ == "__main__":
    sys.exit(main())
