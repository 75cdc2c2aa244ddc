"""What one process of a distributed run does; importable, so that test processes can be started on it."""

import os
import signal
from pathlib import Path

from isoflop.spec import DecoderSpec
from isoflop.train import TrainConfig, train


def train_rank(rank: int, world: int, port: int, spec: DecoderSpec, config: TrainConfig, data: Path, out: Path) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    train(spec, config, data=data, out=out)


def train_in_foreground(spec: DecoderSpec, config: TrainConfig, data: Path, out: Path) -> None:
    """Train with the handler of SIGINT that a foreground process has; a shell's background jobs ignore the signal."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    train(spec, config, data=data, out=out)
