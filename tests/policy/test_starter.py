import torch

from app.policy.checkpoint import load_policy
from app.policy.grammar import letters
from app.policy.starter import make_starter, new_starter
from app.policy.tokenizer_build import build_tokenizer


def test_a_standard_starter_has_a_good_million_parameters():
    model = new_starter("standard").model
    assert 1_000_000 <= model.num_parameters() <= 1_700_000
    assert model.config.tie_word_embeddings


def test_the_same_seed_makes_the_same_starter_and_draws_nothing_from_the_callers_generator():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, other = (new_starter("tiny", seed).model.state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert not all(torch.equal(first[n], other[n]) for n in first)


def test_a_starter_on_disk_loads(tmp_path):
    make_starter(tmp_path, "tiny")
    model, tokenizer = load_policy(tmp_path)
    assert len(tokenizer) == model.config.vocab_size


def test_words_are_whole_digits_are_single_and_letters_fit():
    tokenizer = new_starter("tiny").tokenizer
    ids = [tokenizer(reply, add_special_tokens=False).input_ids for _, reply in letters(5, 500)]
    words = sum(len(reply.split()) for _, reply in letters(5, 500))
    assert max(map(len, ids)) <= 90
    assert sum(map(len, ids)) < 1.4 * words
    assert tokenizer.tokenize("4821") == ["4", "8", "2", "1"]
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_a_tokenizer_of_few_texts_still_encodes_everything():
    tokenizer = build_tokenizer(["only this"], vocabulary=300)
    text = "Ærøskøbing 漢字 \x00 12"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
