"""SGLang's OpenAI-compatible server with what dynts adds to its answers, and an API key that its arguments do not show.

SGLang's other processes import this file too.
"""

import os
import sys

from dynts.engines.sglang.settings import API_KEY

if __name__ == "__main__":
    from sglang.cli.main import main
    from sglang.srt.entrypoints.http_server import app

    from dynts.engines.replies import Replies

    app.add_middleware(Replies)
    key = os.environ.pop(API_KEY, None)
    # what other users see of a process are the words that it was started with
    sys.argv[1:] = ["serve", "--model-type=llm", *([f"--api-key={key}"] if key else []), *sys.argv[1:]]
    main()
