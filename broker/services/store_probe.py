"""A safe probe of the store: whether it can be reached, takes the credentials, and takes writes."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

from broker.core.diagnosis import Finding, Verdict
from broker.errors import ConfigError, StoreError
from broker.services.clock import Clock, Randomness
from broker.stores.open import open_store
from broker.stores.options import StoreKind, StoreOptions


async def examine_store(options: StoreOptions, *, clock: Clock, randomness: Randomness) -> AsyncIterator[Finding]:
    """
    Probe, and yield what is found; keys are whole, such as ``store.url``.

    What is written is the mark by which every process asks whether writes are taken. An SQLite file that isn't there
    yet isn't made: it would belong to the user of the probe, who may be another one than the broker's.
    """
    location = options.location
    if location.kind is StoreKind.MEMORY:
        yield Finding(verdict=Verdict.NOTE, text=f"{location}: it ends with its process, and all sessions with it")
        return
    if location.kind is StoreKind.SQLITE and not location.path.exists():
        yield _judge_place(location.path)
        return
    try:
        store = open_store(options, clock, randomness)
    except ConfigError as fault:
        yield Finding(verdict=Verdict.ERROR, key="store.tls", text=str(fault).removeprefix("store.tls: "))
        return
    try:
        await store.start()
        await store.ping()
    except StoreError as fault:
        yield Finding(verdict=Verdict.ERROR, key=fault.look_at or "store.url", text=str(fault))
    else:
        yield Finding(verdict=Verdict.GOOD, text=f"{location} takes reads and writes")
    finally:
        await store.close()


def _judge_place(path: Path) -> Finding:
    """Say whether the first start can make the file at *path*, with the directory where that is missing."""
    there = next(parent for parent in path.parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        text = f"{path} isn't there, and {there} can't be written by this user"
        return Finding(verdict=Verdict.ERROR, key="store.url", text=text)
    return Finding(verdict=Verdict.NOTE, text=f"{path} isn't there yet; this user could make it")
