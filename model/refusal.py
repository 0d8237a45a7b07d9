"""How a command refuses wrong input: one line on stderr that names the input and the remedy, and exit code 2.

Those trainings and other steps of nano/ that only trainer/train_nano.sh runs raise the error as it is.
"""
import sys

INPUT_ERRORS = (ValueError, OSError, ImportError)  # by convention these say what is wrong with the input and what to do about it


def one_line(error: Exception) -> str:
    """The error's text without line breaks, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def refuse(error: Exception, remedy: str = "") -> int:
    """Tell the user; returns the exit code."""
    sys.stderr.write(f"error: {one_line(error)}{remedy}\n")
    return 2
