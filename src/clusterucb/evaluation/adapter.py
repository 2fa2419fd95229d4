"""An adapter and its base, ready to be asked: from a run, or from any folder that peft wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import SafetensorError

from clusterucb.config import Common
from clusterucb.data.chat import ChatFormat, chat_format
from clusterucb.errors import ConfigError, InputError, reason
from clusterucb.evaluation.benchmarks import Benchmarks
from clusterucb.evaluation.harness import VLLM, HuggingFace
from clusterucb.runtime.files import began
from clusterucb.runtime.memory import Room
from clusterucb.runtime.screen import Screen
from clusterucb.training.adapter import (
    adapter_settings,
    fingerprint_tensors,
    open_adapter,
    read_adapter,
    read_object,
)
from clusterucb.training.model import load_model, load_tokenizer


def benchmarks(
    config: Common,
    adapter: Path,
    folder: Path,
    base_answers: Path,
    load: Callable[[], PeftModel],
    tokenizer: Any,
    chat: ChatFormat,
    screen: Screen,
    room: Room | None = None,
) -> Benchmarks:
    """The evaluation of `adapter` and its base that `config` asks for; `load` is called if hf runs them."""
    hf = config.evaluation.engine == "hf"
    engine = HuggingFace(load, tokenizer, chat) if hf else VLLM(config, adapter)
    name, unwanted = _fingerprint_adapter(adapter), _target_questions(adapter)
    room = room or Room(say=screen.say)
    return Benchmarks(config, engine, name, tokenizer, chat, folder, base_answers, unwanted, screen, room)


def evaluate_adapter(config: Common, screen: Screen) -> dict[str, Any]:
    """Evaluate `config.adapter` and its base, without a run; results go to `config.out`.

    Raises:
        ConfigError: no benchmark is named.
        InputError: the folder holds no adapter of the model.
    """
    adapter = Path(str(config.adapter))
    if not config.evaluation.tasks:
        raise ConfigError(f"evaluate {adapter} on what? give --tasks, such as --tasks gsm8k,mmlu")
    tokenizer = load_tokenizer(config)

    def load() -> PeftModel:
        screen.say(f"load {config.model}")
        # Trainable, as in a run: so the base's fingerprint, and with it its answers, are the same in both.
        return open_adapter(load_model(config), adapter, is_trainable=True)

    folder = Path(config.out) / "benchmarks"
    chat = chat_format(config.chat, tokenizer, lambda: began(folder / "began.json"))
    return benchmarks(config, adapter, folder, folder, load, tokenizer, chat, screen).run()


def with_base_model(options: dict[str, Any]) -> dict[str, Any]:
    """The options with the model that the adapter names as its base, unless they name one."""
    named = adapter_settings(Path(options["adapter"])).get("base_model_name_or_path")
    return {"model": named, **options} if named else options


def _fingerprint_adapter(adapter: Path) -> str:
    """A hash of the weights and of the settings that say what they mean (alpha, for one)."""
    settings = {**adapter_settings(adapter), "base_model_name_or_path": None, "inference_mode": None}
    try:
        weights = fingerprint_tensors(read_adapter(adapter))
    except (OSError, SafetensorError) as error:
        raise InputError(f"{adapter}: cannot be read ({reason(error)}); copy the adapter again") from None
    text = f"{weights} {json.dumps(settings, sort_keys=True)}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _target_questions(adapter: Path) -> frozenset[str]:
    """Digests of the questions that the adapter's rows were selected for, if a run of ours made it."""
    path = adapter / "checkpoint.json"
    return frozenset(read_object(path).get("target_questions", ()) if path.exists() else ())
