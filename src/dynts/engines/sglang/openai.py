"""SGLang's OpenAI-compatible server with what dynts adds to its answers, and an API key that nobody else gets to see.

SGLang's other processes import this file too.
"""

import logging
import os
import sys

from dynts.engines.sglang.settings import API_KEY


def hide_key(key: str) -> None:
    """Keep a key out of the log, where SGLang writes all of its settings."""

    def hide(record: logging.LogRecord) -> bool:
        record.msg = str(record.msg).replace(key, "(hidden)")
        return True

    logging.getLogger("sglang.srt.entrypoints.engine").addFilter(hide)


if __name__ == "__main__":
    from sglang.cli.main import main
    from sglang.srt.entrypoints.http_server import app

    from dynts.engines.replies import Replies

    app.add_middleware(Replies)
    words = ["serve", "--model-type=llm"]
    if key := os.environ.pop(API_KEY, None):
        hide_key(key)
        # what other users see of a process are the words that it was started with
        words.append(f"--api-key={key}")
    sys.argv[1:] = [*words, *sys.argv[1:]]
    main()
