"""lm-evaluation-harness, asked with the documents and the task files of this package.

The harness is the extra `eval`; this module is the only one that imports it.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from clusterucb.data.chat import ChatFormat
from clusterucb.data.rows import Message
from clusterucb.errors import ConfigError
from clusterucb.evaluation.documents import Document
from clusterucb.tasks import Variant

__all__ = [
    "TASK_FILES",
    "VLLM",
    "Answered",
    "Engine",
    "HuggingFace",
    "adapter_for_vllm",
    "ask",
    "require_harness",
    "stops",
]

TASK_FILES = Path(__file__).parent / "tasks"
Answered = dict[str, Any]
"""id, subtask, responses (texts, or log-likelihoods of the choices), and each metric's value."""

_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


class Engine(Protocol):
    """Models that the harness can ask."""

    name: str

    @property
    def window(self) -> int:
        """Tokens of prompt and answer that the model can hold."""

    def asked(self, who: str, batch: int) -> contextlib.AbstractContextManager[Any]:
        """The harness's model object for `base` or `adapter`, that takes `batch` questions at once."""


class HuggingFace:
    """One transformers model with its adapter, which is not merged but switched off for the base."""

    name = "hf"

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._lm: Any = None

    @property
    def window(self) -> int:
        """The model's positions."""
        return int(self._wrapped.max_length)

    @property
    def _wrapped(self) -> Any:
        if self._lm is None:
            from lm_eval.models.huggingface import HFLM

            self._model.eval()
            # The prompts hold the begin token where the chat format has one.
            with _silent():
                self._lm = HFLM(pretrained=self._model, tokenizer=self._tokenizer, add_bos_token=False)
        return self._lm

    @contextmanager
    def asked(self, who: str, batch: int) -> Iterator[Any]:
        """The harness's model object, with the adapter on or off."""
        lm = self._wrapped
        lm.batch_size_per_gpu = batch
        with self._model.disable_adapter() if who == "base" else contextlib.nullcontext():
            yield lm


class VLLM:
    """vLLM engines, one at a time: the base, or the base with the adapter as a LoRA request."""

    name = "vllm"

    def __init__(self, model: str, adapter: Path, *, dtype: str, seed: int, trust_remote_code: bool) -> None:
        self._settings = {
            "pretrained": model,
            "dtype": dtype,
            "seed": seed,
            "trust_remote_code": trust_remote_code,
            "add_bos_token": False,
        }
        self._adapter = adapter
        self._who = ""
        self._lm: Any = None

    @property
    def window(self) -> int:
        """The model's positions."""
        with self.asked(self._who or "base", 0) as lm:
            return int(lm.max_length)

    @contextmanager
    def asked(self, who: str, batch: int) -> Iterator[Any]:
        """The harness's model object; vLLM makes its batches by itself."""
        if who != self._who:
            self._lm = None  # frees the other's memory first
            self._lm, self._who = self._start(who), who
        yield self._lm

    def _start(self, who: str) -> Any:
        from lm_eval.models import vllm_causallms

        lora = adapter_for_vllm(self._adapter) if who == "adapter" else {}
        return vllm_causallms.VLLM(**self._settings, **lora)


def adapter_for_vllm(adapter: Path) -> dict[str, Any]:
    """Arguments that serve a LoRA adapter: vLLM wants the rank rounded up to one that it has kernels for."""
    rank = int(json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"])
    room = next((allowed for allowed in _VLLM_RANKS if allowed >= rank), None)
    if room is None:
        raise ConfigError(f"{adapter}: rank {rank} is more than vLLM's {_VLLM_RANKS[-1]}; use --engine hf")
    return {"lora_local_path": str(adapter), "enable_lora": True, "max_lora_rank": room}


def require_harness(engine: str) -> None:
    """Raise ConfigError, with what to install, unless the harness and `engine` can be imported."""
    try:
        import lm_eval.evaluator
        import lm_eval.tasks  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"benchmarks need lm-evaluation-harness ({error}): pip install 'clusterucb[eval]'"
        ) from None
    if engine == "vllm":
        try:
            import vllm  # noqa: F401
        except ImportError as error:
            raise ConfigError(f"--engine vllm needs vLLM ({error}): pip install 'clusterucb[vllm]'") from None


def stops(variant: Variant, chat: ChatFormat) -> list[str]:
    """What ends an answer: the variant's own strings, and what the chat format ends an answer with."""
    rendered = chat.render([Message("user", "?"), Message("assistant", "!")])
    ((start, end),) = rendered.spans
    ending = rendered.text[start:end].strip().removeprefix("!").strip()
    return [*variant.stop, *([ending] if ending else [])]


def ask(
    lm: Any, task: str, variant: Variant, documents: Sequence[Document], until: Sequence[str], seed: int
) -> list[Answered]:
    """Let the harness ask all `documents` and score the answers, in their order."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    name = f"clusterucb_{task}"
    with tempfile.TemporaryDirectory() as folder, _silent():
        file = Path(folder) / "documents.jsonl"
        file.write_text("".join(json.dumps(d) + "\n" for d in documents), encoding="utf-8")
        settings = {"include": str(TASK_FILES / f"{task}.yaml"), "task": name, **_repeats(variant)}
        (Path(folder) / f"{task}.yaml").write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
        manager = TaskManager(include_path=folder, include_defaults=False, metadata={"documents": str(file)})
        found = simple_evaluate(
            lm,
            tasks=[name],
            task_manager=manager,
            gen_kwargs=None if variant.choices else _generation(variant, until),
            bootstrap_iters=0,
            confirm_run_unsafe_code=True,  # asked of the person before the model was loaded
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
        )
    samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    return [_answered(sample, variant) for sample in samples]


def _generation(variant: Variant, until: Sequence[str]) -> dict[str, Any]:
    settings = {"until": list(until), "max_gen_toks": variant.max_new_tokens}
    if variant.temperature == 0:
        return {**settings, "do_sample": False}
    sampling = {"do_sample": True, "temperature": variant.temperature, "top_p": variant.top_p}
    return {**settings, **sampling}


def _repeats(variant: Variant) -> dict[str, Any]:
    if variant.samples == 1:
        return {}
    keep_all = {"name": "all", "filter": [{"function": "take_first_k", "k": variant.samples}]}
    return {"repeats": variant.samples, "filter_list": [keep_all]}


def _answered(sample: Mapping[str, Any], variant: Variant) -> Answered:
    responses = [score for ((score, _),) in sample["resps"]] if variant.choices else list(sample["resps"][0])
    document = {key: sample["doc"][key] for key in ("id", "subtask")}
    return {**document, "responses": responses, **{metric: sample[metric] for metric in variant.metrics}}


@contextmanager
def _silent() -> Iterator[None]:
    """The harness logs and draws bars on standard error; what is worth knowing is shown by the caller."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)
