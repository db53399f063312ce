"""What a call costs in memory, as an evaluation reports it."""

import torch

from sr3.report import peak_memory


class GPU:
    """Stands for torch.cuda where 500 MB of weights are resident: the allocator's counters, as CUDA keeps them."""

    def __init__(self) -> None:
        self.now = self.peak = 500_000_000

    def is_available(self) -> bool:
        return True

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.now

    def memory_allocated(self) -> int:
        return self.now

    def max_memory_allocated(self) -> int:
        return self.peak

    def use(self, size: int) -> str:
        self.peak = max(self.peak, self.now + size)
        return "done"


def test_only_a_call_that_used_the_gpu_reports_its_memory(monkeypatch):
    gpu = GPU()
    gpu.use(10**12)  # before the call: forgotten
    monkeypatch.setattr(torch, "cuda", gpu)
    assert peak_memory(lambda: gpu.use(200_000_000)) == ("done", 700)
    result, peak = peak_memory(lambda: "on the CPU")
    assert result == "on the CPU" and peak != 500
