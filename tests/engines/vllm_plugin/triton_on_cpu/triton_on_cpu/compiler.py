"""What Triton asks of a back end to compile by; the interpreter does not compile."""

from typing import Any, NoReturn

from triton.backends.compiler import BaseBackend


class NoCompiler(BaseBackend):
    """Compiles nothing: there are only interpreted kernels."""

    @staticmethod
    def supports_target(target: Any) -> bool:
        """Say that no target is compiled for."""
        return False

    def _refuse(self, *args: Any) -> NoReturn:
        raise RuntimeError("this Triton has no compiler for CPUs: set TRITON_INTERPRET=1")

    hash = parse_options = add_stages = load_dialects = get_module_map = _refuse
