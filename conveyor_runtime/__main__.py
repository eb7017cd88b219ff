"""`python -m conveyor_runtime` is `conveyor`."""

from conveyor_runtime.cli import main

if __name__ == "__main__":
    main()
