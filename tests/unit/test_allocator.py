"""How the process keeps its memory."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from r2id import Pipeline
from r2id.allocator import raise_mmap_threshold
raise_mmap_threshold()
pipe = Pipeline.from_pretrained("weights/mnist", device="cpu")
latent = pipe.diffuse(3, steps=2)
pipe.resample(latent, size=(512, 512))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
pipe.resample(latent, size=(512, 512))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is glibc's")
def test_decoding_takes_its_memory_from_the_system_once():
    faults = int(subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True).stdout)
    assert faults < 20 * 512 * 512 * 4 / resource.getpagesize()  # 600 of the image's where every tensor is new
