import platform

import pytest

from vgs_rl.samplers.memory import keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator only")
def test_glibc_takes_the_settings() -> None:
    assert keep_freed_memory()
