"""`python -m geomcli` is `geom`."""

from geomcli.cli import main

if __name__ == "__main__":
    main()
