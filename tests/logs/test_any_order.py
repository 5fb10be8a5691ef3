"""The store under anything in any order: what is read is the log, whole or an error."""

import random
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from codeartsfs.errors import ApiUnavailable, CodeArtsError, LogRewritten
from codeartsfs.logs.store import OpenLog
from tests.logs.fakes import RUNNING, World, key, landed, text

STEPS = 150


class Player:
    """Does one thing after another to a store and knows which bytes each log ever had."""

    def __init__(self, world: World, clock: MockClock, seed: int) -> None:
        self.world = world
        self.clock = clock
        self.chance = random.Random(seed)
        self.versions = {key(n): [f"log {n} version 0"] for n in range(1, 5)}
        self.handles: list[OpenLog] = []
        self.served = 0
        for each in self.versions:
            self.world.source.logs[each] = text(2000, self.versions[each][-1])

    def anything_outside(self) -> None:
        source, states, chance = self.world.source, self.world.states, self.chance
        each = chance.choice(list(self.versions))
        match chance.randrange(9):
            case 0:
                size = len(source.logs[each]) + chance.randrange(3000)
                source.logs[each] = text(size, self.versions[each][-1])
            case 1:
                self.versions[each].append(f"{each.stage} version {len(self.versions[each])}")
                source.logs[each] = text(chance.randrange(4000), self.versions[each][-1])
            case 2:
                source.breaks_at = chance.choice([None, None, 500, 2500])
            case 3:
                source.failure = chance.choice([None, None, None, ApiUnavailable("down")])
            case 4:
                states.failure = chance.choice([None, ApiUnavailable("down")])
            case 5:
                source.size_known = chance.random() < 0.7
            case 6:
                states.run = chance.choice([RUNNING, RUNNING, None])
            case 7:
                source.chunk_bytes = chance.choice([100, 1000, 100_000])
            case 8:
                self.clock.jump(chance.choice([0.5, 1, 3, 10]))

    async def play(self) -> None:
        async with self.world.store() as store:
            for _ in range(STEPS):
                self.anything_outside()
                each = self.chance.choice(list(self.versions))
                match self.chance.randrange(4):
                    case 0:
                        with trio.CancelScope() as impatient:
                            impatient.deadline = trio.current_time() + self.chance.choice([0, 1e9])
                            with suppress(CodeArtsError):
                                self.handles.append(await store.open(each))
                    case 1:
                        with suppress(CodeArtsError):
                            await store.stat(each)
                    case 2:
                        if self.handles:
                            await self.read(self.chance.choice(self.handles))
                    case 3:
                        if self.handles:
                            self.handles.pop(self.chance.randrange(len(self.handles))).close()
                store.check_invariants()
            self.clock.jump(10)
            self.world.source.failure = self.world.source.breaks_at = None
            for opened in self.handles:
                await self.read(opened)
                opened.close()
            self.clock.jump(10)
            await landed(store)
            assert store.statistics().open_logs == 0

    async def read(self, opened: OpenLog) -> None:
        size = opened.stat.size_bytes
        try:
            got = bytes(await opened.read(0, size))
        except (ApiUnavailable, LogRewritten):
            return
        assert len(got) == size
        assert any(got == text(size, version) for version in self.versions[opened.key])
        self.served += 1


@pytest.mark.parametrize("seed", range(100, 116))
async def test_what_is_read_is_some_version_of_the_log_as_far_as_it_was_announced(
    tmp_path: Path, mock_clock: MockClock, seed: int
) -> None:
    player = Player(World(tmp_path), mock_clock, seed)
    player.world.states.run = RUNNING
    await player.play()
    assert player.served > 5
