"""An adapter and its base, ready to be asked: from a run, or from any folder that peft wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import PeftModel

from clusterucb.config import Common
from clusterucb.data.chat import ChatFormat, chat_format
from clusterucb.errors import ConfigError, InputError
from clusterucb.evaluation.benchmarks import Benchmarks, check_settings
from clusterucb.evaluation.harness import VLLM, Engine, HuggingFace
from clusterucb.progress import Screen
from clusterucb.training.model import (
    fingerprint_base,
    fingerprint_tensors,
    load_model,
    load_tokenizer,
    model_source,
    open_adapter,
    read_adapter,
)

__all__ = ["benchmarks", "evaluate_adapter", "with_base_model"]


def benchmarks(
    config: Common,
    adapter: Path,
    folder: Path,
    model: Callable[[], PeftModel],
    tokenizer: Any,
    chat: ChatFormat,
    screen: Screen,
) -> Benchmarks:
    """The evaluation of `adapter` and its base that `config` asks for; `model` is called if hf runs it."""

    def engine() -> Engine:
        if config.evaluation.engine == "hf":
            return HuggingFace(model(), tokenizer)
        return VLLM(
            model_source(config.model),
            adapter,
            dtype=config.dtype,
            seed=config.seed,
            trust_remote_code=config.trust_remote_code,
        )

    base: dict[str, object] = {"model": config.model, "dtype": config.dtype}
    if config.evaluation.engine == "hf":
        base = {"model": fingerprint_base(model()), "dtype": str(next(model().parameters()).dtype)}
    return Benchmarks(
        config=config,
        engine=engine,
        made_with={"base": base, "adapter": {**base, "adapter": fingerprint_tensors(read_adapter(adapter))}},
        tokenizer=tokenizer,
        chat=chat,
        folder=folder,
        leave_out=_target_questions(adapter),
        screen=screen,
    )


def evaluate_adapter(config: Common, screen: Screen) -> dict[str, Any]:
    """Evaluate `config.adapter` and its base, without a run; results go to `config.out`.

    Raises:
        ConfigError: no benchmark is named.
        InputError: the folder holds no adapter of the model.
    """
    adapter = Path(str(config.adapter))
    if not config.evaluation.tasks:
        raise ConfigError(f"evaluate {adapter} on what? give --tasks, such as --tasks gsm8k,mmlu")
    check_settings(config)
    tokenizer = load_tokenizer(config)
    loaded: list[PeftModel] = []

    def model() -> PeftModel:
        if not loaded:
            screen.say(f"load {config.model}")
            loaded.append(open_adapter(load_model(config), adapter))
        return loaded[0]

    folder = Path(config.out) / "benchmarks"
    chat = chat_format(config.chat, tokenizer)
    return benchmarks(config, adapter, folder, model, tokenizer, chat, screen).run()


def with_base_model(options: dict[str, Any]) -> dict[str, Any]:
    """The options with the model that the adapter names as its base, unless they name one."""
    path = Path(options["adapter"]) / "adapter_config.json"
    if not path.exists():
        raise InputError(
            f"{options['adapter']}: expected a folder with adapter_config.json and adapter_model.safetensors"
        )
    named = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    return {"model": named, **options} if named else options


def _target_questions(adapter: Path) -> frozenset[str]:
    """Digests of the questions that the adapter's rows were selected for, if a run of ours made it."""
    path = adapter / "checkpoint.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return frozenset(found.get("target_questions", ()))
