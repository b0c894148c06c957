"""The command `memfit`. Kept apart from what it does, so that a device, which has torch and `memfit` alone, gets a plain word."""

import sys


def main() -> None:
    try:
        from service.commands import app
    except ModuleNotFoundError as error:
        sys.exit(f"memfit: {error.name} is not installed. The command line comes with the service: pip install 'memfit[service]'")
    app()


if __name__ == "__main__":
    main()
