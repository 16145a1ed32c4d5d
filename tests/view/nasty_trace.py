"""A trace whose text tries to break its page, and a budget for it."""

from dynts.config import CompressionConfig
from dynts.traces.traces import Trace

CONFIG = CompressionConfig(budget=220, local_window=40, retention_ratio=0.5)

NASTY = (
    "</script><script>document.title='broken in'</script> <img src=x onerror=\"document.title='broken in'\"> &lt; "
    "&amp; <!-- \n"
    "\tשלום עולם \u202eoverride\u202c مرحبا\n\n👨‍👩‍👧 😀 é ¥ \ufffd \u2028 " + "x" * 400 + "\n"
)
_PLAIN = "the sum of one and two is three, "
NASTY_TRACE = Trace(
    "trace-<1>",
    "the sum of 1 and 2?",
    f"{_PLAIN * 6}{NASTY}{'so three. ' * 10}</think> the answer is \\boxed{{3}}",
    "3",
)
