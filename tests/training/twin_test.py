"""The PyTorch twin against the float64 oracle, and its packed form against its serving form."""
import glob
import json
import os
import unittest

import torch

from models.training import config as grab_config
from models.training import tensor_file, twin

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CASES = sorted(glob.glob(os.path.join(_ROOT, "tests", "conformance", "grab", "*.safetensors")))
_MICRO = 1_000_000


def _config(raw):
    names = ("d", "heads", "d_head", "layers", "channels", "latent", "ffn", "n_pos", "n_time", "n_act", "window_rows",
             "window_sec", "norm")
    return grab_config.Config(head_hidden=raw["d"], **{name: raw[name] for name in names})


def _load(path):
    tensors, metadata = tensor_file.read_tensors(path)
    config = _config(json.loads(metadata["config"]))
    tensors = {name: torch.from_numpy(value.copy()) for name, value in tensors.items()}
    model = twin.Grab(config, grab_config.layer_shapes(config)).double().eval()
    model.load_weights(tensors)
    inputs = {
        "x_p": [tensors[f"in.x_P.{c}"].double() for c in range(config.channels)],
        "time_us": [tensors[f"in.time.{c}"] * _MICRO for c in range(config.channels)],
        "action": [tensors[f"in.act.{c}"] for c in range(config.channels)],
        "tie": [tensors[f"in.tie.{c}"] for c in range(config.channels)],
        "x_f": tensors["in.x_F"].double(), "now_us": int(tensors["in.now"]) * _MICRO, "tie_f": int(tensors["in.tie_F"]),
    }
    return config, model, tensors, inputs


def packed_logits(config, model, inputs):
    """Every candidate as its own one-target user of a padded batch, with channels padded to odd widths."""
    m = inputs["x_f"].shape[0]
    index, x_p = [], []
    f = {"time_us": torch.full((m, 1), inputs["now_us"]), "tie": torch.full((m, 1), inputs["tie_f"]),
         "valid": torch.ones(m, 1, dtype=torch.bool)}
    for c in range(config.channels):
        n = inputs["x_p"][c].shape[0]
        pad = 3

        def padded(value, fill):  # times repeat the newest, as in shards.Batch
            fill = int(value[-1]) if fill is None and n else fill or 0
            return torch.cat([value, torch.full((pad,), fill, dtype=value.dtype)]).unsqueeze(0).expand(m, n + pad)

        p = {"time_us": padded(inputs["time_us"][c], None), "tie": padded(inputs["tie"][c], -7),
             "action": padded(inputs["action"][c], 0), "closed_us": padded(inputs["time_us"][c], None),
             "valid": padded(torch.ones(n, dtype=torch.bool), False)}
        index.append(twin.PackedIndex(config, p, f))
        rows = torch.cat([inputs["x_p"][c], torch.ones(pad, config.d, dtype=torch.float64)])
        x_p.append(rows.unsqueeze(0).expand(m, n + pad, config.d))
    return model.packed(x_p, inputs["x_f"].unsqueeze(1), index).flatten()


class ConformanceTest(unittest.TestCase):
    # Float64 against float64 on the same float32 inputs: a few thousand roundings of 1e-16 on values near 1.
    tolerance = 1e-11

    def close(self, name, actual, expected):
        self.assertEqual(tuple(actual.shape), tuple(expected.shape), name)
        if expected.numel():
            scale = max(1.0, float(expected.abs().max()))
            self.assertLess(float((actual - expected).abs().max()) / scale, self.tolerance, name)

    def test_all_cases(self):
        self.assertEqual(len(CASES), 14)
        for path in CASES:
            with self.subTest(case=os.path.basename(path)), torch.no_grad():
                config, model, tensors, inputs = _load(path)
                cache, final = model.encode_history(inputs["x_p"], inputs["time_us"], inputs["action"], inputs["tie"])
                for layer, entries in enumerate(cache):
                    for c, (k, v) in enumerate(entries):
                        self.close("k", k.transpose(0, 1), tensors[f"out.k.l{layer}.c{c}"])
                        self.close("v", v.transpose(0, 1), tensors[f"out.v.l{layer}.c{c}"])
                for c, rows in enumerate(final):
                    self.close("P_final", rows, tensors[f"out.P_final.{c}"])
                trace = {}
                logits = model.score(cache, inputs["x_f"], inputs["time_us"], inputs["action"], inputs["tie"],
                                     inputs["now_us"], inputs["tie_f"], trace=trace).flatten()
                for name, value in trace.items():
                    self.close(name, value, tensors[f"out.{name}"])
                self.close("logit", logits, tensors["out.logit"])
                self.close("packed logit", packed_logits(config, model, inputs), tensors["out.logit"])


if __name__ == "__main__":
    unittest.main()
