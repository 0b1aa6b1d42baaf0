"""`python -m jaxsae` is the command `jaxsae`."""

from jaxsae.cli.main import main

if __name__ == "__main__":
    main()
