"""`python -m hpstudy` is `hpstudy`."""

from hpstudy.cli import main

main()
