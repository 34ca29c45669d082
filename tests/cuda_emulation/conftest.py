from __future__ import annotations

import pytest
from emulator import Emulator, compiler_is_missing


@pytest.fixture(scope="session")
def emulator(request: pytest.FixtureRequest) -> Emulator:
    if compiler_is_missing():
        pytest.skip("no C++ compiler to build the emulator with")
    return Emulator(request.config.cache.mkdir("cuda_emulation"))
