"""``python -m atlantis.cli``, for launchers that start modules."""

from atlantis.cli import main
from atlantis.launch.outcomes import end_process

if __name__ == "__main__":
    try:
        main()
    except SystemExit as error:  # also where all went well
        end_process(error)
