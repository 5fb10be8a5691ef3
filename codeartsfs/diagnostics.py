"""What the process says of itself: the log."""

import json
import logging
import time

import click


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def set_up_logging(level: str, form: str, file: str | None) -> None:
    """Log to a file, or to standard error.

    Raises:
        click.UsageError: the file cannot be written.
    """
    try:
        handler = logging.FileHandler(file) if file else logging.StreamHandler()
    except OSError as error:
        raise click.UsageError(f"cannot log to {file}: {error.strerror}") from None
    handler.setFormatter(
        _JsonLines()
        if form == "json"
        else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler])
