"""Two single-thread runs side by side against one two-thread run: which trains more tokens per second?

    python benchmarks/parallel.py            # about a minute; nothing else should run

Each setting trains the same model on random tokens (forward, backward, clipping, AdamW). Settings are interleaved; the
median of the repeats is reported with its range.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from multiprocessing.connection import Connection

from isoflop.planner.ladder import Template, architecture
from isoflop.spec import ExpertsSpec, count

CONTEXT, BATCH = 256, 16
EXPERTS = {"dense": None, "moe-e8-g4": ExpertsSpec(granularity=4, expansion_rate=8)}


def worker(pipe: Connection, threads: int, family: str, d_model: int, steps: int) -> None:
    import torch
    from torch.nn.functional import cross_entropy

    from isoflop.nn import Decoder

    torch.set_num_threads(threads)
    spec = architecture(Template(vocab_size=257, context=CONTEXT, experts=EXPERTS[family]), d_model=d_model)
    model = Decoder(spec)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    tokens_BT = torch.randint(0, 257, (BATCH, CONTEXT + 1))

    def step() -> None:
        output = model(tokens_BT[:, :-1])
        loss = cross_entropy(output.logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten()) + output.auxiliary_loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    step()
    pipe.send("ready")
    while pipe.recv() == "go":
        for _ in range(steps):
            step()
        pipe.send("done")


def start(processes: int, threads: int, family: str, d_model: int, steps: int) -> list:
    context = multiprocessing.get_context("spawn")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    started = []
    for _ in range(processes):
        ours, theirs = context.Pipe()
        process = context.Process(target=worker, args=(theirs, threads, family, d_model, steps), daemon=True)
        process.start()
        started.append((process, ours))
    for _, pipe in started:
        pipe.recv()
    return started


def measure(started: list, steps: int) -> float:
    begin = time.perf_counter()
    for _, pipe in started:
        pipe.send("go")
    for _, pipe in started:
        pipe.recv()
    return len(started) * steps * BATCH * CONTEXT / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1)
    arguments = parser.parse_args()
    cores = os.cpu_count() or 1
    print(f"{cores} cores; tokens/s in all, median of {arguments.repeats} (min–max)")
    print(f"{'model':<22}{f'1 run x {cores} threads':>26}{f'{cores} runs x 1 thread':>26}{'ratio':>8}")
    for family in EXPERTS:
        for d_model in (64, 128, 192):
            single = start(1, cores, family, d_model, arguments.steps)
            several = start(cores, 1, family, d_model, arguments.steps)
            rates: tuple[list[float], list[float]] = ([], [])
            for _ in range(arguments.repeats):
                rates[0].append(measure(single, arguments.steps))
                rates[1].append(measure(several, arguments.steps))
            for _, pipe in single + several:
                pipe.send("stop")
            spec = architecture(Template(vocab_size=257, context=CONTEXT, experts=EXPERTS[family]), d_model=d_model)
            cells = [f"{statistics.median(r):,.0f} ({min(r):,.0f}–{max(r):,.0f})" for r in rates]
            ratio = statistics.median(rates[1]) / statistics.median(rates[0])
            name = f"{family} {count(spec).params_active / 1e3:,.0f}K"
            print(f"{name:<22}{cells[0]:>26}{cells[1]:>26}{ratio:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
