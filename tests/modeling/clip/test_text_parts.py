"""Many names are encoded in parts, which survive an interruption and are shared by processes."""

import itertools
import logging
import threading

import pytest
import torch

from dcp_clip.modeling.clip import text_encoder, text_parts
from dcp_clip.vocabulary import Vocabulary

KEY = "MODEL.DCP_CLIP.VOCABULARY."
COUNT, PART = 160, 16  # names, and names of a part
MANY = Vocabulary([f"thing {i}" for i in range(COUNT)])
CHUNK = 1


def total(sizes):
    return sum(sizes)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(text_encoder, "_PART_CHUNKS", PART)


@pytest.fixture
def expected(make_encoder):
    return make_encoder(cache="", chunk_size=CHUNK).encode_vocabulary(MANY).embeddings


def interrupt(encoder, after):
    """Raise KeyboardInterrupt after this many prompts."""
    count = itertools.count()

    def stop(*args):
        if next(count) == after:
            raise KeyboardInterrupt

    return encoder.text.transformer.register_forward_pre_hook(stop)


def test_an_interrupted_encoding_continues(make_encoder, count_prompts, tmp_path, expected, caplog):
    encoder = make_encoder(chunk_size=CHUNK)
    interrupt(encoder, 4 * PART + 3)
    with pytest.raises(KeyboardInterrupt):
        encoder.encode_vocabulary(MANY)
    parts = list((tmp_path / "text").iterdir())
    assert len(parts) == 4
    parts[0].write_bytes(b"damaged")
    other = make_encoder(chunk_size=CHUNK)
    with torch.no_grad():
        next(other.text.parameters()).mul_(1.01)
    other_sizes = count_prompts(other)
    other.encode_vocabulary(MANY)  # other weights use none of the parts
    assert total(other_sizes) == COUNT
    again = make_encoder(chunk_size=CHUNK)
    sizes = count_prompts(again)
    assert torch.equal(again.encode_vocabulary(MANY).embeddings, expected)
    assert total(sizes) == COUNT - 3 * PART
    assert str(parts[0]) in caplog.text and len(caplog.records) == 1
    assert len(list((tmp_path / "text").iterdir())) == 2  # one for each vocabulary


def test_a_vocabulary_that_another_process_completes_is_read(
    make_encoder, count_prompts, tmp_path, expected
):
    encoder, other = make_encoder(chunk_size=CHUNK), make_encoder(chunk_size=CHUNK)
    sizes = count_prompts(encoder)
    hook = encoder.text.transformer.register_forward_pre_hook(
        lambda *args: hook.remove() or other.encode_vocabulary(MANY) and None
    )
    assert torch.equal(encoder.encode_vocabulary(MANY).embeddings, expected)
    assert total(sizes) <= PART  # the part that it had begun
    assert len(list((tmp_path / "text").glob("*.pt"))) == 1


def test_two_encoders_share_the_work(make_encoder, count_prompts, tmp_path, expected, caplog):
    encoders = [make_encoder(chunk_size=CHUNK) for _ in range(2)]
    sizes, results = [count_prompts(encoder) for encoder in encoders], [None, None]
    start = threading.Barrier(2)

    def encode(i):
        start.wait()
        results[i] = encoders[i].encode_vocabulary(MANY).embeddings

    threads = [threading.Thread(target=encode, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(result, expected) for result in results)
    assert COUNT <= total(itertools.chain(*sizes)) < 2 * COUNT
    assert not caplog.text and list((tmp_path / "text").glob("*.pt"))
    again = make_encoder(chunk_size=CHUNK)
    sizes = count_prompts(again)
    assert torch.equal(again.encode_vocabulary(MANY).embeddings, expected) and not sizes


def test_a_file_that_cannot_be_used_does_not_stop_the_encoding(
    make_encoder, tmp_path, expected, caplog
):
    make_encoder(chunk_size=CHUNK).encode_vocabulary(MANY)
    (path,) = (tmp_path / "text").iterdir()
    path.write_bytes(b"damaged")
    again = make_encoder(chunk_size=CHUNK)
    assert torch.equal(again.encode_vocabulary(MANY).embeddings, expected)
    assert caplog.text.count("cannot be used") == 1
    assert list((tmp_path / "text").iterdir()) == [path] and path.stat().st_size > COUNT * 48 * 4


@pytest.mark.parametrize("pooling", ["mean", "max", "first"])
def test_each_name_is_encoded_once(make_encoder, count_prompts, pooling):
    groups = [["car", "auto"], ["bat"], ["bat", "animal"], ["auto", "automobile"]]
    encoder = make_encoder(opts={KEY + "SYNONYM_POOLING": pooling}, cache="", chunk_size=CHUNK)
    sizes = count_prompts(encoder)
    shared = encoder.encode_vocabulary(Vocabulary(groups))
    assert total(sizes) == {"mean": 5, "max": 5, "first": 3}[pooling]
    for i, group in enumerate(groups):
        alone = encoder.encode_vocabulary(Vocabulary([group]))
        rows, own = shared.category_rows[i], alone.category_rows[0]
        assert torch.equal(shared.embeddings[rows.unique()], alone.embeddings[own.unique()])


def test_many_names_with_many_templates_give_an_estimate(
    make_encoder, tmp_path, caplog, monkeypatch
):
    path = tmp_path / "templates.txt"
    path.write_text("a {}.\nthe {}.\n")
    clock = itertools.count(step=10)  # seconds
    monkeypatch.setattr(text_parts.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(text_parts, "_ADVICE_FROM", 100)
    many = make_encoder(opts={KEY + "TEMPLATES": str(path)}, chunk_size=16)
    one = make_encoder(chunk_size=16)
    with caplog.at_level(logging.WARNING):
        many.encode_vocabulary(Vocabulary([f"thing {i}" for i in range(100)]))
        one.encode_vocabulary(Vocabulary([f"thing {i}" for i in range(256)]))
        assert not caplog.records
        many.encode_vocabulary(Vocabulary([f"thing {i}" for i in range(256)]))
    (record,) = caplog.records
    # A part has 128 names in both templates, which take 10 seconds.
    assert record.message.startswith(
        "256 names in 2 templates are 512 prompts, which take about 0:00:20 (h:mm:ss) at the "
        "speed of the first ones; with one template, 256 prompts would take about 0:00:10."
    )
    assert "TEMPLATES to 'single'" in record.message
