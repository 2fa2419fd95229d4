"""The table of data sets, and the readers of those whose row is one question and one answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from clusterucb.data.rows import Message
from clusterucb.sources.oasst import FLAT_COLUMNS, TREE_COLUMNS, convert_oasst
from clusterucb.sources.sharegpt import convert_sharegpt
from clusterucb.sources.source import TSV_COLUMNS, Conversation, Converter, Item, RawRows, Source, raw_text
from clusterucb.tasks.gsm8k import worked_answer

_Row = Mapping[str, Any]
_Pair = tuple[str, str] | str
_SENTENCE_END = (".", "!", "?")
# Line breaks are spelled backslash-n in FLAN's TSV files, a few of them with the backslash doubled.
_SPELLED_BREAK = re.compile(r"\\+n")


def single_turn(read: Callable[[_Row, str], _Pair]) -> Converter:
    """The converter whose rows are what `read` makes of a raw row: (user's text, assistant's text).

    The key is the row's number from 0, with dropped rows counted, as open-instruct numbers them.
    """

    def convert(rows: RawRows) -> Iterator[Item]:
        for number, (record, where) in enumerate(rows):
            pair = read(record, where)
            yield pair if isinstance(pair, str) else _conversation(number, *pair)

    return convert


def instruction(context: str, response: str) -> Callable[[_Row, str], _Pair]:
    """Reader of Alpaca's shape; `context` and `response` are the names of its two other columns.

    open-instruct draws one of several templates at random for each row. Here the user's text is always
    the instruction, then an empty line and the context if there is one: the same file each time.
    """

    def read(record: _Row, where: str) -> _Pair:
        asked = raw_text(record, "instruction", where).strip()
        given = raw_text(record, context, where).strip()
        if not asked:
            return "empty instruction"
        return f"{asked}\n\n{given}" if given else asked, raw_text(record, response, where).strip()

    return read


def prompt(record: _Row, where: str) -> _Pair:
    """Reader of FLAN's finished prompts, `inputs` and `targets`; a target stays as it is."""
    return raw_text(record, "inputs", where).strip(), raw_text(record, "targets", where)


def chain_of_thought(record: _Row, where: str) -> _Pair:
    """Reader of both forms of FLAN's CoT part: finished prompts, or question, answer and rationale.

    Of the latter the assistant says the rationale, then "So the answer is ANSWER.": on the same line
    after a single line that ends as a sentence does, else (most sums of AQuA) on a line of its own.
    """
    if "rationale" not in record:
        return prompt(record, where)
    question, answer, rationale = (
        _SPELLED_BREAK.sub("\n", raw_text(record, column, where)).strip()
        for column in ("inputs", "answer", "rationale")
    )
    if not answer or not rationale:
        return "empty rationale" if answer else "empty answer"
    one_sentence_more = "\n" not in rationale and rationale.endswith(_SENTENCE_END)
    ending = f"So the answer is {answer.removesuffix('.')}."
    return question, f"{rationale}{' ' if one_sentence_more else chr(10)}{ending}"


def worked_problem(record: _Row, where: str) -> _Pair:
    """Reader of GSM8K, its answers as `worked_answer` writes them."""
    answer = raw_text(record, "answer", where)
    if not answer.strip():
        return "empty output"
    try:
        return raw_text(record, "question", where).strip(), worked_answer(answer)
    except ValueError:
        return "no final answer"


def _conversation(number: int, asked: str, answered: str) -> Item:
    if not asked.strip():
        return "empty instruction"
    if not answered.strip():
        return "empty output"
    return Conversation(str(number), (Message("user", asked), Message("assistant", answered)))


_ALPACA = ("instruction", "input", "output")
_PROMPT = ("inputs", "targets")
_TULU_FILES = "https://huggingface.co/datasets/hamishivi/tulu_mix_store"
_FLAN_TABLES = "https://github.com/google-research/FLAN/tree/main/flan/v2/cot_data"

_ALL = (
    Source(
        name="flan_v2",
        title="Flan v2, open-instruct's sample of 100,000 rows",
        licence="Apache-2.0",
        url=_TULU_FILES,
        # The whole collection (SirNeural/flan_v2) is over 100 GB: this is the sample that the papers use.
        hub="hub:hamishivi/tulu_mix_store",
        hub_files=("flan_v2_resampled_100k.jsonl",),
        layouts=(("tulu_v1_resampled_flan_100k.jsonl",), ("flan_v2_resampled_100k.jsonl",)),
        columns=(_PROMPT,),
        convert=single_turn(prompt),
    ),
    Source(
        name="cot",
        title="The chain-of-thought part of Flan v2",
        licence="Apache-2.0",
        url=f"{_TULU_FILES} (.jsonl) or {_FLAN_TABLES} (.tsv)",
        hub="hub:hamishivi/tulu_mix_store",
        hub_files=("cot_zsopt.jsonl", "cot_fsopt.jsonl"),
        layouts=(
            ("cot_zsopt.jsonl", "cot_fsopt.jsonl"),
            ("cot_zs_opt_train.jsonl", "cot_fs_opt_train.jsonl"),
            ("*_train.tsv",),
        ),
        columns=(_PROMPT, TSV_COLUMNS),
        convert=single_turn(chain_of_thought),
    ),
    Source(
        name="dolly",
        title="Databricks Dolly 15k",
        licence="CC BY-SA 3.0",
        url="https://huggingface.co/datasets/databricks/databricks-dolly-15k",
        hub="hub:databricks/databricks-dolly-15k",
        layouts=(("databricks-dolly-15k.jsonl",),),
        columns=(("instruction", "context", "response"),),
        convert=single_turn(instruction("context", "response")),
    ),
    Source(
        name="oasst1",
        title="OpenAssistant Conversations",
        licence="Apache-2.0",
        url="https://huggingface.co/datasets/OpenAssistant/oasst1",
        # As a table the hub has it cut into train and validation; the papers take all trees.
        hub="hub:OpenAssistant/oasst1",
        hub_files=("2023-04-12_oasst_ready.trees.jsonl.gz",),
        layouts=(("*_oasst_ready.trees.jsonl",), ("*_oasst_ready.messages.jsonl",)),
        columns=(TREE_COLUMNS, FLAT_COLUMNS),
        convert=convert_oasst,
    ),
    Source(
        name="gpt4_alpaca",
        title="Alpaca's instructions answered by GPT-4",
        licence="CC BY-NC 4.0",
        url="https://github.com/Instruction-Tuning-with-GPT-4/GPT-4-LLM",
        hub="hub:vicgalle/alpaca-gpt4",
        layouts=(("alpaca_gpt4_data.json",),),
        columns=(_ALPACA,),
        convert=single_turn(instruction("input", "output")),
    ),
    Source(
        name="sharegpt",
        title="Chats that people shared on ShareGPT",
        licence="Apache-2.0 as its page says; the chats are their authors'",
        url="https://huggingface.co/datasets/anon8231489123/ShareGPT_Vicuna_unfiltered",
        hub="hub:anon8231489123/ShareGPT_Vicuna_unfiltered",
        hub_files=("ShareGPT_V3_unfiltered_cleaned_split.json",),
        layouts=(
            ("sharegpt_html_cleaned_and_split_2048.json",),
            ("ShareGPT_V3_unfiltered_cleaned_split.json",),
            ("ShareGPT_V3_unfiltered_cleaned_split_no_imsorry.json",),
            ("sg_90k_part1_html_cleaned.json", "sg_90k_part2_html_cleaned.json"),
        ),
        columns=(("conversations",),),
        convert=convert_sharegpt,
    ),
    Source(
        name="gsm8k",
        title="Grade School Math 8K, train",
        licence="MIT",
        url="https://github.com/openai/grade-school-math",
        hub="hub:openai/gsm8k:main:train",
        layouts=(("train.jsonl",),),
        columns=(("question", "answer"),),
        convert=single_turn(worked_problem),
    ),
    Source(
        name="code_alpaca",
        title="Code Alpaca",
        licence="CC BY-NC 4.0",
        url="https://github.com/sahil280114/codealpaca",
        hub="hub:sahil2801/CodeAlpaca-20k",
        layouts=(("code_alpaca_20k.json",), ("code_alpaca_2k.json",)),
        columns=(_ALPACA,),
        convert=single_turn(instruction("input", "output")),
    ),
)

SOURCES: Mapping[str, Source] = {source.name: source for source in _ALL}
"""The data sets of LESS and ClusterUCB by name."""
