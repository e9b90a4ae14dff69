"""`python -m dyndiff` is `dyndiff`."""

from .cli import main

main()
