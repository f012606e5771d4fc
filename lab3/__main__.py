"""`python -m lab3`: the command line without an installed script."""

from lab3.cli import main

raise SystemExit(main())
