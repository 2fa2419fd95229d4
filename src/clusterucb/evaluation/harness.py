"""lm-evaluation-harness, asked with the documents and the task files of this package.

The harness is the extra `eval`; this module is the only one that imports it.

A benchmark's questions as the documents that lm-evaluation-harness asks: each with its whole prompt.

The prompt is made by the chat format and the question that the target is made by, so both show a model
the same text.

What the YAML files beside this one call: documents from a file of ours, and the tasks' own scores.

lm-evaluation-harness loads this file by its path. The documents come as JSON lines, prompts included; their
path is the key `documents` of the harness's metadata.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from clusterucb.data.chat import ChatFormat
from clusterucb.data.rows import Message
from clusterucb.errors import ConfigError
from clusterucb.tasks.task import Question, Task, Variant

TASK_FILES = Path(__file__).parent / "tasks"
Answered = dict[str, Any]
"""id, subtask, responses (texts, or log-likelihoods of the choices), and each metric's value."""
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


class Engine(Protocol):
    """Models that the harness can ask."""

    @property
    def window(self) -> int:
        """Tokens of prompt and answer that the model can hold."""

    def asked(self, who: str, batch: int) -> contextlib.AbstractContextManager[Any]:
        """The harness's model object for `base` or `adapter`, that takes `batch` questions at once."""


class HuggingFace:
    """One transformers model with its adapter, which is not merged but switched off for the base.

    The model's own settings for generation (a repetition penalty, a top-k) are replaced by plain ones: base
    and adapter answer as the benchmark's variant says.
    """

    def __init__(self, model: Any, tokenizer: Any, chat: ChatFormat) -> None:
        self._model = model
        self._tokenizer = copy.deepcopy(tokenizer)  # the harness gives it a padding token where it has none
        self._chat = chat

    @property
    def window(self) -> int:
        """The model's positions."""
        return int(self._lm.max_length)

    @cached_property
    def _lm(self) -> Any:
        from lm_eval.models.huggingface import HFLM
        from transformers import GenerationConfig

        self._model.eval()
        ends = _end_tokens(self._model.generation_config, self._tokenizer, _ending(self._chat))
        plain = GenerationConfig(eos_token_id=ends)
        self._model.generation_config = self._model.get_base_model().generation_config = plain
        # The prompts hold the begin token where the chat format has one.
        with _silent():
            return HFLM(pretrained=self._model, tokenizer=self._tokenizer, add_bos_token=False)

    @contextmanager
    def asked(self, who: str, batch: int) -> Iterator[Any]:
        """The harness's model object, with the adapter on or off."""
        self._lm.batch_size_per_gpu = batch
        with self._model.disable_adapter() if who == "base" else contextlib.nullcontext():
            yield self._lm


class VLLM:
    """One vLLM engine; the adapter goes with a request for it, and the base is asked without."""

    def __init__(self, model: str, adapter: Path, *, dtype: str, seed: int, trust_remote_code: bool) -> None:
        self._settings = {
            "pretrained": model,
            "dtype": dtype,
            "seed": seed,
            "trust_remote_code": trust_remote_code,
            "add_bos_token": False,
            **adapter_for_vllm(adapter),
        }

    @property
    def window(self) -> int:
        """The model's positions."""
        return int(self._lm.max_length)

    @cached_property
    def _lm(self) -> Any:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # its engine is a process of its own
        from lm_eval.models import vllm_causallms

        try:
            with _silent():
                return vllm_causallms.VLLM(**self._settings)
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(
                f"vLLM does not start with {self._settings['pretrained']} ({reason}); try --engine hf"
            ) from error

    @cached_property
    def _request(self) -> Any:
        return self._lm.lora_request

    @contextmanager
    def asked(self, who: str, batch: int) -> Iterator[Any]:
        """The harness's model object; vLLM makes its batches by itself."""
        request = self._request
        self._lm.lora_request = request if who == "adapter" else None
        yield self._lm


def adapter_for_vllm(adapter: Path) -> dict[str, Any]:
    """Arguments that serve a LoRA adapter: vLLM wants the rank rounded up to one that it has kernels for."""
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    if settings.get("peft_type") != "LORA":
        raise ConfigError(f"{adapter}: vLLM runs LoRA adapters only; use --engine hf")
    rank = max(int(settings["r"]), *(settings.get("rank_pattern") or {}).values(), 1)
    room = next((allowed for allowed in _VLLM_RANKS if allowed >= rank), None)
    if room is None:
        raise ConfigError(f"{adapter}: rank {rank} is more than vLLM's {_VLLM_RANKS[-1]}; use --engine hf")
    return {"lora_local_path": str(adapter), "max_lora_rank": room}


def harness_version() -> str:
    """The installed lm-evaluation-harness."""
    return version("lm_eval")


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
    lm: Any, task: str, variant: Variant, documents: Sequence[Document], until: Sequence[str], seed: int
) -> list[Answered]:
    """Let the harness ask all `documents` and score the answers, in their order."""
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager
    from transformers import set_seed

    name = f"clusterucb_{task}"
    with tempfile.TemporaryDirectory() as folder, _silent():
        file = Path(folder) / "documents.jsonl"
        file.write_text("".join(json.dumps(d) + "\n" for d in documents), encoding="utf-8")
        settings = {"include": str(TASK_FILES / f"{task}.yaml"), "task": name, **_settings(variant, until)}
        (Path(folder) / f"{task}.yaml").write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
        manager = TaskManager(include_path=folder, include_defaults=False, metadata={"documents": str(file)})
        load = getattr(manager, "load", None) or manager.load_task_or_group  # before lm-eval 0.4.12
        set_seed(seed)
        found = evaluate(
            lm,
            load([name]),
            bootstrap_iters=0,
            confirm_run_unsafe_code=True,  # asked of the person before the model was loaded
        )
    samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    return [_answered(sample, variant) for sample in samples]


def _settings(variant: Variant, until: Sequence[str]) -> dict[str, Any]:
    """What the variant has instead of the task file's own settings."""
    if variant.choices:
        return {}
    generation = {"until": list(until), "max_gen_toks": variant.max_new_tokens}
    if variant.temperature == 0:
        return {"generation_kwargs": {**generation, "do_sample": False}}
    # Without a top_k of 0, for all tokens, transformers takes 50.
    sampling = {"do_sample": True, "temperature": variant.temperature, "top_p": variant.top_p, "top_k": 0}
    keep_all = {"name": "all", "filter": [{"function": "take_first_k", "k": variant.samples}]}
    return {
        "generation_kwargs": {**generation, **sampling},
        "repeats": variant.samples,
        "filter_list": [keep_all],
    }


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


Document = dict[str, Any]
"""id, subtask, context (the prompt), answer, gold (JSON), choices, label (the right choice's place)."""


def documents(
    task: Task,
    variant: Variant,
    chat: ChatFormat,
    data_dir: Path | None,
    *,
    leave_out: Iterable[str] = (),
    limit: int | None = None,
    seed: int = 0,
) -> tuple[list[Document], list[str]]:
    """At most `limit` questions of each subtask, and the ids of those left out by their digests."""
    unwanted, asked, left_out = set(leave_out), [], []
    for question in task.questions(data_dir, variant.shots):
        if question.digest in unwanted:
            left_out.append(question.id)
        else:
            asked.append(question)
    return [_document(question, variant, chat) for question in drawn(asked, limit, seed)], left_out


def drawn(questions: Sequence[Question], limit: int | None, seed: int) -> list[Question]:
    """At most `limit` questions of each subtask, drawn by `seed`, in their own order."""
    if limit is None:
        return list(questions)
    places: dict[str, list[int]] = {}
    for place, question in enumerate(questions):
        places.setdefault(question.subtask, []).append(place)
    rng = np.random.default_rng(seed)
    kept = [rng.permutation(own)[:limit] for _, own in sorted(places.items())]
    return [questions[i] for i in np.sort(np.concatenate(kept))]


def _document(question: Question, variant: Variant, chat: ChatFormat) -> Document:
    return {
        "id": question.id,
        "subtask": question.subtask,
        "context": chat.prompt([Message("user", question.ask)]) + question.opening,
        "answer": question.answer,
        "gold": json.dumps(question.gold, ensure_ascii=False),
        "choices": list(variant.choices),
        "label": variant.choices.index(question.answer) if variant.choices else -1,
    }
