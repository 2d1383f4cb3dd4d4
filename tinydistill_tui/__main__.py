"""``python -m tinydistill_tui`` is ``tinydistill-tui``."""

import sys

from tinydistill_tui.cli import main

if __name__ == "__main__":
    sys.exit(main())
