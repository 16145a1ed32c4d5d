"""What Triton asks of a back end to launch by; the interpreter launches its kernels itself."""

from typing import Any, NoReturn

from triton.backends.driver import DriverBase


class NoDriver(DriverBase):
    """Launches nothing, but is there."""

    @classmethod
    def is_active(cls) -> bool:
        """Say that Triton may be used."""
        return True

    def _refuse(self, *args: Any) -> NoReturn:
        raise RuntimeError("this Triton has no driver for CPUs: set TRITON_INTERPRET=1")

    map_python_to_cpp_type = get_current_target = get_active_torch_device = get_benchmarker = _refuse
