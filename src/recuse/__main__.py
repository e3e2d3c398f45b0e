"""`python -m recuse`: the command, by the interpreter that shall run it."""

import sys

from recuse.cli.main import main

sys.exit(main())
