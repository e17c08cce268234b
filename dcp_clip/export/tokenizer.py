"""Write CLIP's tokenizer as a plain file that the package ``tokenizers`` reads."""

from __future__ import annotations

from open_clip.tokenizer import SimpleTokenizer

__all__ = ["tokenizer_json"]

# The words of open_clip's SimpleTokenizer.
_WORDS = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def tokenizer_json(tokenizer: SimpleTokenizer) -> str:
    """Return the content of ``tokenizer.json``, the format of Hugging Face's tokenizers.

    It splits, encodes and adds the tokens for the start and the end of text. The runtime corrects
    the text first, as open_clip does, see :mod:`dcp_clip.runtime.text`.
    """
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    model = models.BPE(
        vocab=tokenizer.encoder, merges=list(tokenizer.bpe_ranks), end_of_word_suffix="</w>"
    )
    result = Tokenizer(model)
    ends = [(tokenizer.decoder[i], i) for i in (tokenizer.sot_token_id, tokenizer.eot_token_id)]
    result.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    result.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    result.add_special_tokens([AddedToken(text, special=True) for text, _ in ends])
    start, end = (text for text, _ in ends)
    result.post_processor = processors.TemplateProcessing(f"{start} $A {end}", special_tokens=ends)
    return result.to_str(pretty=True)
