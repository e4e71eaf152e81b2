"""``accelerate launch`` without the tracebacks: ``python -m atlantis.launch OPTIONS SCRIPT ...``.

The processes say by themselves what went wrong.
"""

import logging
import subprocess
import sys
from typing import Any

from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

_SECONDS_TO_STOP = 600
"""What the processes have to save a checkpoint after a signal, in place of 30 seconds."""


def main() -> None:
    """Start the processes and wait for them; the exit code is that of the first one that failed."""
    logging.disable(logging.ERROR)
    arguments: Any = launch_command_parser().parse_args()
    arguments.shutdown_timeout = _SECONDS_TO_STOP
    try:
        launch_command(arguments)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        sys.exit(code if code > 0 else 128 - code)
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
    except SignalException as error:
        sys.exit(128 + error.sigval)


if __name__ == "__main__":
    main()
