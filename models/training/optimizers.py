"""Optimisers: AdamW for dense weights, row-wise Adam for embedding tables, and an average of the weights."""
import torch


class RowWiseAdam(torch.optim.Optimizer):
    """Adam with one second moment per row; only rows that received a gradient in a step change.

    `weight_decay` is decoupled and applies to touched rows, so that rare ids are pulled to zero as often as they are
    learned from.
    """

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["steps"] = torch.zeros(p.shape[0], 1, dtype=p.dtype, device=p.device)
                    state["mean"] = torch.zeros_like(p)
                    state["square"] = torch.zeros(p.shape[0], 1, dtype=p.dtype, device=p.device)
                grad = p.grad
                touched = (grad != 0).any(1, keepdim=True).to(p.dtype)
                state["steps"] += touched
                mean, square = state["mean"], state["square"]
                mean += touched * (1 - beta1) * (grad - mean)
                square += touched * (1 - beta2) * (grad.pow(2).mean(1, keepdim=True) - square)
                steps = state["steps"].clamp(min=1)
                corrected = mean / (1 - beta1 ** steps)
                scale = (square / (1 - beta2 ** steps)).sqrt() + group["eps"]
                p -= touched * group["lr"] * (corrected / scale + group["weight_decay"] * p)
        return None


class Average:
    """Exponential moving average of a module's parameters; swap() exchanges it with the live values."""

    def __init__(self, module, decay):
        self.module, self.decay, self.steps = module, decay, 0
        self.values = [p.detach().clone() for p in module.parameters()]

    @torch.no_grad()
    def update(self):
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10.0))
        for value, p in zip(self.values, self.module.parameters()):
            value.lerp_(p.detach(), 1 - decay)

    @torch.no_grad()
    def swap(self):
        for value, p in zip(self.values, self.module.parameters()):
            held = p.detach().clone()
            p.copy_(value)
            value.copy_(held)


def build(model, options):
    """[table optimiser, dense optimiser] of a model; tables are the parameters whose name contains "table"."""
    tables = [p for name, p in model.named_parameters() if "table" in name]
    decayed = [p for name, p in model.named_parameters() if "table" not in name and p.dim() > 1]
    plain = [p for name, p in model.named_parameters() if "table" not in name and p.dim() <= 1]
    optimizers = []
    if tables:
        optimizers.append(RowWiseAdam(tables, lr=options["table_lr"], weight_decay=options["table_decay"]))
    if decayed or plain:
        groups = [{"params": decayed, "weight_decay": options["weight_decay"]}, {"params": plain, "weight_decay": 0.0}]
        optimizers.append(torch.optim.AdamW([g for g in groups if g["params"]], lr=options["lr"], betas=(0.9, 0.99)))
    return optimizers
