"""`python -m incus_actors` is `incus-actors`."""

from incus_actors.cli.main import main

if __name__ == "__main__":
    main()
