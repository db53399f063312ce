"""The bars of the service, by hand: `python -m tests.bench_service COMMAND [--size N] [--fake]`. Prints Markdown.

throughput    serving against calling the cascade directly: pictures a second, and whether they are the same; --row
              UPSCALE CLIENTS measures one case alone
added         where the time of one client's requests goes, by Server-Timing, in SIZE turns of one with a direct call;
              --upscale N
health        /healthz under a full queue: median, P99
clients       32 clients with keys: none lost, none twice, how equal their shares are
memory        SIZE mixed requests: the server's and the worker's memory before and after, restarts
kills         kill -9 of the worker SIZE times under load: answers, hangs, seconds until ready
cancel        from SIZE cancellations of each kind of work to an idle worker, against the length of a step
"""

import argparse
import io
import json
import multiprocessing
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from itertools import pairwise
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

from service.metadata import metadata_of
from service.pictures import encode_picture
from service.requests import Cascade, GenerateRequest, GenerateResult
from service.upscale import Progress, UpscaleOptions
from sr3.images import Picture

PORT = 8765
URL = f"http://127.0.0.1:{PORT}"
FAKE = """
import sys
from pathlib import Path
from service.__main__ import main
from tests.service_fakes import fake
sys.exit(main(sys.argv[3:], fake(Path(sys.argv[1]), float(sys.argv[2]))))
"""
QUICK = {"steps": 4, "sr_steps": 0}


@contextmanager
def server(fake: bool, *flags: str, step_seconds: float = 0.01) -> Iterator[psutil.Process]:
    """The service as a process of its own, once it is ready."""
    with tempfile.TemporaryDirectory() as place:
        kind = ["-c", FAKE, place, str(step_seconds)] if fake else ["-m", "service"]
        command = [sys.executable, *kind, "--port", str(PORT), "--log-level", "error", *flags]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            wait_ready()
            assert process.poll() is None, "another server has the port"
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait()


def wait_ready() -> float:
    """Wait for /readyz; how many seconds."""
    begun = time.monotonic()
    while time.monotonic() - begun < 300:
        try:
            if httpx.get(f"{URL}/readyz").status_code == 200:
                return time.monotonic() - begun
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise TimeoutError("not ready in five minutes")


def worker_of(process: psutil.Process) -> psutil.Process:
    """The process that owns the cascade: the youngest that its fork server made."""
    return max((each for each in process.children(recursive=True)), key=lambda each: each.create_time())


def figure(name: str) -> float:
    """One of the server's figures."""
    lines = httpx.get(f"{URL}/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def throughput(size: int, fake: bool, row: tuple[int, int] | None = None) -> None:
    """One client against single direct calls, and eight, so that batches are full, against direct batches of four.

    Both make the same files. They take SIZE turns of a few seconds each, so that what else the machine does falls on
    both.
    """
    from service.cascade import load_cascade
    from service.settings import load_settings

    settings = load_settings([])
    cascade = load_cascade(settings)
    print("| upscale | clients | batch | HTTP, s a picture | direct, s | direct/HTTP (quartiles) | files that differ |")
    print("|---|---|---|---|---|---|---|")
    rows = [(upscale, clients) for upscale in (1, 4) for clients in (1, 2 * settings.max_batch)]
    with server(False):
        for upscale, clients in [row] if row else rows:
            batch, stretch, differing = (1, 2, 0) if clients == 1 else (settings.max_batch, 2 * clients, 0)
            spent: list[tuple[float, float]] = []
            for _ in range(size):
                served, seconds = ask_for(stretch, upscale, clients)
                begun = time.perf_counter()
                direct = draw(cascade, stretch, upscale, batch)
                spent.append((seconds / stretch, (time.perf_counter() - begun) / stretch))
                differing += sum(a != b for a, b in zip(served, direct, strict=True))
            over_http, directly = map(statistics.median, zip(*spent[1:], strict=True))  # the first warms up
            first, ratio, third = statistics.quantiles([direct / http for http, direct in spent[1:]], n=4)
            shown = f"{over_http:.3f} | {directly:.3f} | {ratio:.3f} ({first:.3f} to {third:.3f})"
            print(f"| {upscale} | {clients} | {batch} | {shown} | {differing} of {size * stretch} |", flush=True)


def ask_for(size: int, upscale: int, clients: int) -> tuple[list[bytes], float]:
    """The files of seeds 0 to `size` from the server, and in how many seconds so many are made while all clients ask:
    a few more go before and come after, without which the first batch and the last would not be full."""
    files: dict[int, bytes] = {}
    ended: list[float] = []
    seeds = iter(range(size + 2 * clients - 1))

    def ask() -> None:
        client = HTTPConnection("127.0.0.1", PORT, timeout=600)  # httpx takes more of the processor than the server
        for seed in seeds:
            body = json.dumps({"prompt": "a red apple", "seed": seed})
            client.request("POST", f"/generate?upscale={upscale}", body, {"content-type": "application/json"})
            answer = client.getresponse()
            files[seed] = answer.read()
            ended.append(time.perf_counter())
            assert answer.status == 200, files[seed]

    with ThreadPoolExecutor(clients) as pool:
        for each in [pool.submit(ask) for _ in range(clients)]:
            each.result()
    return [files[seed] for seed in range(size)], ended[clients + size - 1] - ended[clients - 1]


def draw(cascade: Cascade, size: int, upscale: int, batch: int) -> list[bytes]:
    """The same files by calling the cascade."""
    files = []
    for first in range(0, size, batch):
        wanted = [GenerateRequest("a red apple", seed, upscale) for seed in range(first, min(first + batch, size))]
        for request, made in zip(wanted, cascade.generate(wanted), strict=True):
            assert isinstance(made, GenerateResult)
            metadata = metadata_of(request, made.used, cascade.info().versions)
            files.append(encode_picture(Picture(made.image), metadata=metadata))
    return files


def added(size: int, fake: bool, upscale: int = 1) -> None:
    """One request and one direct call in turn. What is neither queue, network nor encoder is HTTP and handing over.
    Such short turns compare the two best where the machine's speed changes."""
    from service.cascade import load_cascade
    from service.settings import load_settings

    cascade = load_cascade(load_settings([]))
    turns = []
    with server(False):
        client = HTTPConnection("127.0.0.1", PORT, timeout=600)
        for seed in range(size + 1):  # the first warms up
            begun = time.perf_counter()
            body = json.dumps({"prompt": "a red apple", "seed": seed})
            client.request("POST", f"/generate?upscale={upscale}", body, {"content-type": "application/json"})
            answer = client.getresponse()
            answer.read()
            answered = time.perf_counter()
            draw(cascade, 1, upscale, 1)
            whole, direct = 1000 * (answered - begun), 1000 * (time.perf_counter() - answered)
            parts = re.findall(r"(\w+);dur=([\d.]+)", answer.getheader("server-timing", ""))
            spent = {"HTTP": whole, "direct": direct, **{stage: float(each) for stage, each in parts}}
            turns.append(spent | {"rest": whole - sum(float(each) for _, each in parts)})
    medians = {name: statistics.median(turn[name] for turn in turns[1:]) for name in turns[0]}
    first, ratio, third = statistics.quantiles([turn["direct"] / turn["HTTP"] for turn in turns[1:]], n=4)
    print("| " + " | ".join(f"{name}, ms" for name in medians) + " | direct/HTTP (quartiles) |")
    print("|---" * (len(medians) + 1) + "|")
    print("| " + " | ".join(f"{each:.1f}" for each in medians.values()), end=" | ")
    print(f"{ratio:.3f} ({first:.3f} to {third:.3f}) |")


def flood() -> None:
    """Forty clients that ask again once they are answered, or when they were told to come back."""

    def load() -> None:
        with httpx.Client(timeout=600) as client, suppress(httpx.TransportError):
            while True:
                answer = client.post(f"{URL}/generate", json={"prompt": "a", **QUICK})
                time.sleep(float(answer.headers.get("retry-after", 0)))

    for _ in range(40):
        threading.Thread(target=load).start()


def health(size: int, fake: bool) -> None:
    """SIZE probes, one after the other, while clients in another process keep their half of the queue full."""
    with server(fake, "--queue-size", "16"), httpx.Client(timeout=60) as client:
        clients = multiprocessing.get_context("spawn").Process(target=flood)
        clients.start()
        while figure("service_queue_depth") < 8:
            time.sleep(0.1)
        spent = []
        for _ in range(size):
            begun = time.perf_counter()
            assert client.get(f"{URL}/healthz").status_code == 200
            spent.append(1000 * (time.perf_counter() - begun))
            time.sleep(0.005)
        clients.kill()
        clients.join()
    spent.sort()
    print("| probes | median, ms | P99, ms | slowest, ms |\n|---|---|---|---|")
    print(f"| {size} | {statistics.median(spent):.1f} | {spent[int(0.99 * size)]:.1f} | {spent[-1]:.1f} |")


def clients(size: int, fake: bool) -> None:
    """32 clients with a key each; a quarter of them send four requests at a time, for SIZE requests in all."""
    keys = {f"c{i}": f"key-of-client-{i:06d}" for i in range(32)}
    given = ",".join(f"{name}:{key}" for name, key in keys.items())
    done: Counter[str] = Counter()
    seen: list[tuple[str, str]] = []
    lost: list[int] = []
    lock, stop = threading.Lock(), threading.Event()

    def ask(name: str, number: int) -> None:
        head = {"authorization": f"Bearer {keys[name]}"}
        with httpx.Client(timeout=600, headers=head) as client:
            for index in range(10**6):
                seed = (int(name[1:]) * 8 + number) * 10**6 + index
                answer = client.post(f"{URL}/generate?upscale=1", json={"prompt": name, "seed": seed, **QUICK})
                with lock:
                    if answer.status_code != 200 or answer.headers["seed"] != str(seed):
                        lost.append(answer.status_code)
                    if stop.is_set():
                        return
                    done[name] += 1
                    seen.append((name, answer.headers.get("seed", "")))
                    if len(seen) >= size:
                        stop.set()
                        return

    flags = ("--api-keys", given, "--queue-size", "256", "--max-batch", "1")
    with server(fake, *flags):
        greedy = {name: 4 if int(name[1:]) % 4 == 0 else 1 for name in keys}
        with ThreadPoolExecutor(256) as pool:
            for name, number in greedy.items():
                for each in range(number):
                    pool.submit(ask, name, each)
    shares = [done[name] for name in keys]
    mean = statistics.mean(shares)
    print("| answered | lost | twice | least share | largest share |\n|---|---|---|---|---|")
    twice = len(seen) - len(set(seen))
    print(f"| {len(seen)} | {len(lost)} | {twice} | {min(shares) / mean:.0%} | {max(shares) / mean:.0%} |")


def mixed(index: int) -> str:
    """One of the things that clients do; the status that came of it."""
    rng = random.Random(index)
    buffer = io.BytesIO()
    Image.effect_noise((24, 24), 50).convert("RGB").save(buffer, "PNG")
    kind = index % 8
    try:
        with httpx.Client(timeout=600 if kind != 5 else 0.05 + rng.random() / 4) as client:
            ask = {"prompt": "a red apple", "seed": index, **QUICK}
            if kind in (0, 5):
                return str(client.post(f"{URL}/generate?upscale=1", json=ask).status_code)
            if kind == 1:
                body = {**ask, "num_images": 2}
                return str(client.post(f"{URL}/generate?upscale=1", json=body).status_code)
            if kind == 2:
                return str(client.post(f"{URL}/upscale?steps=0", files={"image": buffer.getvalue()}).status_code)
            if kind == 3:
                return str(client.post(f"{URL}/upscale", files={"image": buffer.getvalue()[: index % 400]}).status_code)
            if kind == 4:
                return str(client.post(f"{URL}/generate", json={**ask, "prompt": "word " * 500}).status_code)
            if kind == 6:
                begun = client.post(f"{URL}/generate", json={**ask, "steps": 50}, headers={"prefer": "respond-async"})
                if begun.status_code != 202:
                    return str(begun.status_code)
                time.sleep(rng.random() / 4)
                return client.delete(URL + begun.headers["location"]).json()["state"]
            head = {"accept": "text/event-stream"}
            return str(len(client.post(f"{URL}/generate?upscale=1", json=ask, headers=head).content) > 0)
    except httpx.TimeoutException:
        return "went away"


def memory_of(process: psutil.Process) -> tuple[float, float, float]:
    """Resident bytes of the server, of its worker, and of the processes that decode pictures."""
    worker = figure("service_worker_memory_bytes")
    children = sorted(process.children(recursive=True), key=lambda each: each.create_time())
    server, *others = (each.memory_info().rss for each in (process, *children))
    return server, worker, sum(others[3:])  # after a resource tracker, the fork server and the worker


def memory(size: int, fake: bool) -> None:
    """SIZE mixed requests from eight clients, after a tenth of that as a warm-up. Results are kept for no time."""
    flags = ("--queue-size", "64", "--result-seconds", "0", "--heartbeat-seconds", "60")
    with server(fake, *flags) as process, ThreadPoolExecutor(8) as pool:
        list(pool.map(mixed, range(max(size // 10, 40))))
        time.sleep(2)
        before = memory_of(process)
        outcomes = Counter(pool.map(mixed, range(10**6, 10**6 + size)))
        time.sleep(2)
        after = memory_of(process)
        restarts = figure("service_worker_restarts_total")
    print("| process | before, MB | after, MB | change |\n|---|---|---|---|")
    for name, first, last in zip(("server", "worker", "decoders"), before, after, strict=True):
        print(f"| {name} | {first / 1e6:.0f} | {last / 1e6:.0f} | {last / first - 1:+.1%} |")
    print(f"\n{dict(outcomes)}; {restarts:.0f} restarts")


def kills(size: int, fake: bool) -> None:
    """Eight clients all the time; the worker is killed at random moments."""
    outcomes: Counter[str] = Counter()
    stop = threading.Event()

    def load(number: int) -> None:
        with httpx.Client(timeout=120) as client:
            for index in range(10**6):
                if stop.is_set():
                    return
                ask = {"prompt": "a", "seed": number * 10**6 + index, **QUICK}
                try:
                    answer = client.post(f"{URL}/generate?upscale=1", json=ask)
                    good = answer.status_code != 200 or answer.headers["seed"] == str(ask["seed"])
                    outcomes[str(answer.status_code) if good else "wrong"] += 1
                except httpx.TimeoutException:
                    outcomes["hung"] += 1

    with server(fake, "--queue-size", "64") as process:
        threads = [threading.Thread(target=load, args=(each,)) for each in range(8)]
        for thread in threads:
            thread.start()
        spent = []
        for each in range(size):
            time.sleep(random.Random(each).random() * 3)
            killed = worker_of(process)
            os.kill(killed.pid, signal.SIGKILL)
            killed.wait(10) if killed.is_running() else None
            time.sleep(0.3)
            spent.append(0.3 + wait_ready())
        stop.set()
        for thread in threads:
            thread.join()
    print("| kills | answers | hung or wrong | ready again, s (median) | (slowest) |\n|---|---|---|---|---|")
    bad = outcomes["hung"] + outcomes["wrong"]
    print(f"| {size} | {dict(outcomes)} | {bad} | {statistics.median(spent):.1f} | {max(spent):.1f} |")


CANCELLED = {
    "prompt, two steps, decoder": ("/generate?upscale=1", {"steps": 2}),
    "base": ("/generate?upscale=1", {"steps": 50}),
    "×4": ("/generate?upscale=4", {"steps": 1, "sr_steps": 50}),
    "×16": ("/generate?upscale=16", {"steps": 1, "sr_steps": 4}),
    "×4 of 256x256": ("/upscale?factor=4&steps=8", None),
}


def cancel(size: int, fake: bool) -> None:
    """SIZE requests of each kind, cancelled at random moments: from the server's receipt of DELETE until it knows that
    the worker is idle, against a step of the networks and the longest stretch in which nothing looks for it, both of
    direct calls in the same run."""
    from service.cascade import load_cascade
    from service.settings import load_settings

    name = "service_cancel_to_idle_seconds"
    buffer = io.BytesIO()
    Image.effect_noise((256, 256), 50).convert("RGB").save(buffer, "PNG")
    cascade = load_cascade(load_settings([]))
    print("| cancelled during | a step, ms | longest stretch, ms | to idle, ms: mean | longest | longer than a step |")
    print("|---|---|---|---|---|---|")
    with server(False), httpx.Client(base_url=URL, timeout=600) as client:
        for what, (path, body) in CANCELLED.items():
            sent: dict[str, Any] = {"files": {"image": buffer.getvalue()}} if body is None else {}
            sent |= {"json": {"prompt": "a red apple", **body}} if body else {}
            for _ in range(2):  # the first warms up
                begun = time.perf_counter()
                client.post(path, **sent).raise_for_status()
                spent = time.perf_counter() - begun
            step, stretch = stretches(cascade, path, body)
            moments, idle = random.Random(0), list[float]()
            while len(idle) < size:
                before = figure(f"{name}_count"), figure(f"{name}_sum")
                location = client.post(path, **sent, headers={"prefer": "respond-async"}).headers["location"]
                time.sleep(0.9 * moments.random() * spent)
                client.delete(location)
                time.sleep(max(0.2, 3 * step))  # asking would take the worker's cores away
                count, total = figure(f"{name}_count"), figure(f"{name}_sum")
                if count > before[0]:  # else it was done before, or not begun
                    idle.append(total - before[1])
            late = sum(each > step for each in idle)
            shown = [1000 * each for each in (step, stretch, statistics.mean(idle), max(idle))]
            print(f"| {what} | {' | '.join(f'{each:.1f}' for each in shown)} | {late} of {size} |", flush=True)


def stretches(cascade: Cascade, path: str, body: dict[str, int] | None) -> tuple[float, float]:
    """Seconds: the median step of the last stage of such a request, but for its first with what comes before, and the
    longest of its stretches (each as short as it was in three calls) between two looks for a cancellation."""
    factor = int(path.partition("=")[2].partition("&")[0])
    runs, steps = [], []
    for _ in range(4):
        looks: list[tuple[float, Progress | None]] = [(time.perf_counter(), None)]
        look = lambda progress: looks.append((time.perf_counter(), progress))  # noqa: B023, E731
        if body is None:
            pixels = np.asarray(Image.effect_noise((256, 256), 50).convert("RGB"))
            cascade.upscale([Picture(pixels)], [0], UpscaleOptions(factor, steps=8), look)
        else:
            cascade.generate([GenerateRequest("a red apple", 0, factor, **body)], look)
        looks.append((time.perf_counter(), None))
        runs.append([last[0] - first[0] for first, last in pairwise(looks)])
        ends: dict[tuple[str, int], float] = {}
        for moment, progress in looks:
            if progress is not None:
                ends.setdefault((progress.stage, progress.step), moment)
        final = list(ends)[-1][0]
        steps += [end - begun for ((stage, n), begun), (_, end) in pairwise(ends.items()) if stage == final and n]
    return statistics.median(steps), max(min(each) for each in zip(*runs[1:], strict=True))


COMMANDS = {
    "throughput": (throughput, 15),
    "added": (added, 40),
    "health": (health, 2000),
    "clients": (clients, 1600),
    "memory": (memory, 1000),
    "kills": (kills, 20),
    "cancel": (cancel, 20),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--size", type=int)
    parser.add_argument("--fake", action="store_true", help="a cascade without networks: the server's own cost alone")
    parser.add_argument(
        "--row", type=int, nargs=2, metavar=("UPSCALE", "CLIENTS"), help="of throughput: this one alone"
    )
    parser.add_argument("--upscale", type=int, choices=(1, 4, 16), help="of added: 1 if not given")
    options = parser.parse_args()
    call, size = COMMANDS[options.command]
    if options.row:
        throughput(options.size or size, options.fake, tuple(options.row))
    elif options.upscale:
        added(options.size or size, options.fake, options.upscale)
    else:
        call(options.size or size, options.fake)


if __name__ == "__main__":
    main()
