"""`python -m sonic_kv.cli`: the command, without its script."""

import sys

from sonic_kv.cli.main import main

sys.exit(main())
