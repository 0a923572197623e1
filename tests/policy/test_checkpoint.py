import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from app.core.configs import SamplingSettings
from app.core.errors import Invalid
from app.core.folders import DamagedFolder, verify_folder, write_folder
from app.policy.chat import encode_prompt
from app.policy.checkpoint import PLAIN_TEMPLATE, import_policy, load_policy, save_policy, stop_ids
from app.policy.engine import generate
from app.policy.starter import new_starter


@pytest.fixture
def folder(root, tmp_path):
    """A whole policy that a test may spoil; without a manifest, as a stranger's would be."""
    shutil.copytree(root / "one", tmp_path / "model")
    (tmp_path / "model" / "manifest.json").unlink()
    return tmp_path / "model"


def edit(path, **changes):
    values = json.loads(path.read_text())
    values.update(changes)
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


class Canary:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_what_was_saved_is_what_is_loaded_and_loads_plainly_too(root):
    saved = new_starter("tiny", seed=0)
    loaded = load_policy(root / "one")
    plain = AutoModelForCausalLM.from_pretrained(root / "one")
    for name, tensor in saved.model.state_dict().items():
        assert torch.equal(tensor, loaded.model.state_dict()[name])
        assert torch.equal(tensor, plain.state_dict()[name])
    assert loaded.tokenizer.chat_template == saved.tokenizer.chat_template
    assert AutoTokenizer.from_pretrained(root / "one").pad_token == "<|pad|>"
    assert not loaded.model.training


def test_a_changed_file_is_noticed(root, tmp_path):
    shutil.copytree(root / "one", tmp_path / "copy")
    edit(tmp_path / "copy" / "config.json", rms_norm_eps=0.5)
    with pytest.raises(DamagedFolder, match=r"copy/config\.json"):
        load_policy(tmp_path / "copy")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda f: (f / "chat_template.jinja").unlink(), "no chat template"),
        (lambda f: (f / "config.json").unlink(), r"config\.json cannot be read"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json cannot be read"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights in safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), "cannot be loaded"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "cannot be loaded"),
        (lambda f: (f / "chat_template.jinja").write_text("{{ x"), "chat template refuses"),
        (lambda f: edit(f / "tokenizer_config.json", pad_token="<|end|>"), "pads with its end-of-sequence"),
        (lambda f: edit(f / "tokenizer_config.json", pad_token=None), "cannot pad"),
        (lambda f: edit(f / "tokenizer_config.json", eos_token=None), "no end-of-sequence"),
        (lambda f: edit(f / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"}), "auto_map"),
        (lambda f: edit(f / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tok", None]}), "auto_map"),
        (lambda f: edit(f / "config.json", model_type="no-such-model"), "cannot be loaded"),
        (lambda f: (f / "adapter_config.json").write_text("{}"), "is an adapter"),
    ],
)
def test_a_folder_that_cannot_serve_is_refused_with_the_reason(folder, spoil, message):
    spoil(folder)
    (folder / "evil.py").write_text(f"open({str(folder / 'canary')!r}, 'w')\nclass Model: pass\nclass Tok: pass\n")
    with pytest.raises(Invalid, match=message):
        load_policy(folder)
    assert not (folder / "canary").exists()


def test_weights_that_lack_a_tensor_are_refused_rather_than_made_up(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Invalid, match=r"model\.norm\.weight is missing"):
        load_policy(folder)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(Invalid, match="no model folder nothing"):
        load_policy(tmp_path / "nothing")


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "training_args.bin", "optimizer.pt", "rng_state.pth"]
)
@pytest.mark.parametrize("beside", [True, False], ids=["beside safetensors", "alone"])
def test_a_pickle_never_fires(folder, name, beside):
    canary = folder / "canary"
    (folder / name).write_bytes(pickle.dumps({"x": Canary(canary)}))
    if beside:
        load_policy(folder)
        import_policy(str(folder), folder.parent / "imported")
        assert not (folder.parent / "imported" / name).exists()
    else:
        (folder / "model.safetensors").unlink()
        for attempt in (lambda: load_policy(folder), lambda: import_policy(str(folder), folder.parent / "imported")):
            with pytest.raises(Invalid, match="pickled weights are never loaded"):
                attempt()
        assert not (folder.parent / "imported").exists()
    assert not canary.exists()


@pytest.mark.parametrize("shard", ["pytorch_model.bin", "../elsewhere.safetensors", "/etc/passwd", 7])
def test_an_index_leads_to_safetensors_in_the_same_folder_only(folder, shard):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(Invalid, match="names weights that are not safetensors"):
        load_policy(folder)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(folder):
    policy = load_policy(folder)
    policy.tokenizer.add_tokens(["extra"])
    policy.tokenizer.save_pretrained(folder)
    with pytest.raises(Invalid, match="more than its model knows"):
        load_policy(folder)


# ---- bringing a model in -------------------------------------------------------------------------------------------


@pytest.fixture
def stranger(tmp_path):
    """A base model as many are found: another architecture, no chat template, no padding token."""
    torch.manual_seed(0)
    tokenizer = new_starter("tiny").tokenizer
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=1, n_head=2, eos_token_id=1)
    (tmp_path / "stranger").mkdir()
    save_policy(tmp_path / "stranger", GPT2LMHeadModel(config), tokenizer)
    (tmp_path / "stranger" / "chat_template.jinja").unlink()
    edit(tmp_path / "stranger" / "tokenizer_config.json", pad_token=None)
    return tmp_path / "stranger"


def test_any_causal_model_is_brought_into_our_form(stranger, tmp_path):
    with pytest.raises(Invalid, match="cannot pad"):
        load_policy(stranger)
    manifest = import_policy(str(stranger), tmp_path / "ours")
    assert manifest == dict(verify_folder(tmp_path / "ours"))
    model, tokenizer = load_policy(tmp_path / "ours")
    assert isinstance(model, GPT2LMHeadModel)
    assert tokenizer.chat_template == PLAIN_TEMPLATE
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert model.config.pad_token_id == tokenizer.pad_token_id
    ids = encode_prompt(tokenizer, [{"role": "user", "content": "Hello"}])
    [answer] = generate(model, [ids], [1], SamplingSettings(max_tokens=5), stop_ids(model, tokenizer), 0)
    assert 1 <= len(answer.token_ids) <= 5


def test_padding_with_the_end_of_sequence_is_mended(stranger, tmp_path):
    edit(stranger / "tokenizer_config.json", pad_token="<|end|>")
    import_policy(str(stranger), tmp_path / "ours")
    model, tokenizer = load_policy(tmp_path / "ours")
    assert tokenizer.pad_token_id != tokenizer.eos_token_id == 1
    assert model.get_input_embeddings().weight.shape[0] >= len(tokenizer)


def test_a_model_of_our_own_form_keeps_its_weights_and_template(root, tmp_path):
    import_policy(str(root / "one"), tmp_path / "ours")
    before, after = load_policy(root / "one"), load_policy(tmp_path / "ours")
    assert after.tokenizer.chat_template == before.tokenizer.chat_template
    assert all(torch.equal(t, after.model.state_dict()[n]) for n, t in before.model.state_dict().items())


@pytest.mark.parametrize("source", ["no/such-model", "../..", "not a name", ""])
def test_a_source_that_is_no_model_leaves_nothing_behind(source, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(Invalid):
        import_policy(source, tmp_path / "ours")
    assert not list(tmp_path.iterdir())


def test_every_end_token_of_a_chat_model_stops_it():
    model, tokenizer = new_starter("tiny")
    model.generation_config.eos_token_id = [7, 1]
    assert stop_ids(model, tokenizer) == (1, 7)
    model.generation_config.eos_token_id = None
    assert stop_ids(model, tokenizer) == (1,)


def test_weights_are_loaded_in_the_precision_asked_for(tmp_path):
    model, tokenizer = new_starter("tiny")
    write_folder(tmp_path / "half", lambda partial: save_policy(partial, model.to(torch.bfloat16), tokenizer))
    assert load_policy(tmp_path / "half").model.dtype is torch.float32
    assert load_policy(tmp_path / "half", torch.bfloat16).model.dtype is torch.bfloat16
