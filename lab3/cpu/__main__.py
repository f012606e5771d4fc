"""`python -m lab3.cpu lmdeploy …`: the command `lmdeploy …` on a machine without a GPU."""

from __future__ import annotations

import sys

from lab3.errors import Lab3Error
from lab3.garbage import all_of_it_stays, collect_rarely
from lab3.threads import wait_patiently

_NEEDS_DEVICE = (("lite", "auto_awq"), ("lite", "calibrate"), ("lite", "smooth_quant"))
_RUNS_AN_ENGINE = (("serve", "api_server"), ("chat",))


def main(argv: list[str]) -> int:
    """Run `argv` (`["lmdeploy", …]`) with the CPU as LMDeploy's device. Returns the exit code."""
    if not argv or argv[0] != "lmdeploy":
        sys.stderr.write("usage: python -m lab3.cpu lmdeploy ARGUMENTS...\n")
        return 2
    # The default is 'cuda': what is not said means the device that is there.
    if tuple(argv[1:3]) in _NEEDS_DEVICE and not _given(argv, "--device"):
        argv = [*argv, "--device", "cpu"]
    wait_patiently()
    collect_rarely()
    try:
        with all_of_it_stays():
            from lab3.cpu.patches import import_less, install

            if any(tuple(argv[1 : 1 + len(command)]) == command for command in _RUNS_AN_ENGINE):
                for moved in import_less():
                    sys.stderr.write(f"warning: the start is slower than it could be (lab3/cpu/patches.py): {moved}\n")
            install()
            from lmdeploy.cli.entrypoint import run

        sys.argv = argv
        run()
    except Lab3Error as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


def _given(argv: list[str], option: str) -> bool:
    return any(argument == option or argument.startswith(f"{option}=") for argument in argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
