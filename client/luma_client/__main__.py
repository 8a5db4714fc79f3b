"""``python -m luma_client`` is ``luma``, for launchers that start modules, such as ``torchrun``."""

from luma_client.cli import main

if __name__ == "__main__":
    main()
