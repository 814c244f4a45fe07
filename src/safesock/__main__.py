"""`python -m safesock` is `safesock`."""

import sys

from safesock.cli import main

sys.exit(main())
