"""`python -m gradext` and the console script: one program."""

from gradext.commands import main

if __name__ == "__main__":
    raise SystemExit(main())
