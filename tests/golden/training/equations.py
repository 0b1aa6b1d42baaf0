"""Losses of papers that no installable package implements, written out in torch: plain loops, no tricks.

Each function returns (codes [B, S], reconstruction [B, D], loss []).  Parameters have the names and shapes of jaxsae:
W_enc [D, S], W_dec [S, D], b_enc [S], b_dec [D].
"""

import torch


def pre_activations(x, p):
    return (x - p["b_dec"]) @ p["W_enc"] + p["b_enc"]


def largest(a, k):
    """A copy of a vector with all but its k largest entries set to 0."""
    out = torch.zeros_like(a)
    if k > 0:
        index = torch.topk(a, k).indices
        out[index] = a[index]
    return out


def squared(e):
    return (e**2).sum(-1)


def dead_residual(x, p, recon, dead, k_aux):
    """sum over rows of |e - e_hat|^2 and the detached e; e_hat decodes the k_aux best dead latents without a bias."""
    e = (x - recon).detach()
    pre = pre_activations(x, p)
    total = 0.0
    for row in range(len(x)):
        own = torch.where(dead, pre[row], torch.full_like(pre[row], -torch.inf))
        index = torch.topk(own, min(k_aux, int(dead.sum()))).indices
        e_hat = torch.relu(pre[row][index]) @ p["W_dec"][index]
        total = total + squared(e[row] - e_hat)
    return total, e


def msae(x, p, dead, counts, weights, cap):
    """2502.20578: L = sum_i a_i mean_B |x - xhat_i|^2 / |x - mean|^2 / sum_i a_i, z_i = cap(relu(TopK_{k_i}(pre)))."""
    pre, loss = pre_activations(x, p), 0.0
    for k, weight in zip(counts, weights, strict=True):
        z = torch.stack([torch.relu(largest(row, k)) for row in pre])
        z = z if cap is None else cap * torch.tanh(z / cap)
        recon = z @ p["W_dec"] + p["b_dec"]
        loss = loss + weight * (squared(x - recon) / squared(x - x.mean(0))).mean()
    return z, recon, loss / sum(weights)


def adaptive_k(x, p, dead, k_min, k_max, l1, k_aux, aux):
    """2508.17320: k(x) = round(k_min + sigmoid(6 (c(x)/10 - 1/2)) (k_max - k_min)), c(x) = clamp(x . w + b, 0, 10).

    L = mean |x - xhat|^2 + l1 mean|z|_1 / mean|x| + aux AuxK (normalised by the variance of the residual).
    """
    pre, codes = pre_activations(x, p), []
    for row, a in zip(x, pre, strict=True):
        complexity = float(torch.clamp(row @ p["probe_w"] + p["probe_b"], 0, 10))
        share = 1 / (1 + torch.exp(torch.tensor(-6 * (complexity / 10 - 0.5), dtype=x.dtype)))
        codes.append(torch.relu(largest(a, int(torch.round(k_min + share * (k_max - k_min))))))
    z = torch.stack(codes)
    recon = z @ p["W_dec"] + p["b_dec"]
    total, e = dead_residual(x, p, recon, dead, k_aux)
    loss = squared(x - recon).mean() + l1 * z.sum(-1).mean() / torch.sqrt(squared(x)).mean()
    return z, recon, loss + aux * total / squared(e - e.mean(0)).sum()


def ortsae(x, p, dead, k, gamma, order, chunks, k_aux, aux):
    """2509.22033: BatchTopK's loss + gamma mean over atoms of (max_{j != i in its chunk} cos(d_i, d_j))^2."""
    a = torch.relu(pre_activations(x, p))
    z = largest(a.flatten(), int(k * len(x))).reshape(a.shape)
    recon = z @ p["W_dec"] + p["b_dec"]
    total, _ = dead_residual(x, p, recon, dead, k_aux)
    penalty = 0.0
    for chunk in torch.tensor(order).reshape(chunks, -1).tolist():
        for i in chunk:
            d = p["W_dec"]
            cosines = [d[i] @ d[j] / (d[i].norm() * d[j].norm()) for j in chunk if j != i]
            penalty = penalty + torch.stack(cosines).max() ** 2
    loss = squared(x - recon).mean() + aux * total / len(x) + gamma * penalty / len(p["W_dec"])
    return z, recon, loss
