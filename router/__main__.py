"""`python -m router` is `broker`."""

import sys

from router.cli import main

sys.exit(main())
