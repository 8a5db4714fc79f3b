"""Shared by the tests of the command line."""

import pytest

from luma_client.cli.app import run


@pytest.fixture
def luma(capsys):
    """Runs a command in this process; gives exit code, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = run([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call
