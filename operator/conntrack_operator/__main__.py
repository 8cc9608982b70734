"""`python -m conntrack_operator` is the command `conntrack-operator`."""

import sys

from conntrack_operator.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
