"""`corpora` and `prepare`: what a study can train on."""

from __future__ import annotations

from rich.table import Table

from hpstudy.cli.common import out, say
from hpstudy.data.corpus import list_corpora
from hpstudy.data.corpus import prepare as prepare_corpus


def corpora() -> None:
    """Lists what a study's `corpus` may be."""
    table = Table("corpus", "here", "tokens", "what", box=None, header_style="dim")
    for corpus in list_corpora():
        tokens = f"{corpus.tokens:,}" if corpus.tokens else "-"
        table.add_row(corpus.name, "yes" if corpus.available else "no", tokens, corpus.description)
    out().print(table)


def prepare(corpus: str, tokenizer: str, shards: int) -> None:
    """Tokenizes or downloads a corpus, and prints the paths of its shards."""
    say(f"preparing {corpus} for {tokenizer}")
    if corpus.startswith("text:"):
        between = "<|endoftext|>" if tokenizer == "gpt2" else "a blank line"
        say(f"each file, line of .jsonl and row of .parquet is a document; {between} comes between documents")
    for path in prepare_corpus(corpus, tokenizer, num_shards=shards):
        out().print(str(path), soft_wrap=True)
