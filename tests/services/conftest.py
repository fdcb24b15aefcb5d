"""What the tests of the engine's parts share."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.stage import Stage

StartStage = Callable[..., Awaitable[Stage]]


@pytest.fixture
async def start_stage(tmp_path: Path) -> AsyncIterator[StartStage]:
    """Start stages with options of the provider."""
    stages: list[Stage] = []

    async def start(**options: Any) -> Stage:
        stages.append(await Stage(tmp_path / f"spool-{len(stages)}", **options).start())
        return stages[-1]

    yield start
    for stage in stages:
        await stage.close()


@pytest.fixture
async def stage(start_stage: StartStage) -> Stage:
    """A stage with a strict provider: the default."""
    return await start_stage()
