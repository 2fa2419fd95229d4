"""The parts of `make gpu` (gpu.py), each called as a process of its own.

    python benchmarks/gpu_parts.py PART FOLDER RESULT

FOLDER is shared by the parts: the job leaves its run there. RESULT becomes a JSON file of `checks` and, for
the page, `rows` of figures with what they are `about`. Without a GPU everything is small.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "examples/demo"))
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if GPU else torch.device("cpu")
GOALS = {(8, 512): 0.90, (32, 128): 0.85, (64, 64): 0.85}
"""Speed of features against plain forward and backward passes."""
SHARE = 0.35
"""Of the bfloat16 product's speed, that features reach at 8 x 512."""
LAYER_BYTES, OTHER_BYTES = 1.3e9, 6e9
"""Of Llama-2-7B with 4,096 tokens: a layer, and all else; a smaller GPU gets fewer layers."""

Found = dict[str, Any]


def check(name: str, passed: bool, said: object = "", count: int = 1) -> Found:
    """One line of the page's last table, of so many checks."""
    return {"name": name, "passed": bool(passed), "said": str(said), "count": count}


def machine(_: Path) -> Found:
    """What runs here."""
    import peft
    import transformers

    from clusterucb.version import commit

    name = torch.cuda.get_device_name() if GPU else f"{platform.processor() or platform.machine()}, CPU"
    libraries = f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}"
    count = torch.cuda.device_count() if GPU else 0
    return {
        "gpu": GPU,
        "device": f"{count} x {name}" if GPU else name,
        "driver": _driver(),
        "versions": f"driver {_driver()}, {libraries}",
        "commit": commit(),
        "checks": [],
    }


def _driver() -> str:
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True).stdout.split("\n")[0] or "unknown"
    except OSError:
        return "none"


def tests(_: Path) -> Found:
    """Those that are marked gpu; the kernel is compiled where there is one, else interpreted."""
    texts = {path: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    marked = [path for path, text in texts.items() if "pytest.mark.gpu" in text]
    if not find_spec("hypothesis"):
        marked = [path for path in marked if "from hypothesis" not in texts[path]]
    which = ["-m", "gpu"] if GPU else [str(ROOT / "tests/gradients/test_fused.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-W", "default", *which, *map(str, marked)]
    environment = {**os.environ, "TRITON_INTERPRET": str(int(not GPU))}
    shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    last = shown.stdout.splitlines()[-1] if shown.stdout else shown.stderr[-200:]
    failed = [check(name, False) for name in re.findall(r"^(?:FAILED|ERROR) (\S+)", shown.stdout, re.M)]
    passed = sum(map(int, re.findall(r"(\d+) passed", last)))
    checks = [*failed, *([check(f"{passed} tests", True, count=passed)] if passed else [])]
    return {"checks": checks or [check("tests", False, last)]}


def sketch(_: Path) -> Found:
    """The kernel against the operations, on a matrix of Llama-2-7B's adapter."""
    from sketch import timed, ways

    from clusterucb.gradients.projection import kernel

    shape, device, rows = (128, 4096) if GPU else (16, 576), str(DEVICE), []
    for count in (1, 8, 32, 64):
        before, plain, now = (1e3 * s for s in timed(ways(count, shape, device), device, 20))
        cells = {"rows": count, "passes of before, ms": f"{before:.3f}", "operations, ms": f"{plain:.3f}"}
        rows.append({**cells, "as a run, ms": f"{now:.3f}", "operations / as a run": f"{plain / now:.2f}"})
    about = f"Gradients of a matrix of {shape[0]} x {shape[1]}, mapped and sketched to 8192."
    trusted = check("the kernel is trusted", kernel(DEVICE, 8192) is not None)
    return {"about": about, "rows": rows, "checks": [trusted] if GPU else []}


def features(_: Path) -> Found:
    """Features against the passes alone."""
    from transformers import LlamaConfig

    from clusterucb.config import Lora
    from clusterucb.gradients.featurizer import Featurizer
    from clusterucb.gradients.projection import CountSketch
    from features import SHAPES, made_up_moments, product_speed, random_model

    layers = min(32, int((torch.cuda.mem_get_info()[0] - OTHER_BYTES) / LAYER_BYTES)) if GPU else 2
    shape = LlamaConfig(num_hidden_layers=layers) if GPU else SHAPES["tiny"]
    dtype = torch.bfloat16 if GPU else torch.float32
    model = random_model(shape, Lora(rank=128 if GPU else 8, alpha=512 if GPU else 32), DEVICE, dtype)
    featurize = Featurizer(model, CountSketch(0, 8192 if GPU else 512), made_up_moments(model))
    peak, rows, checks = product_speed(DEVICE, dtype, 8192 if GPU else 512), [], []
    for count, tokens in ((8, 512), (32, 128), (64, 64), (1, 512)):
        name, goal = f"{count} x {tokens}", GOALS.get((count, tokens)) if GPU else None
        try:
            row, ratio, share = _measured(featurize, count, tokens if GPU else tokens // 16, peak)
        except torch.OutOfMemoryError:
            checks.append(check(name, False, "out of memory"))
            continue
        rows.append({"rows x tokens": name, **row})
        checks.append(check(f"{name} measured", ratio > 0))
        if goal:
            checks.append(check(f"{name}: features at {goal:.2f} of plain", ratio >= goal, f"{ratio:.2f}"))
        if goal and tokens == 512:
            checks.append(check(f"{name}: {SHARE:.0%} of the product", share >= SHARE, f"{share:.0%}"))
    about = (
        f"{'Llama-2-7B' if GPU else 'A tiny Llama'}, {layers} layers, random weights, {dtype}; the adapter "
        f"on q, k, v, o in float32. A product of that type reaches {peak / 1e12:.2f} TFLOP/s."
    )
    return {"about": about, "rows": rows, "checks": checks}


def _measured(featurize: Any, count: int, tokens: int, peak: float) -> tuple[Found, float, float]:
    """A row of the table, features' speed against plain, and the share of the product's that they reach."""
    from clusterucb.gradients.batches import collate
    from features import both_passes, made_up_rows, operations, timed

    model = featurize.model
    some = made_up_rows(count, tokens, tokens, vocabulary=model.config.vocab_size, seed=0)
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    ways: dict[str, Callable[[Any], object]] = {
        "features": lambda _: featurize(some),
        "labels": lambda _: both_passes(model, collate(some, DEVICE), True),
        "plain": lambda _: both_passes(model, collate(some, DEVICE), False),
    }
    kept = timed({"features": ways["features"]}, [np.arange(count)], DEVICE, 1)
    most = torch.cuda.max_memory_allocated() if GPU else 0
    spent = {**kept, **timed(ways, [np.arange(count)], DEVICE, 5)}
    ratio = spent["plain"] / spent["features"]
    share = operations(model, count * tokens) / spent["features"] / peak
    row = {f"{name}, ms": f"{1e3 * spent[name]:.1f}" for name in ("plain", "labels", "features")}
    row |= {"of plain": f"{ratio:.2f}", "of labels": f"{spent['labels'] / spent['features']:.2f}"}
    row |= {"of the product": f"{share:.0%}", "memory at most": f"{most / 1e9:.1f} GB" if GPU else "-"}
    return row, ratio, share


def kmeans(_: Path) -> Found:
    """Iterations against the products that bound them."""
    from clusterucb.features.kmeans import spherical_kmeans
    from clusterucb.runtime.devices import wait_for

    n, d, iterations = (100_000, 8192, 5) if GPU else (2_000, 512, 5)
    k, rng = int(n**0.5), np.random.default_rng(0)
    x = rng.standard_normal((n, d), np.float32)
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)
    spherical_kmeans(x[:2000], 20, iterations=1, device=DEVICE)  # warms up
    started, done = time.perf_counter(), []
    spherical_kmeans(x, k, iterations=iterations, device=DEVICE, progress=lambda *at: done.append(at))
    seconds = (time.perf_counter() - started) / len(done)
    block, centroids = torch.randn(1000, d, device=DEVICE), torch.randn(d, k, device=DEVICE)
    best = float("inf")
    for _ in range(10):
        wait_for(DEVICE)
        started = time.perf_counter()
        block @ centroids
        wait_for(DEVICE)
        best = min(best, time.perf_counter() - started)
    bound = best * n / len(block)
    cells = {"rows": n, "dimensions": d, "k": k, "s an assignment": f"{seconds:.3f}"}
    row = {**cells, "products alone, s": f"{bound:.3f}", "share": f"{bound / seconds:.0%}"}
    about = "Spherical k-means from the host's float16, against products of its float32 blocks already there."
    return {"about": about, "rows": [row], "checks": [check("k-means ends", seconds > 0)]}


def job(folder: Path) -> Found:
    """The whole procedure, and the same call again."""
    from clusterucb.cli.main import quiet_libraries

    quiet_libraries()
    from clusterucb import Session, dynamic
    from clusterucb.runtime.files import read_json

    config = _job(folder)
    times, adapters = [], []
    for _ in range(2):
        started = time.monotonic()
        session = Session(config)
        with session.owned():
            dynamic(session)
        times.append(time.monotonic() - started)
        adapters.append((session.dir.adapter / "adapter_model.safetensors").read_bytes())
    steps = read_json(session.dir.path / "summary.json")["steps"]
    rows = [{"step": name, "rows": s["rows"], "seconds": f"{s['seconds']:.1f}"} for name, s in steps.items()]
    loss = read_json(session.dir.evaluation)
    base, adapter = loss["base"]["loss"], loss["adapter"]["loss"]
    checks = [
        check("the loss is finite and falls", adapter < base, f"{base:.3f} to {adapter:.3f}"),
        check("again it changes nothing", adapters[0] == adapters[1], f"{times[1]:.1f} s"),
    ]
    about = f"Dynamic-ClusterUCB on random weights from end to end: {times[0]:.1f} s."
    return {"about": about, "rows": rows, "checks": checks}


def _job(folder: Path) -> Any:
    """Settings of the demo's job, with a model and data made here."""
    from clusterucb import Config

    model, rows = folder / "model", folder / "rows"
    if not rows.exists():
        _write_data(rows, model)
    config = {
        "lora": {"rank": 8, "alpha": 32},
        "warmup": {"warmup_steps": 8},
        "gradients": {"gradient_length": 256, "target_length": 256, "dim": 8192 if GPU else 256},
        "training": {"periods": 3, "lr": 1e-3, "batch_size": 4, "micro_batch": 4, "train_length": 256},
        "pool": [str(path) for path in sorted(rows.glob("pool-*.jsonl"))],
        "target": [str(rows / "target.jsonl")],
        "holdout": [str(rows / "holdout.jsonl")],
    }
    return Config(model=str(model), out=str(folder / "run"), chat="tulu", device=str(DEVICE), **config)


def _write_data(rows: Path, model: Path) -> None:
    """Python's own texts as rows, a tokenizer of them, and SmolLM2-135M's shape with random weights."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from data import draw, http_status, python_functions, python_modules, write_rows

    scale = 1 if GPU else 4
    functions = draw("python_functions", python_functions(), 100 // scale, 0)
    held = 28 // scale
    parts = {
        "pool-functions": functions[held:],
        "pool-modules": draw("python_modules", python_modules(), 100 // scale, 0),
        "pool-status": draw("http_status", http_status(), 40 // scale, 0),
        "target": functions[: 8 // scale],
        "holdout": functions[8 // scale : held],
    }
    rows.mkdir()
    for name, turns in parts.items():
        write_rows(rows / f"{name}.jsonl", name.removeprefix("pool-"), turns)
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2048, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    made.train_from_iterator((path.read_text() for path in rows.glob("*.jsonl")), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>", pad_token="<|end|>")
    tokenizer.save_pretrained(model)
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "num_hidden_layers": 30 if GPU else 2}
    sizes = (
        {"hidden_size": 576, "intermediate_size": 1536}
        if GPU
        else {"hidden_size": 72, "intermediate_size": 96}
    )
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **heads, **sizes)).save_pretrained(model)


def processes(folder: Path) -> Found:
    """Features by two processes: faster, and the same to the bit."""
    from processes import gradients

    if GPU and torch.cuda.device_count() < 2:
        return {"checks": [], "left out": "there is one GPU"}
    (one, features), (two, same) = (gradients(folder / "run", folder / f"by-{n}", n) for n in (1, 2))
    rows = [{"processes": 1, "s": f"{one:.1f}"}, {"processes": 2, "s": f"{two:.1f}"}]
    about = f"Features of the job's pool: {one / two:.2f} times as fast."
    return {"about": about, "rows": rows, "checks": [check("the same to the bit", features == same)]}


def doctor(folder: Path) -> Found:
    """The job's model on this device."""
    from clusterucb.studies.doctor import examine

    found = examine(_job(folder))
    cosines = ", ".join(f"{name} {cosine:.4f}" for name, cosine in found.cosines.items())
    return {"checks": [check(f"features are sound ({', '.join(found.attention)})", found.sound, cosines)]}


PARTS: dict[str, Callable[[Path], Found]] = {
    **{part.__name__: part for part in (machine, tests, sketch, features, job, processes, doctor)},
    "k-means": kmeans,
}

if __name__ == "__main__":
    name, folder, result = sys.argv[1:]
    Path(result).write_text(json.dumps(PARTS[name](Path(folder))))
