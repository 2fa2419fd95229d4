"""The table of data sets."""

from __future__ import annotations

from collections.abc import Mapping

from clusterucb.sources.oasst import FLAT_COLUMNS, TREE_COLUMNS, convert_oasst
from clusterucb.sources.sharegpt import convert_sharegpt
from clusterucb.sources.single_turn import chain_of_thought, instruction, prompt, single_turn, worked_problem
from clusterucb.sources.source import TSV_COLUMNS, Source

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
