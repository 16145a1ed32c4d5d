"""`python -m dynts`."""

from dynts.cli import main

if __name__ == "__main__":
    main()
