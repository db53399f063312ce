"""Time a prompt through HTTP against calling the cascade directly: `python tests/bench_service.py`.

Starts the real service on a free port with the bundled weights, warms both, then takes turns. Prints Markdown.
"""

import statistics
import subprocess
import sys
import time

import httpx

from service.cascade import GenerateRequest, load_cascade
from service.settings import load_settings

ROUNDS, PORT, PROMPT = 10, 8765, "a red apple"


def wait_until_ready(address: str) -> None:
    for _ in range(600):
        try:
            if httpx.get(f"{address}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise TimeoutError(f"{address} did not become ready in two minutes")


def main() -> None:
    address = f"http://127.0.0.1:{PORT}"
    server = subprocess.Popen([sys.executable, "-m", "service", "--port", str(PORT)], stdout=subprocess.DEVNULL)
    try:
        wait_until_ready(address)
        cascade = load_cascade(load_settings([]))
        print("| upscale | HTTP, seconds (median) | direct, seconds (median) | ratio |\n|---|---|---|---|")
        for upscale in (1, 4, 16):
            served, direct = [], []
            for seed in range(-1, ROUNDS if upscale < 16 else 3):
                body = {"prompt": PROMPT, "seed": seed + 1}
                started = time.perf_counter()
                answer = httpx.post(f"{address}/generate", params={"upscale": upscale}, json=body, timeout=300)
                middle = time.perf_counter()
                cascade.generate(GenerateRequest(PROMPT, seed + 1, upscale))
                ended = time.perf_counter()
                assert answer.status_code == 200, answer.text
                if seed >= 0:  # the first of each warms up
                    served.append(middle - started)
                    direct.append(ended - middle)
            over_http, alone = statistics.median(served), statistics.median(direct)
            print(f"| {upscale} | {over_http:.2f} | {alone:.2f} | {over_http / alone:.2f} |", flush=True)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
