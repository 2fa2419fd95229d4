"""What runs the models: lm-evaluation-harness, the extra `eval`; no other module imports it.

It is given requests, and gives back likelihoods and texts. Prompts and scores are this package's own.
"""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, set_seed

from clusterucb.config import Common
from clusterucb.data.chat import ChatFormat
from clusterucb.data.rows import Message
from clusterucb.errors import ConfigError
from clusterucb.tasks.task import Variant
from clusterucb.training.adapter import fingerprint_base
from clusterucb.training.model import model_source

_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


class HuggingFace:
    """One transformers model with its adapter, which is not merged but switched off for the base.

    The model's own settings for generation (a repetition penalty, a top-k) are replaced by plain ones: base
    and adapter answer as the benchmark's variant says.
    """

    def __init__(self, load: Callable[[], Any], tokenizer: Any, chat: ChatFormat) -> None:
        self._model = cache(load)
        self._tokenizer = copy.deepcopy(tokenizer)  # the harness gives it a padding token where it has none
        self._chat = chat

    @cached_property
    def base(self) -> dict[str, object]:
        """What the base's answers depend on: its weights and their type."""
        model = self._model()
        return {"model": fingerprint_base(model), "dtype": str(next(model.parameters()).dtype)}

    @property
    def window(self) -> int:
        """The model's positions."""
        return int(self._lm.max_length)

    def ready(self, tokens: int) -> AbstractContextManager[None]:
        """Where it is asked: for any number of tokens at a time, prompt and answer; it stays loaded."""
        return nullcontext()

    @contextmanager
    def asked(self, who: str, batch: int) -> Iterator[Any]:
        """The harness's model object for `base` or `adapter`, that takes `batch` questions at once."""
        self._lm.batch_size_per_gpu = batch
        with self._model().disable_adapter() if who == "base" else nullcontext():
            yield self._lm

    @cached_property
    def _lm(self) -> Any:
        from lm_eval.models.huggingface import HFLM

        model = self._model().eval()
        ends = _end_tokens(model.generation_config, self._tokenizer, _ending(self._chat))
        plain = GenerationConfig(eos_token_id=ends)
        model.generation_config = model.get_base_model().generation_config = plain
        # The prompts hold the begin token where the chat format has one.
        with _silent():
            return HFLM(pretrained=model, tokenizer=self._tokenizer, add_bos_token=False)


class VLLM:
    """One vLLM engine; the adapter goes with a request for it, and the base is asked without.

    When it is first asked it starts, on all GPUs that can share the model, or raises ConfigError if vLLM
    cannot run such an adapter, or does not start.
    """

    def __init__(self, config: Common, adapter: Path) -> None:
        self._config = config
        self._adapter = adapter
        self._tokens = 0

    @cached_property
    def base(self) -> dict[str, object]:
        """Its files, as they are not read here, and the type of its weights."""
        return {"model": _fingerprint_files(model_source(self._config.model)), "dtype": self._config.dtype}

    @property
    def window(self) -> int:
        """The model's positions, or as many as are needed: vLLM wants memory for all of them."""
        return int(self._started[0].max_length)

    @contextmanager
    def ready(self, tokens: int) -> Iterator[None]:
        """For at most so many tokens; the engine holds all of the GPUs' memory, and is gone at the end."""
        self._tokens = tokens
        try:
            yield
        finally:
            vars(self).pop("_started", None)
            gc.collect()  # its processes end with its last object

    @contextmanager
    def asked(self, who: str, batch: int) -> Iterator[Any]:
        """The harness's model object; vLLM makes its batches by itself."""
        lm, request = self._started
        lm.lora_request = request if who == "adapter" else None
        yield lm

    @cached_property
    def _started(self) -> tuple[Any, Any]:
        """The harness's model object, and its request for the adapter."""
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # its engine is a process of its own
        os.environ.setdefault("VLLM_WORKER_MULTIPROCESSING_METHOD", "spawn")  # a fork could not use CUDA
        from lm_eval.models import vllm_causallms

        config = self._config
        settings = {
            "pretrained": model_source(config.model),
            "dtype": config.dtype,
            "seed": config.seed,
            "trust_remote_code": config.trust_remote_code,
            "add_bos_token": False,
            "lora_local_path": str(self._adapter),
            "max_lora_rank": _rank_for_vllm(self._adapter),
        }
        try:
            with _silent(), _seeing(config.device):
                lm = vllm_causallms.VLLM(**settings, **self._size())
        except (RuntimeError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(
                f"vLLM does not start with {settings['pretrained']} ({reason}); try --engine hf"
            ) from error
        return lm, lm.lora_request

    def _size(self) -> dict[str, int]:
        """Its room for tokens, and the GPUs on which all attention heads go evenly."""
        config = self._config
        source, trusted = model_source(config.model), config.trust_remote_code
        text = AutoConfig.from_pretrained(source, trust_remote_code=trusted).get_text_config()
        heads = getattr(text, "num_attention_heads", 1)
        keys = getattr(text, "num_key_value_heads", None) or heads
        gpus = 1 if ":" in config.device else max(1, torch.cuda.device_count())
        fit = (n for n in range(gpus, 0, -1) if heads % n == 0 and (keys % n == 0 or n % keys == 0))
        positions = getattr(text, "max_position_embeddings", None) or self._tokens
        return {"max_model_len": min(self._tokens, positions), "tensor_parallel_size": next(fit)}


@contextmanager
def _seeing(device: str) -> Iterator[None]:
    """The processes that are started see the one GPU that is named, if one is."""
    number, name = device.partition(":")[2], "CUDA_VISIBLE_DEVICES"
    before = os.environ.get(name)
    if number:
        os.environ[name] = before.split(",")[int(number)] if before else number
    try:
        yield
    finally:
        if number:
            os.environ.pop(name)
            os.environ.update({name: before} if before else {})


def _rank_for_vllm(adapter: Path) -> int:
    """The adapter's largest rank, rounded up to one that vLLM has kernels for."""
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    if settings.get("peft_type") != "LORA":
        raise ConfigError(f"{adapter}: vLLM runs LoRA adapters only; use --engine hf")
    rank = max(int(settings["r"]), *(settings.get("rank_pattern") or {}).values(), 1)
    room = next((allowed for allowed in _VLLM_RANKS if allowed >= rank), None)
    if room is None:
        raise ConfigError(f"{adapter}: rank {rank} is more than vLLM's {_VLLM_RANKS[-1]}; use --engine hf")
    return room


def _fingerprint_files(model: str) -> str:
    """A hash of a model that is not loaded here: its files' names, sizes and times, or its hub id."""
    files = [(path.name, path.stat()) for path in sorted(Path(model).glob("*")) if path.is_file()]
    facts = [model, *((name, stat.st_size, stat.st_mtime_ns) for name, stat in files)]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


Engine = HuggingFace | VLLM
"""A base and its adapter, to be asked; neither is loaded before it has to be."""


def require_harness(engine: str) -> None:
    """Raise ConfigError, with what to install, unless the harness and `engine` can be imported."""
    try:
        wanted = "benchmarks need lm-evaluation-harness ({}): pip install 'clusterucb[eval]'"
        import_module("lm_eval.models.huggingface")
        if engine == "vllm":
            wanted = "--engine vllm needs vLLM ({}): pip install 'clusterucb[vllm]'"
            import_module("vllm")
    except ImportError as error:
        raise ConfigError(wanted.format(error)) from None


def stops(variant: Variant, chat: ChatFormat) -> list[str]:
    """What ends an answer: the variant's own strings, and what the chat format ends an answer with."""
    ending = _ending(chat)
    return [*variant.stop, *([ending] if ending else [])]


def _ending(chat: ChatFormat) -> str:
    """What an answer ends with in the chat format; "" for nothing."""
    rendered = chat.render([Message("user", "?"), Message("assistant", "!")])
    ((start, end),) = rendered.spans
    return rendered.text[start:end].rpartition("!")[2].strip()  # a template may write before the answer, too


def _end_tokens(own: Any, tokenizer: Any, ending: str) -> list[int] | None:
    """Tokens that end an answer.

    The chat format's must be one of them: where it is special, the harness's text does not show it, and what
    a model writes after it, while others of its batch go on, would count as its answer.
    """
    found = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    found = [*found, tokenizer.eos_token_id]
    ids = tokenizer(ending, add_special_tokens=False)["input_ids"] if ending else []
    if len(ids) == 1:
        found += ids
    return sorted({int(token) for token in found if token is not None}) or None


def ask(
    lm: Any, variant: Variant, prompts: Sequence[str], until: Sequence[str], seed: int
) -> list[list[Any]]:
    """What a model object of the harness answers to each prompt.

    Returns:
        For each prompt, the log-likelihood of each choice; where there are none, `variant.samples` texts.
    """
    from lm_eval.api.instance import Instance

    kind: Any = "loglikelihood" if variant.choices else "generate_until"
    options = variant.choices or [_generation(variant, until)] * variant.samples
    pairs = [(prompt, option) for prompt in prompts for option in options]
    requests = [Instance(kind, {}, pair, place) for place, pair in enumerate(pairs)]
    set_seed(seed)
    with _silent():
        answers = getattr(lm, kind)(requests)
    if variant.choices:
        answers = [likelihood for likelihood, _greedy in answers]
    return [answers[start : start + len(options)] for start in range(0, len(pairs), len(options))]


def _generation(variant: Variant, until: Sequence[str]) -> dict[str, Any]:
    """How the harness is to generate."""
    limits = {"until": list(until), "max_gen_toks": variant.max_new_tokens}
    if variant.temperature == 0:
        return {**limits, "do_sample": False}
    # Without a top_k of 0, for all tokens, transformers takes 50.
    sampling = {"do_sample": True, "temperature": variant.temperature, "top_p": variant.top_p, "top_k": 0}
    return {**limits, **sampling}


@contextmanager
def _silent() -> Iterator[None]:
    """The harness logs and draws bars on standard error; what is worth knowing is shown by the caller."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        # A real file: vLLM asks for the number of the one that it writes to.
        with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere), redirect_stdout(nowhere):
            yield
    finally:
        logger.setLevel(before)
